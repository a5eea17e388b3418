"""Where no theorem applies everything is judged by a solved optimum, at tolerances that its gap is part of."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.duality.certificate import certify
from ufm.losses import MSE, BinaryCrossEntropy, CrossEntropy, Focal, LogitAdjustment, Poly1, VectorScaling
from ufm.model.problem import Problem
from ufm.prediction import solved
from ufm.verification.verify import verify

COUNTS = np.array([90, 60, 40, 20, 8, 3])
LOGS = np.log(COUNTS / COUNTS.sum())
FAMILY = {
    "free": (CrossEntropy(), "free", None, 1e-3),
    "free bias": (CrossEntropy(), "free", 0.0, 1e-3),
    "bias": (CrossEntropy(), "nonnegative", 0.0, 1e-3),
    "decayed bias": (Poly1(1.0), "nonnegative", 0.01, 1e-2),
    "shared directions": (LogitAdjustment(LOGS), "nonnegative", None, 1e-2),
    "scaled logits": (VectorScaling((COUNTS / 90) ** 0.3, LOGS), "nonnegative", None, 1e-3),
    "one versus rest": (BinaryCrossEntropy(), "nonnegative", None, 1e-3),
    "not convex": (Focal(1.0), "nonnegative", None, 1e-3),
    "squares": (MSE(), "nonnegative", 0.0, 1e-2),
}
EVERY = {"feature norms", "classifier norms", "margins", "NC2_H", "NC2_W", "NC2_WWT", "NC3_WH", "NC4"}
EVERY |= {"collapsed classes", "alignment", "classifier angles", "NC1", "objective", "duality gap"}


def member(name):
    loss, features, bias, decay = FAMILY[name]
    return Problem(COUNTS, 8, decay, decay, loss=loss, features=features, bias=bias)


def failing(report):
    return {row.name for row in report.rows if row.verdict == "fail"}


#: One program each: the others are for the slow tests.
EVERYDAY = ("free", "bias")


@pytest.mark.parametrize(
    "name", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILY]
)
def test_every_row_is_judged_and_a_wrong_point_fails(name):
    problem = member(name)
    solution = ufm.solve(problem, seed=5)
    report = verify(solution)
    assert report.passed, str(report)
    assert report.prediction.source.startswith("solved, relative gap")
    assert "predicted is the optimum of a solve of its own" in report.notes[0]
    assert {row.name for row in report.rows if row.verdict == "pass"} >= EVERY
    wrong = types.SimpleNamespace(**vars(solution), features=solution.features.copy(), weight=solution.weight)
    wrong.labels, wrong.bias, wrong.objective, wrong.group = np.arange(6), solution.bias, 0.0, None
    wrong.features[0] *= 1.02
    if problem.loss.convex:
        assert {"duality gap", "feature norms", "margins"} <= failing(verify(wrong))


@pytest.mark.slow
@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(FAMILY)),
    size=st.floats(-6, -1),
    kind=st.sampled_from(["all", "scale", "one feature", "one row", "bias"]),
    seed=st.integers(0, 10**6),
)
def test_a_gap_is_never_a_false_alarm(name, size, kind, seed):
    """Perturb an optimum: whatever the excess over the bound allows, every row passes at its tolerances."""
    problem, rng, size, k = member(name), np.random.default_rng(seed), 10.0**size, seed % 6
    prediction = solved.predict(problem, solve=True)
    solution = ufm.solve(problem, tol=1e-10)
    weight, features, bias = solution.weight.copy(), solution.features.copy(), solution.bias
    if kind == "all":
        weight += size * np.abs(weight).max() * rng.normal(size=weight.shape)
        features += size * np.abs(features).max() * rng.normal(size=features.shape)
    elif kind == "scale":
        weight, features = weight * (1 + size), features / (1 + size * rng.random())
    elif kind == "one feature":
        features[k] *= 1 + size
    elif kind == "one row":
        weight[k] *= 1 + size
    elif bias is not None:
        bias = bias + size * rng.normal(size=6)
    if problem.features == "nonnegative":
        features = np.maximum(features, 0)
    certificate = certify(problem, weight, features, np.arange(6), bias)
    excess = 1 - (prediction.objective - prediction.gap) / certificate.objective
    point = types.SimpleNamespace(problem=problem, level="class", weight=weight, features=features, bias=bias)
    point.labels, point.status, point.history = np.arange(6), "certified", ()
    point.objective, point.tol = certificate.objective, max(excess, 0) + 1e-12
    report = verify(point)
    assert failing(report) <= {"duality gap", "objective"}, str(report)


def test_a_large_problem_is_not_solved_unasked(monkeypatch):
    monkeypatch.setattr(solved, "KINDS", 3)
    problem = Problem([30, 20, 10, 5], 6, 1e-2, 1e-3, features="free")
    found, notes = solved.best_known(problem)
    assert found is None
    assert "with 4 kinds of classes" in notes[0]
    assert "solve=True" in notes[0]
    asked = solved.predict(problem, solve=True)
    assert solved.best_known(problem)[0] is asked  # kept


@pytest.mark.parametrize("features", ["nonnegative", "free"])
def test_fixed_classifiers_are_judged(features):
    """A frame that the theorem knows, and one that only the solver does."""
    rng = np.random.default_rng(0)
    frame = ufm.orthogonal_frame(4, 6, 2.0) if features == "nonnegative" else ufm.simplex_etf(4, 6, 2.0)
    for classifier, source in ((frame, "theorem"), (rng.normal(size=(4, 6)), "solved")):
        problem = Problem([40, 20, 10, 5], 6, 1.0, 1e-3, features=features, classifier=classifier)
        solution = ufm.solve(problem, seed=3)
        report = verify(solution)
        assert report.passed, str(report)
        assert report.prediction.source.startswith(source)
        assert "NC2_W" not in {row.name for row in report.rows}
        assert "unresolved" not in {row.verdict for row in report.rows}
        assert {"feature norms", "margins", "NC2_H", "NC3_WH", "alignment"} <= {
            row.name for row in report.rows if row.verdict == "pass"
        }
        wrong = solution.features.copy()
        wrong[3] *= 1.01
        claimed = verify(features=wrong, labels=np.arange(4), weight=classifier, problem=problem, tol=1e-8)
        assert {"feature norms", "margins"} <= failing(claimed)


def test_a_rotated_optimum_is_the_optimum():
    """Features with signs, a bias, unequal counts: no theorem, and arrays that no solver has seen in this basis."""
    problem = Problem([60, 60, 10, 10], 6, 5e-3, 1e-3, features="free", bias=0.01)
    solution = ufm.solve(problem)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    arrays = {"features": solution.features @ rotation, "weight": solution.weight @ rotation}
    report = verify(**arrays, labels=solution.labels, bias=solution.bias, problem=problem)
    assert report.passed, str(report)
    assert {row.name for row in report.rows if row.verdict == "pass"} >= EVERY
