"""Collapse thresholds: published table, consistency with predicted sets, brute force over integers, bias."""

from fractions import Fraction

import numpy as np
import pytest
from helpers.oracle import make, weighted
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ufm.inputs.checks import InputError
from ufm.losses import (
    MSE,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    WeightedCrossEntropy,
)
from ufm.theory import (
    ClosedFormError,
    collapse_counts,
    collapse_nuclear_weights,
    count_collapsed,
    critical_imbalance_ratio,
    equalising_weights,
    extra_samples_to_live,
    largest_decay_product,
    largest_nuclear_weight,
    predict,
)

exact = settings(max_examples=25)
counts_lists = st.lists(st.integers(1, 1000), min_size=2, max_size=7)
STEP = [500] * 5 + [100] * 5
CIFAR_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def at(problem, nuclear_weight):
    return problem.replace(weight_decay=float(nuclear_weight), feature_decay=float(nuclear_weight))


def losses(K):
    return [CrossEntropy(), LabelSmoothing(0.2), WeightedCrossEntropy(np.linspace(0.5, 2, K)), MSE()]


@pytest.mark.parametrize(
    ("counts", "first", "every"),
    [
        (STEP, 3.162e-3, 7.07e-3),
        ([1000 * (1 + k // 2) for k in range(10)], 1.0e-3, 2.24e-3),
        (CIFAR_LT, 5.41e-4, 5.41e-3),
        ([int(500 * 100 ** (-i / 99)) for i in range(100)], 2.05e-4, 2.05e-3),
    ],
)
def test_published_collapse_points(counts, first, every):
    points = collapse_nuclear_weights(make(counts, len(counts), 1e-3, 1e-3))
    np.testing.assert_allclose([points.min(), points.max()], [first, every], rtol=3e-3)


@exact
@given(counts_lists, st.integers(0, 3), st.sampled_from([1 - 1e-9, 1 + 1e-9]))
def test_every_class_collapses_exactly_at_its_nuclear_weight(counts, which, nudge):
    problem = make(counts, len(counts), 1e-3, 1e-3, loss=losses(len(counts))[which])
    points = collapse_nuclear_weights(problem)
    np.testing.assert_array_equal(count_collapsed(problem, points), [np.sum(points <= p) for p in points])
    for k, point in enumerate(points):
        moved = at(problem, point * nudge)
        prediction = predict(moved)
        assert prediction.collapsed[k] == (nudge > 1)
        np.testing.assert_array_equal(prediction.collapsed, counts <= collapse_counts(moved))
        assert count_collapsed(problem, np.array([point * nudge]))[0] == prediction.num_collapsed


@exact
@given(counts_lists, st.integers(0, 3))
def test_the_largest_product_keeps_all_alive_and_nothing_larger_does(counts, which):
    problem = make(counts, len(counts), 1.0, 1e-3, loss=losses(len(counts))[which])
    product = largest_decay_product(problem)
    assert product == pytest.approx(largest_nuclear_weight(problem) ** 2, rel=1e-15)
    assert predict(problem.replace(feature_decay=product * (1 - 1e-9))).num_collapsed == 0
    assert predict(problem.replace(feature_decay=product * (1 + 1e-9))).num_collapsed > 0


@exact
@given(st.integers(2, 40), st.integers(60, 500), st.integers(2, 6), st.sampled_from([-1, 0, 1]))
def test_counts_one_below_at_and_one_above_the_threshold(threshold, rest, K, offset):
    """N is held fixed while one class moves past a threshold half a sample above ``threshold``."""
    counts = [threshold + offset, rest - offset] + [rest] * (K - 2)
    decay = float(Fraction(2 * threshold + 1, 2) * Fraction(K - 1, K * sum(counts) ** 2))
    problem = make(counts, K, 1.0, decay)
    assert collapse_counts(problem)[0] == pytest.approx(threshold + 0.5, rel=1e-12)
    assert predict(problem).collapsed[0] == (offset <= 0)


def test_thresholds_of_simplex_etf_and_of_biased_models():
    free = make([50] * 4, 4, 1e-3, 1e-3, features="free")
    assert largest_nuclear_weight(free) == pytest.approx(np.sqrt(50) / 200, rel=1e-14)
    biased = make([50] * 4, 4, 1e-3, 1e-3, bias=0.0)
    assert largest_nuclear_weight(biased) == largest_nuclear_weight(biased.replace(bias=None))
    with pytest.raises(ClosedFormError, match="with a bias"):
        collapse_counts(biased.replace(counts=np.array([50, 50, 50, 49])))
    with pytest.raises(ClosedFormError, match="without bias"):
        collapse_counts(biased.replace(loss=MSE()))
    with pytest.raises(ClosedFormError, match="equal counts"):
        collapse_counts(make(STEP, 10, 1e-3, 1e-3, features="free"))
    with pytest.raises(ClosedFormError, match="Focal"):
        largest_decay_product(biased.replace(loss=Focal()))


@exact
@given(counts_lists, st.floats(1e-4, 0.999))
def test_equalising_weights_equalise_margins(counts, level):
    weights = equalising_weights(counts)
    assert np.sum(weights * counts) == pytest.approx(sum(counts), rel=1e-12)
    K = len(counts)
    root = float(np.sqrt(level * (K - 1) / K) / np.sum(np.sqrt(counts)))
    problem = make(counts, K, root, root, loss=WeightedCrossEntropy(weights))
    margins = predict(problem).margins
    assert margins[0] > 0
    np.testing.assert_allclose(margins, margins[0], rtol=1e-9)
    plain = problem.replace(loss=CrossEntropy())
    assert largest_decay_product(problem) >= largest_decay_product(plain) * (1 - 1e-12)


@pytest.mark.slow
@exact
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 40),
    st.floats(0.01, 1.5),
    st.sampled_from([0.0, 0.3]),
)
def test_critical_ratio_at_fixed_minority_by_brute_force(majority, minority, size, level, smoothing):
    """Integer ratios R give integer counts: the predicted minority is alive below R_0 and collapsed above."""
    K, loss = majority + minority, LabelSmoothing(smoothing)
    decay = level * (1 - smoothing) ** 2 * (K - 1) / K / (K**2 * size)
    ratio = critical_imbalance_ratio(majority, minority, 1.0, decay, fixed="minority", size=size, loss=loss)
    for R in range(1, 12):
        problem = make([R * size] * majority + [size] * minority, K, 1.0, decay, loss=loss)
        assume(abs(R - ratio) > 1e-9)
        assert predict(problem).collapsed[-1] == (ratio < R)


@pytest.mark.slow
@exact
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 1.5))
def test_critical_ratio_at_fixed_majority_by_brute_force(majority, minority, level):
    size, K = 2520, majority + minority
    decay = level * (K - 1) / K / (K**2 * size)
    ratio = critical_imbalance_ratio(majority, minority, 1.0, decay, fixed="majority", size=size)
    for R in (1, 2, 3, 5, 8, 12, 20, 40, 90, 180, 420, 1260, 2520):
        state = predict(make([size] * majority + [size // R] * minority, K, 1.0, decay)).collapsed[-1]
        if ratio * (1 + 1e-12) < R:
            assert state
        elif level < 1 and ratio * (1 - 1e-12) > R:
            assert not state
    excess = 1 / ratio - decay * K / (K - 1) * size * (majority + minority / ratio) ** 2
    assert ratio == 1 or abs(excess) < 1e-12


def test_critical_ratio_at_fixed_majority_has_a_window_of_life():
    """One majority class, many minority ones: collapsed when balanced, alive at R = 4, dead from R_0 on."""
    ratio = critical_imbalance_ratio(1, 9, 1.0, 1.5e-5, fixed="majority", size=1000)
    for R, collapsed in [(1, True), (4, False), (20, False), (50, True)]:
        counts = [1000] + [1000 // R] * 9
        assert predict(make(counts, 10, 1.0, 1.5e-5)).collapsed[-1] == collapsed
    assert 20 < ratio < 50


@pytest.mark.slow
@exact
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 1.5))
def test_critical_ratio_at_fixed_total_by_brute_force(majority, minority, level):
    K = majority + minority
    for R in range(1, 9):
        n = 30
        N = n * (R * majority + minority)
        decay = level * (K - 1) / K / (N * K)
        ratio = critical_imbalance_ratio(majority, minority, 1.0, decay, fixed="total", size=float(N))
        assume(abs(ratio - R) > 1e-9)
        assert predict(make([R * n] * majority + [n] * minority, K, 1.0, decay)).collapsed[-1] == (ratio < R)


def test_critical_ratio_honours_minority_weights_and_checks_arguments():
    heavier = weighted(1.0, 1.0, 2.0, 2.0)
    options = {"fixed": "total", "size": 1000.0}
    plain = critical_imbalance_ratio(2, 2, 1e-2, 1e-2, **options)
    # k is divided by 4: (1/(k N) - B)/A with A = B = 2
    expected = (4 * (2 * plain + 2) - 2) / 2
    assert critical_imbalance_ratio(2, 2, 1e-2, 1e-2, loss=heavier, **options) == pytest.approx(expected)
    with pytest.raises(ClosedFormError, match="equal weight"):
        critical_imbalance_ratio(2, 2, 1e-2, 1e-2, loss=weighted(1.0, 1.0, 2.0, 3.0), **options)
    with pytest.raises(InputError, match="size"):
        critical_imbalance_ratio(2, 2, 1e-2, 1e-2, fixed="total", size=-1.0)
    with pytest.raises(InputError, match="num_minority"):
        critical_imbalance_ratio(2, 0, 1e-2, 1e-2, **options)


@pytest.mark.slow
@exact
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0.5, 3.0), st.booleans())
def test_extra_samples_by_brute_force(counts, level, squared):
    K = len(counts)
    decay = level * min(counts) / sum(counts) ** 2
    problem = make(counts, K, 1.0, decay, loss=MSE() if squared else CrossEntropy())
    need = extra_samples_to_live(problem, 0)
    first = next((extra for extra in range(100) if _lives_with(problem, extra)), None)
    assert need == first if first is not None else need is None or need >= 100


def _lives_with(problem, extra):
    counts = problem.counts.copy()
    counts[0] += extra
    return not predict(problem.replace(counts=counts)).collapsed[0]


def test_extra_samples_of_living_hopeless_and_huge_classes():
    assert extra_samples_to_live(make([50, 50], 2, 1e-3, 1e-3), 0) == 0
    assert extra_samples_to_live(make([5, 5], 2, 1.0, 1.0), 0) is None
    assert extra_samples_to_live(make([1, 10**10], 2, 5.1e-21, 1.0), 0) == 1
    with pytest.raises(InputError, match=r"index must be in 0\.\.1"):
        extra_samples_to_live(make([5, 5], 2, 1.0, 1.0), 2)
    with pytest.raises(ClosedFormError, match="equal counts"):
        extra_samples_to_live(make([5, 5], 2, 1.0, 1.0, features="free"), 0)
