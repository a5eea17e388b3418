"""Newton's method under bounds: its model's minimum, its Hessians, saddles, and where it ends."""

import itertools

import numpy as np
import pytest
from scipy.optimize import lsq_linear

import ufm
from ufm.duality.groups import GroupDual
from ufm.model.groups import group_start, groups_of
from ufm.model.stack import random_start
from ufm.solvers.finish import row_vector
from ufm.solvers.newton import box_minimum, newton, without_negative_curvature
from ufm.solvers.vectors import Vector

COUNTS = [300, 100, 30, 5]
LOSSES = {
    "cross-entropy": ufm.CrossEntropy(),
    "squared error": ufm.MSE(),
    "binary": ufm.BinaryCrossEntropy(),
    "smoothing": ufm.LabelSmoothing(0.1),
    "poly1": ufm.Poly1(1.0),
}


def vector_of(seed=0, level="class", **changes):
    problem = ufm.Problem(COUNTS, 6, 1e-2, 1e-3).replace(**changes)
    return row_vector(problem, level, random_start(problem, level, seed))


def by_differences(vector, x):
    """The Hessian from differences of gradients, column by column."""
    step = 1e-6
    moves = step * np.eye(len(x))
    return np.stack([(vector(x + move)[1] - vector(x - move)[1]) / (2 * step) for move in moves])


@pytest.mark.parametrize("bias", [None, 0.0, 0.1])
@pytest.mark.parametrize("name", LOSSES)
def test_the_hessian_is_that_of_the_objective(name, bias):
    vector = vector_of(loss=LOSSES[name], bias=bias)
    expected = by_differences(vector, vector.start)
    np.testing.assert_allclose(vector.hessian(vector.start), expected, atol=1e-7 * np.abs(expected).max())


def test_the_hessian_at_sample_level_is_that_of_the_objective():
    vector = vector_of(level="sample", counts=[4, 2, 1], dim=3, bias=0.0)
    expected = by_differences(vector, vector.start)
    np.testing.assert_allclose(vector.hessian(vector.start), expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("bias", [None, 0.1])
def test_the_hessian_of_groups_is_that_of_their_objective(bias):
    problem = ufm.Problem([300, 300, 30, 30, 30, 5], 8, 1e-2, 1e-3, bias=bias)
    groups = groups_of(problem)
    vector = Vector(GroupDual.of(problem, groups).objective, group_start(problem, groups, 0))
    expected = by_differences(vector, vector.start)
    np.testing.assert_allclose(vector.hessian(vector.start), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(20))
def test_the_minimum_of_a_convex_model_under_bounds_is_that_of_least_squares(seed):
    rng = np.random.default_rng(seed)
    root, gradient, damping = rng.normal(size=(12, 8)), rng.normal(size=8), 10.0 ** rng.integers(-6, 1)
    lowest = np.where(rng.random(8) < 0.5, -np.abs(rng.normal(size=8)) * rng.integers(0, 2, 8), -np.inf)
    step, held = box_minimum(root.T @ root, gradient, lowest, np.zeros(8, dtype=bool), damping)
    # |R s + c|^2/2 with R' c = g and the damping as further rows
    rows = np.vstack([root, np.sqrt(damping) * np.eye(8)])
    right = -np.concatenate([np.linalg.lstsq(root.T, gradient, rcond=None)[0], np.zeros(8)])
    expected = lsq_linear(rows, right, (lowest, np.full(8, np.inf)), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(step, expected, atol=1e-7)
    assert np.array_equal(step[held], lowest[held])


def test_a_model_that_is_not_convex_has_no_minimum_until_damping_exceeds_its_curvature():
    hessian, gradient, free = np.diag([1.0, -2.0]), np.ones(2), np.zeros(2, dtype=bool)
    nowhere = np.full(2, -np.inf)
    assert box_minimum(hessian, gradient, nowhere, free, 1.9) is None
    step, _ = box_minimum(hessian, gradient, nowhere, free, 2.5)
    np.testing.assert_allclose(step, [-1 / 3.5, -2.0])


def test_negative_curvature_is_taken_from_what_moves_only():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    hessian = root + root.T
    moving = np.array([True, True, True, False, False])
    found = without_negative_curvature(hessian, moving)
    values, vectors = np.linalg.eigh(hessian[:3, :3])
    assert values[0] < 0
    np.testing.assert_allclose(found[:3, :3], vectors * np.maximum(values, 0) @ vectors.T, atol=1e-12)
    np.testing.assert_array_equal(found[3:], hessian[3:])


@pytest.mark.parametrize("features", ["nonnegative", "free"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_ends_at_a_point_that_is_stationary_to_rounding(name, features):
    vector = vector_of(loss=LOSSES[name], features=features, bias=0.1)
    reached, spent = newton(vector, 300)
    value, gradient = vector(reached)
    assert vector.residual(reached, value, gradient) < 1e-9
    assert value < vector(vector.start)[0]
    assert spent < 150
    assert np.all(reached >= vector.lowest)


def test_it_takes_no_more_evaluations_than_it_may_and_never_climbs():
    values = [vector_of()(newton(vector_of(), most)[0])[0] for most in range(1, 12)]
    assert all(newton(vector_of(), most)[1] <= most for most in range(1, 12))
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))


def test_a_saddle_that_nothing_leaves_does_not_hold_back_the_rest():
    """One coordinate of three is not in use: curvature there is negative, and everything else still converges."""
    problem = ufm.Problem([500, 400, 300], 3, 1e-4, 1e-5, features="free")
    point = random_start(problem, "class", 0)
    point.weight[:, 2], point.features[:, 2] = 0, 0
    vector = row_vector(problem, "class", point)
    reached, spent = newton(vector, 200)
    value, gradient = vector(reached)
    assert vector.residual(reached, value, gradient) < 1e-9
    assert np.all(vector.point(reached).weight[:, 2] == 0)
    assert spent < 100
