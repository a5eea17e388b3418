"""The focal loss, which is not convex."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError, nonnegative_float
from ufm.losses import softmax as sm
from ufm.losses.base import Loss, Times


@dataclasses.dataclass(frozen=True, eq=False)
class Focal(Loss):
    """Focal loss ``-(1 - p_y)^gamma log p_y`` with ``p = softmax(z)``. Not convex: solved, never certified.

    Args:
        gamma: focusing parameter without unit, 0 (cross-entropy) or at least 1.

    Raises:
        InputError: if ``gamma`` is out of range.

    Source: Lin et al., ICCV 2017.

    Example:
        >>> Focal(2.0).value(np.zeros((1, 2)), np.array([0])).round(4).tolist(), Focal.convex
        ([0.1733], False)
    """

    convex: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    grouped: ClassVar[bool] = True
    gamma: float | Any = 2.0

    def __post_init__(self) -> None:
        gamma = nonnegative_float("gamma", self.gamma)
        if 0 < gamma < 1:
            raise InputError(f"gamma must be 0 or at least 1 (between, curvature is unbounded), got {gamma}")
        object.__setattr__(self, "gamma", gamma)

    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return ``(1 - p_y)^gamma * ce`` with ``ce = -log p_y``."""
        xp = logits.__array_namespace__()
        ce = sm.cross_entropy_from_logits(logits, labels, times)
        return (-xp.expm1(-ce)) ** self.gamma * ce

    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return ``phi'(ce) (p - onehot)`` where ``phi(ce) = (1 - e^-ce)^gamma ce``."""
        ce = sm.cross_entropy_from_logits(logits, labels, times)
        return self._slope(ce)[:, None] * sm.softmax_residual(logits, labels, times)

    def _slope(self, ce: Any) -> Any:
        xp = ce.__array_namespace__()
        miss = -xp.expm1(-ce)
        # gamma = 0 has no second term, and miss may be 0
        exponent = xp.maximum(xp.asarray(self.gamma, dtype=ce.dtype) - 1, 0.0)
        return miss**self.gamma + self.gamma * miss**exponent * xp.exp(-ce) * ce

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return a bound on ``phi' (diag(p) - p p') + phi'' (p - onehot)(p - onehot)'`` from a grid of ce."""
        xp = labels.__array_namespace__()
        ce = xp.linspace(1e-4, 40.0, 20_000)
        hit, miss = xp.exp(-ce), -xp.expm1(-ce)
        gamma = self.gamma
        # phi'' |p - onehot|^2 with |p - onehot|^2 <= 2 miss^2; powers of miss merged to stay finite at ce = 0
        bend = 2 * gamma * miss**gamma * hit * xp.abs(2 * miss + (gamma - 1) * hit * ce - miss * ce)
        return xp.max(sm.HESSIAN_BOUNDS[1] * self._slope(ce) + bend) * xp.ones(len(labels))

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return ``+inf``: the conjugate of a non-convex loss gives no useful bound, so none is claimed."""
        return np.full(len(labels), np.inf)

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Return the rows as they are: there is no dual problem to be feasible for."""
        return dual
