"""The objective: closed-form gradients against autodiff, both coordinates, both levels, against plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ufm
from ufm.model.objective import Objective, Variables, to_point, to_variables
from ufm.model.problem import bias_curvature, row_labels, row_multiplicities
from ufm.model.stack import build_objective, scaling

COUNTS = [5, 3, 2]
LOSSES = [
    ufm.CrossEntropy(),
    ufm.LabelSmoothing(0.2),
    ufm.WeightedCrossEntropy([0.5, 1.0, 2.0]),
    ufm.VectorScaling([0.5, 1.0, 2.0], [0.1, 0.0, -0.3]),
    ufm.MSE(),
    ufm.Focal(2.0),
]


def draw(problem, level, seed=0):
    rng = np.random.default_rng(seed)
    rows = len(row_labels(problem, level))
    bias = None if problem.bias is None else rng.normal(size=problem.num_classes)
    return Variables(rng.normal(size=(3, problem.dim)), np.abs(rng.normal(size=(rows, problem.dim))), bias)


def plain_sum(problem, level, variables):
    """P by its definition, one row at a time."""
    labels, multiplicities = row_labels(problem, level), row_multiplicities(problem, level)
    total = 0.0
    for h, y, m in zip(variables.features, labels, multiplicities, strict=True):
        logits = variables.weight @ h + (0 if variables.bias is None else variables.bias)
        total += m / problem.num_samples * problem.loss.value(logits[None], np.array([y]))[0]
        total += problem.feature_decay / 2 * m * h @ h
    total += problem.weight_decay / 2 * np.sum(variables.weight**2)
    return total + (0 if problem.bias is None else problem.bias / 2 * np.sum(variables.bias**2))


def name(part):
    return type(part).__name__ if isinstance(part, ufm.Loss) else str(part)


@jax.jit
def everything(objective, point):
    """Value, autodiff's gradient, gradient."""
    return *jax.value_and_grad(Objective.value, argnums=1)(objective, point), objective.gradient(point)


#: Every loss with every bias; with each of them both levels and both coordinates.
CASES = [
    (loss, bias, ("class", "sample")[(row + column) % 2], ("balanced", "natural")[row // 2 % 2])
    for row, loss in enumerate(LOSSES)
    for column, bias in enumerate((None, 0.0, 0.01))
]


#: Every loss, and every bias twice.
EVERYDAY = [case for number, case in enumerate(CASES) if number % 3 == number // 3 % 3]


@pytest.mark.parametrize(
    ("loss", "bias", "level", "coordinates"),
    [pytest.param(*case, marks=[] if case in EVERYDAY else pytest.mark.slow) for case in CASES],
    ids=name,
)
def test_value_is_the_definition_and_gradient_is_autodiff(loss, bias, level, coordinates):
    problem = ufm.Problem(COUNTS, 4, 1e-2, 1e-3, loss=loss, bias=bias)
    variables = draw(problem, level)
    with jax.enable_x64(True):
        objective = build_objective(problem, level, coordinates, "float64")
        point = to_point(variables, scaling(problem, level, coordinates), "float64")
        value, auto, gradient = everything(objective, point)
        assert float(value) == pytest.approx(plain_sum(problem, level, variables), rel=1e-13)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(auto), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("coordinates", ["balanced", "natural"])
def test_maps_are_inverse(coordinates):
    problem = ufm.Problem(COUNTS, 4, 1e-6, 1e-9, bias=0.0)
    variables, scales = draw(problem, "sample"), scaling(problem, "sample", coordinates)
    with jax.enable_x64(True):
        back = to_variables(to_point(variables, scales, "float64"), scales)
    for there, here in zip(variables, back, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-15)


def test_balanced_regulariser_is_half_the_squared_norm():
    problem = ufm.Problem(COUNTS, 4, 3e-5, 7e-8)
    with jax.enable_x64(True):
        objective = build_objective(problem, "class", "balanced", "float64")
        point = to_point(draw(problem, "class"), scaling(problem, "class", "balanced"), "float64")
        half = (np.sum(np.square(point.weight)) + np.sum(np.square(point.features))) / 2
        assert float(objective.regulariser(point)) == pytest.approx(float(half), rel=1e-14)


@pytest.mark.parametrize("bias", [None, 0.01])
def test_curvature_bound_bounds_the_hessian(bias):
    problem = ufm.Problem(COUNTS, 3, 1e-2, 1e-2, bias=bias)
    with jax.enable_x64(True):
        objective = build_objective(problem, "class", "balanced", "float64")
        _, unravel = ravel_pytree(
            to_point(draw(problem, "class"), scaling(problem, "class", "balanced"), "float64")
        )
        hessian = jax.jit(jax.hessian(lambda x: objective.value(unravel(x))))
        for seed in range(20):
            point = to_point(draw(problem, "class", seed), scaling(problem, "class", "balanced"), "float64")
            largest = np.linalg.norm(hessian(ravel_pytree(point)[0]), 2)
            assert largest <= float(objective.curvature_bound(point))


def test_projection_clips_only_what_must_be_nonnegative():
    for features, lowest in (("nonnegative", 0.0), ("free", -1.0)):
        problem = ufm.Problem(COUNTS, 2, 1e-2, 1e-2, features=features)
        point = to_point(
            Variables(-np.ones((3, 2)), -np.ones((3, 2))), scaling(problem, "class", "natural"), "float32"
        )
        projected = build_objective(problem, "class", "natural", "float32").project(point)
        assert float(jnp.min(projected.features)) == lowest
        assert float(jnp.max(projected.weight)) == -1.0


def test_bias_curvature_is_positive_for_any_bias():
    for bias in (0.0, 1e-6, 1.0):
        assert bias_curvature(ufm.Problem(COUNTS, 2, 1e-9, 1e-9, bias=bias)) > 0
