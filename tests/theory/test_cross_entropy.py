"""Cross-entropy family, non-negative features: numbers, optimality, symmetry, limits, accuracy, refusals."""

from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from helpers.oracle import assert_optimal, factors, make, objective, weighted
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.losses import (
    MSE,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    VectorScaling,
    WeightedCrossEntropy,
)
from ufm.theory import ClosedFormError, predict

exact = settings(max_examples=60)
counts_lists = st.lists(st.integers(1, 1000), min_size=2, max_size=7)
STEP = [500] * 5 + [50] * 5


@st.composite
def specifications(draw):
    """Any member of the family, from weak regularisation to total collapse, the two decays far apart."""
    counts = draw(counts_lists)
    K = len(counts)
    kind = draw(st.sampled_from(["ce", "smooth", "weighted"]))
    smoothing = draw(st.floats(0.01, 0.9)) if kind == "smooth" else 0.0
    weights = draw(st.lists(st.floats(0.1, 10), min_size=K, max_size=K)) if kind == "weighted" else [1.0] * K
    level = draw(st.floats(1e-4, 1.5))
    return counts, smoothing, weights, level, draw(st.booleans()), 10.0 ** draw(st.integers(-4, 4))


def build(specification):
    """The problem whose c is ``level`` times the first (or the last) collapse threshold."""
    counts, smoothing, weights, level, first, ratio = specification
    counts, weights, K = np.array(counts), np.array(weights), len(counts)
    limits = counts * weights**2 * (1 - smoothing) ** 2 * (K - 1) / K / counts.sum() ** 2
    root = float(np.sqrt(level * (limits.min() if first else limits.max())))
    loss = CrossEntropy()
    if smoothing:
        loss = LabelSmoothing(smoothing)
    elif np.any(weights != 1):
        loss = WeightedCrossEntropy(weights)
    return make(counts, K, root * ratio, root / ratio, loss=loss)


def test_reference_numbers():
    problem = make(STEP, 10, 5e-3, 1e-6)
    prediction = predict(problem)
    assert prediction.objective == pytest.approx(0.076129240853684, abs=5e-16)
    np.testing.assert_allclose(prediction.margins[[0, 9]], [6.98648244, 5.81703897], rtol=1e-9)
    smoothed = predict(problem.replace(loss=LabelSmoothing(0.1)))
    assert smoothed.objective == pytest.approx(0.544101147564, abs=5e-13)
    rescaled = predict(problem.replace(loss=WeightedCrossEntropy(2750 / (10 * np.array(STEP)))))
    assert rescaled.objective == pytest.approx(0.075688694197, abs=5e-13)


@exact
@given(specifications())
def test_prediction_is_the_global_optimum(specification):
    problem = build(specification)
    assert_optimal(predict(problem))


@exact
@given(specifications())
def test_margins_minimise_one_scalar_function_per_class(specification):
    """The value separates into phi_k(M) = (n_k/N) loss_k(M) + l sqrt(n_k (K-1)/K) M, searched numerically."""
    problem = build(specification)
    K, prediction = problem.num_classes, predict(problem)
    weights = np.broadcast_to(problem.loss.weights, (K,))
    e = problem.loss.label_smoothing

    def phi(margin):
        loss = np.log1p((K - 1) * np.exp(-margin)) + e * margin * (K - 1) / K
        price = problem.nuclear_weight * np.sqrt(problem.counts * (K - 1) / K)
        return problem.priors * weights * loss + price * margin

    low, high = np.zeros(K), np.full(K, 60.0)
    for _ in range(80):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        worse = phi(left) > phi(right)
        low, high = np.where(worse, left, low), np.where(worse, high, right)
    np.testing.assert_allclose(prediction.margins, (low + high) / 2, atol=3e-5)
    assert prediction.objective == pytest.approx(phi((low + high) / 2).sum(), rel=1e-9)


@exact
@given(specifications(), st.randoms(use_true_random=False))
def test_permuting_classes_permutes_the_prediction(specification, random):
    problem = build(specification)
    order = np.array(random.sample(range(problem.num_classes), problem.num_classes))
    loss = problem.loss
    if isinstance(loss, WeightedCrossEntropy):
        loss = WeightedCrossEntropy(loss.class_weights[order])
    one, other = predict(problem), predict(problem.replace(counts=problem.counts[order], loss=loss))
    for name in ("norms", "weight_norms", "margins"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name)[order], rtol=1e-12)
    np.testing.assert_array_equal(other.collapsed, one.collapsed[order])
    size = 1e-12 * np.abs(one.gram_weights).max() + 1e-300
    np.testing.assert_allclose(other.gram_weights, one.gram_weights[np.ix_(order, order)], atol=size)
    assert other.objective == pytest.approx(one.objective, rel=1e-12)


