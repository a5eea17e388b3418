"""Verification: planted optima pass, planted errors fail, and a gap never raises a false alarm."""

import json
import math
import types

import numpy as np
import pytest
from helpers.cases import few_daily
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm import metrics
from ufm.duality.certificate import certify
from ufm.duality.row_sums import add_up
from ufm.inputs.checks import InputError
from ufm.losses import MSE, CrossEntropy, Focal, LabelSmoothing, WeightedCrossEntropy
from ufm.losses.divergence import binary_shift, concordant_radius
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.metrics.statistics import FeatureStatistics
from ufm.model.problem import Problem
from ufm.theory import ClosedFormError, predict
from ufm.verification.effective import estimate_decays
from ufm.verification.observer import collapse_observer
from ufm.verification.stationarity import block_step_residual, feature_curvature
from ufm.verification.tolerances import dual_matrix
from ufm.verification.verify import SMALLEST_GAP, verify

SETTINGS = settings(max_examples=40)
STEP = Problem([500] * 5 + [50] * 5, 16, 5e-3, 1e-6)
TAIL = Problem([90, 60, 40, 20, 8, 3], 9, 2e-2, 2e-2)  # the last three classes collapse


def planted(problem, level="class"):
    """The optimum in closed form as a point: ``W = sqrt(lambda_H/lambda_W) A' diag(sqrt(n)) H``."""
    prediction = predict(problem)
    K = problem.num_classes
    features = np.zeros((K, problem.dim))
    if np.count_nonzero(prediction.gram_features - np.diag(prediction.norms**2)) == 0:
        living = np.flatnonzero(~prediction.collapsed)
        features[living, np.arange(len(living))] = prediction.norms[living]
    else:
        values, vectors = np.linalg.eigh(prediction.gram_features)
        features[:, :K] = vectors * np.sqrt(np.maximum(values, 0))
    ratio = math.sqrt(problem.feature_decay / problem.weight_decay)
    weight = ratio * dual_matrix(prediction).T @ (np.sqrt(problem.counts)[:, None] * features)
    labels = np.arange(K)
    if level == "sample":
        labels = np.repeat(labels, problem.counts)
        features = features[labels]
    return weight, features, labels, None if problem.bias is None else np.zeros(K)


def claim(problem, weight, features, labels, bias=None, tol=1e-8):
    """A solution that claims to be optimal, whatever it is."""
    certificate = certify(problem, weight, features, labels, bias)
    return types.SimpleNamespace(
        problem=problem,
        level="class" if len(labels) == problem.num_classes else "sample",
        weight=weight,
        features=features,
        labels=labels,
        bias=bias,
        status="certified",
        certificate=certificate,
        objective=certificate.objective,
        tol=tol,
        history=(),
    )


def failing(report):
    return {row.name for row in report.rows if row.verdict == "fail"}


FAMILY = [
    (CrossEntropy(), "nonnegative", None),
    (LabelSmoothing(0.1), "nonnegative", None),
    (WeightedCrossEntropy([0.5, 1.0, 2.0, 1.5]), "nonnegative", None),
    (MSE(), "nonnegative", None),
    (MSE(), "free", None),
    (CrossEntropy(), "nonnegative", 0.0),
    (CrossEntropy(), "free", None),
    (CrossEntropy(), "free", 0.0),
    (CrossEntropy(), "free", 0.1),
]


def family_member(number, strength, balanced):
    """A problem of the family, or None where no theorem covers it."""
    loss, features, bias = FAMILY[number]
    counts = [12] * 4 if balanced or (features == "free" and not isinstance(loss, MSE)) else [30, 12, 5, 1]
    problem = Problem(counts, 6, 3 * strength, strength / 3, loss=loss, features=features, bias=bias)
    try:
        predict(problem)
    except ClosedFormError:
        return None
    return problem


