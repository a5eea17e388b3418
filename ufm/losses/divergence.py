"""Inverting divergences: which distributions and logits are within a given divergence of a given one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import lambertw

#: Half-widths of log-odds intervals stop here, where ``exp`` ends.
_LARGEST_SHIFT = 700.0
_BISECTIONS = 120


def binary_interval(
    probability: Float[np.ndarray, " K"], divergence: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Return how far the log-odds may fall and rise while ``kl(s, s') <= kappa`` for two-point distributions.

    With ``u`` the change of the log-odds ``log(s/(1-s))`` the divergence is ``log(1 + s (e^u - 1)) - s u``,
    convex with minimum 0 at ``u = 0``; both branches are inverted by bisection, the result rounded outwards.
    (`scipy.optimize.elementwise.find_root` finds the same to 1e-10, seven to fifteen times slower.)

    Args:
        probability: ``s`` in [0, 1), one per class.
        divergence: ``kappa >= 0``.

    Returns:
        Two positive vectors (largest fall, largest rise), at most 700.

    Example:
        >>> fall, rise = binary_interval(np.array([0.5]), np.array([1e-6]))
        >>> fall.round(6).tolist(), rise.round(6).tolist()
        ([0.002828], [0.002828])
    """
    fall, rise = (
        shift_within(lambda u: np.log1p(probability * np.expm1(u)) - probability * u, divergence, sign)
        for sign in (-1.0, 1.0)
    )
    return fall, rise


def shift_within(
    divergence_of: Callable[[np.ndarray], np.ndarray], divergence: Float[np.ndarray, " K"], sign: float
) -> Float[np.ndarray, " K"]:
    """Return the largest ``|u| <= 700`` with ``divergence_of(sign |u|) <= divergence``, rounded outwards.

    Args:
        divergence_of: of a vector of shifts, one per class; growing with ``|u|`` on both sides of 0.
        divergence: the limits.
        sign: 1 or -1.
    """
    low, high = np.zeros_like(divergence), np.full_like(divergence, _LARGEST_SHIFT)
    for _ in range(_BISECTIONS):
        middle = np.where(low > 0, np.sqrt(low * high), high * 1e-3)  # geometric: widths span many decades
        middle = np.where(high - low < 1e-3 * high, (low + high) / 2, middle)
        inside = divergence_of(sign * middle) <= divergence
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        if np.all(high - low <= 1e-12 * high):
            break
    return high


def concordant_radius(
    curvature: Float[np.ndarray, " K"], divergence: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    r"""Return the largest ``|u|`` for which log-sum-exp permits ``Bregman(z + u, z) <= kappa``, u centred.

    Generalised self-concordance gives ``Bregman >= curvature |u|^2 psi(t)/t^2`` with ``t = sqrt(2)|u|`` and
    ``psi(t) = exp(-t) + t - 1``; hence ``psi(t) <= 2 kappa / curvature = y``. Equality is at
    ``t = 1 + y + W_0(-exp(-1 - y))`` with Lambert's W.

    Source: Bach, Electronic Journal of Statistics 4 (2010), Proposition 1.
    """
    y = 2 * divergence / curvature
    # near its branch point W cancels; there t = sqrt(2y) + y/3 + ..., which sqrt(2y) + y bounds from above
    near = y < 1e-6
    exact = 1 + y + np.real(lambertw(-np.exp(-1 - np.where(near, 1.0, y))))
    return np.where(near, np.sqrt(2 * y) + y, exact) / np.sqrt(2)


def curvature_loss(radius: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Return ``t^2/psi(t)`` at ``t = sqrt(2) radius``: 2 for small radii, growing like t for large ones."""
    t = np.sqrt(2) * radius
    small = t < 1e-4
    safe = np.where(small, 1.0, t)
    return np.where(small, 2 + t, safe**2 / (np.exp(-safe) + safe - 1))