@exact
@given(specifications())
def test_more_samples_never_have_a_smaller_margin(specification):
    problem = build(specification)
    if isinstance(problem.loss, WeightedCrossEntropy):
        problem = problem.replace(loss=CrossEntropy())
    margins = predict(problem).margins[np.argsort(problem.counts, kind="stable")]
    assert np.all(np.diff(margins) >= 0)


@exact
@given(specifications())
def test_collapsed_iff_margin_is_zero_iff_classifier_rows_are_shared(specification):
    problem = build(specification)
    prediction = predict(problem)
    np.testing.assert_array_equal(prediction.collapsed, prediction.margins == 0)
    np.testing.assert_array_equal(prediction.collapsed, prediction.norms == 0)
    gram, dead = prediction.gram_weights, np.flatnonzero(prediction.collapsed)
    shared = gram[np.ix_(dead, dead)]
    np.testing.assert_allclose(shared, shared.mean() if dead.size else shared, rtol=1e-9, atol=1e-300)
    assert prediction.num_collapsed == dead.size


@exact
@given(st.integers(2, 6), st.integers(1, 50), st.integers(1, 500), st.integers(-3, 3))
def test_ties_are_decided_exactly(K, count, rest, ulps):
    """lambda_H within a few units in the last place of the threshold, judged by rational arithmetic."""
    counts = [count] + [rest] * (K - 1)
    decay = float(Fraction(count * (K - 1), K * sum(counts) ** 2))
    for _ in range(abs(ulps)):
        decay = float(np.nextafter(decay, np.inf if ulps > 0 else 0))
    prediction = predict(make(counts, K, 1.0, decay))
    expected = [Fraction(n) <= Fraction(decay) * sum(counts) ** 2 * Fraction(K, K - 1) for n in counts]
    assert prediction.collapsed.tolist() == expected
    assert (prediction.margins == 0).tolist() == expected


def test_a_class_at_its_threshold_is_collapsed_and_just_below_it_lives():
    at = make([4, 60], 2, 2.0**-5, 2.0**-6)  # threshold 64^2 2^-11 2/1 = 4, through irrational square roots
    assert predict(at).collapsed.tolist() == [True, False]
    below = predict(at.replace(feature_decay=float(np.nextafter(2.0**-6, 0))))
    assert not below.collapsed.any()
    assert 0 < below.margins[0] < 1e-15


@pytest.mark.parametrize("strength", [1e-300, 1e-100, 1e-12, 1e-3, 0.9, 0.999999, 1.0, 2.0, 1e300])
def test_margins_and_value_agree_with_60_digit_arithmetic(strength):
    """K = 2 equal classes, c/(n K (K-1)) = strength/4, so that ``q = sqrt(strength)/2``."""
    getcontext().prec = 200
    problem = make([1, 1], 2, strength / 8, 1.0)
    prediction = predict(problem)
    q = min(Decimal("0.5"), (Decimal(problem.weight_decay) * 8).sqrt() / 2)
    margin, p = (1 / q - 1).ln(), 1 - q
    entropy = -q * q.ln() - p * p.ln()
    np.testing.assert_allclose(prediction.margins, float(margin), rtol=1e-14, atol=3e-16)
    assert prediction.objective == pytest.approx(float(entropy), rel=1e-14)


def test_limits():
    K = 10
    everything = predict(make(STEP, K, 1.0, 1.0))
    assert everything.collapsed.all()
    assert everything.objective == pytest.approx(np.log(K), rel=1e-15)
    assert everything.norms.tolist() == [0.0] * K
    balanced = predict(make([100] * K, K, 1e-4, 1e-6))
    assert np.ptp(balanced.margins) == np.ptp(balanced.weight_norms) == 0
    cosine = balanced.gram_weights[0, 1] / balanced.weight_norms[0] ** 2
    assert cosine == pytest.approx(-1 / (K - 1), rel=1e-12)  # the classifier alone is a simplex ETF
    for counts in ([1, 1], [1] * 5, [1, 1000]):
        assert_optimal(predict(make(counts, len(counts), 1e-4, 1e-5)))


