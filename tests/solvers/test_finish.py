"""Runs that first-order steps do not end: the quasi-Newton descent, and starts whose squares overflow."""

import numpy as np
import pytest

import ufm
from ufm.duality.certificate import objective_value
from ufm.model.stack import random_start
from ufm.solvers.finish import drawn_in, quasi_newton
from ufm.solvers.solve import solve

TINY = ufm.Problem([951, 198], 2, 1e-10, 1e-10, loss=ufm.MSE(), features="free")
WIDE = [7736519, 60380560, 106988577, 1, 653922]
SMALL = ufm.Problem([300, 100, 30, 5], 6, 1e-2, 1e-3)


def test_squared_error_at_vanishing_decays_meets_the_closed_form_without_a_single_step():
    move = quasi_newton(TINY, "class", random_start(TINY, "class", 0), 2000)
    assert move is not None
    reached = ufm.certify(TINY, move.point.weight, move.point.features, np.arange(2))
    assert reached.objective == pytest.approx(ufm.predict(TINY).objective, rel=1e-7)
    assert reached.objective >= ufm.predict(TINY).objective * (1 - 1e-12)


def test_features_stay_nonnegative_and_the_objective_falls_as_said():
    start = random_start(SMALL, "class", 1)
    move = quasi_newton(SMALL, "class", start, 200)
    assert move is not None
    assert np.all(move.point.features >= 0)
    values = [ufm.certify(SMALL, p.weight, p.features, np.arange(4)).objective for p in (start, move.point)]
    assert values[0] - values[1] == pytest.approx(move.decrease, rel=1e-12)
    assert move.decrease > 0


def test_nothing_is_offered_where_it_is_not_meant_for():
    start = random_start(SMALL, "class", 1)
    assert quasi_newton(SMALL, "group", start, 200) is None
    assert quasi_newton(SMALL.replace(loss=ufm.Focal(2.0)), "class", start, 200) is None


def test_a_point_is_drawn_in_along_its_ray_only_where_zero_is_better():
    point = random_start(SMALL, "class", 2)
    assert np.array_equal(drawn_in(SMALL, "class", point).weight, point.weight)
    far = type(point)(point.weight * 1e200, point.features * 1e200)
    near = drawn_in(SMALL, "class", far)
    ratio = near.weight / far.weight
    assert ratio == pytest.approx(np.full_like(ratio, ratio[0, 0]), rel=1e-12)
    regulariser = SMALL.weight_decay * np.sum(near.weight**2)
    regulariser += SMALL.feature_decay * SMALL.counts @ np.sum(near.features**2, axis=1)
    assert 0 < regulariser / 2 <= np.log(4) * (1 + 1e-12)
    assert objective_value(SMALL, near.weight, near.features, np.arange(4)) <= 2 * np.log(4)


@pytest.mark.parametrize("size", [1e-300, 1e30, 1e150, 1e300])
def test_starts_of_any_size_are_certified(size):
    rng = np.random.default_rng(0)
    weight, features = size * rng.normal(size=(4, 6)), size * np.abs(rng.normal(size=(4, 6)))
    solution = solve(SMALL, start=(weight, features))
    assert solution.certified
    assert solution.steps <= 200


CREEPING = {
    "squared error, free": (TINY, 5000),
    "squared error, non-negative": (TINY.replace(features="nonnegative"), 5000),
    "counts 1 to 1e8, free bias": (ufm.Problem(WIDE, 10, 1e-6, 1e-9, bias=0), 2000),
    # seeds and processors differ: 2,277 to 6,564 from seven starts of eight
    "weaker decays": (ufm.Problem(WIDE, 10, 1e-8, 1e-12, bias=0), 20_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CREEPING)
def test_runs_that_crept_for_a_hundred_thousand_steps_are_certified(name):
    problem, steps = CREEPING[name]
    assert solve(problem, max_steps=steps).certified
