"""The stacked formulas are those of one problem, in every combination that changes them."""

import itertools

import jax
import numpy as np
import pytest

import ufm.model.objective
from ufm.model.objective import scaling
from ufm.model.problem import bias_curvature
from ufm.solvers.start import random_start
from ufm.sweeps.member import build_member
from ufm.sweeps.pool import fill_pool

KINDS = {
    "level": ("class", "sample"),
    "solver": ("accelerated", "sgd"),
    "bias": (None, 0.0, 0.02),
    "precision": ("float64", "float32"),
    "features": ("nonnegative", "free"),
}


def members_of(**kind):
    """Members of equal shape that differ in everything else; as many samples in each, for the sample level."""
    loss = "weighted:0.5" if kind["features"] == "free" else "ce"
    fixed = {"dim": 5, "loss": loss, "decay_ratio": 40.0} | kind
    varied = itertools.product([[6, 2, 1], [3, 3, 3]], [1e-3, 0.3], [0, 7])
    return [build_member(fixed | {"counts": n, "nuclear_weight": w, "seed": s}) for n, w, s in varied]


@pytest.mark.parametrize(
    "kind", list(itertools.product(*KINDS.values())), ids=lambda kind: "-".join(map(str, kind))
)
def test_a_pool_holds_what_every_member_has_alone(kind):
    members = members_of(**dict(zip(KINDS, kind, strict=True)))
    pool = fill_pool(members)
    for i, member in enumerate(members):
        problem, level = member.problem, member.level
        scales = scaling(problem, level, member.rule.coordinates)
        alone = ufm.model.objective.objective_arrays(problem, level, scales, member.precision)
        start = random_start(problem, level, member.fields["seed"])
        mine = jax.tree.map(lambda part, i=i: part[i], (pool.arrays, pool.scales, pool.starts))
        assert jax.tree.structure(mine[0]) == jax.tree.structure(alone)
        digits = 1e-6 if member.precision == "float32" else 1e-14
        for ours, theirs in zip(jax.tree.leaves(mine), jax.tree.leaves((alone, scales, start)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=digits, atol=0)
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype or isinstance(theirs, float)


def test_points_and_variables_are_inverse():
    members = members_of(
        level="sample", solver="accelerated", bias=0.02, precision="float64", features="free"
    )
    pool, some = fill_pool(members), np.array([3, 0, 5])
    starts = jax.tree.map(lambda part: part[some] + 1.0, pool.starts)
    back = pool.variables(some, pool.points(some, starts))
    for ours, theirs in zip(back, starts, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_units_are_those_of_the_certificate():
    for solver in ("accelerated", "sgd"):
        members = members_of(level="class", solver=solver, bias=0.02, precision="float64", features="free")
        units = fill_pool(members).units
        for i, member in enumerate(members):
            problem = member.problem
            np.testing.assert_allclose(
                units.classes[i], 1 / (np.sqrt(problem.counts) * problem.nuclear_weight), rtol=1e-14
            )
            natural = np.sqrt(bias_curvature(problem))
            assert units.bias[i] == pytest.approx(natural if solver == "sgd" else 1.0, rel=1e-14)
