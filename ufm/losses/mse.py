"""Squared error against one-hot targets."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.losses import softmax as sm
from ufm.losses.base import Loss, Times
from ufm.losses.pinned import Pinned
from ufm.losses.scalar import ScalarForm
from ufm.losses.tilt import Biases


@dataclasses.dataclass(frozen=True, eq=False)
class MSE(Loss):
    """Squared error ``|z - onehot_y|^2 / 2``, whose optimum is a general orthogonal frame.

    Source: Dang et al., ICML 2023 (arXiv:2301.00437).

    Example:
        >>> MSE().value(np.array([[0.5, 0.0, 0.0]]), np.array([0])).tolist()
        [0.125]
    """

    shares_directions: ClassVar[bool] = False
    grouped: ClassVar[bool] = True

    def _residual(self, logits: Any, labels: Any) -> Any:
        return logits - sm.label_mask(labels, logits.shape[-1]).astype(logits.dtype)

    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return ``|z - onehot|^2 / 2``."""
        return sm.total(self._residual(logits, labels) ** 2, times) / 2

    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return ``z - onehot``."""
        return self._residual(logits, labels)

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return 1: the Hessian is the identity."""
        return labels.__array_namespace__().ones(len(labels))

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return ``|Q|^2 / 2 + Q_y``; every Q is in the domain."""
        return sm.total(dual**2, times) / 2 + dual[np.arange(len(labels)), labels]

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Subtract the mean."""
        return Biases.of_columns(times, columns).without_mean(dual, priors)

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """Return ``(1 - M)^2/2`` along ``e_k``."""
        return ScalarForm(self, num_classes, _closed_margin, own=1, rest=0, exact=_exact_pull)

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """The divergence is half the squared distance."""
        radius = np.sqrt(2 * divergence)
        apart = np.sqrt(2) * radius
        own = np.arange(logits.shape[1]) == labels[:, None]
        margins = np.max(logits, axis=1, where=own, initial=-np.inf) - np.max(
            logits, axis=1, where=~own, initial=-np.inf
        )
        confusion = np.maximum(margins, 0.0) ** 2 / 4
        return Pinned(radius, radius, np.ones_like(logits), apart, apart, confusion)

    def zero_margins(
        self, divergence: Float[np.ndarray, "*members K"]
    ) -> Float[np.ndarray, "*members K"] | None:
        """Two logits of a point within this distance of zero differ by no more."""
        return 2 * np.sqrt(divergence)


def _closed_margin(share: Any, room: Any) -> Any:
    return room


def _exact_pull(k: int) -> Fraction:
    return Fraction(1)
