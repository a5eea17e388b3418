"""Squared error against one-hot targets."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.losses import softmax as sm
from ufm.losses.base import Loss


@dataclasses.dataclass(frozen=True, eq=False)
class MSE(Loss):
    """Squared error ``|z - onehot_y|^2 / 2``, whose optimum is a general orthogonal frame.

    Source: Dang et al., ICML 2023 (arXiv:2301.00437).

    Example:
        >>> MSE().value(np.array([[0.5, 0.0, 0.0]]), np.array([0])).tolist()
        [0.125]
    """

    shares_directions: ClassVar[bool] = False

    def _residual(self, logits: Any, labels: Any) -> Any:
        return logits - sm.label_mask(labels, logits.shape[-1]).astype(logits.dtype)

    def value(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return ``|z - onehot|^2 / 2``."""
        xp = logits.__array_namespace__()
        return xp.sum(self._residual(logits, labels) ** 2, axis=-1) / 2

    def gradient(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, "rows K"]:
        """Return ``z - onehot``."""
        return self._residual(logits, labels)

    def curvature(self, labels: Int[Any, " rows"], num_classes: int) -> Float[Any, " rows"]:
        """Return 1: the Hessian is the identity."""
        return labels.__array_namespace__().ones(len(labels))

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, " rows"]:
        """Return ``|Q|^2 / 2 + Q_y``; every Q is in the domain."""
        return np.sum(dual**2, axis=-1) / 2 + dual[np.arange(len(labels)), labels]

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
    ) -> Float[np.ndarray, "rows K"]:
        """Subtract the mean."""
        return dual - priors @ dual / np.sum(priors)
