"""The certificate in the algebra of like classes against the one of classes, at the same points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.duality.certificate import certify
from ufm.duality.groups import GroupDual
from ufm.losses import MSE, CrossEntropy, LabelSmoothing, LogitAdjustment, VectorScaling
from ufm.model.groups import expand_point, group_start, groups_of
from ufm.model.objective import Point
from ufm.model.problem import Problem

COUNTS = np.array([50, 20, 50, 5, 20, 7, 50])
LOSSES = [
    CrossEntropy(),
    LabelSmoothing(0.1),
    LogitAdjustment(np.log(COUNTS / COUNTS.sum())),
    VectorScaling((COUNTS / 50) ** 0.2),
    MSE(),
]


def both(problem, point):
    """The certificate of a point of the algebra, and that of the same point as ``(W, H, b)``."""
    groups = groups_of(problem)
    full = expand_point(problem, groups, point)
    labels = np.arange(problem.num_classes)
    ours = GroupDual.of(problem, groups).certify(point)
    return ours, certify(problem, full.weight, full.features, labels, full.bias)


def moved(problem, point, steps=60):
    """The point after some plain projected gradient steps, so that the bounds mean something."""
    objective = GroupDual.of(problem, groups_of(problem)).objective
    step = 0.5 / float(objective.curvature_bound(point))
    for _ in range(steps):
        slope = objective.gradient(point)
        parts = (None if p is None else p - step * g for p, g in zip(point, slope, strict=True))
        point = objective.project(Point(*parts))
    return point


@pytest.mark.parametrize("bias", [None, 0, 0.1])
@pytest.mark.parametrize("features", ["nonnegative", "free"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_both_certificates_are_equal(loss, features, bias):
    problem = Problem(COUNTS, 8, 1e-2, 1e-3, loss=loss, features=features, bias=bias)
    point = moved(problem, group_start(problem, groups_of(problem), seed=1))
    ours, theirs = both(problem, point)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-13)
    assert ours.residual == pytest.approx(theirs.residual, rel=1e-10)
    assert ours.polar == pytest.approx(theirs.polar, rel=1e-7)
    assert ours.lower_bound == pytest.approx(theirs.lower_bound, rel=1e-6)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["nonnegative", "free"]))
def test_the_bound_is_below_every_point_of_the_whole_problem(seed, features):
    problem = Problem(COUNTS, 8, 1e-2, 1e-3, features=features)
    rng = np.random.default_rng(seed)
    bound = both(problem, moved(problem, group_start(problem, groups_of(problem), seed=1)))[0].lower_bound
    W, H = rng.standard_normal((2, 7, 8)) * rng.uniform(0.1, 3, size=(2, 1, 1))
    H = np.abs(H) if features == "nonnegative" else H
    assert bound <= certify(problem, W, H, np.arange(7)).objective


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_polar_bounds_every_direction_of_the_classes(seed, shared):
    problem = Problem(COUNTS, 8, 1e-2, 1e-3)
    groups = groups_of(problem)
    dual, algebra = GroupDual.of(problem, groups), groups.algebra
    rng = np.random.default_rng(seed)
    element = algebra.roots * rng.standard_normal(algebra.roots.shape)
    element /= 1.1 * np.linalg.norm(groups.expand(element), 2)
    point = algebra.blocks(np.abs(element))
    bound = dual.polar(algebra.blocks(element), point @ point.transpose if shared else None)
    u = np.abs(rng.standard_normal((200, 7)) * (rng.random((200, 7)) < 0.6)) + 1e-9
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    assert bound >= np.linalg.norm(u @ groups.expand(element), axis=1).max()


def test_an_infeasible_point_is_not_certified():
    problem = Problem(COUNTS, 8, 1e-2, 1e-3)
    groups = groups_of(problem)
    point = group_start(problem, groups, seed=0)
    negative = point._replace(features=-point.features)
    assert GroupDual.of(problem, groups).certify(negative).lower_bound == -np.inf


def test_nothing_is_sharpened_once_the_gap_is_met():
    problem = Problem(COUNTS, 8, 1e-2, 1e-3)
    groups = groups_of(problem)
    dual, point = GroupDual.of(problem, groups), moved(problem, group_start(problem, groups, seed=1))
    loose, sharp = dual.certify(point, tol=1.0), dual.certify(point)
    assert loose.relative_gap <= 1.0
    assert sharp.lower_bound >= loose.lower_bound
