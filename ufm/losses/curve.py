r"""Losses of the label's probability alone, ``phi(-log p_y)``: focal and Poly-1, convex or not, with a conjugate.

With the log-odds ``t = z_y - log sum_{j != y} exp(z_j)``, concave in z, the loss is ``f(t)`` for a falling f. For
``Q_y = -c``, ``Q_j = c r_j`` with a distribution r over the others,

    ``sup_z <Q, z> - f(t) = f*(-c) - c Entropy(r)``,   ``f*(-c) = sup_t -c t - f(t)``,

whatever f is, since ``sum_j r_j z_j - log sum_j exp(z_j)`` is at most ``-Entropy(r)`` and t is free. So the lower
bound that it gives is valid for *every* f, convex or not; it is attained where f agrees with its convex hull at the
optimum. ``-f'`` rises from 0 (large t) past every c in (0, 1) once before its peak: the supremum is where it does.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import nonnegative_float
from ufm.losses import softmax as sm
from ufm.losses.base import Loss, Times
from ufm.losses.divergence import concordant_radius, shift_within
from ufm.losses.pinned import Pinned
from ufm.losses.scalar import ScalarForm
from ufm.losses.softmax_family import CrossEntropy

#: Beyond this ``-log p_y`` the slope is 1 to rounding.
_LARGEST = 800.0


class CurveLoss(Loss):
    """``phi(ce)`` with ``ce = -log softmax(z)_y``: a subclass gives ``phi``, ``phi'`` and the curvature bound."""

    grouped: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = True
    shares_directions: ClassVar[bool] = False

    @abstractmethod
    def curve(self, ce: Any) -> Any:
        """Return ``phi(ce)``, rising from 0 with slope 1 in the end."""

    @abstractmethod
    def slope(self, ce: Any) -> Any:
        """Return ``phi'(ce)``."""

    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return ``phi(ce)``."""
        return self.curve(sm.cross_entropy_from_logits(logits, labels, times))

    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return ``phi'(ce) (p - onehot)``."""
        ce = sm.cross_entropy_from_logits(logits, labels, times)
        return self.slope(ce)[:, None] * sm.softmax_residual(logits, labels, times)

    def surprise_at(self, pull: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Return the ``ce`` at which ``-f' = phi'(ce) (1 - exp(-ce))`` first reaches ``pull`` in (0, 1]."""
        from scipy.optimize import elementwise  # only where a root is needed: `import ufm` stays fast

        grid = np.geomspace(1e-3, _LARGEST, 4000)
        rise = self.slope(grid) * -np.expm1(-grid)
        peak = float(grid[np.argmax(rise)])

        def excess(log_ce: np.ndarray, pull: np.ndarray) -> np.ndarray:
            ce = np.exp(log_ce)
            return self.slope(ce) * -np.expm1(-ce) - pull

        low, high = np.full_like(pull, -700.0), np.full_like(pull, np.log(peak))
        with np.errstate(under="ignore"):
            found = elementwise.find_root(excess, (low, high), args=(np.minimum(pull, rise.max()),))
        return np.exp(np.where(found.success, found.x, high))

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return ``f*(-c) - c Entropy(r)``, valid whether f is convex or not."""
        rest = np.where(sm.label_mask(labels, dual.shape[-1]), 0.0, dual)
        pull = np.minimum(sm.total(rest, times), 1.0)
        some = pull > 0
        safe = np.where(some, pull, 0.5)
        ce = self.surprise_at(safe)
        best = safe * (ce + np.log(-np.expm1(-ce)) - np.log(safe)) - self.curve(ce)
        negative_entropy = sm.total(sm.times_log(rest, rest), times)
        return np.where(some, best + negative_entropy, 0.0)

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows ``c (r - onehot)`` with ``0 <= c <= 1``, as for cross-entropy."""
        return CrossEntropy().into_domain(dual, labels, times)

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Tilt as for cross-entropy, whose domain is the same."""
        return CrossEntropy().centre(dual, labels, priors, times, columns)

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """Return ``phi(log(1 + (K-1) exp(-M)))``."""
        return ScalarForm(self, num_classes, partial(self._closed_margin, num_classes))

    def _closed_margin(self, num_classes: int, share: np.ndarray, room: np.ndarray) -> np.ndarray:
        even = np.full_like(share, np.log(num_classes))
        ce = self.surprise_at(share * (self.slope(even) * -np.expm1(-even)))
        return np.maximum(np.log(num_classes - 1) + _log_odds(ce), 0.0)

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """The divergence is that of f in t plus c times that of the others' distributions, where f meets its hull.

        Others move by ``rho`` around their mean, hence their log-sum-exp by at most that besides.
        """
        K = logits.shape[1]
        apart = ~sm.label_mask(labels, K)
        ce = sm.cross_entropy_from_logits(logits, labels)
        if not self._on_hull(ce):
            return None
        odds = _log_odds(ce)
        fall, rise = (
            shift_within(lambda u: self._bregman(odds, u), divergence, sign) for sign in (-1.0, 1.0)
        )
        others = sm.softmax(np.where(apart, logits, -np.inf))
        least = np.min(np.where(apart, others, 1.0), axis=1)
        pull = self.slope(ce) * -np.expm1(-ce)
        rho = concordant_radius(least, divergence / pull) * (K > 2)
        radius = np.hypot(rho, np.sqrt((K - 1) / K) * (np.maximum(fall, rise) + rho))
        confusion = np.where(odds > 0, self._bregman(odds, -odds), 0.0)
        return Pinned(radius, radius, np.ones_like(logits), fall, rise, confusion, np.full(K, K**-0.5))

    def _on_hull(self, ce: Float[np.ndarray, " rows"]) -> bool:
        """Whether f agrees with its convex hull there: ``f + c t`` with ``c < 1`` then has its only minimum at t."""
        pull = self.slope(ce) * -np.expm1(-ce)
        return self.convex or bool(
            np.all(pull < 1) and np.allclose(self.surprise_at(pull), ce, rtol=1e-6, atol=0.0)
        )

    def zero_margins(
        self, divergence: Float[np.ndarray, "*members K"]
    ) -> Float[np.ndarray, "*members K"] | None:
        """How far the log-odds may rise from those of equal logits, where f meets its hull there."""
        K = divergence.shape[-1]
        if not self._on_hull(np.full(1, np.log(max(K, 2)))):
            return None
        odds = np.full_like(divergence, -np.log(max(K - 1, 1)))
        return shift_within(lambda u: self._bregman(odds, u), divergence, 1.0)

    def _bregman(self, odds: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """``f(t + u) - f(t) - u f'(t)``."""
        here, there = np.logaddexp(0.0, -odds), np.logaddexp(0.0, -odds - shift)
        slope = -self.slope(here) * -np.expm1(-here)
        return self.curve(there) - self.curve(here) - shift * slope


def _log_odds(ce: np.ndarray) -> np.ndarray:
    return -(ce + np.log(-np.expm1(-ce)))


@dataclasses.dataclass(frozen=True, eq=False)
class Focal(CurveLoss):
    """Focal loss ``-(1 - p_y)^gamma log p_y`` with ``p = softmax(z)``. Not convex, but bounded from below.

    Args:
        gamma: focusing parameter without unit, at least 0 (cross-entropy).

    Raises:
        InputError: if ``gamma`` is out of range.

    Source: Lin et al., ICCV 2017.

    Example:
        >>> Focal(2.0).value(np.zeros((1, 2)), np.array([0])).round(4).tolist(), Focal.convex
        ([0.1733], False)
    """

    convex: ClassVar[bool] = False
    gamma: float | Any = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", nonnegative_float("gamma", self.gamma))

    def curve(self, ce: Any) -> Any:
        """Return ``(1 - e^-ce)^gamma ce``."""
        return (-ce.__array_namespace__().expm1(-ce)) ** self.gamma * ce

    def slope(self, ce: Any) -> Any:
        """Return ``(1 - e^-ce)^gamma (1 + gamma e^-ce ce / (1 - e^-ce))``."""
        xp = ce.__array_namespace__()
        miss = -xp.expm1(-ce)
        ratio = ce / xp.where(miss > 0, miss, 1.0)
        return miss**self.gamma * (1 + self.gamma * xp.exp(-ce) * ratio)

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return a bound on ``phi' (diag(p) - p p') + phi'' (p - onehot)(p - onehot)'`` from a grid of ce."""
        xp = labels.__array_namespace__()
        ce = xp.linspace(1e-4, 40.0, 20_000)
        hit, miss = xp.exp(-ce), -xp.expm1(-ce)
        gamma = self.gamma
        # phi'' |p - onehot|^2 with |p - onehot|^2 <= 2 miss^2; powers of miss merged to stay finite at ce = 0
        bend = 2 * gamma * miss**gamma * hit * xp.abs(2 * miss + (gamma - 1) * hit * ce - miss * ce)
        return xp.max(sm.HESSIAN_BOUNDS[1] * self.slope(ce) + bend) * xp.ones(len(labels))


@dataclasses.dataclass(frozen=True, eq=False)
class Poly1(CurveLoss):
    """Poly-1 loss ``-log p_y + epsilon (1 - p_y)`` with ``p = softmax(z)``; convex up to ``epsilon = 1``.

    Args:
        epsilon: weight of the first term of the series of ``-log p``, without unit, at least 0.

    Raises:
        InputError: if ``epsilon`` is out of range.

    Source: Leng et al., ICLR 2022 (arXiv:2204.12511). Convexity: ``f'' = p (1-p) (1 - epsilon (1 - 2 p))``.

    Example:
        >>> Poly1(1.0).value(np.zeros((1, 2)), np.array([0])).round(4).tolist(), Poly1(2.0).convex
        ([1.1931], False)
    """

    epsilon: float | Any = 1.0

    def __post_init__(self) -> None:
        epsilon = nonnegative_float("epsilon", self.epsilon)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "convex", epsilon <= 1)

    def curve(self, ce: Any) -> Any:
        """Return ``ce + epsilon (1 - e^-ce)``."""
        return ce - self.epsilon * ce.__array_namespace__().expm1(-ce)

    def slope(self, ce: Any) -> Any:
        """Return ``1 + epsilon e^-ce``."""
        return 1.0 + self.epsilon * ce.__array_namespace__().exp(-ce)

    def surprise_at(self, pull: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Return the smaller root u of ``u (1 + epsilon - epsilon u) = pull`` as ``-log(1 - u)``."""
        b = 1 + self.epsilon
        miss = 2 * pull / (b + np.sqrt(np.maximum(b * b - 4 * self.epsilon * pull, 0.0)))
        return np.where(miss < 1, -np.log1p(-np.where(miss < 1, miss, 0.0)), _LARGEST)

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return ``(1 + epsilon)/2``: ``phi'' < 0`` only lowers it, by at most 8 epsilon / 27."""
        return (1 + self.epsilon) * sm.HESSIAN_BOUNDS[1] * labels.__array_namespace__().ones(len(labels))
