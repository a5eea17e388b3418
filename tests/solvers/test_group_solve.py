"""Group level solves: every start certified, for the whole problem, and the expanded point by the class level too."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.groups import reduced, reduced_point

import ufm
from ufm.duality.groups import GroupDual
from ufm.losses import MSE, CrossEntropy, LabelSmoothing, LogitAdjustment, VectorScaling, WeightedCrossEntropy
from ufm.model.groups import group_start, groups_of
from ufm.model.objective import Point, Variables
from ufm.model.problem import Problem
from ufm.profiles import parse_counts
from ufm.solvers.accelerated import Accelerated
from ufm.solvers.coordinates import chosen_level
from ufm.solvers.engine import solve_one
from ufm.solvers.group_escape import group_escape, onto_axes, row_lengths
from ufm.solvers.settings import check_settings, limits
from ufm.solvers.solution import Solution
from ufm.solvers.status import Status
from ufm.solvers.task import Setup, Task

COUNTS = np.repeat([100, 10, 1], [3, 3, 14])
LOSSES = [
    CrossEntropy(),
    LabelSmoothing(0.1),
    WeightedCrossEntropy(COUNTS**-0.5),
    LogitAdjustment(np.log(COUNTS / COUNTS.sum())),
    VectorScaling((COUNTS / 100) ** 0.1),
    MSE(),
]


def solve_groups(problem, seed=0, **settings):
    return ufm.solve(problem, level="group", seed=seed, **settings)


def solve_from(problem, start):
    """The engine from a point of the algebra, which no user has."""
    bounds = limits(check_settings({}))
    end = solve_one(Task(problem, bounds, start=lambda: start), Setup("group", Accelerated(), "float64"))
    return Solution(problem, "group", end.point, end.status, end.certificate, bounds.tol, end.steps, ())


def checked(solution):
    """The class-level certificate of a certified solution, expanded."""
    assert solution.status is Status.CERTIFIED
    assert solution.group is not None
    found = ufm.certify(solution.problem, solution.weight, solution.features, solution.labels, solution.bias)
    assert found.certifies(1e-8)
    assert found.residual <= 1.1e-7
    assert found.objective == pytest.approx(solution.certificate.objective, rel=1e-12)
    return found


MATRIX = list(itertools.product(LOSSES, ["nonnegative", "free"], [None, 0, 0.05]))
EVERYDAY = (9, 14)  # the family test has every loss every day


def name(case):
    loss, features, bias = case
    return f"{type(loss).__name__}-{features}-{bias}"


@pytest.mark.parametrize(
    ("loss", "features", "bias"), few_daily(MATRIX, EVERYDAY), ids=[name(case) for case in MATRIX]
)
def test_every_loss_is_certified_at_both_levels(loss, features, bias):
    problem = Problem(COUNTS, 22, 1e-3, 1e-5, loss=loss, features=features, bias=bias)
    checked(solve_groups(problem, max_steps=4000))


@pytest.mark.parametrize(
    ("counts", "decays"), few_daily([("60x3,9x4,2x5", (1e-3, 1e-3)), ("5000x4,50x8", (1e-3, 1e-6))], (0,))
)
def test_every_start_ends_at_the_optimum_of_the_class_level(counts, decays):
    counts = parse_counts(counts)
    problem = Problem(counts, len(counts), *decays)
    known = ufm.predict(problem).objective
    for seed in range(6):
        assert checked(solve_groups(problem, seed)).objective == pytest.approx(known, rel=1e-8)


def test_a_start_that_lies_on_one_shared_direction_is_left():
    problem = Problem(COUNTS, 20, 1e-3, 1e-5)
    K = problem.num_classes
    ones = Variables(np.zeros((K, 20)), np.ones((K, 20)) / 20)
    checked(solve_from(problem, reduced_point(problem, groups_of(problem), ones)))


def test_the_dead_point_is_left():
    problem = Problem(COUNTS, 20, 1e-3, 1e-5)
    zero = np.zeros((3, 4))
    checked(solve_from(problem, Point(zero, zero)))


def test_turning_onto_axes_changes_no_logit_where_nothing_is_clipped():
    problem = Problem(COUNTS, 20, 1e-3, 1e-5)
    groups = groups_of(problem)
    dual, rng = GroupDual.of(problem, groups), np.random.default_rng(0)
    blocks = groups.algebra.blocks(reduced(groups, np.diag(np.arange(1.0, 21.0))))
    point = Point(rng.standard_normal((3, 4)) * groups.algebra.roots, groups.algebra.element(blocks))
    turned = onto_axes(dual, point)
    np.testing.assert_allclose(dual.objective.logits(turned), dual.objective.logits(point), atol=1e-9)


@pytest.mark.parametrize("features", ["nonnegative", "free"])
def test_a_move_lowers_the_objective_or_is_none(features):
    problem = Problem(COUNTS, 20, 1e-3, 1e-5, features=features)
    groups = groups_of(problem)
    dual = GroupDual.of(problem, groups)
    point = group_start(problem, groups, seed=0)
    dead = np.arange(3) == 1
    features = np.where(dead[:, None], 0.0, point.features)
    features[:, :3] *= ~dead
    weight = point.weight.copy()
    weight[:, :3] *= ~dead
    weight[1, 3] = 0
    point = Point(0.1 * weight, 0.1 * features)
    assert row_lengths(dual, point).max() > 1
    move = group_escape(dual, point)
    assert move is not None
    fall = float(dual.objective.value(point)) - float(dual.objective.value(move.point))
    assert fall == pytest.approx(move.decrease)
    assert fall > 0
    assert group_escape(dual, point, least=10 * fall) is None


@pytest.mark.parametrize("decay", [1e-3, 1e-7])
def test_a_hundred_thousand_classes_in_two_groups(decay):
    problem = Problem(np.repeat([1000, 10], 50_000), 100_000, decay, decay)
    solution = solve_groups(problem)
    assert solution.status is Status.CERTIFIED
    assert solution.certificate.objective == pytest.approx(ufm.predict(problem).objective, rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1e-3, 3e-3])
def test_a_class_that_the_bias_carries_is_certified(decay):
    """It has no feature of its own: a multiplier by least squares, clipped, left gaps of 2e-3 and 3e-3 here."""
    checked(solve_groups(Problem([5000, 1888, 713, 269, 101, 38], 6, decay, decay, bias=0.0)))


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1e-4, 1e-5])
def test_imagenet_lt(decay):
    counts = parse_counts("imagenet-lt")
    problem = Problem(counts, len(counts), decay, decay)
    for seed in range(5):
        solution = solve_groups(problem, seed)
        assert solution.status is Status.CERTIFIED
    checked(solution)


@pytest.mark.slow
def test_two_thousand_classes_pass_the_class_level():
    problem = Problem(np.repeat([500, 100, 10], [200, 800, 1000]), 2000, 1e-5, 1e-5)
    checked(solve_groups(problem))


@pytest.mark.slow
@pytest.mark.parametrize("decays", [(1e-4, 1e-4), (1e-4, 1e-5), (1e-5, 1e-6)])
def test_inaturalist(decays):
    counts = parse_counts("inaturalist")
    problem = Problem(counts, len(counts), *decays)
    solution = solve_groups(problem)
    assert solution.status is Status.CERTIFIED
    assert solution.certificate.objective == pytest.approx(ufm.predict(problem).objective, rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, 0.05])
def test_entries_between_groups_are_those_of_the_full_matrices(bias):
    solution = solve_groups(Problem(COUNTS, 24, 1e-3, 1e-5, bias=bias))
    found, full = solution.group, solution
    shift = 0.0 if bias is None else full.bias
    for entries, matrix in (
        (found.logits, full.features @ full.weight.T + shift),
        (found.gram_features, full.features @ full.features.T),
        (found.gram_weights, full.weight @ full.weight.T),
    ):
        stored = found.groups.algebra.roots * entries
        np.testing.assert_allclose(found.groups.expand(stored), matrix, atol=1e-12 * np.abs(matrix).max())


@pytest.mark.parametrize(
    ("counts", "settings", "level"),
    [
        (COUNTS, {}, "class"),  # few classes
        (np.repeat([100, 10, 1], 20), {}, "group"),
        (np.repeat([100, 10, 1], 20), {"features": "free", "bias": 0.0}, "group"),
        (np.repeat([100, 10, 1], 20), {"dim": 59}, "class"),
        (np.repeat([100, 10, 1], 20), {"loss": ufm.Focal(2.0)}, "class"),
        (np.arange(1, 61), {}, "class"),  # no two alike
    ],
)
def test_groups_are_chosen_where_they_are_much_fewer(counts, settings, level):
    problem = Problem(counts, **{"dim": 64, "weight_decay": 1e-3, "feature_decay": 1e-4, **settings})
    assert chosen_level(problem, "auto", Accelerated()) == level
    assert chosen_level(problem, "class", Accelerated()) == "class"
    assert chosen_level(problem, "auto", Accelerated(), free=False) == "class"


def test_automatic_is_the_default_and_goes_on_with_classes(monkeypatch):
    problem = Problem(np.repeat([100, 10, 1], 20), 64, 1e-3, 1e-4)
    alone = ufm.solve(problem)
    assert (alone.level, alone.status) == ("group", Status.CERTIFIED)
    assert ufm.verify(alone).passed
    monkeypatch.setattr("ufm.solvers.engine.Grouped.certify", lambda *_, **__: [lower(alone.certificate)])
    monkeypatch.setattr("ufm.solvers.engine.Grouped.escapes", lambda *_: [None])
    further = ufm.solve(problem)
    assert (further.level, further.status) == ("class", Status.CERTIFIED)
    alone = ufm.solve(problem, level="group", max_steps=200)
    assert (alone.level, alone.status) == ("group", Status.STALLED)


def lower(certificate):
    return dataclasses.replace(certificate, lower_bound=0.5 * certificate.objective)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 10}, "dim must be at least the number of classes, got 10 and 20"),
        ({"solver": "sgd"}, "the step rule must work in balanced coordinates"),
        ({"observe": lambda point, labels: {}}, "start and observe are for rows of features"),
    ],
)
def test_what_has_no_group_level_is_refused(settings, message):
    problem = Problem(COUNTS, settings.pop("dim", 20), 1e-3, 1e-5)
    with pytest.raises(ufm.InputError, match=message):
        ufm.solve(problem, level="group", **settings)


@pytest.mark.slow
def test_sweeps_choose_too_and_find_the_same():
    fixed = {"counts": "100x20,10x20,1x20", "dim": 64, "weight_decay": 1e-3}
    axes = {"feature_decay": [1e-4, 1e-3]}
    chosen, classes = ufm.sweep(fixed, axes), ufm.sweep(fixed | {"level": "class"}, axes)
    assert chosen.certified.all()
    np.testing.assert_allclose(chosen.objective, classes.objective, rtol=1e-8)
    np.testing.assert_allclose(chosen.norms, classes.norms, atol=1e-4)


def test_a_grouped_run_goes_on_from_its_checkpoint(tmp_path):
    problem, file = Problem(COUNTS, 20, 1e-3, 1e-5), tmp_path / "run.npz"
    ufm.solve(problem, level="group", max_steps=40, checkpoint=file)
    settings = {"level": "group", "checkpoint": file, "resume": True}
    with pytest.raises(ufm.InputError, match="belongs to another run"):
        ufm.solve(problem.replace(dim=21), **settings)
    further, undisturbed = ufm.solve(problem, **settings), solve_groups(problem)
    assert (further.status, further.steps) == (undisturbed.status, undisturbed.steps)
    assert further.objective == pytest.approx(undisturbed.objective, rel=1e-12)


def test_nothing_that_is_printed_or_verified_writes_all_entries_out(monkeypatch):
    """With thousands of classes W and H alone are gigabytes."""
    solution = ufm.solve(ufm.Problem(COUNTS, 40, 1e-2, 1e-3), "group")

    def refuse(self):
        raise AssertionError("all entries are written out")

    monkeypatch.setattr(type(solution.point), "variables", property(refuse))
    assert "certified" in str(solution)
    assert ufm.verify(solution).passed
    assert solution.to_dict()["status"] == "certified"
