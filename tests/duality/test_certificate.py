"""The certificate is right about planted optima, and never says "certified" when it must not."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.objective import objective_value

import ufm
from ufm.duality.certificate import Certificate
from ufm.model.problem import row_labels

EPS = np.finfo(np.float64).eps
COUNTS = np.array([500] * 3 + [50] * 3)
K = len(COUNTS)


def orthogonal_frame(problem):
    """The optimum of the non-negative cross-entropy family, from its closed form: features on the axes."""
    prediction = ufm.predict(problem)
    features = np.zeros((problem.num_classes, problem.dim))
    np.fill_diagonal(features, prediction.norms)
    pull = np.sqrt(problem.counts)[:, None] * features
    scale = np.sqrt(problem.feature_decay / (K * (K - 1) * problem.weight_decay))
    return scale * (K * pull - pull.sum(axis=0)), features, prediction


FAMILY = {
    "cross-entropy": ufm.CrossEntropy(),
    "smoothing": ufm.LabelSmoothing(0.1),
    "weights": ufm.WeightedCrossEntropy(COUNTS.sum() / (K * COUNTS)),
}


@pytest.mark.parametrize("loss", FAMILY.values(), ids=FAMILY.keys())
@pytest.mark.parametrize("decays", [(5e-3, 1e-6), (5e-3, 2e-4), (1e-7, 1e-9), (1.0, 1.0)])
def test_planted_optimum_is_certified_to_rounding(loss, decays):
    problem = ufm.Problem(COUNTS, K + 1, *decays, loss=loss)
    weight, features, prediction = orthogonal_frame(problem)
    certificate = ufm.certify(problem, weight, features, np.arange(K))
    assert certificate.objective == pytest.approx(prediction.objective, rel=1e-12)
    assert certificate.certifies(1e-12)
    assert certificate.residual <= 1e-12
    assert certificate.polar <= 1 + 1e-9


def test_planted_mse_optimum_is_certified_with_either_feature_set():
    for features in ("nonnegative", "free"):
        problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5, loss=ufm.MSE(), features=features)
        prediction = ufm.predict(problem)
        weight, rows = np.diag(prediction.weight_norms), np.diag(prediction.norms)
        assert ufm.certify(problem, weight, rows, np.arange(K)).certifies(1e-12)


def test_planted_simplex_frame_is_certified_with_any_bias():
    counts = np.full(K, 50)
    for bias in (None, 0.01, 0.0):
        problem = ufm.Problem(counts, K, 5e-3, 2e-5, features="free", bias=bias)
        prediction = ufm.predict(problem)
        centred = np.eye(K) - 1 / K
        weight = centred * (prediction.weight_norms[0] / np.linalg.norm(centred[0]))
        rows = centred * (prediction.norms[0] / np.linalg.norm(centred[0]))
        zero = None if bias is None else np.zeros(K)
        assert ufm.certify(problem, weight, rows, np.arange(K), zero).certifies(1e-12)


def test_everything_at_zero_is_optimal_exactly_beyond_the_last_threshold():
    weakest = ufm.Problem(COUNTS, K, 1.0, 1.0)
    threshold = np.sqrt(500 * (K - 1) / K) / COUNTS.sum()
    zero = np.zeros((K, K))
    for factor, optimal in ((1.000001, True), (0.999, False)):
        problem = weakest.replace(weight_decay=threshold * factor, feature_decay=threshold * factor)
        certificate = ufm.certify(problem, zero, zero, np.arange(K))
        assert certificate.objective == pytest.approx(np.log(K), rel=1e-15)
        assert certificate.certifies(1e-12) == optimal
        assert (certificate.polar > 1) != optimal


# What must never be certified


def test_worse_points_are_never_certified():
    problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5)
    weight, features, prediction = orthogonal_frame(problem)
    rng = np.random.default_rng(0)
    for size in (1e-2, 1e-3):
        moved = weight + size * rng.normal(size=weight.shape)
        certificate = ufm.certify(problem, moved, features, np.arange(K))
        assert certificate.lower_bound <= prediction.objective * (1 + 1e-13) < certificate.objective
        excess = certificate.objective / prediction.objective - 1
        assert not certificate.certifies(excess * 0.99)
        assert certificate.gap >= certificate.objective - prediction.objective


def test_stuck_points_are_not_certified():
    """Two classes on one axis: stationary for gradient methods, far from optimal."""
    problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5)
    weight, features, _ = orthogonal_frame(problem)
    features[-1] = 0.0
    certificate = ufm.certify(problem, weight, features, np.arange(K))
    assert certificate.polar > 1.01
    assert certificate.relative_gap > 1e-2


@pytest.mark.parametrize("tol", [1e-12, 1.0, np.inf])
def test_impossible_numbers_are_never_certified(tol):
    good = Certificate(objective=1.0, lower_bound=1.0 - 1e-13, polar=1.0, residual=0.0, num_classes=K)
    assert good.certifies(1e-12)
    for change in (
        {"lower_bound": 1.0 + 1e-10},  # a bound above a point's value: the dual point was not feasible
        {"lower_bound": np.inf},
        {"lower_bound": np.nan},
        {"objective": np.nan},
        {"objective": np.nan, "lower_bound": np.nan},
        {"objective": 0.0, "lower_bound": 0.0},
        {"objective": -1.0, "lower_bound": -2.0},
    ):
        assert not dataclasses.replace(good, **change).certifies(min(tol, 1e300))
    assert not good.certifies(np.nan)


@pytest.mark.parametrize("place", ["weight", "features", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_never_certified(place, value):
    problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5, features="free", bias=0.01)
    point = {"weight": np.eye(K), "features": np.eye(K), "bias": np.zeros(K)}
    point[place].flat[0] = value
    certificate = ufm.certify(problem, labels=np.arange(K), **point)
    assert not certificate.certifies(1e300)


def test_negative_features_are_never_certified_where_they_are_forbidden():
    problem = ufm.Problem(np.full(K, 50), K, 5e-3, 2e-5, features="free")
    solution = ufm.solve(problem)
    assert solution.certified
    assert solution.features.min() < -0.1
    point = (solution.weight, solution.features, solution.labels)
    certificate = ufm.certify(problem.replace(features="nonnegative"), *point)
    assert certificate.lower_bound == -np.inf
    assert not certificate.certifies(1e300)


def test_a_class_without_rows_leaves_nothing_to_certify():
    problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5)
    weight, features, _ = orthogonal_frame(problem)
    certificate = ufm.certify(problem, weight, features[:-1], np.arange(K - 1))
    assert certificate.lower_bound == -np.inf
    assert not certificate.certifies(1e300)


@pytest.mark.slow
def test_a_loss_that_is_not_convex_has_a_bound_too():
    problem = ufm.Problem(COUNTS, K, 5e-3, 1e-5, loss=ufm.Focal())
    certificate = ufm.certify(problem, np.eye(K), np.eye(K), np.arange(K))
    assert np.isfinite(certificate.objective)
    assert certificate.lower_bound <= ufm.solve(problem).objective < certificate.objective
    assert not certificate.certifies(1e-8)


@pytest.mark.parametrize("bias", [0.01, 0.0])
def test_a_wrong_bias_is_not_certified(bias):
    problem = ufm.Problem(COUNTS, K, 5e-3, 2e-5, features="free", bias=bias)
    solution = ufm.solve(problem)
    assert solution.certified
    tilted = solution.bias + np.linspace(-0.1, 0.1, K)
    certificate = ufm.certify(problem, solution.weight, solution.features, solution.labels, tilted)
    assert certificate.relative_gap > 1e-4
    assert certificate.lower_bound <= solution.objective * (1 + 1e-12)


# The same point written differently


def sample_level_point(problem, seed=0):
    rng = np.random.default_rng(seed)
    labels = row_labels(problem, "sample")
    features = np.abs(rng.normal(size=(len(labels), problem.dim)))
    bias = None if problem.bias is None else rng.normal(size=problem.num_classes)
    return rng.normal(size=(problem.num_classes, problem.dim)), features, labels, bias


@pytest.mark.parametrize(
    ("features", "bias"), list(itertools.product(("nonnegative", "free"), (None, 0.1, 0.0)))
)
def test_the_order_of_rows_does_not_matter(features, bias):
    problem = ufm.Problem(np.array([40, 20, 10, 5]), 6, 1e-2, 1e-3, features=features, bias=bias)
    weight, rows, labels, shift = sample_level_point(problem)
    straight = ufm.certify(problem, weight, rows, labels, shift)
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = ufm.certify(problem, weight, rows[order], labels[order], shift)
    for name in ("objective", "lower_bound", "polar", "residual"):
        assert getattr(shuffled, name) == pytest.approx(getattr(straight, name), rel=1e-12), name


def test_renaming_the_classes_does_not_matter():
    problem = ufm.Problem(np.array([40, 20, 10, 5]), 6, 1e-2, 1e-3, bias=0.0)
    weight, rows, labels, shift = sample_level_point(problem)
    names = np.array([2, 0, 3, 1])
    old = np.argsort(names)
    renamed = problem.replace(counts=problem.counts[old])
    first = ufm.certify(problem, weight, rows, labels, shift)
    second = ufm.certify(renamed, weight[old], rows, names[labels], shift[old])
    for name in ("objective", "lower_bound", "polar", "residual"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-10), name


def test_one_row_per_class_and_one_per_sample_agree():
    problem = ufm.Problem(np.array([40, 20, 10, 5]), 6, 1e-2, 1e-3)
    rng = np.random.default_rng(2)
    weight, means = rng.normal(size=(4, 6)), np.abs(rng.normal(size=(4, 6)))
    labels = row_labels(problem, "sample")
    coarse = ufm.certify(problem, weight, means, np.arange(4))
    fine = ufm.certify(problem, weight, means[labels], labels)
    for name in ("objective", "lower_bound", "polar", "residual"):
        assert getattr(fine, name) == pytest.approx(getattr(coarse, name), rel=1e-11), name


def test_rotating_free_features_does_not_matter():
    problem = ufm.Problem(COUNTS, K, 5e-3, 2e-5, features="free")
    rng = np.random.default_rng(3)
    weight, rows = rng.normal(size=(2, K, K))
    turn = np.linalg.qr(rng.normal(size=(K, K)))[0]
    first = ufm.certify(problem, weight, rows, np.arange(K))
    second = ufm.certify(problem, weight @ turn, rows @ turn, np.arange(K))
    assert second.lower_bound == pytest.approx(first.lower_bound, rel=1e-10)
    assert second.objective == pytest.approx(first.objective, rel=1e-12)


def test_objective_is_its_definition():
    problem = ufm.Problem(np.array([3, 2]), 3, 0.3, 0.7, bias=0.2)
    weight, rows, labels, shift = sample_level_point(problem)
    logits = rows @ weight.T + shift
    data = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), labels])
    penalty = 0.3 * np.sum(weight**2) + 0.7 * np.sum(rows**2) + 0.2 * np.sum(shift**2)
    expected = data + penalty / 2
    assert objective_value(problem, weight, rows, labels, shift) == pytest.approx(expected, rel=1e-14)
    assert ufm.certify(problem, weight, rows, labels, shift).objective == pytest.approx(expected, rel=1e-14)


def test_bounds_hold_their_digits_at_weak_regularisation():
    """At lambda = 1e-10 the optimum is 1e-8: a gap relative to it must still be at rounding level."""
    problem = ufm.Problem(COUNTS, K, 1e-10, 1e-10)
    weight, features, prediction = orthogonal_frame(problem)
    certificate = ufm.certify(problem, weight, features, np.arange(K))
    assert 0 < prediction.objective < 1e-6
    assert certificate.certifies(1e-12)
    assert abs(certificate.gap) <= 1e4 * EPS * K * prediction.objective


@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_a_point_whose_squares_overflow_has_a_certificate_that_certifies_nothing(features):
    problem = ufm.Problem([300, 20, 7, 5, 1], 5, 1e-3, 1e-5, features=features, loss=ufm.MSE())
    rng = np.random.default_rng(0)
    far = 1e150 * rng.normal(size=(5, 5)), 1e150 * np.abs(rng.normal(size=(5, 5)))
    assert not ufm.certify(problem, *far, np.arange(5)).certifies(0.5)
