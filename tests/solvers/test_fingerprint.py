"""Two runs have the same fingerprint exactly if they are the same run, in whatever process."""

import functools
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ufm
from ufm.losses import LabelSmoothing
from ufm.solvers.fingerprint import run_key

PROBLEM = ufm.Problem([40, 30, 20, 10], 6, 5e-3, 1e-5)


def rule(transformation):
    return ufm.ProjectedGradient(transformation, "balanced")


def make(rate):
    return rule(optax.adam(optax.exponential_decay(rate, 100, 0.5), b1=0.8))


DIFFERENT = [
    rule(optax.sgd(0.1)),
    rule(optax.sgd(0.3)),
    rule(optax.sgd(0.1, momentum=0.9)),
    rule(optax.sgd(0.1, momentum=0.5)),
    rule(optax.adam(0.1)),
    rule(optax.adam(0.1, b1=0.5)),
    make(0.1),
    make(0.2),
    rule(optax.sgd(lambda step: 0.1)),
    rule(optax.sgd(lambda step: 0.3)),
    rule(optax.sgd(functools.partial(pow, 0.5))),
    rule(optax.sgd(functools.partial(pow, 0.7))),
    ufm.Accelerated(),
    ufm.Accelerated(window=4),
    PROBLEM,
    PROBLEM.replace(loss=LabelSmoothing(0.1)),
    PROBLEM.replace(loss=LabelSmoothing(0.2)),
    np.arange(10_000.0),
    np.arange(10_000.0) + 1e-12 * (np.arange(10_000) == 5000),
    np.arange(10_000.0).reshape(100, 100),
    np.arange(10_000),
    jnp.arange(10_000),  # of 32 bits
    ["a", "b"],
    ["a, b"],
    ["a", ["b"]],
]


def test_whatever_differs_gives_another_fingerprint():
    assert len({run_key(part) for part in DIFFERENT}) == len(DIFFERENT)


def test_the_same_made_again_has_the_same_fingerprint():
    assert run_key(make(0.1), PROBLEM) == run_key(make(0.1), PROBLEM.replace())
    script = (
        "import optax, ufm; from ufm.solvers.fingerprint import run_key; print(run_key(ufm.ProjectedGradient("
        "optax.adam(optax.exponential_decay(0.1, 100, 0.5), b1=0.8), 'balanced')))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == run_key(make(0.1))


def test_what_holds_itself_has_a_fingerprint():
    ring = [1.0]
    ring.append(ring)
    assert run_key(ring) == run_key(ring)
    assert run_key(ring) != run_key([2.0, ring])


def test_another_learning_rate_does_not_go_on_with_a_run(tmp_path):
    path = tmp_path / "run.npz"
    ufm.solve(PROBLEM, solver=rule(optax.adam(0.05)), max_steps=20, tol=1e-12, checkpoint=path)
    with pytest.raises(ufm.InputError, match="another run"):
        ufm.solve(PROBLEM, solver=rule(optax.adam(0.5)), max_steps=40, checkpoint=path, resume=True)
