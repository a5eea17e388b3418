"""The stacked formulas are those of one problem, in every combination that changes them."""

import itertools

import jax
import numpy as np
import pytest

import ufm
from ufm.model.objective import to_point, to_variables
from ufm.model.problem import bias_curvature
from ufm.model.stack import Stack, member, random_start, scaling
from ufm.solvers.compiled import units_of

KINDS = {
    "level": ("class", "sample"),
    "coordinates": ("balanced", "natural"),
    "bias": (None, 0.0, 0.02),
    "precision": ("float64", "float32"),
    "features": ("nonnegative", "free"),
}


def problems_of(features, bias):
    """Problems of equal shape that differ in everything else; as many samples in each, for the sample level."""
    found = []
    for n, weight in itertools.product([[6, 2, 1], [3, 3, 3]], [1e-3, 0.3]):
        loss = (
            ufm.WeightedCrossEntropy(np.sqrt(1.0 / np.array(n))) if features == "free" else ufm.CrossEntropy()
        )
        found.append(ufm.Problem(n, 5, weight * 40**0.5, weight / 40**0.5, loss, features, bias))
    return found


@pytest.mark.parametrize(
    "kind", list(itertools.product(*KINDS.values())), ids=lambda kind: "-".join(map(str, kind))
)
def test_a_stack_holds_what_every_member_has_alone(kind):
    level, coordinates, bias, dtype, features = kind
    problems = problems_of(features, bias)
    stack, seeds = Stack(problems, level), [0, 7, 7, 0]
    scales = stack.scaling(coordinates)
    whole = (stack.objective_arrays(scales, dtype), scales, stack.random_starts(seeds))
    for i, (problem, seed) in enumerate(zip(problems, seeds, strict=True)):
        one = scaling(problem, level, coordinates)
        own = Stack([problem], level)
        alone = jax.tree.map(lambda part: part[0], own.objective_arrays(own.scaling(coordinates), dtype))
        mine = jax.tree.map(lambda part, i=i: part[i], whole)
        assert jax.tree.structure(mine[0]) == jax.tree.structure(alone)
        expected = (alone, one, random_start(problem, level, seed))
        digits = 1e-6 if dtype == "float32" else 1e-14
        for ours, theirs in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=digits, atol=0)
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype or isinstance(theirs, float)


def test_stacked_numbers_are_those_of_the_problem():
    """Against the definitions, spelt out: the only place where they stand a second time."""
    for problem in problems_of("nonnegative", 0.02):
        arrays = Stack([problem], "sample").objective_arrays(scaling_of(problem), "float64")
        decays = problem.weight_decay, problem.feature_decay
        assert arrays["loss_weights"][0] == pytest.approx(np.full(9, 1 / 9))
        assert arrays["logit_scales"][0] == pytest.approx(np.full(9, 1 / np.sqrt(decays[0] * decays[1])))
        np.testing.assert_allclose(arrays["row_decays"][0], 1.0)
        np.testing.assert_allclose(arrays["bias_decay"][0], 0.02 / bias_curvature(problem))


def scaling_of(problem):
    return Stack([problem], "sample").scaling("balanced")


def test_points_and_variables_are_inverse():
    stack = Stack(problems_of("free", 0.02), "sample")
    scales, some = stack.scaling("balanced"), np.array([3, 0, 2])
    starts = jax.tree.map(lambda part: part[some] + 1.0, stack.random_starts([0, 1, 2, 3]))
    back = to_variables(to_point(starts, member(scales, some), "float64"), member(scales, some))
    for ours, theirs in zip(back, starts, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_units_are_those_of_the_certificate():
    problems = problems_of("free", 0.02)
    stack = Stack(problems, "class")
    for coordinates in ("balanced", "natural"):
        units = units_of(stack, stack.scaling(coordinates), "float64")
        for i, problem in enumerate(problems):
            expected = 1 / (np.sqrt(problem.counts) * problem.nuclear_weight)
            np.testing.assert_allclose(units.classes[i], expected, rtol=1e-14)
            natural = np.sqrt(bias_curvature(problem))
            assert units.bias[i] == pytest.approx(natural if coordinates == "natural" else 1.0, rel=1e-14)
