"""Escape moves: what they change, what they leave alone, that they always help, and that they know when not to."""

import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.objective import objective_value

import ufm
from ufm.duality.lower_bound import dual_scales
from ufm.model.objective import Variables
from ufm.model.problem import row_labels
from ufm.model.stack import random_start, scaling
from ufm.solvers import escape as module
from ufm.solvers.atoms import Atoms, strengths, violating_atoms
from ufm.solvers.escape import escape
from ufm.solvers.limits import Limits
from ufm.solvers.run import Run
from ufm.solvers.task import Setup, Task

COUNTS = [50, 40, 30, 20, 6]
BASE = ufm.Problem(COUNTS, 5, 1e-2, 1e-3)
KINDS = {
    "plain": BASE,
    "wide": BASE.replace(dim=12),
    "some classes collapsed": ufm.Problem(COUNTS, 5, 3e-2, 1e-2),
    "regularised bias": BASE.replace(bias=0.05),
    "unregularised bias": BASE.replace(bias=0),
    "free features": BASE.replace(features="free"),
    "free features, few dimensions": BASE.replace(features="free", dim=2),
    "squared loss": BASE.replace(loss=ufm.MSE()),
    "label smoothing": BASE.replace(loss=ufm.LabelSmoothing(0.1)),
    "few dimensions": BASE.replace(dim=3),
}
CASES = list(itertools.product(KINDS, ("class", "sample")))


def value(problem, level, variables):
    labels = row_labels(problem, level)
    return objective_value(problem, variables.weight, variables.features, labels, variables.bias)


def zero(problem, level):
    start = random_start(problem, level, 0)
    return Variables(0 * start.weight, 0 * start.features, start.bias)


def variables_of(solution):
    return Variables(solution.weight, solution.features, solution.bias)


def share_one_atom(problem, lonely, copies):
    """The ``lonely`` classes are at zero; every other has ``copies`` coordinates and is fitted too well for more."""
    K, rng = problem.num_classes, np.random.default_rng(1)
    owners = [k for k in range(K) if k not in lonely]
    features, weight = np.zeros((K, problem.dim)), np.zeros((K, problem.dim))
    for place, k in enumerate(owners):
        columns = slice(copies * place, copies * (place + 1))
        features[k, columns] = rng.uniform(5.0, 10.0, copies)
        weight[:, columns] = -1 / K
        weight[k, columns] += 1
    return Variables(weight, features, None)


@pytest.mark.parametrize("seed", range(5))
def test_merging_keeps_the_logits_and_never_costs(seed):
    rng = np.random.default_rng(seed)
    directions = np.abs(rng.normal(size=(6, 3)))
    features = directions[:, [0, 1, 2, 0, 1, 0]] * rng.uniform(0.1, 2, 6)
    weight = rng.normal(size=(4, 6))
    merged_weight, merged_features = weight.copy(), features.copy()
    freed = module._merge(merged_weight, merged_features, np.arange(6), 6)
    assert len(freed) == 3
    merged_weight[:, freed] = merged_features[:, freed] = 0
    np.testing.assert_allclose(merged_features @ merged_weight.T, features @ weight.T, rtol=1e-12)
    assert np.all(merged_features >= 0)

    def cost(w, h):
        return np.sum(w**2) + np.sum(h**2)

    assert cost(merged_weight, merged_features) < cost(weight, features)
    sizes = np.linalg.norm(merged_weight, axis=0), np.linalg.norm(merged_features, axis=0)
    np.testing.assert_allclose(sizes[0][:2], sizes[1][:2], rtol=1e-12)  # the merged ones are balanced


