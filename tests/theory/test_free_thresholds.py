"""Free features: twin, minority and total collapse, against the convex program and brute force."""

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.oracle import make, nuclear_gap, nuclear_solution, weighted

from ufm.losses import MSE, CrossEntropy, LabelSmoothing, LogitAdjustment, VectorScaling, WeightedCrossEntropy
from ufm.theory import ClosedFormError, minority_collapse_weight, total_collapse_weight, twin_thresholds

STEP = [500] * 5 + [100] * 5


def at(problem, nuclear_weight):
    return problem.replace(weight_decay=float(nuclear_weight), feature_decay=float(nuclear_weight))


@pytest.mark.parametrize("bias", [None, 0.01, 0.0])
def test_free_thresholds_are_sharp_on_the_published_step_profile(bias):
    """Contrasts within a group vanish just above sqrt(n)/N and not just below, in the convex program."""
    problem = make([50] * 3 + [10] * 3, 6, 1e-3, 1e-3, features="free", bias=bias)
    minority, majority = (t.nuclear_weight for t in twin_thresholds(problem))
    assert minority == minority_collapse_weight(problem) == pytest.approx(np.sqrt(10) / 180, rel=1e-14)
    assert majority == pytest.approx(total_collapse_weight(problem), rel=1e-12)
    assert majority == pytest.approx(np.sqrt(50) / 180, rel=1e-14)
    for threshold, k in [(minority, 3), (majority, 0)]:
        for nudge in (0.99, 1.01):
            moved = at(problem, threshold * nudge)
            logits, shift = nuclear_solution(moved)
            assert abs(nuclear_gap(moved, logits, shift)) < 1e-11
            contrast = logits[k, k] - logits[k, k + 1]
            assert (contrast > 1e-3) if nudge < 1 else (abs(contrast) < 1e-6)
    assert np.abs(logits).max() < 1e-6  # above the last threshold nothing is left


def test_published_free_thresholds():
    problem = make(STEP, 10, 1e-3, 1e-3, features="free", bias=0.01)
    assert minority_collapse_weight(problem) == pytest.approx(0.003333, rel=1e-3)
    assert total_collapse_weight(problem) == pytest.approx(0.00745, rel=1e-3)
    wide = make([1393] * 5 + [100] * 5, 10, 1e-3, 1e-3, features="free", bias=0.01)
    assert total_collapse_weight(wide) == pytest.approx(0.005, rel=1e-4)


@pytest.mark.parametrize("bias", few_daily([None, 1e-9, 0.01, 0.3, 0.0], (0, 2)))
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        LabelSmoothing(0.2),
        WeightedCrossEntropy(np.array([1.0, 3.0, 3.0])),
        VectorScaling(np.array([1.0, 1.5, 1.5]), np.array([0.3, 0.0, 0.0])),
        LogitAdjustment(np.array([1.0, 0.0, 0.0])),
    ],
)
def test_total_collapse_weight_is_the_spectral_norm_at_the_best_bias(bias, loss):
    """One majority class, where the bias matters: bias by gradient descent, SVD of the whole matrix."""
    counts = np.array([40, 10, 10])
    problem = make(counts, 3, 1e-3, 1e-3, features="free", bias=bias, loss=loss)
    weights = np.broadcast_to(loss.weights, (3,))
    scales, offsets = np.broadcast_to(loss.scales, (3,)), np.broadcast_to(loss.offsets, (3,))
    targets = (1 - loss.label_smoothing) * np.eye(3) + loss.label_smoothing / 3
    shift = np.zeros(3)
    for _ in range(20_000 if bias is not None else 0):
        p = np.exp(scales * shift + offsets)
        residual = weights[:, None] * (p / p.sum() - targets) * scales
        shift = shift - 0.2 * (counts / 60 @ residual + bias * shift)
    p = np.exp(scales * shift + offsets)
    residual = weights[:, None] * (p / p.sum() - targets) * scales
    expected = np.linalg.norm(np.sqrt(counts)[:, None] * residual / 60, 2)
    assert total_collapse_weight(problem) == pytest.approx(expected, rel=1e-9)


def test_free_thresholds_say_what_they_cannot_do():
    free = make([40, 10], 2, 1e-3, 1e-3, features="free")
    assert twin_thresholds(free) == ()
    with pytest.raises(ClosedFormError, match="at least two"):
        minority_collapse_weight(free)
    with pytest.raises(ClosedFormError, match="free features"):
        twin_thresholds(free.replace(features="nonnegative"))
    with pytest.raises(ClosedFormError, match="softmax loss"):
        total_collapse_weight(free.replace(loss=MSE()))
    with pytest.raises(ClosedFormError, match="dim of at least"):
        twin_thresholds(free.replace(dim=1))
    with pytest.raises(ClosedFormError, match="at most 2000 kinds"):
        total_collapse_weight(make(range(1, 2003), 3, 1e-3, 1e-3, features="free"))


def test_twins_are_told_apart_by_their_weights():
    problem = make([9, 9, 9, 9], 4, 1e-3, 1e-3, features="free", loss=weighted(1.0, 2.0, 1.0, 2.0))
    light, heavy = twin_thresholds(problem)
    assert light.classes.tolist() == [0, 2]
    assert heavy.classes.tolist() == [1, 3]
    assert heavy.nuclear_weight == pytest.approx(2 * light.nuclear_weight)
    with pytest.raises(ClosedFormError):
        minority_collapse_weight(problem)


def test_twins_of_real_counts_keep_them():
    problem = make([500.5] * 5 + [2.5] * 5, 10, 1e-3, 1e-3, features="free")
    assert [twins.count for twins in twin_thresholds(problem)] == [2.5, 500.5]
    assert minority_collapse_weight(problem) == pytest.approx(2.5**0.5 / problem.num_samples, rel=1e-13)
