"""Runs that first-order steps do not end: second-order methods, and starts whose squares overflow."""

import numpy as np
import pytest
from helpers.objective import objective_value

import ufm
from ufm.model.objective import to_variables
from ufm.model.stack import random_start, scaling
from ufm.solvers import finish
from ufm.solvers.finish import drawn_in, row_vector, second_order
from ufm.solvers.newton import newton
from ufm.solvers.solve import solve

TINY = ufm.Problem([951, 198], 2, 1e-10, 1e-10, loss=ufm.MSE(), features="free")
WIDE = [7736519, 60380560, 106988577, 1, 653922]
SMALL = ufm.Problem([300, 100, 30, 5], 6, 1e-2, 1e-3)


def moved(problem, seed=0, evaluations=2000, costly=False):
    start = random_start(problem, "class", seed)
    return second_order(row_vector(problem, "class", start), evaluations, costly)


def certificate(problem, move):
    """The certificate of where a move leads, whose coordinates are balanced."""
    point = to_variables(move.point, scaling(problem, "class", "balanced"))
    labels = np.arange(problem.num_classes)
    return ufm.certify(problem, point.weight, point.features, labels, bias=point.bias)


def few_variables(monkeypatch):
    """Make L-BFGS-B the method of small problems too."""
    monkeypatch.setattr(finish, "FEW", 1)


@pytest.mark.parametrize("method", ["Newton steps", "quasi-Newton evaluations"])
def test_squared_error_at_vanishing_decays_meets_the_closed_form_without_a_single_step(method, monkeypatch):
    if method != "Newton steps":
        few_variables(monkeypatch)
    move = moved(TINY)
    assert move.description == f"{move.steps} {method}"
    reached = certificate(TINY, move)
    assert reached.objective == pytest.approx(ufm.predict(TINY).objective, rel=1e-7)
    assert reached.objective >= ufm.predict(TINY).objective * (1 - 1e-12)


@pytest.mark.parametrize("costly", [False, True])
def test_many_variables_are_for_newtons_method_only_where_a_run_resists(costly, monkeypatch):
    few_variables(monkeypatch)
    assert ("quasi" not in moved(SMALL, 1, 200, costly).description) == costly
    monkeypatch.setattr(finish, "MANY", 10)
    assert moved(SMALL, 1, 200, costly) is None


@pytest.mark.parametrize("many", [False, True])
def test_features_stay_nonnegative_and_the_objective_falls_as_said(many, monkeypatch):
    if many:
        few_variables(monkeypatch)
    start, move = random_start(SMALL, "class", 1), moved(SMALL, 1, 200)
    assert np.all(move.point.features >= 0)
    before = ufm.certify(SMALL, start.weight, start.features, np.arange(4)).objective
    assert before - certificate(SMALL, move).objective == pytest.approx(move.decrease, rel=1e-12)
    assert move.decrease > 0


def test_a_move_of_no_steps_says_that_nothing_is_better():
    best = row_vector(SMALL, "class", random_start(SMALL, "class", 1))
    best.start, _ = newton(best, 200)
    move = second_order(best, 200, costly=False)
    assert move is not None
    assert move.steps == 0
    assert np.array_equal(move.point.weight, best.point(best.start).weight)


def test_nothing_is_offered_where_it_is_not_meant_for():
    fixed = SMALL.replace(classifier=ufm.simplex_etf(4, 6))
    assert moved(fixed) is None
    focal = solve(SMALL.replace(loss=ufm.Focal(2.0)), max_steps=1500)
    assert not any("Newton" in (record["event"] or "") for record in focal.history)


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


@pytest.mark.parametrize("seed", range(3))
def test_float32_ends_where_newtons_method_leads_though_its_own_steps_cannot_stay_there(seed):
    """Steps in float32 rounded the point that Newton's method had made exact, up to the last of 20,000."""
    wide = ufm.Problem([37618, 329], 2, 4.6e-8, 3.8e-6, loss=ufm.MSE())
    solution = solve(wide, seed=seed, tol=1e-3, precision="float32", max_steps=3000)
    assert solution.certified
    assert solution.steps < 1000
    assert solution.certificate.residual < 1e-9


CREEPING = {
    "squared error, free": TINY,
    "squared error, non-negative": TINY.replace(features="nonnegative"),
    "counts 1 to 1e8, free bias": ufm.Problem(WIDE, 10, 1e-6, 1e-9, bias=0),
    "weaker decays": ufm.Problem(WIDE, 10, 1e-8, 1e-12, bias=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CREEPING)
def test_runs_that_crept_for_a_hundred_thousand_steps_are_certified(name, seed):
    assert solve(CREEPING[name], seed=seed, max_steps=3000).certified


#: Counts over eight decades, squared error, a free bias: 20,000 first-order steps left a gap of 0.03.
FLAT = ufm.Problem(
    [454515120, 3, 29, 4801, 18, 41236, 1, 2301, 35, 712], 12, 2e-9, 8e-14, loss=ufm.MSE(), bias=0
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_squared_error_over_eight_decades_of_counts_is_certified(seed):
    solution = solve(FLAT, seed=seed, max_steps=3000)
    assert solution.certified
    assert solution.certificate.relative_gap < 1e-12
    assert any("Newton steps" in (record["event"] or "") for record in solution.history)


#: Groups of alike classes that first-order steps leave at gaps of 4e-3 and 5e-5.
GROUPED = (
    ufm.Problem(
        [2489793] * 3 + [152] * 3 + [6] * 4, 12, 2.8e-6, 2.7e-8, loss=ufm.LabelSmoothing(0.1), bias=0
    ),
    ufm.Problem([33412] * 2 + [59] * 7 + [4], 12, 1.6e-9, 3.5e-6, loss=ufm.LabelSmoothing(0.1), bias=0),
)


@pytest.mark.slow
@pytest.mark.parametrize("problem", GROUPED)
def test_groups_that_crept_are_certified(problem):
    solution = solve(problem, level="group", max_steps=4000)
    assert solution.certified
    assert solution.group is not None
