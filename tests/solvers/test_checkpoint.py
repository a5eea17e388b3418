"""Checkpoints: a killed run goes on to the answer of the undisturbed one, and a failed write harms nothing."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import optax
import pytest

import ufm
from ufm.inputs.checks import CheckpointError, InputError

PROBLEM = ufm.Problem([40, 30, 20, 10], 6, 5e-3, 1e-5)
RULES = {"accelerated": None, "adam": ufm.ProjectedGradient(optax.adam(0.05), "balanced")}


def same(one, other):
    for name in ("weight", "features", "steps", "objective", "status"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    drop = ("seconds",)
    assert [{k: v for k, v in record.items() if k not in drop} for record in one.history] == [
        {k: v for k, v in record.items() if k not in drop} for record in other.history
    ]


@pytest.mark.parametrize(
    ("problem", "level", "rule"),
    [
        (PROBLEM, "class", "accelerated"),
        pytest.param(PROBLEM, "sample", "adam", marks=pytest.mark.slow),
        pytest.param(PROBLEM.replace(dim=4, bias=0.0), "class", "adam", marks=pytest.mark.slow),
        pytest.param(PROBLEM.replace(dim=4, bias=0.0), "sample", "accelerated", marks=pytest.mark.slow),
    ],
    ids=["plain", "samples, adam", "d = K, bias, adam", "d = K, bias, samples"],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(problem, level, rule, tmp_path):
    options = {"level": level, "solver": RULES[rule], "tol": 1e-11, "precision": "float64"}
    limit = 300
    whole = ufm.solve(problem, **options, max_steps=limit)
    path = tmp_path / "run.npz"
    for steps in (20, 60):
        part = ufm.solve(
            problem, **options, max_steps=steps, checkpoint=path, checkpoint_every=1e-9, resume=path.exists()
        )
        assert part.steps == steps
    same(ufm.solve(problem, **options, max_steps=limit, checkpoint=path, resume=True), whole)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_at_the_same_answer(tmp_path):
    script = textwrap.dedent(
        """
        import sys, pathlib, ufm
        problem = ufm.Problem([40, 30, 20, 10], 6, 5e-3, 1e-5)
        path = pathlib.Path(sys.argv[1])
        ufm.solve(problem, "sample", tol=1e-300, residual_tol=1e-300, max_steps=100_000, record_every=2,
                  escapes=False, checkpoint=path, checkpoint_every=1e-9, resume=path.exists(),
                  progress=lambda record: print(record["step"], flush=True))
        """
    )
    path, random = tmp_path / "run.npz", np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        while int(process.stdout.readline()) < first + 6:
            pass
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    options = {"tol": 1e-300, "residual_tol": 1e-300, "record_every": 2, "escapes": False}
    reached = int(np.load(path)["about"].item().split('"steps": ')[1].split(",")[0])
    assert reached >= 12
    resumed = ufm.solve(PROBLEM, "sample", **options, max_steps=reached + 20, checkpoint=path, resume=True)
    same(resumed, ufm.solve(PROBLEM, "sample", **options, max_steps=reached + 20))


def test_a_finished_run_is_there_to_go_on_with(tmp_path):
    path = tmp_path / "run.npz"
    done = ufm.solve(PROBLEM, checkpoint=path)
    assert done.certified
    same(ufm.solve(PROBLEM, checkpoint=path, resume=True), done)
    further = ufm.solve(PROBLEM, tol=1e-12, residual_tol=1e-10, checkpoint=path, resume=True)
    same(further, ufm.solve(PROBLEM, tol=1e-12, residual_tol=1e-10))


def test_a_full_disk_is_a_clear_error_and_harms_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    ufm.solve(PROBLEM, max_steps=40, tol=1e-12, checkpoint=path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; the one of step 40 is intact"):
        ufm.solve(PROBLEM, tol=1e-12, checkpoint=path, checkpoint_every=1e-9, resume=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="there is none") as raised:
        ufm.solve(PROBLEM, tol=1e-12, checkpoint=tmp_path / "other.npz", checkpoint_every=1e-9)
    monkeypatch.undo()
    same(raised.value.solution, ufm.solve(PROBLEM, tol=1e-12))


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(InputError, match="no checkpoint"):
        ufm.solve(PROBLEM, checkpoint=path, resume=True)
    with pytest.raises(InputError, match="resume needs checkpoint"):
        ufm.solve(PROBLEM, resume=True)
    with pytest.raises(InputError, match="folder that exists"):
        ufm.solve(PROBLEM, checkpoint=tmp_path / "nowhere" / "run.npz")
    ufm.solve(PROBLEM, max_steps=20, tol=1e-12, checkpoint=path)
    with pytest.raises(InputError, match="exists; resume from it"):
        ufm.solve(PROBLEM, checkpoint=path)
    for changed in (
        {"seed": 1},
        {"level": "sample"},
        {"precision": "float32"},
        {"solver": ufm.Accelerated(window=4)},
        {"start": ufm.solve(PROBLEM, max_steps=1)},
    ):
        with pytest.raises(InputError, match="another run"):
            ufm.solve(PROBLEM, checkpoint=path, resume=True, **changed)
    with pytest.raises(InputError, match="another run"):
        ufm.solve(PROBLEM.replace(weight_decay=1e-3), checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole checkpoint"):
        ufm.solve(PROBLEM, checkpoint=path, resume=True)


def test_a_second_run_on_a_checkpoint_is_refused_while_the_first_lives(tmp_path):
    path, met = tmp_path / "run.npz", []

    def second(*_):
        for resume in (False, True):
            with pytest.raises(
                InputError, match=rf"run\.npz is in use: process {os.getpid()} .* another file"
            ):
                ufm.solve(PROBLEM, checkpoint=path, resume=resume)
        met.append(sorted(found.name for found in tmp_path.iterdir()))
        return {}

    ufm.solve(PROBLEM, checkpoint=path, max_steps=20, record_every=20, observe=second)
    assert met[0] == ["run.npz.claim"]
    assert [found.name for found in tmp_path.iterdir()] == ["run.npz"]
    again = ufm.solve(PROBLEM, checkpoint=path, resume=True)
    assert again.certified
