"""Rows in blocks, on several devices, in several processes: the same trajectory, and no copy of the features."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import with_devices

import ufm
import ufm.model.devices
from ufm.model.devices import choose_layout
from ufm.model.objective import to_point, to_variables
from ufm.model.stack import Stack, build_objective, random_start, scaling
from ufm.solvers import batch, compiled
from ufm.solvers.accelerated import Accelerated
from ufm.solvers.compiled import advance, begin, check_rows, units_of

PROBLEM = ufm.Problem([37, 20, 11, 5], 6, 5e-3, 1e-4)
FAMILY = {
    "nonnegative": PROBLEM,
    "free": PROBLEM.replace(features="free"),
    "bias": PROBLEM.replace(bias=0.01),
    "free bias": PROBLEM.replace(features="free", bias=0.0),
    "many classes": ufm.Problem([3] * 12, 14, 5e-3, 1e-4),
    "many dimensions": PROBLEM.replace(dim=16),
}
#: The others differ in the feature set, the bias, and the route to the bend (`row_pass`).
EVERYDAY = ("free bias",)


def after(problem, layout, steps=25):
    """Return where some steps of the default rule lead, in rounds of two and one left over if in blocks."""
    rule, scales = Accelerated(), scaling(problem, "sample", "balanced")
    with jax.enable_x64(True):
        objective = build_objective(problem, "sample", "balanced", "float64", layout)
        point = to_point(random_start(problem, "sample", 0), scales, "float64", layout)
        state = begin(rule, objective, point, jnp.ones(()))
        return to_variables(rule.point(advance(rule, objective, state, steps)), scales)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERYDAY else pytest.mark.slow) for name in FAMILY]
)
def test_blocks_do_not_change_the_trajectory(name, monkeypatch):
    """Rows at once keep feature slopes, rows in blocks keep logit residuals: two routes to the same steps."""
    problem = FAMILY[name]
    monkeypatch.setattr(
        ufm.model.devices, "CACHED_BYTES", 6 * 8 * 5
    )  # blocks of a few rows, the last part empty
    layout = choose_layout(problem.num_samples, problem.dim, 8)
    assert layout.blocks > 5
    assert layout.rows > problem.num_samples
    for one, other in zip(after(problem, None), after(problem, layout), strict=True):
        if one is not None:
            np.testing.assert_allclose(other, one, rtol=1e-7, atol=1e-9 * np.abs(one).max())


@pytest.mark.parametrize("name", FAMILY)
def test_the_device_sees_at_a_look_what_the_certificate_sees(name, monkeypatch):
    """Residual and objective from sums over blocks of rows, the polar estimate from all rows at once."""
    problem, scales = FAMILY[name], scaling(FAMILY[name], "sample", "balanced")
    monkeypatch.setattr(ufm.model.devices, "CACHED_BYTES", 6 * 8 * 5)
    layout = choose_layout(problem.num_samples, problem.dim, 8)
    variables = after(problem, layout)
    stack = Stack([problem], "sample")
    units = jax.tree.map(lambda part: part[0], units_of(stack, stack.scaling("balanced"), "float64"))
    with jax.enable_x64(True):
        in_blocks, at_once = (
            [
                float(part)
                for part in check(
                    build_objective(problem, "sample", "balanced", "float64", where),
                    to_point(variables, scales, "float64", where),
                    units,
                )
            ]
            for check, where in ((check_rows, layout), (compiled.check, None))
        )
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    certificate = ufm.certify(problem, variables.weight, variables.features, labels, bias=variables.bias)
    np.testing.assert_allclose(in_blocks[:2], [certificate.objective, certificate.residual], rtol=1e-9)
    np.testing.assert_allclose(in_blocks, at_once, rtol=1e-9)


def test_padding_is_even_and_bounded():
    for rows in (1, 7, 1000, 12_345):
        layout = choose_layout(rows, 512, 8)
        assert rows <= layout.rows < rows + layout.blocks * layout.mesh.size


def test_rows_larger_than_a_cache_are_not_padded():
    assert choose_layout(100, 10**6, 8, jax.devices()[:1]).rows == 100


IN_PLACE = textwrap.dedent(
    """
    import json
    import jax, jax.numpy as jnp
    import ufm
    from ufm.model.devices import choose_layout
    from ufm.model.objective import to_point
    from ufm.model.stack import build_objective, scaling
    from ufm.solvers.compiled import advance_rounds, begin
    from ufm.model.stack import random_start

    problem, rule = ufm.Problem([600, 300, 100], 2048, 5e-3, 1e-4), ufm.Accelerated()
    with jax.enable_x64(True):
        layout = choose_layout(problem.num_samples, problem.dim, 8)
        objective = build_objective(problem, "sample", "balanced", "float64", layout)
        start = random_start(problem, "sample", 0)
        point = to_point(start, scaling(problem, "sample", "balanced"), "float64", layout)
        size = point.features.nbytes
        state = begin(rule, objective, point, jnp.ones(()))
        memory = advance_rounds.lower(rule, objective, state, 1, 2).compile().memory_analysis()
    print(json.dumps({
        "blocks": layout.blocks,
        "arguments": memory.argument_size_in_bytes / size,
        "in place": memory.alias_size_in_bytes / size,
        "temporary": memory.temp_size_in_bytes / size,
    }))
    """
)


@pytest.mark.slow
def test_a_step_works_in_place():
    """Two feature buffers, changed in place, and temporaries of a few blocks: XLA copies neither."""
    done = subprocess.run([sys.executable, "-c", IN_PLACE], capture_output=True, text=True, check=True)
    memory = json.loads(done.stdout)
    assert memory["blocks"] >= 8
    assert memory["arguments"] <= 2.1
    assert memory["in place"] >= 1.99
    assert memory["temporary"] <= 8 / memory["blocks"]


COURSE = textwrap.dedent(
    """
    import json, sys
    import jax, numpy as np
    import ufm
    from ufm.model.processes import is_first_process, join_processes
    from ufm.solvers.compiled import advance_rounds

    if len(sys.argv) > 2:
        join_processes(sys.argv[2], 2, int(sys.argv[3]))
    problem = ufm.Problem([37, 20, 11, 5], 6, 5e-3, 1e-4)
    solution = ufm.solve(problem, level="sample", checkpoint=sys.argv[1] or None, checkpoint_every=1e-9)
    mean = solution.features[solution.labels == 0].mean(axis=0)
    if is_first_process():
        print(json.dumps({
            "devices": len(jax.devices()), "processes": jax.process_count(), "status": str(solution.status),
            "objectives": [record["objective"] for record in solution.history], "mean": mean.tolist(),
            "programs": advance_rounds._cache_size(),
        }))
    """
)


def course(*arguments, devices=1):
    command = [sys.executable, "-W", "error", "-c", COURSE, *map(str, arguments)]
    return subprocess.Popen(
        command, env=with_devices(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    lines = [line for line in out.splitlines() if line.startswith("{")]  # Gloo writes to stdout, too
    return json.loads(lines[0]) if lines else None


def assert_same_course(one, other):
    assert one["status"] == other["status"] == "certified"
    shared = min(
        len(one["objectives"]), len(other["objectives"]), 4
    )  # later ones differ by rounding, amplified
    np.testing.assert_allclose(one["objectives"][:shared], other["objectives"][:shared], rtol=1e-9)
    np.testing.assert_allclose(one["objectives"][-1], other["objectives"][-1], rtol=1e-12)


@pytest.fixture(scope="module")
def of_one():
    """The course of one device."""
    return result(course(""))


@pytest.mark.slow  # every day a sweep does, in `test_sweep_parallel`
def test_four_devices_take_the_course_of_one(of_one):
    four = result(course("", devices=4))
    assert (of_one["devices"], four["devices"]) == (1, 4)
    assert (of_one["programs"], four["programs"]) == (
        1,
        1,
    )  # what a start looks like on a mesh, a step leaves
    assert_same_course(of_one, four)


CORES = """
import json, sys
from ufm.model.devices import use_all_cores
print(json.dumps([use_all_cores(*map(int, sys.argv[1:])), use_all_cores(10**6, 512)]))
"""


@pytest.mark.parametrize(
    ("size", "environment", "expected"),
    [
        ((10**6, 512), {}, None),
        ((100, 10), {}, 1),
        pytest.param((10**6, 512), {"JAX_NUM_CPU_DEVICES": "3"}, 3, marks=pytest.mark.slow),
        pytest.param(
            (10**6, 512),
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
            3,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_core_becomes_a_device_where_that_pays_and_nobody_chose(size, environment, expected):
    inherited = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    command = [sys.executable, "-W", "error", "-c", CORES, *map(str, size)]
    found = subprocess.run(
        command, env=inherited | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, check=True
    )
    expected = len(os.sched_getaffinity(0)) if expected is None else expected
    assert json.loads(found.stdout) == [expected, expected]  # the second call comes too late


@pytest.mark.slow
def test_two_processes_take_the_course_of_one(of_one, tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    both = [course(tmp_path / "run.npz", address, number, devices=2) for number in (0, 1)]
    two, nothing = (result(process) for process in both)
    assert nothing is None
    assert (two["devices"], two["processes"]) == (4, 2)
    assert_same_course(of_one, two)
    assert (tmp_path / "run.npz").exists()


@pytest.mark.slow
def test_the_command_line_joins_processes_and_only_the_first_one_speaks(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "ufm", "solve"]
    command += ["--counts", "30,20,10", "--dim", "5", "--level", "sample"]
    command += [
        "--json",
        "--figure",
        "None",
        "--distributed",
        "--coordinator",
        address,
        "--num-processes",
        "2",
    ]
    both = [
        subprocess.Popen(
            [*command, "--process-id", str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for number in (0, 1)
    ]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert json.loads(outputs[0][0])["status"] == "certified"
    assert outputs[1][0] == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_host_gives_up_its_features_before_the_device_makes_its_own(monkeypatch):
    """What keeps the peak of a whole solve below four times the features."""
    kept, at_begin, first_start = [], [], batch._start

    def watched_start(*arguments):
        start = first_start(*arguments)
        kept.append(weakref.ref(start.features))
        return start

    def watched_begin(*arguments):
        at_begin.append([reference() is not None for reference in kept])
        return begin(*arguments)

    monkeypatch.setattr(batch, "_start", watched_start)
    monkeypatch.setattr(batch, "begin", watched_begin)
    ufm.solve(PROBLEM, level="sample", max_steps=2)
    assert at_begin == [[False]]