def test_merging_stops_when_enough_are_free():
    features = np.ones((3, 5))
    weight = np.random.default_rng(0).normal(size=(3, 5))
    assert len(module._merge(weight, features, np.arange(5), 2)) == 2


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_move_lowers_the_objective_by_what_it_says(case):
    """From any point, stationary or not: the decrease is real, the point feasible, the bias untouched."""
    problem, level = KINDS[case[0]], case[1]
    moves = 0
    for seed in range(6):
        start = random_start(problem, level, seed)
        before = Variables(*(None if part is None else part.copy() for part in start))
        move = escape(problem, level, start)
        for part, copy in zip(start, before, strict=True):
            np.testing.assert_equal(part, copy)
        if move is None:
            continue
        moves += 1
        decrease = value(problem, level, start) - value(problem, level, move.point)
        assert decrease > 0
        assert move.decrease == pytest.approx(decrease, rel=1e-6)
        assert f"{move.decrease:.2e}" in move.sentence
        if problem.features == "nonnegative":
            assert np.all(move.point.features >= 0)
        if problem.bias is not None:
            np.testing.assert_array_equal(move.point.bias, start.bias)
    assert moves >= 3


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_zero_is_left_and_moves_end(case):
    """Moves alone, without a single gradient step, come to an end, every one lower than the last."""
    problem, level = KINDS[case[0]], case[1]
    point = zero(problem, level)
    values = [value(problem, level, point)]
    for _ in range(20):
        move = escape(problem, level, point)
        if move is None:
            break
        point = move.point
        values.append(value(problem, level, point))
    assert len(values) > 1
    assert all(after < before for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("level", ["class", "sample"])
def test_from_zero_exactly_the_classes_that_live_get_an_atom(level):
    problem = KINDS["some classes collapsed"]
    living = ~ufm.predict(problem).collapsed
    assert 0 < living.sum() < len(living)
    move = escape(problem, level, zero(problem, level))
    features, labels = move.point.features, row_labels(problem, level)
    for k in range(problem.num_classes):
        rows = features[labels == k]
        assert np.count_nonzero(rows[0]) == living[k]
        assert np.all(rows == rows[0])
    assert np.all(np.count_nonzero(features[np.unique(labels, return_index=True)[1]], axis=0) <= 1)


@pytest.mark.parametrize("features", ["nonnegative", "free"])
@pytest.mark.parametrize("level", ["class", "sample"])
def test_zero_is_not_left_where_it_is_the_optimum(features, level):
    problem = ufm.Problem(COUNTS, 5, 1.0, 1.0, features=features)
    assert np.all(ufm.predict(ufm.Problem(COUNTS, 5, 1.0, 1.0)).collapsed)
    assert escape(problem, level, zero(problem, level)) is None


OPTIMA = [(name, "class") for name in KINDS if "few dimensions" not in name]
OPTIMA += [(name, "sample") for name in ("unregularised bias", "some classes collapsed", "free features")]
#: Of every way to move (along axes, along singular vectors, with a bias) one.
EVERYDAY = ("plain", "free features", "regularised bias")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in [(name, "class") for name in EVERYDAY] else pytest.mark.slow)
        for case in OPTIMA
    ],
    ids=" ".join,
)
def test_no_move_at_a_certified_optimum(case):
    problem, level = KINDS[case[0]], case[1]
    solution = ufm.solve(problem, level=level, residual_tol=1e-11, tol=1e-10)
    assert solution.certified
    assert solution.certificate.residual <= 1e-10
    assert escape(problem, level, variables_of(solution)) is None


def test_a_planted_stuck_point_is_left_in_one_move():
    """Two classes, d = K = 2: the first uses both coordinates, the second none, and gradients keep it so."""
    problem = ufm.Problem([30, 20], 2, 1e-2, 1e-3)
    ones = np.ones((1, 2))
    planted = (np.concatenate([ones, -ones]), np.concatenate([ones, 0 * ones]))
    stuck = ufm.solve(problem, start=planted, escapes=False)
    assert stuck.status is ufm.Status.STALLED
    assert stuck.certificate.residual <= 1e-7
    assert stuck.certificate.relative_gap > 0.05
    assert np.all(stuck.features[1] == 0)
    move = escape(problem, "class", variables_of(stuck))
    first, second = move.point.features
    assert np.count_nonzero(second) == 1
    assert first[second > 0] == 0
    np.testing.assert_allclose(np.linalg.norm(first), np.linalg.norm(stuck.features[0]), rtol=1e-9)
    free = ufm.solve(problem, start=stuck)
    assert free.certified
    assert sum(record["event"] is not None for record in free.history) == 1
    assert free.objective == pytest.approx(ufm.predict(problem).objective, rel=1e-8)


