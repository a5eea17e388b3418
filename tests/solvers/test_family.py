"""One solver, one certificate, every model: all losses x feature sets x biases, found by introspection.

A new loss needs no edit here: it is solved on every profile, and certified to a relative gap of 1e-8 if it says it
is convex. All problems have the same shape, so that every model is compiled once.
"""

import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.losses import BIASES, CLASSES, EVERYDAY, MATRIX, SUBSET, made_for

import ufm
from ufm.model.problem import FEATURE_SETS

PROFILES = {
    "step": np.array([300, 300, 300, 30, 30, 30]),
    "long tail": np.array([400, 200, 100, 50, 25, 12]),
    "with collapsed classes": np.array([400, 300, 100, 60, 3, 2]),
}
K = 6
SEEDS = range(10)
TOL = 1e-8


def problem_of(cls, features, bias, profile="step", dim=K):
    counts = PROFILES[profile]
    return ufm.Problem(counts, dim, 5e-3, 2e-5, loss=made_for(cls, counts), features=features, bias=bias)


def name(cell):
    return f"{cell[0].__name__}-{cell[1]}-{cell[2]}"


def check(problem, seed):
    solution = ufm.solve(problem, seed=seed, tol=TOL)
    if not problem.loss.convex:
        assert solution.certified or solution.status == "no_certificate"
        assert solution.certificate.lower_bound <= solution.objective * (1 + 1e-12)
        assert solution.certificate.residual <= 1e-7
        return solution
    assert solution.status == "certified", (seed, solution.to_dict())
    assert abs(solution.certificate.relative_gap) <= TOL
    again = ufm.certify(problem, solution.weight, solution.features, solution.labels, solution.bias)
    assert again == solution.certificate
    return solution


def test_subsets_have_every_loss_feature_set_and_bias():
    for axis, values in enumerate((CLASSES, FEATURE_SETS, BIASES)):
        assert {cell[axis] for cell in EVERYDAY} == set(values)
    assert {cell[:2] for cell in SUBSET} == set(itertools.product(CLASSES, FEATURE_SETS))


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[] if cell in EVERYDAY else pytest.mark.slow) for cell in SUBSET],
    ids=map(name, SUBSET),
)
def test_family_is_certified_and_verified(cell):
    solution = check(problem_of(*cell), seed=0)
    report = ufm.verify(solution)
    assert report.passed == solution.certified, report.table()
    if report.prediction is None:
        assert "the certified solver, ufm.solve, is then the prediction" in " ".join(report.table().split())


@pytest.mark.slow
@pytest.mark.parametrize("cell", MATRIX, ids=name)
def test_family_is_certified_on_every_profile_from_every_start(cell):
    for profile in PROFILES:
        problem = problem_of(*cell, profile=profile)
        objectives = [check(problem, seed).objective for seed in SEEDS]
        if problem.loss.convex:
            assert np.ptp(objectives) <= TOL * min(objectives)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in SUBSET if cell[0].convex], ids=name)
def test_family_at_sample_level_reaches_the_class_level_optimum(cell):
    problem = problem_of(*cell).replace(counts=np.array([30, 30, 30, 3, 3, 3]), dim=8)
    coarse, fine = (ufm.solve(problem, level) for level in ("class", "sample"))
    assert coarse.certified
    assert fine.certified
    assert fine.objective == pytest.approx(coarse.objective, rel=2 * TOL)


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_a_loss_without_certificate_still_leaves_its_stuck_points(profile):
    """No theorem, but on these profiles every start ends at the same value, in few steps."""
    problem = problem_of(ufm.Focal, "nonnegative", None, profile)
    solutions = [check(problem, seed) for seed in SEEDS]
    assert np.ptp([solution.objective for solution in solutions]) <= 1e-10 * solutions[0].objective
    assert max(len(solution.history) for solution in solutions) <= 40
    stuck = [ufm.solve(problem, seed=seed, escapes=False) for seed in SEEDS]
    assert max(solution.objective for solution in stuck) > 1.01 * solutions[0].objective


# Models that must agree, or be ordered, whatever the numbers


def optimum(loss, features="nonnegative", bias=None, counts=PROFILES["step"]):
    solution = ufm.solve(ufm.Problem(counts, K, 5e-3, 2e-5, loss=loss, features=features, bias=bias))
    assert solution.certified or not loss.convex
    return solution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "bias"),
    [
        (ufm.LabelSmoothing(0.0), 0.0),
        (ufm.WeightedCrossEntropy(np.ones(K)), 0.02),
        (ufm.LogitAdjustment(np.full(K, 3.0)), None),
        (ufm.VectorScaling(np.ones(K), np.full(K, -1.0)), 0.0),
        (ufm.Focal(0.0), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ufm.Loss) else str(value),
)
def test_every_softmax_loss_contains_cross_entropy(loss, bias):
    plain, special = optimum(ufm.CrossEntropy(), bias=bias), optimum(loss, bias=bias)
    assert special.objective == pytest.approx(plain.objective, rel=1e-12)
    np.testing.assert_allclose(special.weight @ special.weight.T, plain.weight @ plain.weight.T, atol=1e-6)


@pytest.mark.slow
def test_a_free_bias_absorbs_logit_adjustment():
    counts = PROFILES["step"]
    adjusted = optimum(ufm.LogitAdjustment(np.log(counts / counts.sum())), bias=0.0)
    plain = optimum(ufm.CrossEntropy(), bias=0.0)
    assert adjusted.objective == pytest.approx(plain.objective, rel=1e-12)
    shift = plain.bias - adjusted.bias
    np.testing.assert_allclose(shift - shift.mean(), np.log(counts) - np.log(counts).mean(), atol=1e-5)


@pytest.mark.parametrize("cls", [ufm.CrossEntropy, pytest.param(ufm.MSE, marks=pytest.mark.slow)])
def test_more_freedom_is_never_worse(cls):
    values = {
        (features, bias): optimum(cls(), features, bias).objective
        for features in FEATURE_SETS
        for bias in BIASES
    }
    for bias in BIASES:
        assert values["free", bias] <= values["nonnegative", bias] * (1 + 1e-12)
    for features in FEATURE_SETS:
        assert values[features, 0.0] < values[features, 0.02] < values[features, None]


@pytest.mark.slow
def test_inverse_root_weights_restore_equal_margins():
    counts = PROFILES["long tail"]
    balanced = optimum(ufm.WeightedCrossEntropy(counts**-0.5 * 20.0), counts=counts)
    logits = balanced.features @ balanced.weight.T
    margins = np.diag(logits) - np.max(np.where(np.eye(K) > 0, -np.inf, logits), axis=1)
    assert np.ptp(margins) <= 1e-6 * margins.max()
    assert margins.min() > 1


@pytest.mark.parametrize("features", FEATURE_SETS)
@pytest.mark.parametrize("exponent", few_daily([-28, -24, -20, -16, -12], (0, 4)))
def test_vanishing_decays_are_certified(features, exponent):
    """Where the worst-case curvature is 1e25 times the true one, first steps are lost in rounding and must grow."""
    counts = np.repeat([500, 50], 5)
    solution = ufm.solve(ufm.Problem(counts, 10, 10.0**exponent, 10.0**exponent, features=features))
    assert solution.certified
    assert solution.steps < 2000
