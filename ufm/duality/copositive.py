r"""A sharper bound on ``max u' G u`` over non-negative unit vectors, for optima at which classes share directions.

For every symmetric ``S >= 0`` and ``u >= 0``: ``u' G u <= u' (G + S) u <= lambda_max(G + S)``. Taking for S the
negative entries of G is enough where no two classes share a direction. Logit adjustment, vector scaling and biases
let small classes share theirs, or leave a class without a feature; there complementarity says what S must be. Every
direction u that the features use attains the maximum 1, so ``(G + S) u = u`` for all of them, and S vanishes on pairs
of classes that occur together. The directions span the range of the Gram matrix M of the class means, so with Q an
orthonormal basis of it

    G + S in C = {X : X Q = Q, X <= 1},   S >= 0,   S_kl = 0 where M_kl > 0.

The squared distance to C is convex in S with a gradient of Lipschitz constant one, the projection's displacement; so
accelerated projected gradient finds S: non-negative least squares while only ``X Q = Q`` is asked for, which takes
products of matrices alone, and with ``X <= 1`` besides, which takes an eigendecomposition per step, where that is not
enough. What is not met exactly costs tightness and never validity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

#: Cosine of two class means above which the classes occur together, and share of the largest eigenvalue of a Gram
#: matrix of unit vectors below which a direction is not used.
TOGETHER, USED = 1e-6, 1e-9
#: Steps towards ``X Q = Q``, and towards all of C; of these fewer for more classes, as each costs the cube.
STEPS, EIGEN_STEPS, EIGEN_WORK = 200, 200, 2e8
#: A bound within this of one needs no further work, and S is found when it moves by no more.
EXACT = 1e-13


def sharing_bound(product: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]) -> float:
    """Return an upper bound on ``max u' G u`` over ``u >= 0, |u| = 1``, tight where the features are optimal.

    Args:
        product: ``G``, symmetric.
        gram: ``M``, Gram matrix of non-negative class means. It only suggests S; the bound is valid whatever it is.

    Example:
        >>> means = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])  # the second class shares with both others
        >>> product = means @ np.linalg.pinv(means)
        >>> clipped = np.linalg.eigvalsh(np.maximum(product, 0))[-1]
        >>> round(float(clipped), 3), round(sharing_bound(product, means @ means.T), 12)
        (1.138, 1.0)
    """
    return _largest(product + sharing_multiplier(product, gram))


def sharing_multiplier(
    product: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "K K"]:
    """Return the S of that bound; arguments as there, infinite where these are not finite."""
    norms = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(np.float64).tiny))
    with np.errstate(all="ignore"):
        cosines = gram / np.outer(norms, norms)
    cosines = (cosines + cosines.T) / 2
    if not np.all(np.isfinite(cosines)):
        return np.full_like(product, math.inf)
    apart = (cosines <= TOGETHER) & ~np.eye(len(gram), dtype=bool)
    values, vectors = np.linalg.eigh(cosines)
    basis, rank = norms[:, None] * vectors[:, values > USED * values[-1]], np.sum(values > USED * values[-1])
    basis = np.linalg.qr(basis, mode="complete")[0]
    used, others = basis[:, :rank], basis[:, rank:]
    best = multiplier = np.where(apart, np.maximum(-product, 0.0), 0.0)
    least = _largest(product + best)
    for complement, steps in ((None, STEPS), (others, min(EIGEN_STEPS, int(EIGEN_WORK / len(gram) ** 3)))):
        if least <= 1 + EXACT * len(gram):
            break
        displacement = functools.partial(_displacement, used=used, others=complement)
        multiplier = nearest(product, multiplier, apart, displacement, steps)
        reached = _largest(product + multiplier)
        best, least = (multiplier, reached) if reached < least else (best, least)
    return best


def _largest(matrix: Float[np.ndarray, "K K"]) -> float:
    """Return the largest eigenvalue; infinity where an entry is not finite."""
    return float(np.linalg.eigvalsh(matrix)[-1]) if np.all(np.isfinite(matrix)) else math.inf


def nearest(
    product: Float[np.ndarray, "rows columns"],
    start: Float[np.ndarray, "rows columns"],
    apart: Bool[np.ndarray, "rows columns"],
    displacement: Callable[[np.ndarray], np.ndarray],
    steps: int,
) -> Float[np.ndarray, "rows columns"]:
    """Return ``S >= 0`` on the entries ``apart`` for which ``G + S`` comes close to C: FISTA with restart.

    Args:
        product: ``G``, a matrix or an element of `ufm.model.algebra`, as is all else.
        start: ``S`` to start from.
        apart: where S may differ from zero.
        displacement: ``X`` less its projection onto C.
        steps: at most so many.
    """
    point = ahead = start
    momentum = 1.0
    with np.errstate(all="ignore"):
        for _ in range(steps):
            moved = np.where(apart, np.maximum(ahead - displacement(product + ahead), 0.0), 0.0)
            travelled = moved - point
            if not np.max(np.abs(moved - ahead), initial=0.0) > EXACT:  # nor if anything is not a number
                return moved
            momentum = 1.0 if np.sum((ahead - moved) * travelled) > 0 else momentum
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, point, momentum = moved + (momentum - 1) / following * travelled, moved, following
    return point


def _displacement(
    matrix: Float[np.ndarray, "K K"], used: Float[np.ndarray, "K r"], others: Float[np.ndarray, "K s"] | None
) -> Float[np.ndarray, "K K"]:
    """Return ``X`` less its projection onto C, or onto ``X Q = Q`` alone; exactly symmetric, or rounding would grow.

    Args:
        matrix: ``X``, symmetric.
        used: ``Q``.
        others: basis of the other directions, in which ``X <= 1`` is wanted too; None: is not.
    """
    image = matrix @ used - used
    half = (image - used @ (used.T @ image) / 2) @ used.T
    found = half + half.T
    if others is not None and others.shape[1]:
        inside = others.T @ matrix @ others
        values, vectors = np.linalg.eigh((inside + inside.T) / 2)
        above = values > 1
        longest = others @ vectors[:, above]
        found = found + (longest * (values[above] - 1)) @ longest.T
    return (found + found.T) / 2
