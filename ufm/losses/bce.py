"""Binary cross-entropy: one logistic loss per class, the label against the rest."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.losses import softmax as sm
from ufm.losses.base import Loss, Times
from ufm.losses.divergence import binary_shift, concordant_radius, curvature_loss
from ufm.losses.pinned import Pinned
from ufm.losses.scalar import ScalarForm
from ufm.losses.tilt import Biases


@dataclasses.dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(Loss):
    """One-versus-rest logistic loss ``sum_k log(1 + exp(-s_k z_k))``, s = 1 for the label and -1 for the others.

    With five classes or more they share directions at the optimum, so a class without a margin may well live.
    Conjugate: ``Q_k = -s_k r_k`` with r in [0, 1], ``sum_k r log r + (1 - r) log(1 - r)``.

    Source: the loss of multi-label classifiers; Li et al., "Neural collapse with binary cross-entropy", 2024.

    Example:
        >>> BinaryCrossEntropy().value(np.zeros((1, 3)), np.array([0])).round(4).tolist()
        [2.0794]
    """

    grouped: ClassVar[bool] = True

    def _signs(self, logits: Any, labels: Any) -> Any:
        return 2.0 * sm.label_mask(labels, logits.shape[-1]).astype(logits.dtype) - 1.0

    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return the sum of ``log(1 + exp(-s z))``."""
        xp = logits.__array_namespace__()
        return sm.total(xp.logaddexp(xp.zeros_like(logits), -self._signs(logits, labels) * logits), times)

    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return ``-s / (1 + exp(s z))``."""
        xp = logits.__array_namespace__()
        signs = self._signs(logits, labels)
        return -signs * xp.exp(-xp.logaddexp(xp.zeros_like(logits), signs * logits))

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return 1/4."""
        return labels.__array_namespace__().ones(len(labels)) / 4

    def _misses(self, dual: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.clip(-self._signs(dual, labels) * dual, 0.0, 1.0)

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return the sum of ``r log r + (1 - r) log(1 - r)``."""
        r = self._misses(dual, labels)
        inside = np.where(r < 1, r, 0.0)
        return sm.total(sm.times_log(r, r) + (1 - inside) * np.log1p(-inside), times)

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows with every r clipped to [0, 1]."""
        return -self._signs(dual, labels) * self._misses(dual, labels)

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Scale down, for every bias, what pulls harder: the label or the rest."""
        biases = Biases.of_columns(times, columns)
        dual = self.into_domain(dual, labels)
        own = sm.label_mask(labels, dual.shape[1])
        up = -(priors @ biases.pooled(np.where(own, dual, 0.0)))
        down = priors @ biases.pooled(np.where(own, 0.0, dual))
        least = np.minimum(up, down)
        label, rest = (np.divide(least, x, out=np.zeros_like(x), where=x > 0) for x in (up, down))
        return dual * np.where(own, biases.spread(label), biases.spread(rest))

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """Return ``K log(1 + exp(-M))`` along ``2 e_k - 1``, for at most four classes.

        ``<u_k, u_l> = K - 4``: beyond, classes share directions.
        """
        if num_classes > 4:
            return None
        return ScalarForm(self, num_classes, _closed_margin, own=2, rest=1)

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """The divergence is a sum over logits of ``kl`` between two-point distributions, each self-concordant."""
        rows = np.arange(len(labels))
        p = np.exp(-np.logaddexp(0.0, -logits))
        variances = 1 / np.maximum(p * np.exp(-np.logaddexp(0.0, logits)), np.finfo(np.float64).tiny)
        radius = concordant_radius(1 / variances.max(axis=1), divergence)
        spread = np.sqrt(divergence * curvature_loss(radius))
        own, apart = variances[rows, labels], ~sm.label_mask(labels, logits.shape[1])
        moved = spread * np.sqrt(own + np.max(np.where(apart, variances, 0.0), axis=1))
        hit = p[rows, labels, None]
        middle = (hit + p) / 2  # least divergence to equal logits of label and another class
        needed = sm.kl_divergence(
            np.stack([hit + 0 * p, 1 - hit + 0 * p], -1), np.stack([middle, 1 - middle], -1)
        )
        needed = needed + sm.kl_divergence(np.stack([p, 1 - p], -1), np.stack([middle, 1 - middle], -1))
        return Pinned(
            radius, spread, variances, moved, moved, np.min(np.where(apart, needed, np.inf), axis=1)
        )

    def zero_margins(
        self, divergence: Float[np.ndarray, "*members K"]
    ) -> Float[np.ndarray, "*members K"] | None:
        """Label and another class move apart, sharing the divergence; nothing for five classes or more."""
        if divergence.shape[-1] > 4:
            return None
        return 2 * binary_shift(np.full_like(divergence, 0.5), divergence / 2, 1.0)


def _closed_margin(share: Any, room: Any) -> Any:
    return np.log1p(2 * room / share)