@pytest.mark.parametrize("level", ["class", "sample"])
@pytest.mark.parametrize("number", range(len(FAMILY)))
@pytest.mark.parametrize("strength", few_daily([1e-4, 1e-2, 5e-2, 0.5], (2,)))  # none, some, all collapsed
def test_planted_optimum_passes(number, strength, level):
    problem = family_member(number, strength, balanced=FAMILY[number][2] is not None)
    assert problem is not None
    report = verify(claim(problem, *planted(problem, level)))
    assert report.passed, str(report)
    assert report["objective"].error <= 1e-12
    assert report["duality gap"].verdict == "pass"
    collapsed = report["collapsed classes"]
    assert collapsed.measured == collapsed.predicted == predict(problem).num_collapsed


@pytest.mark.parametrize("number", range(len(FAMILY)))
def test_excess_objective_is_a_sum_of_squares_and_divergences(number):
    """Equation (1) of `ufm.verification.resolution`, term by term, at random points."""
    problem = family_member(number, 1e-2, balanced=FAMILY[number][2] is not None)
    prediction, rng = predict(problem), np.random.default_rng(number)
    weight, features, labels, bias = planted(problem, "sample")
    weight = weight + rng.normal(size=weight.shape)
    features = np.abs(features + rng.normal(size=features.shape))
    bias = None if bias is None else rng.normal(size=4)
    statistics = FeatureStatistics(weight=weight, bias=bias)
    statistics.update(features, labels)
    dual = problem.loss.gradient(prediction.logits, np.arange(4))
    logits = features @ weight.T + (0 if bias is None else bias)
    divergence = problem.loss.value(logits, labels) + problem.loss.conjugate(dual, np.arange(4))[labels]
    divergence -= np.sum(dual[labels] * logits, axis=1)
    V = math.sqrt(problem.weight_decay) * weight
    G = np.sqrt(problem.feature_decay * problem.counts)[:, None] * statistics.means
    AG = dual_matrix(prediction).T @ G
    terms = [
        divergence.mean(),
        np.sum((V - AG) ** 2) / 2,
        (np.sum(G**2) - np.sum(AG**2)) / 2,
        problem.num_samples * problem.feature_decay / 2 * statistics.within_trace,
        0.0 if bias is None else problem.bias / 2 * np.sum(bias**2),
    ]
    assert min(terms) >= -1e-12
    excess = certify(problem, weight, features, labels, bias).objective - prediction.objective
    assert excess == pytest.approx(sum(terms), rel=1e-10)


@SETTINGS
@given(
    number=st.integers(0, len(FAMILY) - 1),
    strength=st.sampled_from([1e-4, 1e-3, 1e-2, 3e-2, 0.3]),
    level=st.sampled_from(["class", "sample"]),
    size=st.floats(-7, 0),
    kind=st.sampled_from(["all", "scale", "one feature", "one row", "leak"]),
    seed=st.integers(0, 10**6),
)
def test_a_gap_is_never_a_false_alarm(number, strength, level, size, kind, seed):
    """Perturb the optimum in any way: by the theorem every row holds at the tolerances of its own gap.

    The theorem needs no lower bound, only ``P - P* <= eps``, and here ``P*`` is planted: also a point whose gap
    is 1 or more, or infinite, can claim an ``eps``, its excess. That is the sharpest claim that is true, its
    tolerances are the tightest, and then only the row of the gap itself may fail.
    """
    problem = family_member(number, strength, balanced=FAMILY[number][2] is not None)
    weight, features, labels, bias = planted(problem, level)
    rng, size = np.random.default_rng(seed), 10.0**size
    k = seed % 4
    if kind == "all":
        weight = weight + size * np.abs(weight).max() * rng.normal(size=weight.shape)
        features = features + size * np.abs(features).max() * rng.normal(size=features.shape)
    elif kind == "scale":
        weight, features = weight * (1 + size), features / (1 + size * rng.random())
    elif kind == "one feature":
        features = np.where((labels == k)[:, None], features * (1 + size), features)
    elif kind == "one row":
        weight = np.where((np.arange(4) == k)[:, None], weight * (1 + size), weight)
    else:
        features = features + size * (rng.random(features.shape) < 0.2)
    bias = None if bias is None else bias + size * rng.normal(size=4)
    if problem.features == "nonnegative":
        features = np.maximum(features, 0)
    point = claim(problem, weight, features, labels, bias)
    excess = 1 - predict(problem).objective / point.objective
    report = verify(point, tol=max(excess, 0.0) + SMALLEST_GAP)
    assert failing(report) <= {"duality gap"}, str(report)
    gap = max(point.certificate.relative_gap, 0.0) + SMALLEST_GAP
    if gap < 1:
        report = verify(point, tol=gap)
        assert failing(report) == set(), str(report)


