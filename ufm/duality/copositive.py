r"""A sharper bound on ``max u' G u`` over non-negative unit vectors, for optima at which classes share directions.

For every symmetric ``N >= 0`` and ``u >= 0``: ``u' G u <= u' (G + N) u <= lambda_max(G + N)``. Taking for N the
negative entries of G is enough where no two classes share a direction. Logit adjustment and vector scaling let small
classes share theirs; there complementarity says what N must be. Every direction u that the features use attains the
maximum 1, so ``(G + N) u = u`` for all of them, and N vanishes on pairs of classes that occur together. The
directions span the range of the Gram matrix M of the class means, so with Q an orthonormal basis of it

    (G + N) Q = Q,   N_kl = 0 where M_kl > 0,

a linear system for N, solved in the least-squares sense by conjugate gradients. What is not met exactly, or comes out
negative and is set to zero, costs tightness and never validity.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

#: Cosine of two class means above which the classes occur together, and share of the largest eigenvalue of a Gram
#: matrix of unit vectors below which a direction is not used.
TOGETHER, USED = 1e-6, 1e-9
STEPS = 200


def sharing_bound(product: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]) -> float:
    """Return an upper bound on ``max u' G u`` over ``u >= 0, |u| = 1``, tight where the features are optimal.

    Args:
        product: ``G``, symmetric.
        gram: ``M``, Gram matrix of non-negative class means. It only suggests N; the bound is valid whatever it is.

    Example:
        >>> means = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # the second class shares with both others
        >>> product = means @ np.linalg.pinv(means)
        >>> clipped = np.linalg.eigvalsh(np.maximum(product, 0))[-1]
        >>> round(float(clipped), 3), round(sharing_bound(product, means @ means.T), 12)
        (1.138, 1.0)
    """
    norms = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(np.float64).tiny))
    with np.errstate(all="ignore"):
        cosines = gram / np.outer(norms, norms)
    if not np.all(np.isfinite(cosines)):
        return math.inf
    apart = (cosines <= TOGETHER) & ~np.eye(len(gram), dtype=bool)
    values, vectors = np.linalg.eigh(cosines)
    used = np.linalg.qr(norms[:, None] * vectors[:, values > USED * values[-1]])[0]
    start = np.where(apart, np.maximum(-product, 0.0), 0.0)
    with np.errstate(all="ignore"):
        multiplier = start + _least_squares(used - (product + start) @ used, used, apart)
    if not np.all(np.isfinite(multiplier)):
        return math.inf
    return float(np.linalg.eigvalsh(product + np.maximum(multiplier, 0.0))[-1])


def _least_squares(
    missing: Float[np.ndarray, "K r"], used: Float[np.ndarray, "K r"], apart: np.ndarray
) -> Float[np.ndarray, "K K"]:
    """Return the symmetric X on the pairs ``apart`` for which ``X Q`` comes closest to what is missing."""

    def back(residual: np.ndarray) -> np.ndarray:
        image = residual @ used.T
        return np.where(apart, image + image.T, 0.0) / 2

    x, residual = np.zeros(apart.shape), missing
    slope = back(residual)
    direction, square = slope, float(np.sum(slope**2))
    least = np.finfo(np.float64).eps ** 2 * square
    for _ in range(STEPS):
        image = direction @ used
        bend = float(np.sum(image**2))
        if not (square > least and bend > 0):
            break
        length = square / bend
        x, residual = x + length * direction, residual - length * image
        slope = back(residual)
        square, last = float(np.sum(slope**2)), square
        direction = slope + square / last * direction
    return x
