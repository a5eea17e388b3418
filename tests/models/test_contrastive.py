"""The supervised contrastive loss: its value by two routes, its bound, and frames at every imbalance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import few_daily
from scipy import optimize

from ufm.inputs.checks import InputError
from ufm.models.contrastive import SupervisedContrastive
from ufm.models.contrastive_descent import Descent


def brute_force(features, labels, temperature):
    total = 0.0
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positive = [j for j in others if labels[j] == own]
        crowd = np.log(sum(np.exp(features[i] @ features[j] / temperature) for j in others))
        total += sum(crowd - features[i] @ features[j] / temperature for j in positive) / max(
            len(positive), 1
        )
    return total


def test_loss_is_the_sum_over_positive_pairs_and_never_below_the_bound():
    model = SupervisedContrastive([4, 3, 2, 1], 5, 0.4, radius=1.5)
    descent, bound = Descent(model), model.predict().objective
    for seed in range(5):
        features = descent.start(seed) * np.random.default_rng(seed).uniform(0, 1, (10, 1))
        with jax.enable_x64(True):
            value = float(descent.value(jnp.asarray(features)))
        assert value == pytest.approx(brute_force(features, model.labels, 0.4), rel=1e-12)
        assert value > bound
    frame = 1.5 * np.eye(5)[model.labels]
    assert brute_force(frame, model.labels, 0.4) == pytest.approx(bound, rel=1e-13)


@pytest.mark.parametrize(("counts", "dim"), few_daily([([20, 20, 2, 2], 4), ([30, 5, 2, 1, 1], 8)], (0,)))
def test_frames_are_found_and_certified(counts, dim):
    solution = SupervisedContrastive(counts, dim, 0.5).solve()
    assert solution.certified
    assert 0 <= solution.nc1 < 1e-6
    assert solution.largest_cosine < 1e-3


@pytest.mark.slow
def test_scipy_finds_the_same_value():
    model = SupervisedContrastive([4, 2, 2], 4, 0.6)
    start = Descent(model).start(1)
    found = optimize.minimize(
        lambda x: brute_force(x.reshape(start.shape), model.labels, 0.6),
        start.ravel(),
        bounds=[(0, None)] * start.size,
        constraints={"type": "ineq", "fun": lambda x: 1 - np.sum(x.reshape(start.shape) ** 2, axis=1)},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.fun == pytest.approx(model.solve().objective, rel=1e-6)


def test_without_room_for_a_frame_nothing_is_certified():
    model = SupervisedContrastive([4, 4, 4], 2, 0.5)
    assert not model.predict().attained
    assert not model.solve(max_steps=3000).certified


@pytest.mark.parametrize(
    ("options", "message"),
    [({"counts": [1, 1]}, "counts"), ({"temperature": 1e-4}, "temperature"), ({"radius": -1.0}, "radius")],
)
def test_bad_models_are_named(options, message):
    with pytest.raises(InputError, match=message):
        SupervisedContrastive(**{"counts": [3, 2], "dim": 2, "temperature": 1.0} | options)


def test_batches_have_a_bound_each_and_lose_what_they_do_not_tie():
    counts = [4, 4, 2]
    halves = [
        [0, 1, 4, 5, 8, 9],
        [2, 3, 6, 7],
    ]  # both large classes in two halves; the small one meets one of each
    split = SupervisedContrastive(counts, 4, 0.5, batches=halves)
    assert not split.predict().determined
    assert split.predict().whole.tolist() == [False, False, True]
    assert split.predict().apart[0].tolist() == [False, True, True]
    labels = split.labels
    frame = np.eye(4)[labels]
    value = sum(brute_force(frame[rows], labels[rows], 0.5) for rows in halves)
    assert value == pytest.approx(split.predict().objective, rel=1e-13)
    elsewhere = frame.copy()
    elsewhere[[2, 3]] = np.eye(4)[3]  # half of class 0 on an axis of its own: as good
    assert sum(brute_force(elsewhere[rows], labels[rows], 0.5) for rows in halves) == pytest.approx(value)
    tied = SupervisedContrastive(counts, 4, 0.5, batches=[*halves, [0, 2, 4, 6]])
    assert tied.predict().determined
    solution = tied.solve()
    assert solution.certified
    assert solution.nc1 < 1e-6
    assert solution.largest_cosine < 1e-3


@pytest.mark.parametrize("batches", [[], [[0, 99]], [[0.5, 1]], [[]]])
def test_bad_batches_are_named(batches):
    with pytest.raises(InputError, match="batches must"):
        SupervisedContrastive([3, 2], 2, 1.0, batches=batches)


def test_pairs_alone_in_their_batches_cost_nothing():
    solution = SupervisedContrastive([2, 2], 4, 0.5, batches=[[0, 1], [2, 3]]).solve()
    assert solution.certified
    assert solution.objective == solution.lower_bound == solution.relative_gap == 0