def test_a_claim_without_a_lower_bound_is_held_to_the_gap_it_claims():
    """All rows in wrong classes and none in the last, with certainty: no bias makes the gradients sum to zero."""
    problem = family_member(7, 1e-4, balanced=False)
    _, _, labels, bias = planted(problem)
    features, weight = np.eye(4, 6), np.zeros((4, 6))
    weight[[1, 2, 2, 0], range(4)] = 1e4
    point = claim(problem, weight, features, labels, bias)
    assert point.certificate.relative_gap == math.inf
    report = verify(point)
    assert not report.passed
    assert {"duality gap", "objective", "margins", "classifier norms"} <= failing(report)
    assert report["duality gap"].measured is None
    assert "no lower bound" in report["duality gap"].note
    assert "its own gap is infinite" in report.basis
    loose = verify(point, tol=0.999)
    assert "duality gap" in failing(loose)
    assert "nan" not in str(loose)
    json.dumps(report.to_dict(), allow_nan=False)
    claims_nothing = verify(features=features, labels=labels, weight=weight, bias=point.bias, problem=problem)
    assert "Tolerance 0.1" in claims_nothing.basis
    assert "relative duality gap is inf" in claims_nothing.basis


@pytest.mark.parametrize("tol", [1.0, 10.0, 1e6])
def test_a_gap_of_one_or_more_proves_nothing_and_is_refused(tol):
    point = claim(STEP, *planted(STEP))
    with pytest.raises(InputError, match="tol must be below 1"):
        verify(point, tol=tol)
    point.tol = tol
    with pytest.raises(InputError, match=r"solution\.tol must be below 1"):
        verify(point)
    with pytest.raises(InputError, match="tol must be below 1"):
        ufm.solve(STEP, tol=tol)


@pytest.mark.parametrize("problem", [STEP, Problem([100, 60, 30, 20, 10], 8, 1e-3, 1e-4)])
@pytest.mark.parametrize("block", ["features", "weight"])
@pytest.mark.parametrize("k", [0, -1, slice(None)])
def test_planted_norm_error_fails(problem, block, k):
    weight, features, labels, _ = planted(problem)
    (features if block == "features" else weight)[k] *= 1 + 1e-3
    report = verify(claim(problem, weight, features, labels))
    assert not report.passed
    assert "duality gap" in failing(report)
    assert failing(report) & {"feature norms", "classifier norms", "margins"}


def test_planted_errors_fail_where_they_are():
    weight, features, labels, _ = planted(STEP, "sample")
    rng = np.random.default_rng(0)
    assert verify(claim(STEP, weight, features, labels)).passed
    spread = np.maximum(features + 0.01 * features.max() * rng.normal(size=features.shape), 0)
    assert {"NC1", "NC1 variance ratio", "NC1 CDNV"} <= failing(verify(claim(STEP, weight, spread, labels)))
    tilted = features + 0.05 * features[:, ::-1] + 0.05 * np.roll(features, 1, axis=1)
    assert {"orthogonality", "NC2_H"} <= failing(verify(claim(STEP, weight, tilted, labels)))
    mixed = weight[[1, 0, *range(2, 10)]]
    report = verify(claim(STEP, mixed, features, labels))
    assert {"NC4", "alignment", "margins", "NC2_W", "NC3_WH", "KKT residual"} <= failing(report)
    liar = claim(STEP, weight, features, labels)
    liar.objective *= 1 + 1e-6
    assert failing(verify(liar)) == {"reported objective"}
    infeasible = claim(STEP, weight, features, labels)
    infeasible.certificate = None  # whatever it says about itself is not believed
    assert verify(infeasible).passed


