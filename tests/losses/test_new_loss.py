"""Adding a loss is one class: the one below is not the package's, and everything works with it."""

import dataclasses

import numpy as np
import pytest

import ufm
from ufm.losses.softmax import label_mask


@dataclasses.dataclass(frozen=True, eq=False)
class OneVersusRest(ufm.Loss):
    """One logistic loss per class, ``sum_k log(1 + exp(-s_k z_k))`` with s = 1 for the label, -1 for others.

    Conjugate: ``Q_k = -s_k r_k`` with r in [0, 1], ``sum_k r log r + (1 - r) log(1 - r)``.
    """

    def _signs(self, logits, labels):
        return 2.0 * label_mask(labels, logits.shape[-1]).astype(logits.dtype) - 1.0

    def value(self, logits, labels):
        xp = logits.__array_namespace__()
        return xp.sum(xp.logaddexp(0.0 * logits, -self._signs(logits, labels) * logits), axis=-1)

    def gradient(self, logits, labels):
        xp = logits.__array_namespace__()
        signs = self._signs(logits, labels)
        return -signs * xp.exp(-xp.logaddexp(0.0 * logits, signs * logits))

    def curvature(self, labels):
        return labels.__array_namespace__().ones(len(labels)) / 4

    def _probabilities(self, dual, labels):
        return np.clip(-self._signs(dual, labels) * dual, 0.0, 1.0)

    def conjugate(self, dual, labels):
        r = self._probabilities(dual, labels)
        logs = [np.log(np.where(x > 0, x, 1.0)) for x in (r, 1 - r)]
        return np.sum(r * logs[0] + (1 - r) * logs[1], axis=-1)

    def into_domain(self, dual, labels):
        return -self._signs(dual, labels) * self._probabilities(dual, labels)

    def centre(self, dual, labels, priors):
        dual = self.into_domain(dual, labels)
        own = label_mask(labels, dual.shape[1])
        below = -(priors @ np.where(own, dual, 0.0))
        above = priors @ np.where(own, 0.0, dual)
        least = np.minimum(below, above)
        parts = [np.divide(least, x, out=np.zeros_like(x), where=x > 0) for x in (below, above)]
        return dual * np.where(own, *parts)


@pytest.mark.parametrize(
    ("features", "bias"),
    [
        pytest.param("nonnegative", None, marks=pytest.mark.slow),
        ("free", 0.02),
        pytest.param("nonnegative", 0.0, marks=pytest.mark.slow),
    ],
)
def test_it_is_solved_certified_and_verified(features, bias):
    counts = [300, 300, 300, 30, 30, 30]
    problem = ufm.Problem(counts, 6, 5e-3, 2e-5, loss=OneVersusRest(), features=features, bias=bias)
    solution = ufm.solve(problem)
    assert solution.certified
    assert ufm.verify(solution).passed
    with pytest.raises(ufm.ClosedFormError, match=r"OneVersusRest.*certified solver"):
        ufm.predict(problem)


def test_it_is_its_definition():
    logits, labels = np.random.default_rng(0).normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    p = 1 / (1 + np.exp(-logits))
    own = np.eye(4)[labels]
    expected = -(own * np.log(p) + (1 - own) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(OneVersusRest().value(logits, labels), expected, rtol=1e-13)
    dual = OneVersusRest().gradient(logits, labels)
    np.testing.assert_allclose(
        OneVersusRest().conjugate(dual, labels), (dual * logits).sum(axis=1) - expected, rtol=1e-12
    )


class OwnMargin(ufm.losses.SoftmaxLoss):
    """Cross-entropy with 1 subtracted from the label's logit, written as a member of the softmax family."""

    def _moved(self, logits, labels):
        return logits - label_mask(labels, logits.shape[-1]).astype(logits.dtype)

    def value(self, logits, labels):
        return ufm.CrossEntropy().value(self._moved(logits, labels), labels)

    def gradient(self, logits, labels):
        return ufm.CrossEntropy().gradient(self._moved(logits, labels), labels)

    def conjugate(self, dual, labels):
        return ufm.CrossEntropy().conjugate(dual, labels) + dual[np.arange(len(labels)), labels]


def test_a_member_of_the_softmax_family_with_its_own_value_gets_no_closed_form_of_another():
    problem = ufm.Problem([200, 100, 50, 20], 8, 5e-3, 2e-4, loss=OwnMargin())
    with pytest.raises(ufm.ClosedFormError, match="OwnMargin"):
        ufm.predict(problem)
    solution = ufm.solve(problem)
    assert solution.certified
    assert ufm.verify(solution).passed


def test_a_one_versus_rest_loss_is_not_told_that_living_classes_are_collapsed():
    problem = ufm.Problem([300, 300, 300, 30, 30, 30], 6, 5e-3, 2e-5, loss=OneVersusRest())
    solution = ufm.solve(problem)
    assert (
        np.linalg.norm(solution.features, axis=1).min() > 1
    )  # every class lives, though some share directions
    row = next(row for row in ufm.verify(solution).rows if row.name == "collapsed classes")
    assert row.measured == 0
    heavy = ufm.solve(problem.replace(feature_decay=0.3))
    row = next(row for row in ufm.verify(heavy).rows if row.name == "collapsed classes")
    assert row.measured == 6
