"""Inverting divergences: which distributions and logits are within a given divergence of a given one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import lambertw

#: Half-widths of log-odds intervals stop here, where ``exp`` ends.
_LARGEST_SHIFT = 700.0
_BISECTIONS, _NEWTON_STEPS = 120, 60


def binary_shift(
    probability: Float[np.ndarray, "*#members K"], divergence: Float[np.ndarray, "*#members K"], sign: float
) -> Float[np.ndarray, "*#members K"]:
    """Return how far the log-odds may move while ``kl(s, s') <= kappa`` for two-point distributions.

    With ``u`` the change of the log-odds ``log(s/(1-s))`` the divergence is ``log(1 + s (e^u - 1)) - s u``,
    convex with minimum 0 at ``u = 0``. Generalised self-concordance bounds both branches from above, and Newton's
    method comes down from there without ever passing the root of a convex function; the result is rounded outwards.

    Args:
        probability: ``s`` in [0, 1), one per class.
        divergence: ``kappa >= 0``.
        sign: -1 for the largest fall, 1 for the largest rise.

    Returns:
        Positive, at most 700.

    Example:
        >>> binary_shift(np.array([0.5]), np.array([1e-6]), -1.0).round(6).tolist()
        [0.002828]
    """
    # what s loses 1 - s gains: the smaller of both keeps its digits
    s = np.minimum(probability, 1 - probability)
    way = np.where(probability > 0.5, -sign, sign)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        bound = np.sqrt(2) * concordant_radius(2 * s * (1 - s), divergence)
        u = np.fmin(bound, _LARGEST_SHIFT)  # without a curvature there is no bound
        for _ in range(_NEWTON_STEPS):
            growth = np.expm1(way * u)
            excess = np.log1p(s * growth) - s * way * u - divergence
            step = np.where(excess > 0, excess * (1 + s * growth) / (way * s * (1 - s) * growth), 0.0)
            u = u - step
            if np.all(step <= 1e-13 * u):
                break
    return np.minimum(u * (1 + 1e-12) + 1e-15, _LARGEST_SHIFT)


def shift_within(
    divergence_of: Callable[[np.ndarray], np.ndarray],
    divergence: Float[np.ndarray, "*members K"],
    sign: float,
) -> Float[np.ndarray, "*members K"]:
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
    curvature: Float[np.ndarray, "*#members K"], divergence: Float[np.ndarray, "*#members K"]
) -> Float[np.ndarray, "*#members K"]:
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