def test_minority_collapse_that_is_not_there_fails():
    weight, features, labels, _ = planted(STEP)
    features[9] = 0
    report = verify(claim(STEP, weight, features, labels))
    assert report["collapsed classes"].verdict == "fail"
    assert report["collapsed classes"].where == "class 9"


@pytest.mark.parametrize(("offset", "gap"), [(-1, 1e-12), (0, 1e-12), (1, 1e-12), (1, 1e-2)])
def test_around_the_collapse_threshold(offset, gap):
    """K = 2: the threshold is 2 N^2 lambda_W lambda_H; choose decays that put it at 100 of N samples."""
    counts = np.array([1000, 100 + offset])
    decay = math.sqrt(100 / 2) / counts.sum()
    problem = Problem(counts, 4, decay, decay)
    report = verify(claim(problem, *planted(problem)[:3]), tol=gap)
    if gap < 1e-3:
        assert report.passed
        assert report["collapsed classes"].measured == (offset <= 0)
        assert report.unresolved_classes == ((1,) if offset == 0 else ())
    noisy = planted(problem)
    report = verify(claim(problem, noisy[0] * (1 + math.sqrt(gap)), *noisy[1:3]), tol=gap)
    assert failing(report) <= {"duality gap", "objective"}
    if gap > 1e-3:  # a gap of a percent cannot tell 101 from 99
        assert 1 in report.unresolved_classes
        assert "class 1" in report["collapsed classes"].note


def test_everything_collapsed():
    problem = Problem([30, 10, 5], 4, 1.0, 1.0)
    report = verify(claim(problem, *planted(problem)))
    assert report.passed
    assert report["collapsed classes"].measured == 3
    assert report["NC2_H"].verdict == "unresolved"
    assert "nan" not in str(report)
    assert "NaN" not in json.dumps(report.to_dict())


@pytest.mark.parametrize(
    ("problem", "level"),
    [(TAIL, "sample"), (Problem([40, 20, 10], 5, 1e-3, 1e-3, loss=LabelSmoothing(0.05)), "class")],
)
def test_solutions_pass(problem, level):
    solution = ufm.solve(problem, level=level, observe=collapse_observer(problem), tol=1e-8)
    report = verify(solution)
    assert report.passed, str(report)
    assert solution.history[-1]["nc2_h"] == pytest.approx(report["NC2_H"].measured, abs=1e-12)
    assert report.history == solution.history
    forced = verify(solution, tolerance=1e-5)
    assert forced.passed
    assert forced["NC2_H"].tolerance == 1e-5


def test_without_closed_form():
    problem = Problem([40, 20, 10], 2, 1e-3, 1e-3)  # fewer dimensions than classes, and no gap closes
    report = verify(ufm.solve(problem, max_steps=2000))
    assert report.prediction is None
    assert sum("closed form" in note for note in report.notes) == 1
    assert "the duality gap stays at" in report.notes[0]
    assert report["KKT residual"].verdict == "pass"
    assert report["NC1"].verdict == "pass"
    assert report["NC4"].verdict == report["collapsed classes"].verdict == "info"
    assert report.passed == (report["duality gap"].verdict == "pass")


def test_loss_without_certificate():
    problem = Problem([40, 20, 10], 5, 1e-3, 1e-3, loss=Focal(2.0))
    weight, features, labels, _ = planted(problem.replace(loss=CrossEntropy()))
    report = verify(claim(problem, weight, features, labels))
    assert report.counts()["info"] == len(report.rows), str(report)
    assert not report.passed
    assert "not convex" in report.basis


def network(problem, noise=0.03, seed=0):
    """A last layer near, but not at, the optimum."""
    weight, features, labels, _ = planted(problem, "sample")
    rng = np.random.default_rng(seed)
    features = np.maximum(features * (1 + noise * rng.normal(size=features.shape)), 0)
    return {
        "features": features,
        "labels": labels,
        "weight": weight * (1 + noise * rng.normal(size=weight.shape)),
    }


NETWORK = Problem([60] * 3 + [20] * 3, 8, 5e-3, 3e-4)


