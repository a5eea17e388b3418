"""The algebra of like classes against K x K matrices, and the objective on it against that of classes."""

import jax
import numpy as np
import pytest
from helpers.groups import reduced, reduced_point
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.losses import MSE, CrossEntropy, LabelSmoothing, LogitAdjustment, WeightedCrossEntropy
from ufm.model.algebra import Blocks
from ufm.model.groups import (
    Groups,
    expand_point,
    group_objective,
    group_start,
    groups_of,
)
from ufm.model.objective import to_point
from ufm.model.problem import Problem
from ufm.model.stack import build_objective, scaling

COUNTS = np.array([50, 20, 50, 5, 20, 7, 50])


@st.composite
def elements(draw, number):
    """Groups and some random elements of their algebra."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    of_class = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    first = np.array([int(np.flatnonzero(of_class == g)[0]) for g in range(len(sizes))])
    groups = Groups(of_class, first, np.array(sizes))
    K = len(of_class)
    return groups, [reduced(groups, rng.standard_normal((K, K))) for _ in range(number)]


@settings(max_examples=30, deadline=None)
@given(elements(2))
def test_the_algebra_is_that_of_the_matrices(drawn):
    groups, (x, y) = drawn
    algebra, expand = groups.algebra, groups.expand
    X, Y = expand(x), expand(y)
    product = algebra.element(algebra.blocks(x) @ algebra.blocks(y))
    np.testing.assert_allclose(expand(product), X @ Y, atol=1e-12)
    np.testing.assert_allclose(expand(algebra.transpose(x)), X.T)
    np.testing.assert_allclose(np.vdot(x, y), np.vdot(X, Y), atol=1e-12)
    np.testing.assert_allclose(reduced(groups, X), x, atol=1e-12)
    np.testing.assert_allclose(algebra.element(algebra.blocks(x)), x, atol=1e-12)
    np.testing.assert_allclose(expand(np.maximum(x, 0)), np.maximum(X, 0))
    transposed = algebra.element(algebra.blocks(x).transpose)
    np.testing.assert_allclose(transposed, algebra.transpose(x), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(elements(1))
def test_singular_values_are_those_of_the_blocks(drawn):
    groups, (x,) = drawn
    square, single = groups.algebra.blocks(x)
    values = np.concatenate(
        [np.linalg.svd(square, compute_uv=False), np.repeat(np.abs(single), groups.members - 1)]
    )
    np.testing.assert_allclose(
        np.sort(values), np.sort(np.linalg.svd(groups.expand(x), compute_uv=False)), atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(elements(1), st.integers(0, 2**32 - 1))
def test_reduction_is_the_average_over_permutations_inside_groups(drawn, seed):
    groups, _ = drawn
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((len(groups.of_class),) * 2)
    nearest = groups.expand(reduced(groups, matrix))
    for _ in range(3):  # what is orthogonal to the algebra stays so under every permutation
        order = np.lexsort((rng.random(len(matrix)), groups.of_class))
        back = np.empty_like(order)
        back[np.argsort(groups.of_class, kind="stable")] = order
        np.testing.assert_allclose(nearest[np.ix_(back, back)], nearest, atol=1e-12)
    np.testing.assert_allclose(reduced(groups, matrix - nearest), 0, atol=1e-12)


def test_classes_are_alike_if_counts_and_loss_parameters_are():
    problem = Problem(COUNTS, 7, 1e-2, 1e-3)
    assert groups_of(problem).members.tolist() == [3, 2, 1, 1]
    assert groups_of(problem).first.tolist() == [0, 1, 3, 5]
    weighted = problem.replace(loss=WeightedCrossEntropy([1, 1, 2, 1, 1, 1, 1]))
    assert groups_of(weighted).of_class.tolist() == [0, 1, 2, 3, 1, 4, 0]


def test_a_group_of_one_class_has_no_pair_of_its_own():
    algebra = groups_of(Problem(COUNTS, 7, 1e-2, 1e-3)).algebra
    full = algebra.element(Blocks(np.ones((4, 4)), np.zeros(4)))
    assert full[2, 2] == 0
    assert full[3, 3] == 0
    assert algebra.times[2, 2] == 0


@pytest.mark.parametrize("features", ["nonnegative", "free"])
@pytest.mark.parametrize("bias", [None, 0, 0.1])
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        LabelSmoothing(0.1),
        WeightedCrossEntropy(COUNTS**-0.5),
        LogitAdjustment(np.log(COUNTS)),
        MSE(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_objective_and_gradient_are_those_of_classes(features, bias, loss):
    problem = Problem(COUNTS, 9, 1e-2, 1e-3, loss=loss, features=features, bias=bias)
    groups = groups_of(problem)
    ours = group_objective(problem, groups)
    point = group_start(problem, groups, seed=3)
    if bias is not None:
        point = point._replace(bias=np.linspace(-1, 1, len(groups)))
    variables = expand_point(problem, groups, point)
    for back, part in zip(reduced_point(problem, groups, variables), point, strict=True):
        if part is not None:
            np.testing.assert_allclose(back, part, atol=1e-14)
    with jax.enable_x64(True):
        theirs = build_objective(problem, "class", "balanced", "float64")
        full = to_point(variables, scaling(problem, "class", "balanced"), "float64")
        gradient = jax.tree.map(np.asarray, theirs.gradient(full))
        value, curvature = float(theirs.value(full)), float(theirs.curvature_bound(full))
    assert float(ours.value(point)) == pytest.approx(value, rel=1e-13)
    assert float(ours.curvature_bound(point)) == pytest.approx(curvature, rel=1e-12)
    own = ours.gradient(point)
    K = problem.num_classes
    np.testing.assert_allclose(groups.expand(own.weight), gradient.weight[:, :K], atol=1e-12)
    np.testing.assert_allclose(groups.expand(own.features), gradient.features[:, :K], atol=1e-12)
    if bias is not None:
        per_class = (own.bias / np.sqrt(groups.members))[groups.of_class]
        np.testing.assert_allclose(per_class, gradient.bias, atol=1e-12)