def test_equal_class_weights_rescale_the_loss():
    """c * loss with (lambda_W, lambda_H) is c times the problem with (lambda_W / c, lambda_H / c)."""
    problem = make([30, 20, 10], 3, 3e-3, 2e-3, loss=weighted(3.0, 3.0, 3.0))
    plain = predict(make([30, 20, 10], 3, 1e-3, 2e-3 / 3))
    scaled = predict(problem)
    np.testing.assert_allclose(scaled.margins, plain.margins, rtol=1e-12)
    np.testing.assert_allclose(scaled.gram_weights, plain.gram_weights, rtol=1e-12)
    assert scaled.objective == pytest.approx(3 * plain.objective, rel=1e-12)


def test_offsets_shared_by_all_logits_change_nothing():
    problem = make([30, 20], 2, 1e-3, 1e-3)
    adjusted = problem.replace(loss=LogitAdjustment(np.array([0.7, 0.7])))
    assert predict(adjusted).objective == predict(problem).objective


@pytest.mark.parametrize("bias", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("decay", [1e-4, 1e-3, 10.0])
@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(0.3), weighted(1.0, 2.0, 0.7, 3.0)])
def test_bias_of_balanced_counts_is_zero(loss, decay, bias):
    problem = make([25] * 4, 4, decay, 1e-4, loss=loss, bias=bias)
    if isinstance(loss, WeightedCrossEntropy) and decay == 10.0:
        with pytest.raises(ClosedFormError, match="pull the bias from zero"):
            predict(problem)
        return
    prediction = predict(problem)
    assert prediction.bias.tolist() == [0.0] * 4
    assert_optimal(prediction)


def test_two_classes_with_unregularised_bias_have_a_continuum_of_optima():
    """The refusal is right: shifting the bias against the features keeps the value."""
    problem = make([25, 25], 2, 1e-3, 1e-3)
    prediction = predict(problem)
    weight, features = factors(prediction)
    free = problem.replace(bias=0.0)
    margin, shift = prediction.margins[0], 0.5
    scale = np.sqrt(1 + np.array([-1, 1]) * shift / margin)
    moved = objective(free, weight * scale, features * scale[:, None], bias=np.array([1, -1]) * shift / 2)
    assert moved == pytest.approx(prediction.objective, rel=1e-13)
    with pytest.raises(ClosedFormError, match="continuum"):
        predict(free)
    assert_optimal(predict(problem.replace(bias=1e-6)))
    assert_optimal(predict(free.replace(weight_decay=10.0)))  # all collapsed: unique again


def test_dimension_may_be_as_small_as_the_number_of_living_classes():
    problem = make([500] * 3 + [5] * 4, 3, 2e-3, 2e-3)
    prediction = predict(problem)
    assert prediction.num_collapsed == 4
    assert factors(prediction)[1].shape == (7, 3)
    assert_optimal(prediction)
    with pytest.raises(ClosedFormError, match="each of the 3 classes that do not collapse"):
        predict(problem.replace(dim=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dim": 2}, "dim is 2"),
        ({"bias": 0.0}, "pull the bias"),
        ({"bias": 0.01}, "pull the bias"),
        ({"loss": Focal()}, "the loss is Focal"),
        ({"loss": LogitAdjustment(np.array([1.0, 0.0, 0.0]))}, "adjusts"),
        ({"loss": VectorScaling(np.array([1.0, 2.0, 1.0]))}, "multiplies"),
        ({"features": "free"}, "free features"),
    ],
)
def test_uncovered_problems_say_why_and_what_to_do(changes, reason):
    problem = make([30, 20, 10], 3, 1e-3, 1e-3).replace(**changes)
    with pytest.raises(ClosedFormError, match=reason) as error:
        predict(problem)
    assert "ufm.solve" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "features", "bias"),
    [(CrossEntropy(), "free", None), (CrossEntropy(), "nonnegative", None), (MSE(), "free", 0)],
)
def test_decays_whose_ratio_leaves_the_range_of_floats_give_finite_norms(loss, features, bias):
    near, far = (
        predict(make([50] * 3, 3, decay, 1e-10 / decay, loss=loss, features=features, bias=bias))
        for decay in (1e-5, 1e160)
    )
    np.testing.assert_allclose(far.norms, near.norms * 1e165**0.5, rtol=1e-12)


def test_extreme_class_weights_stay_finite():
    prediction = predict(make([5, 5], 2, 1e-3, 1e-3, loss=weighted(1e300, 1e-300)))
    assert prediction.collapsed.tolist() == [False, True]
    assert np.all(np.isfinite(prediction.margins))
    assert np.isfinite(prediction.objective)