def test_network_is_held_to_one_tolerance():
    layer = network(NETWORK)
    report = verify(**layer, problem=NETWORK)
    assert report.passed
    assert "Tolerance 0.1" in report.basis
    assert report["duality gap"].verdict == "info"
    assert report["NC2_H"].tolerance == 0.1
    strict = verify(**layer, problem=NETWORK, tolerance=1e-3)
    assert not strict.passed
    assert "Tolerance 0.001" in strict.basis
    exact = dict(zip(("weight", "features", "labels"), planted(NETWORK)[:3], strict=True))
    assert "relative gap" in verify(**exact, problem=NETWORK).basis  # certified, so held to its gap
    wrong = exact | {"weight": exact["weight"] * 1.001}
    assert verify(**wrong, problem=NETWORK).passed  # no claim made, so held to 0.1
    assert not verify(**wrong, problem=NETWORK, tol=1e-8).passed
    order = np.random.default_rng(0).permutation(6)
    exact |= {"features": exact["features"][order], "labels": exact["labels"][order]}
    assert verify(**exact, problem=NETWORK).passed  # one row per class, in any order


def test_noise_in_collapsed_classes_is_no_variability_but_noise_in_living_ones_is():
    problem = Problem([60] * 3 + [20] * 3, 8, 5e-2, 1.3e-2)
    assert predict(problem).num_collapsed == 3
    arrays = network(problem)
    dead = np.flatnonzero(arrays["labels"] >= 3)
    rng = np.random.default_rng(1)
    arrays["features"][dead] = 1e-3 * np.abs(rng.normal(size=(len(dead), 8)))
    report = verify(**arrays, problem=problem)
    for name in ("NC1 living", "NC1 variance ratio", "NC1 CDNV living"):
        assert report[name].verdict == "pass", str(report)
    statistics = metrics.measure(**arrays)
    for name, metric in (("NC1", metrics.nc1), ("NC1 CDNV", metrics.cdnv)):
        assert report[name].measured == pytest.approx(metric(statistics), rel=1e-12)
        assert report[name].measured > 1  # of which none would have passed
        assert (report[name].verdict, report[name].note[:10]) == ("info", "not judged")
    living = np.flatnonzero(arrays["labels"] < 3)
    arrays["features"][living] *= rng.uniform(0.0, 2.0, size=(len(living), 1))
    spoilt = verify(**arrays, problem=problem)
    for name in ("NC1 variance ratio", "NC1 CDNV living"):
        assert spoilt[name].verdict == "fail", str(spoilt)


@pytest.mark.parametrize("problem", [None, NETWORK, Problem([60] * 3 + [20] * 3, 8, 5e-2, 1.3e-2)])
@pytest.mark.parametrize("tolerance", [None, 0.999])
def test_a_network_of_zeros_never_passes_where_a_class_should_live(problem, tolerance):
    layer = network(NETWORK if problem is None else problem)
    layer = {name: np.zeros_like(value) if name != "labels" else value for name, value in layer.items()}
    assert not verify(**layer, problem=problem, tolerance=tolerance).passed


@pytest.mark.parametrize("problem", [None, NETWORK])
def test_the_report_has_the_metrics_of_the_metrics(problem):
    """Every variant that somebody logs, under its own name."""
    layer = network(NETWORK)
    report, statistics = verify(**layer, problem=problem), metrics.measure(**layer)
    logits = metrics.class_logits(statistics)
    for name, value in {
        "NC1": metrics.nc1(statistics),
        "NC1 without 1/K": metrics.nc1_sum(statistics),
        "NC1 unweighted mean": metrics.nc1_unweighted(statistics),
        "NC1 variance ratio": metrics.variance_ratio(statistics),
        "NC1 CDNV": metrics.cdnv(statistics),
        "smallest logit margin": metrics.logit_margins(logits).min(),
    }.items():
        assert report[name].measured == pytest.approx(value, rel=1e-12)
    assert report["NC1 without 1/K"].measured == pytest.approx(6 * report["NC1"].measured)


class Counting:
    """Features in a file, so to say: counts how often every row is read."""

    def __init__(self, rows):
        self.rows, self.shape, self.reads = rows, rows.shape, np.zeros(len(rows), dtype=int)

    def __getitem__(self, part):
        self.reads[part] += 1
        return self.rows[part]


