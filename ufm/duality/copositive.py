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

From five classes on the best S may not do, even at the optimum; with soft targets that is common. Up to
`SUPPORTS_LIMIT` of them the maximum itself is found: on the classes that a maximiser uses it is positive, a local
and so the largest maximum of the quadratic form on their sphere, an eigenvector of their block's largest eigenvalue.
For more the best S of all leaves a tenth of the gap that complementarity leaves, typically per mille.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

#: Cosine of two class means above which the classes occur together, and share of the largest eigenvalue of a Gram
#: matrix of unit vectors below which a direction is not used.
TOGETHER, USED = 1e-6, 1e-9
#: Steps towards ``X Q = Q``, and towards all of C; of these fewer for more classes, as each costs the cube.
STEPS, EIGEN_STEPS, EIGEN_WORK = 200, 200, 2e8
#: A bound within this of one needs no further work, and S is found when it moves by no more.
EXACT = 1e-13
#: Power steps that make directions exact, Newton steps onto the face, sums of eigenvalues of G below which it cannot
#: be moved, and how far the face may be.
POWER_STEPS, FACE_STEPS, REACHABLE, FAR = 8, 6, 0.1, 0.5
#: Steps towards the best S of all, and the least that are worth it; fewer for more classes, too.
RELAXED_STEPS, LEAST_STEPS = 500, 50
#: Most classes whose subsets are all looked at.
SUPPORTS_LIMIT = 15
#: An eigenvector is positive if no entry is below minus this, and its eigenvalue simple if the next is further below.
SIGN, SIMPLE = 1e-6, 1e-9


class Sharing(NamedTuple):
    """Which directions the features use, and which pairs of classes never occur together.

    Attributes:
        apart: where S may differ from zero.
        start: the multiplier S to begin with, which clips negative entries of G.
        used: orthonormal basis ``Q`` of the directions in use: of the range of M, those whose energy in M exceeds the
            slack of their constraint (the rule of `ufm.duality.faces`).
        others: basis of the rest.
    """

    apart: Bool[np.ndarray, "K K"]
    start: Float[np.ndarray, "K K"]
    used: Float[np.ndarray, "K r"]
    others: Float[np.ndarray, "K s"]

    @classmethod
    def of(cls, product: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]) -> Sharing | None:
        """Return what G and a Gram matrix of class means say, or None if the latter is not finite."""
        norms = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(np.float64).tiny))
        with np.errstate(all="ignore"):
            cosines = gram / np.outer(norms, norms)
        cosines = (cosines + cosines.T) / 2
        if not np.all(np.isfinite(cosines)):
            return None
        apart = (cosines <= TOGETHER) & ~np.eye(len(gram), dtype=bool)
        start = np.where(apart, np.maximum(-product, 0.0), 0.0)
        values, vectors = np.linalg.eigh(cosines)
        within = values > USED * values[-1]
        basis, rank = np.linalg.qr(norms[:, None] * vectors[:, within], mode="complete")[0], np.sum(within)
        basis, others = basis[:, :rank], basis[:, rank:]
        values, vectors = np.linalg.eigh(basis.T @ (product + start) @ basis)
        basis = basis @ vectors
        energies = np.sum(basis * (gram @ basis), axis=0) * (len(gram) / max(np.trace(gram), norms.min()))
        chosen = energies + values > 1
        return cls(apart, start, basis[:, chosen], np.hstack([basis[:, ~chosen], others]))

    def nearest(
        self, product: Float[np.ndarray, "K K"], start: Float[np.ndarray, "K K"], eigen_steps: int = 0
    ) -> tuple[Float[np.ndarray, "K K"], Sharing]:
        """Return the S that takes G nearest to C, and with it the directions in use more exactly.

        Errors of a direction in classes that hardly feel it, as they are few, shrink with every ``u -> (G + S) u``.

        Args:
            product: ``G``.
            start: ``S`` to begin with.
            eigen_steps: that ask for ``X <= 1`` too.
        """
        displacement = functools.partial(
            _displacement, used=self.used, others=self.others if eigen_steps else None
        )
        found = nearest(product, start, self.apart, displacement, eigen_steps or STEPS)
        basis, rank = self.used, self.used.shape[1]
        for _ in range(POWER_STEPS):
            basis = np.linalg.qr((product + found) @ basis)[0]
        basis = np.linalg.qr(basis, mode="complete")[0]
        return found, self._replace(used=basis[:, :rank], others=basis[:, rank:])


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
    sharing = Sharing.of(product, gram)
    if sharing is None:
        return np.full_like(product, math.inf)
    best = multiplier = sharing.start
    least = _largest(product + best)
    for eigen_steps in (0, 0, min(EIGEN_STEPS, int(EIGEN_WORK / len(gram) ** 3))):
        if least <= 1 + EXACT * len(gram):
            break
        multiplier, sharing = sharing.nearest(product, multiplier, eigen_steps)
        reached = _largest(product + multiplier)
        best, least = (multiplier, reached) if reached < least else (best, least)
    return best