def test_one_move_frees_and_fills_as_many_coordinates_as_there_are():
    """A hundred classes, fifty of them at zero while the others hold two coordinates each: one move serves all."""
    problem = ufm.Problem([20] * 100, 100, 1e-4, 1e-4)
    lonely = range(50, 100)
    point = share_one_atom(problem, lonely, copies=2)
    move = escape(problem, "class", point)
    features = move.point.features
    assert np.all(np.count_nonzero(features[50:], axis=1) == 1)
    assert len({int(np.argmax(row)) for row in features[50:]}) == 50
    owned = np.flatnonzero(features[50:].any(axis=0))
    assert np.all(features[:50][:, owned] == 0)
    logits, before = features[:50] @ move.point.weight.T, point.features[:50] @ point.weight.T
    assert np.all(np.count_nonzero(features[:50], axis=1) == 1)
    np.testing.assert_allclose(np.diagonal(logits), np.diagonal(before), rtol=1e-9)


def test_dead_coordinates_are_filled_before_any_is_merged():
    problem = ufm.Problem([20] * 6, 12, 1e-3, 1e-4)
    point = share_one_atom(problem, range(3, 6), copies=2)
    move = escape(problem, "class", point)
    np.testing.assert_allclose(move.point.features[:3, :6], point.features[:3, :6], rtol=1e-12)
    assert np.all(np.count_nonzero(move.point.features[3:, 6:], axis=1) == 1)


@pytest.mark.parametrize("level", ["class", "sample"])
def test_free_features_move_along_singular_vectors(level):
    """From zero in one dimension: the leading pair of singular vectors of the gradient, and nothing else."""
    problem = ufm.Problem(COUNTS, 1, 1e-2, 1e-3, features="free")
    K = problem.num_classes
    gradient = (1 / K - np.eye(K)) * np.sqrt(problem.counts)[:, None]
    left, _, right = np.linalg.svd(gradient)
    move = escape(problem, level, zero(problem, level))
    firsts = np.unique(row_labels(problem, level), return_index=True)[1]
    u = move.point.features[firsts, 0] * np.sqrt(problem.counts)
    w = move.point.weight[:, 0]
    assert abs(u @ left[:, 0]) == pytest.approx(np.linalg.norm(u), rel=1e-12)
    assert abs(w @ right[0]) == pytest.approx(np.linalg.norm(w), rel=1e-12)
    assert u @ gradient @ w < 0


@pytest.mark.parametrize("level", ["class", "sample"])
def test_new_atoms_are_balanced_and_of_the_best_strength(level):
    """From zero in one dimension the move is the exact minimum along its own ray, to the four digits it aims at."""
    problem = ufm.Problem(COUNTS, 1, 1e-2, 1e-3)
    move = escape(problem, level, zero(problem, level)).point
    scales = scaling(problem, level, "balanced")
    sizes = np.linalg.norm(move.weight * scales.weight), np.linalg.norm(move.features * scales.rows[:, None])
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-12)

    def along(factor):
        return value(problem, level, Variables(factor * move.weight, factor * move.features, move.bias))

    assert along(1.0) < min(along(0.98), along(1.02))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dim", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("seed", range(3))
def test_too_few_dimensions_still_never_raise_the_objective(dim, seed):
    problem = BASE.replace(dim=dim)
    solution = ufm.solve(problem, seed=seed, max_steps=1000)
    assert not solution.certified
    for before, after in itertools.pairwise(solution.history):
        if after["event"]:
            assert after["objective"] < before["objective"]
    move = escape(problem, "class", variables_of(solution))
    assert move is None or move.decrease > 0


def test_a_nonconvex_loss_may_move_too_but_only_down():
    problem = BASE.replace(loss=ufm.Focal(2.0))
    start = zero(problem, "class")
    move = escape(problem, "class", start)
    assert value(problem, "class", move.point) < value(problem, "class", start)