def test_features_are_read_once_for_the_statistics_and_once_for_nc4(monkeypatch):
    monkeypatch.setattr("ufm.metrics.batches.BLOCK_ENTRIES", 100)
    layer = network(NETWORK)
    features = Counting(layer["features"])
    report = verify(**(layer | {"features": features}))
    assert set(features.reads) == {2}
    assert report.to_dict() == verify(**layer).to_dict()


def test_streamed_statistics_give_the_same_rows():
    layer = network(NETWORK)
    statistics = FeatureStatistics(weight=layer["weight"])
    for part in np.array_split(np.random.default_rng(1).permutation(len(layer["labels"])), 7):
        statistics.update(layer["features"][part], layer["labels"][part])
    second = NearestMeanAgreement(statistics)
    for part in np.array_split(np.arange(len(layer["labels"])), 3):
        second.update(layer["features"][part], layer["labels"][part])
    for problem in (NETWORK, None):
        memory = verify(**layer, problem=problem)
        streamed = verify(statistics=statistics, second_pass=second, problem=problem)
        assert streamed.passed
        for row in streamed.rows:
            assert row.measured == pytest.approx(memory[row.name].measured, rel=1e-9, abs=1e-12)
        missing = {row.name for row in memory.rows} - {row.name for row in streamed.rows}
        assert missing <= {"duality gap", "objective", "KKT residual"}


def test_decays_are_estimated_without_a_problem():
    exact = planted(NETWORK, "sample")
    report = verify(features=exact[1], labels=exact[2], weight=exact[0])
    assert report.passed
    assert report.estimate["weight_decay"] == pytest.approx(5e-3, rel=1e-9)
    assert report.estimate["feature_decay"] == pytest.approx(3e-4, rel=1e-9)
    assert report.estimate["spread"] == pytest.approx(1)
    assert report["NC2_H"].measured == pytest.approx(0, abs=1e-9)
    assert report["margins"].verdict == report["feature norms"].verdict == "info"
    noisy = verify(**network(NETWORK, noise=0.02))
    assert noisy.passed
    assert noisy.estimate["nuclear_weight"] == pytest.approx(NETWORK.nuclear_weight, rel=0.3)
    assert "Effective" in str(noisy)


def test_estimate_survives_collapsed_and_odd_classes():
    weight, features, labels, _ = planted(TAIL, "sample")
    report = verify(features=features, labels=labels, weight=weight)
    assert report.estimate["nuclear_weight"] == pytest.approx(TAIL.nuclear_weight, rel=1e-9)
    assert report["collapsed classes"].measured == report["collapsed classes"].predicted == 3
    margins = np.array([5.0, 5.0, 5.0, 5.0, 50.0])
    estimate = estimate_decays(margins, np.full(5, 10.0), 1.0, 1.0)
    plain = estimate_decays(np.full(5, 5.0), np.full(5, 10.0), 1.0, 1.0)
    assert estimate.nuclear_weight == pytest.approx(plain.nuclear_weight)
    assert estimate_decays(np.zeros(3), np.full(3, 10.0), 1.0, 1.0) is None


def test_free_balanced_features_are_fitted_with_the_simplex():
    problem = Problem([25] * 4, 6, 2e-3, 1e-3, features="free")
    weight, features, labels, _ = planted(problem, "sample")
    report = verify(features=features, labels=labels, weight=weight)
    assert report.passed
    assert report.estimate["nuclear_weight"] == pytest.approx(problem.nuclear_weight, rel=1e-9)
    assert report["feature angles"].verdict == "pass"


