"""Atoms that lower the objective: directions in class space whose dual constraint is violated, and their strengths.

An atom is a unit direction ``u`` of features over classes with the classifier column ``w = -A' u / |A' u|``. With
strength theta it adds ``theta w u'`` to the balanced logits and theta to the regulariser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from ufm.duality.copositive import SUPPORTS_LIMIT, largest_on_supports
from ufm.model.problem import Problem

#: Directions count as the same above this cosine, atoms as violating above 1 plus this margin.
PARALLEL = 0.999
MARGIN = 1e-9
POWER_STEPS = 40
DOUBLINGS = 40
REFINEMENTS = 5
#: From so many atoms on they grow along one ray, as each slope costs a product with all of them; and directions are
#: eigenvectors of the smaller Gram matrix, a fifth of the work of an SVD.
MANY = 200


@dataclasses.dataclass(frozen=True)
class Atoms:
    """Unit directions in class space and the classifier columns that go with them, strongest first."""

    u: Float[np.ndarray, "atoms C"]
    w: Float[np.ndarray, "atoms K"]


def violating_atoms(dual: Float[np.ndarray, "C K"], nonnegative: bool) -> Atoms:
    """Return all directions found with ``|A' u| > 1``."""
    directions = _cone_directions(dual) if nonnegative else _singular_directions(dual)
    images = directions @ dual
    sizes = np.linalg.norm(images, axis=1)
    order = np.argsort(-sizes)
    order = order[sizes[order] > 1 + MARGIN]
    return Atoms(directions[order], -images[order] / sizes[order][:, None])


def _singular_directions(dual: Float[np.ndarray, "C K"]) -> Float[np.ndarray, "atoms C"]:
    """Return left singular vectors, at least those of singular values above one."""
    if min(dual.shape) < MANY:
        return np.linalg.svd(dual, full_matrices=False)[0].T
    tall = dual.shape[0] > dual.shape[1]
    squares, vectors = np.linalg.eigh(dual.T @ dual if tall else dual @ dual.T)
    longer = squares > 1 + MARGIN
    return (dual @ (vectors[:, longer] / np.sqrt(squares[longer]))).T if tall else vectors[:, longer].T


def _cone_directions(dual: Float[np.ndarray, "C K"]) -> Float[np.ndarray, "atoms C"]:
    """Maximise ``|A' u|`` over non-negative unit vectors by projected power iteration.

    It starts from every violating class, and from mixtures of classes, which may violate where none does alone
    (logit adjustment makes small classes share a direction): eigenvectors of the positive part of ``A A'``.
    """
    gram = dual @ dual.T
    u = np.eye(len(dual))[np.diagonal(gram) > 1]
    positive = np.maximum(gram, 0)
    if not np.any(positive - np.diag(np.diagonal(gram)) > MARGIN):
        return u
    values, vectors = np.linalg.eigh(positive)
    u = np.vstack([u, np.abs(vectors.T[values > 1 + MARGIN])])
    for _ in range(POWER_STEPS):
        u = np.maximum(u @ gram, 0)
        u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), np.finfo(float).tiny)
    kept: list[int] = []
    for candidate in range(len(u)):
        if not kept or np.max(u[kept] @ u[candidate]) < PARALLEL:
            kept.append(candidate)
    if len(gram) <= SUPPORTS_LIMIT and not np.any(np.sum((u @ gram) * u, axis=1) > 1 + MARGIN):
        return np.vstack(
            [u[kept], largest_on_supports(gram)[1]]
        )  # power iteration has missed it, if there is one
    return u[kept]


def strengths(
    problem: Problem, mean_logits: Float[np.ndarray, "C K"], atoms: Atoms
) -> Float[np.ndarray, " atoms"]:
    """Return near-optimal strengths: the slope of the objective in each, on class-mean logits, brought to zero.

    The class-mean logits move by ``sum_a theta_a u_a w_a / (sqrt(n) l_k)``. More than
    four digits would be wasted: the steps that follow find them faster.
    """
    classes = np.arange(problem.num_classes)
    reach = 1 / (np.sqrt(problem.counts) * problem.nuclear_weights)
    weights = (problem.priors * reach)[:, None]

    def slope(theta: np.ndarray) -> np.ndarray:
        moved = mean_logits + reach[:, None] * ((theta[:, None] * atoms.u).T @ atoms.w)
        gradient = problem.loss.gradient(moved, classes) * weights
        return 1 + np.sum((atoms.u @ gradient) * atoms.w, axis=1)

    high = np.full(len(atoms.u), (problem.nuclear_weights * np.sqrt(problem.counts)).min())
    if len(high) < MANY:
        return where_zero(slope, high)  # exact when atoms touch disjoint classes, as most do
    ray = np.maximum(-slope(np.zeros(len(high))), 0.0)
    moves = (ray[:, None] * atoms.u).T @ atoms.w

    def along(length: float) -> float:
        gradient = problem.loss.gradient(mean_logits + length * reach[:, None] * moves, classes) * weights
        return float(ray.sum() + np.vdot(gradient, moves))

    longest = next((2.0**i * high[0] for i in range(DOUBLINGS) if along(2.0**i * high[0]) > 0), None)
    return ray * (high[0] if longest is None else brentq(along, 0.0, longest, rtol=1e-2))


def where_zero(
    slope: Callable[[Float[np.ndarray, " atoms"]], Float[np.ndarray, " atoms"]],
    high: Float[np.ndarray, " atoms"],
) -> Float[np.ndarray, " atoms"]:
    """Return about where rising slopes, negative at 0, are zero: regula falsi (Illinois) for all at once.

    Args:
        slope: the slopes in all strengths; that of each may depend a little on the others.
        high: where to look first; it is doubled until a slope is positive.
    """
    low = np.zeros(len(high))
    at_low, at_high = slope(low), slope(high)
    for _ in range(DOUBLINGS):
        short = at_high < 0
        if not np.any(short):
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
        at_low, at_high = np.where(short, at_high, at_low), slope(high)
    last = np.zeros(len(low))
    for _ in range(REFINEMENTS):
        down, up = np.maximum(-at_low, 0), np.maximum(at_high, 0)
        middle = np.where(up > 0, low + (high - low) * (down / np.where(up > 0, down + up, 1)), high)
        at_middle = slope(middle)
        side = np.sign(at_middle)
        keep = np.where(side == last, 0.5, 1.0)  # an end that stays twice is made to give way
        low, at_low = np.where(side < 0, [middle, at_middle], [low, keep * at_low])
        high, at_high = np.where(side < 0, [high, keep * at_high], [middle, at_middle])
        last = side
    return middle
