"""Every compiled function is ready for accelerators: exported for them, with nothing slow or refused there."""

import collections
import dataclasses
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import with_devices

import ufm
from ufm.model import devices
from ufm.model.objective import to_point
from ufm.model.stack import build_objective, random_start, scaling
from ufm.solvers import batch, compiled
from ufm.solvers.compiled import advance_rounds, begin

PLATFORMS = ("cuda", "tpu")
FUNCTIONS = [name for name, part in vars(compiled).items() if isinstance(part, type(compiled.begin))]
PROBLEM = ufm.Problem([30, 20, 20], 6, 1e-2, 1e-3, bias=1e-2)
FREE = ufm.Problem([30, 20, 20], 6, 1e-2, 1e-3, features="free")
BATCH = {"counts": "30x2,20x2", "dim": 6}
WEIGHTS = {"nuclear_weight": np.geomspace(1e-3, 1e-2, 40).tolist()}


def shapes(tree):
    """The arguments of a call without their numbers."""

    def shape(part):
        if not hasattr(part, "shape"):
            return part
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=getattr(part, "sharding", None))

    return jax.tree.map(shape, tree)


def solve_all(precision):
    """Do everything that is compiled: one at a time at every level, and a batch."""
    tol = {"float32": 1e-5, "float64": 1e-8}[precision]
    for problem in (PROBLEM, FREE):
        for level in ("class", "group", "sample"):
            where = {"devices": jax.devices()} if level == "sample" else {}
            yield (
                level,
                lambda p=problem, at=level, where=where: ufm.solve(
                    p, level=at, precision=precision, tol=tol, **where
                ),
            )
    yield "batch", lambda: ufm.sweep(BATCH | {"precision": precision, "tol": tol}, WEIGHTS)


@pytest.fixture(scope="module", params=["float32", "float64"])
def programs(request):
    """(level, function, number) -> the program for all platforms, of every call in one precision."""
    calls, where = {}, []
    with pytest.MonkeyPatch.context() as patch:

        def watched(function, name):
            def call(*arguments):
                signature = str(jax.tree.structure(arguments))
                calls.setdefault((where[-1], name, signature), (function, shapes(arguments)))
                return function(*arguments)

            call.eval_shape = function.eval_shape
            return call

        # several blocks of several rows, as on an accelerator
        patch.setattr(devices, "CACHED_BYTES", 2**9)
        for module, names in ((batch, FUNCTIONS), (compiled, FUNCTIONS)):
            for name in names:
                if hasattr(module, name):
                    patch.setattr(module, name, watched(getattr(module, name), name))
        for level, solve in solve_all(request.param):
            where.append(level)
            solve()
    found = {}
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        for number, ((level, name, _), (function, arguments)) in enumerate(calls.items()):
            exported = jax.export.export(function, platforms=PLATFORMS)(*arguments)
            found[level, name, number] = exported.mlir_module()
    return request.param, found


def values(program):
    """The types of all values of a program, those of constants in its attributes left out."""
    stripped = re.sub(r"(dense<[^>]*>|array<[^>]*>) : tensor<[^>]*>", "", program)
    return collections.Counter(re.findall(r"tensor<([^>]*)>", stripped))


@pytest.mark.slow
def test_every_compiled_function_is_exported(programs):
    _, found = programs
    seen = {name for _, name, _ in found}
    assert seen >= {*FUNCTIONS} - {"begin_many"}, seen  # that one is a part of begin_some
    assert {level for level, *_ in found} == {"class", "group", "sample", "batch"}


@pytest.mark.slow
def test_rows_and_members_are_dealt_out_over_all_devices(programs):
    """Over a mesh, and only sums travel between its devices."""
    devices = len(jax.devices())
    for (level, name, _), program in programs[1].items():
        if name == "begin_many":
            continue  # only its shapes are asked for
        partitions = devices if level in ("sample", "batch") else 1
        assert f"mhlo.num_partitions = {partitions} : i32" in program, (level, name)
        for word in ("all_gather", "all_to_all", "collective_permute"):
            assert word not in program, (level, name, word)


@pytest.mark.slow
def test_programs_for_a_mesh_keep_every_promise(tmp_path):
    """The other tests of exported programs in this file, with four devices."""
    if len(jax.devices()) > 1:
        pytest.skip("this is the run with many devices")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-m",
            "slow",
            "-k",
            "programs or exported or dealt",
            __file__,
        ],
        env=with_devices(4),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_programs_are_small_in_numbers(programs):
    """64 bits only where they were asked for, and in no array of integers at all; every shape is known."""
    precision, found = programs
    for key, program in found.items():
        for kind in values(program):
            assert "?" not in kind, key
            assert key[1] == "take" or not re.search(r"xu?i64$", kind), (
                key,
                kind,
            )  # that one is told members
            if precision == "float32":
                assert not kind.endswith(("i64", "f64")), (key, kind)