@pytest.mark.parametrize("reason", ["missing", "collapsed"])
def test_no_estimate_is_said_in_a_sentence(reason):
    layer = network(NETWORK)
    if reason == "missing":
        keep = layer["labels"] != 2
        layer |= {"features": layer["features"][keep], "labels": layer["labels"][keep]}
    else:
        layer["features"] = np.zeros_like(layer["features"])
    report = verify(**layer)
    assert report.estimate is None
    assert report.prediction is None
    assert any(note.startswith("No decays estimated") for note in report.notes)
    assert any("only the variability within classes" in note for note in report.notes)
    assert report["collapsed classes"].measured == (len(layer["weight"]) if reason == "collapsed" else 0)
    assert report["NC1 variance ratio"].measured is not None
    json.dumps(report.to_dict(), allow_nan=False)


def test_report_is_plain_text_and_json():
    weight, features, labels, _ = planted(TAIL)
    features[0] *= 1.001
    report = verify(claim(TAIL, weight, features, labels))
    for text in (str(report), report.table(meanings=True)):
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
        assert all(row.name in text for row in report.rows)
    assert "NOT PASSED" in str(report)
    assert "class 0" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert [row["name"] for row in data["rows"]] == [row.name for row in report.rows]
    assert set(data["rows"][0]) >= {"predicted", "measured", "error", "tolerance", "verdict", "meaning"}
    with pytest.raises(KeyError, match="no row called"):
        report["nothing"]