def onto_face(
    dual: Float[np.ndarray, "K any"], gram: Float[np.ndarray, "K K"], kept: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "K any"]:
    """Return A moved so that ``(A A' + S) Q = Q`` with a multiplier S, the face that an optimum lies on.

    What S leaves of the displacement from C, A makes up for by the smallest change ``X A`` with ``X G + G X`` equal
    to it, X symmetric: a Newton step. The bound is then off by the square of the distance to the optimum, as with
    `ufm.duality.faces` where no classes share (logit adjustment, K = 210, residual 1.5e-6: 2.2e-4 -> 1.6e-8).

    Args:
        dual: ``A``.
        gram: ``M``.
        kept: ``v`` of which ``v' A`` is not to change: a unit vector, or zero.
    """
    sharing = Sharing.of(dual @ dual.T, gram)
    if sharing is None:
        return dual
    multiplier = sharing.start
    for _ in range(FACE_STEPS):
        product = dual @ dual.T
        multiplier, sharing = sharing.nearest(product, multiplier)
        left = _displacement(product + multiplier, sharing.used, None)
        if not EXACT * len(gram) < np.max(np.abs(left)) < FAR:
            break
        values, vectors = np.linalg.eigh(product)
        sums = values[:, None] + values
        change = np.where(sums > REACHABLE, vectors.T @ left @ vectors / np.maximum(sums, REACHABLE), 0.0)
        move = vectors @ change @ (vectors.T @ dual)
        dual = dual - move + np.outer(kept, kept @ move)
    return dual


def sharpest_bound(product: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]) -> float:
    """Return the best upper bound that a moment's work gives; see `sharing_bound`."""
    best, size = sharing_bound(product, gram), len(product)
    if not 1 + EXACT * size < best < math.inf:
        return best
    if size <= SUPPORTS_LIMIT:
        return min(best, largest_on_supports(product)[0])
    steps = min(RELAXED_STEPS, int(2 * EIGEN_WORK / size**3))
    return min(best, relaxed_bound(product, steps)) if steps >= LEAST_STEPS else best


def relaxed_bound(product: Float[np.ndarray, "K K"], steps: int) -> float:
    """Return about the least ``lambda_max(G + S)`` over ``S >= 0``, for G whose largest eigenvalue is about one.

    Alternating directions on its dual, ``max <G, X>`` over positive semidefinite X of trace one without negative
    entries; S are the prices of these.
    """
    positive, price = np.eye(len(product)) / len(product), np.zeros_like(product)
    for _ in range(steps):
        values, vectors = np.linalg.eigh(positive - price + product)
        falling = values[::-1]
        excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
        semidefinite = (vectors * np.maximum(values - excess[falling > excess][-1], 0)) @ vectors.T
        positive = np.maximum(semidefinite + price, 0)
        price = price + semidefinite - positive
    return _largest(product + np.maximum(-price, 0))


def largest_on_supports(product: Float[np.ndarray, "K K"]) -> tuple[float, Float[np.ndarray, " K"]]:
    """Return ``max u' G u`` over ``u >= 0, |u| = 1`` and where it is attained, by the blocks of all sets of classes.

    The value is an upper bound also where an eigenvalue is multiple or an entry cannot be told from zero.

    Example:
        >>> value, direction = largest_on_supports(np.array([[1.0, 0.5, -1.0], [0.5, 1.0, -1.0], [-1.0, -1.0, 1.4]]))
        >>> round(value, 12), direction.round(4).tolist()
        (1.5, [0.7071, 0.7071, 0.0])
    """
    best, direction = -math.inf, np.zeros(len(product))
    for size in range(1, len(product) + 1):
        sets = np.array(list(itertools.combinations(range(len(product)), size)))
        values, vectors = np.linalg.eigh(product[sets[:, :, None], sets[:, None, :]])
        top = vectors[:, :, -1] * np.where(vectors[:, :, -1].sum(axis=1) < 0, -1.0, 1.0)[:, None]
        usable = top.min(axis=1) >= -SIGN
        if size > 1:
            usable |= values[:, -1] - values[:, -2] <= SIMPLE * np.abs(values[:, -1])
        first = int(np.argmax(np.where(usable, values[:, -1], -math.inf)))
        if usable[first] and values[first, -1] > best:
            best, direction = float(values[first, -1]), np.zeros(len(product))
            direction[sets[first]] = np.maximum(top[first], 0.0)
    return best, direction


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
