"""Predictions of many problems at once are those of each alone, ties and refusals included."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ufm
from ufm.losses import LDAM, MSE, CrossEntropy, LabelSmoothing, Poly1
from ufm.theory import ClosedFormError, predict, predict_each, scalar


def problems() -> list[ufm.Problem]:
    """Three classes, all else varied: what shares a loss, what has one of its own, and what no theorem covers."""
    counts, rng = np.array([500, 60, 5]), np.random.default_rng(0)
    losses = [CrossEntropy(), LabelSmoothing(0.1), MSE(), Poly1(), LDAM(0.5 * counts**-0.25)]
    varied = [
        ufm.Problem(counts, 3, *10 ** rng.uniform(-4, -1, 2), loss=loss, features=features, bias=bias)
        for loss in losses
        for features in ("nonnegative", "free")
        for bias in (None, 0.0)
        for _ in range(4)
    ]
    equal = [ufm.Problem([40, 40, 40], 3, decay, 1e-4, bias=0.1) for decay in (1e-4, 1e-3, 1e-1)]
    by_class = [ufm.Problem(counts, 3, 1e-3, [1e-3, 1e-4, decay]) for decay in (1e-3, 1e-5)]
    few = [
        ufm.Problem(counts, 1, decay, 1e-4) for decay in (1e-6, 1.0)
    ]  # no room, and nothing to make room for
    squared = [ufm.Problem([40, 40, 40], 3, 1e-3, 1e-4, loss=MSE(), bias=bias) for bias in (None, 0.1)]
    return [*varied, *equal, *by_class, *few, *squared]


def test_many_at_once_are_those_of_each() -> None:
    each = predict_each(problems())
    covered = 0
    for problem, found in zip(problems(), each, strict=True):
        try:
            alone = predict(problem)
        except ClosedFormError:
            assert found is None
            continue
        assert found is not None
        assert found.problem == problem
        assert found.theorem == alone.theorem
        covered += 1
        for name in (
            "norms",
            "weight_norms",
            "margins",
            "objective",
            "gram_features",
            "gram_weights",
            "logits",
        ):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-14, atol=1e-15)
        np.testing.assert_array_equal(found.collapsed, alone.collapsed)
    assert 30 < covered < len(each) - 20


def test_ties_are_decided_by_each_members_own_fractions() -> None:
    """On the threshold, one rounding above and one below: rounding of the stack must not decide."""
    at = ufm.Problem([900, 100], 2, 1.0, 1.0)
    product = float(ufm.theory.collapse_nuclear_weights(at)[1])
    weights = [np.nextafter(product, 0), product, np.nextafter(product, 1), product / 2]
    members = [ufm.Problem([900, 100], 2, weight, weight) for weight in weights]
    form = scalar.symmetric_form(at)
    like = scalar.ScalarProblems(members[0], form, form.squared_length)
    together = [each.collapsed.tolist() for each in scalar.one_by_one(members, like)]
    assert together == [dataclasses.replace(like, problem=member).collapsed.tolist() for member in members]
    assert together[-1] == [False, False]
    assert together[2] == [False, True]


def test_what_takes_time_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand members of a sweep evaluate their loss once, not a thousand times."""
    calls = []
    value = CrossEntropy.value
    monkeypatch.setattr(CrossEntropy, "value", lambda *args: calls.append(1) or value(*args))
    members = [ufm.Problem([500, 60, 5], 3, decay, 1e-4) for decay in np.geomspace(1e-5, 1e-1, 1000)]
    assert all(each is not None for each in predict_each(members))
    assert 0 < len(calls) < 10