LAYER = network(NETWORK)
BAD = [
    ({"features": None}, "features must be given"),
    ({"labels": LAYER["labels"][:-1]}, "labels must have one entry per row"),
    (
        {"labels": np.where(LAYER["labels"] == 5, 6, LAYER["labels"])},
        "labels must be integers from 0 to 5, got",
    ),
    ({"labels": LAYER["labels"] + 0.5}, "labels must be integers"),
    ({"labels": np.zeros(240, dtype=int)}, "labels must have the problem's counts, .* got 240 of class 0"),
    ({"features": np.where(LAYER["features"] > 1, np.nan, LAYER["features"])}, "features must be finite"),
    ({"features": LAYER["features"] - 1}, "features must be non-negative"),
    ({"features": LAYER["features"][:, 1:]}, "features must have as many columns as weight"),
    ({"features": LAYER["features"][0]}, "features must be a matrix"),
    ({"features": np.zeros((0, 8)), "labels": []}, "features must have at least one row"),
    ({"weight": np.full((6, 8), np.inf)}, "weight must be finite"),
    ({"weight": LAYER["weight"][:4]}, "weight must have the problem's shape"),
    ({"problem": NETWORK.replace(dim=9)}, r"weight must have the problem's shape \(6, 9\), got \(6, 8\)"),
    ({"bias": np.zeros(6)}, "bias must be given if and only if"),
    ({"bias": np.zeros(5)}, "bias must have one entry per row of weight"),
    ({"tolerance": -1}, "tolerance must be a finite number of at least 0"),
    ({"tolerance": 1}, "tolerance must be below 1, where nothing could fail"),
    (
        {"second_pass": 3, "statistics": 3, **dict.fromkeys(LAYER)},
        "statistics must be a ufm.FeatureStatistics",
    ),
    ({"problem": 3}, "problem must be a ufm.Problem, got int"),
    ({"tol": 0.0}, "tol must be a finite number above 0"),
    ({"statistics": FeatureStatistics(2, 2)}, "exactly one of"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        verify(**(LAYER | {"problem": NETWORK} | changes))


def test_bad_subjects():
    with pytest.raises(InputError, match="exactly one of"):
        verify()
    with pytest.raises(InputError, match=r"solution must be what ufm.solve returns, got int"):
        verify(3)
    with pytest.raises(InputError, match="problem and bias must be omitted with a solution"):
        verify(claim(STEP, *planted(STEP)), problem=STEP)
    with pytest.raises(InputError, match="weight must be given"):
        verify(statistics=FeatureStatistics(6, 8), problem=NETWORK)
    empty = FeatureStatistics(weight=LAYER["weight"])
    with pytest.raises(InputError, match="at least one batch"):
        verify(statistics=empty)
    empty.update(LAYER["features"][:5], LAYER["labels"][:5])
    with pytest.raises(InputError, match="labels must have the problem's counts"):
        verify(statistics=empty, problem=NETWORK)


@pytest.mark.parametrize("contexts", [3, 4])
def test_statistics_of_classes_say_nothing_of_contexts(contexts):
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.ones(3), contexts)
    problem = ufm.Problem([2] * contexts, 4, 1e-3, 1e-3, targets=targets)
    statistics = FeatureStatistics(weight=rng.standard_normal((3, 4)))
    statistics.update(rng.random((6, 4)), np.repeat(np.arange(3), 2))
    with pytest.raises(InputError, match="statistics must be of classes"):
        verify(statistics=statistics, problem=problem)


@SETTINGS
@given(log_s=st.floats(-30, -0.01), log_kappa=st.floats(-28, 3))
def test_binary_shift_inverts_the_divergence(log_s, log_kappa):
    s, kappa = math.exp(log_s), math.exp(log_kappa)
    fall, rise = (float(binary_shift(np.array([s]), np.array([kappa]), way)[0]) for way in (-1.0, 1.0))
    for shift in (-fall, rise):
        if abs(shift) < 699:
            divergence = math.log1p(s * math.expm1(shift)) - s * shift
            assert divergence == pytest.approx(kappa, rel=1e-3, abs=1e-14 * s * abs(shift))


@SETTINGS
@given(seed=st.integers(0, 10**6), size=st.floats(-4, 1))
def test_concordant_radius_is_a_bound(seed, size):
    rng = np.random.default_rng(seed)
    logits, step = rng.normal(size=5), rng.normal(size=5) * 10**size
    step -= step.mean()
    p = np.exp(logits) / np.exp(logits).sum()
    divergence = math.log(p @ np.exp(step)) - p @ step
    radius = concordant_radius(np.array([p.min()]), np.array([divergence]))[0]
    assert np.linalg.norm(step) <= radius * (1 + 1e-6)


@pytest.mark.parametrize("bias", [None, 0.0, 0.1])
@pytest.mark.parametrize("features", ["nonnegative", "free"])
def test_block_step_is_bounded_by_the_gain_it_promises(bias, features):
    """Take the promised step of every block: the objective falls by at least the square of the residual."""
    problem = Problem([4, 3, 1], 3, 0.05, 0.02, features=features, bias=bias)
    rng = np.random.default_rng(0)
    weight, rows = rng.normal(size=(3, 3)), np.abs(rng.normal(size=(8, 3)))
    labels, vector = np.repeat(np.arange(3), problem.counts), None if bias is None else rng.normal(size=3)

    def objective(w, h, b):
        logits = h @ w.T + (0 if b is None else b)
        value = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), labels])
        value += 0.05 / 2 * np.sum(w**2) + 0.02 / 2 * np.sum(h**2)
        return value + (0 if b is None else bias / 2 * np.sum(b**2))

    def gradient(index, point):
        array = point[index]
        slope = np.zeros_like(array)
        for entry in np.ndindex(array.shape):
            shift = np.zeros_like(array)
            shift[entry] = 1e-6
            up, down = list(point), list(point)
            up[index], down[index] = array + shift, array - shift
            slope[entry] = (objective(*up) - objective(*down)) / 2e-6
        return slope

    point = [weight, rows, vector]
    start = objective(*point)
    curvature = feature_curvature(problem, weight)
    sums = add_up(problem, weight, rows, labels, vector, np.ones(8), curvature)
    residual = block_step_residual(problem, weight, vector, sums, float(start))
    gains = []
    energy = np.sum(rows**2) / 8
    curvatures = (
        0.05 + energy / 2,
        np.full(8, 0.02 + np.linalg.norm(weight, 2) ** 2 / 16),
        (bias or 0) + 0.5,
    )
    for index in range(2 if bias is None else 3):
        curvature = curvatures[index][:, None] if index == 1 else curvatures[index]
        moved = point[index] - gradient(index, point) / curvature
        if index == 1 and features == "nonnegative":
            moved = np.maximum(moved, 0)
        gains.append(float(np.sum(curvature * (moved - point[index]) ** 2)))
        after = list(point)
        after[index] = moved
        assert objective(*after) <= start - gains[-1] / 2 + 1e-9
    assert residual == pytest.approx(math.sqrt(max(gains) / (2 * start)), rel=1e-4)