@pytest.mark.slow
def test_programs_need_no_host_no_lapack_and_no_gathers(programs):
    """Members of a batch are gathered between chunks (`take`), rows never."""
    _, found = programs
    for key, program in found.items():
        calls = set(re.findall(r"custom_call @([\w.]+)", program))
        assert calls <= {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}, key
        for word in ("callback", "infeed", "outfeed", "stablehlo.sort", "stablehlo.eigh", "cholesky"):
            assert word not in program, (key, word)
        if key[1] != "take":
            assert "stablehlo.gather" not in program, key


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_costs_what_is_counted_by_hand(dtype):
    """Three products, two feature matrices read and one written, no copies; XLA's own count of operations agrees.

    XLA counts the bytes that every fused loop of the CPU's program touches, those in cache too: 10 to 12 times the
    traffic to memory, whatever the shape. What must come from memory is read off the program instead.
    """
    rows, dim, K = 4096, 256, 64
    problem, rule = ufm.Problem([rows // K] * K, dim, 1e-2, 1e-3), ufm.Accelerated()
    item = np.dtype(dtype).itemsize
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        layout = dataclasses.replace(devices.choose_layout(rows, dim, item), block=rows, blocks=1)
        objective = build_objective(problem, "sample", rule.coordinates, dtype, layout)
        scales = scaling(problem, "sample", rule.coordinates)
        point = to_point(random_start(problem, "sample", 0), scales, dtype, layout)
        state = begin(rule, objective, point, jnp.ones((), dtype))
        lowered = advance_rounds.trace(rule, objective, state, np.int32(1), 1).lower()
        compiled_step = lowered.compile()
    text, features = lowered.as_text(), rows * dim * item
    kind = "f32" if dtype == "float32" else "f64"
    sizes = [f"{a}x{b}x{kind}" for a, b in ((rows, K), (K, rows), (rows, dim), (dim, K), (K, dim))]

    def lines(word, *types):
        found = [line for line in text.splitlines() if f"stablehlo.{word} " in line]
        return [line for line in found if all(f"tensor<{t}>" in line for t in types)]

    products = [line for line in lines("dot_general") if sum(f"<{t}>" in line for t in sizes) == 3]
    assert len(products) == 2 * 3  # of a step that is made, and of one that is taken back
    assert len(lines("dynamic_slice", f"{rows}x{dim}x{kind}")) == 2
    assert len(lines("dynamic_update_slice", f"{rows}x{dim}x{kind}")) == 1
    cost, by_hand = compiled_step.cost_analysis(), 6 * rows * dim * K
    assert by_hand < cost["flops"] < 1.5 * by_hand
    assert cost["bytes accessed"] < 1.5 * 10 * 3 * features


@pytest.mark.slow
@pytest.mark.parametrize("observed", [False, True])
def test_features_are_copied_once_for_every_certificate_or_observation(monkeypatch, observed):
    """And not again where the solver looks at a point that it has fetched already; the start is one of them."""
    copies, judged, seen = [], [], []
    fetch, certificates = batch.to_variables, batch.certificates
    monkeypatch.setattr(batch, "to_variables", lambda *point: copies.append(1) or fetch(*point))
    monkeypatch.setattr(
        batch, "certificates", lambda *given, **how: judged.append(1) or certificates(*given, **how)
    )
    problem = ufm.Problem([40, 20, 10], 8, 1e-2, 1e-3)
    solution = ufm.solve(
        problem,
        "sample",
        precision="float32",
        tol=1e-5,
        observe=(lambda *_: seen.append(1) or {}) if observed else None,
    )
    assert solution.certified
    assert solution.certificate.relative_gap <= 1e-5
    assert solution.features.dtype == np.float64
    assert len(seen) == (len(solution.history) if observed else 0)
    assert len(judged) < len(solution.history)
    assert len(copies) <= max(len(seen), 1 + len(judged))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["class", "group", "sample"])
@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_float32_certifies_in_float64_on_the_host(level, features):
    problem = ufm.Problem([40, 20, 20, 5], 8, 1e-2, 1e-3, features=features)
    solution = ufm.solve(problem, level, precision="float32", tol=1e-5)
    again = ufm.certify(problem, solution.weight, solution.features, solution.labels)
    assert solution.certified
    assert again.relative_gap <= 1e-5
    assert again.objective == pytest.approx(solution.certificate.objective, rel=1e-12)