@pytest.mark.parametrize("level", ["class", pytest.param("sample", marks=pytest.mark.slow)])
def test_free_features_of_low_rank_are_turned_until_coordinates_are_free(level):
    """Two equal classes merged exactly, in a basis in which no coordinate is dead: no step can part them."""
    merged = ufm.Problem([20, 20, 4, 4], 4, 8e-2, 8e-2, features="free")
    start = ufm.solve(merged, level)
    rows = row_labels(merged, level)
    assert start.certified
    np.testing.assert_allclose(start.weight[2], start.weight[3], atol=1e-6)
    weight, features = start.weight.copy(), start.features.copy()
    weight[2:] = weight[2:].mean(axis=0)
    features[rows > 1] = features[rows > 1].mean(axis=0)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    stuck = Variables(weight @ rotation, features @ rotation, None)
    assert np.linalg.norm(stuck.weight, axis=0).min() > 1e-2
    apart = merged.replace(weight_decay=0.041, feature_decay=0.041)  # they part at sqrt(4)/48 = 0.0417
    symmetric = ufm.solve(apart, level, start=stuck, escapes=False, max_steps=2000)
    assert not symmetric.certified
    assert escape(apart, level, variables_of(symmetric)) is not None
    left = ufm.solve(apart, level, start=stuck)
    assert left.certified
    assert np.linalg.norm(left.weight[2] - left.weight[3]) > 0.1


@pytest.mark.parametrize(("power", "level"), few_daily([(1.0, 1.1), (0.5, 1.02)], (1,)))
def test_mixtures_of_classes_come_back_where_no_class_would_alone(power, level):
    """Logit adjustment: all small classes are dead, none violates its own constraint, their mean does."""
    counts = np.repeat([500, 50], 5)
    weight = level * np.sqrt(50) / counts.sum()
    loss = ufm.LogitAdjustment(power * np.log(counts / counts.sum()))
    problem = ufm.Problem(counts, 10, weight, weight, loss=loss)
    solution = ufm.solve(problem)
    assert solution.certified
    small = solution.features[5:]
    assert np.linalg.norm(small, axis=1).min() > 0.05
    np.testing.assert_allclose(small, np.broadcast_to(small[0], small.shape), atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_many_atoms_grow_along_one_ray(shape, monkeypatch):
    """Found by eigenvectors they are those of the SVD; together they bring the slope along their ray to zero."""
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.full(shape[1], 0.3), shape[0])
    problem = ufm.Problem(rng.integers(20, 99, shape[0]), 9, 1e-3, 1e-3, features="free", targets=targets)
    one_by_one = escape(problem, "class", zero(problem, "class"))
    dual = dual_scales(problem)[:, None] * problem.loss.gradient(np.zeros(shape), np.arange(shape[0]))
    found = violating_atoms(dual, nonnegative=False)
    monkeypatch.setattr("ufm.solvers.atoms.MANY", 1)
    again = violating_atoms(dual, nonnegative=False)
    np.testing.assert_allclose(again.u.T @ again.w, found.u.T @ found.w, atol=1e-12)
    together = escape(problem, "class", zero(problem, "class"))
    assert together.decrease > 0.8 * one_by_one.decrease > 0


def test_strengths_are_finite_where_the_slope_never_rises():
    """A class with a margin of minus 1e15 has a constant slope: there is no strength that brings it to zero."""
    problem, lost = ufm.Problem([10**6, 1], 4, 1e-8, 1e-8), np.array([[-1e15, 1e15], [0.0, 0.0]])
    found = strengths(problem, lost, Atoms(np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0]])))
    assert np.all(np.isfinite(found))
    assert found[0] > 0


@pytest.mark.parametrize("rounding", [1e-13, 1e-6])
def test_what_a_move_has_gained_is_kept_by_the_steps_that_follow(rounding):
    setup = Setup("class", ufm.Accelerated(), "float64")
    run = Run(0, Task(BASE, Limits(1e-8, 1e-7, rounding, 10_000)), setup)
    assert run.passed(20, 1.0) == "due"
    run.due = 1000
    assert run.passed(20, 1.0 + 1e-5) is None  # momentum may climb a little
    run.escaped(module.Move(None, "moved", 0.3))
    run.due = 1000
    assert run.passed(20, 0.7 + 1e-5 + 2 * rounding) == "back"
    assert run.passed(20, 0.7 - 1e-5) is None
    assert run.passed(20, 0.7 + 1e-5) is None
    assert run.retreats == 1
