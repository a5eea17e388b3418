"""Atoms that lower the objective: directions in class space whose dual constraint is violated, and their strengths.

An atom is a unit direction ``u`` of features over classes with the classifier column ``w = -A' u / |A' u|``. With
strength theta it adds ``theta w u'`` to the balanced logits and theta to the regulariser.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from ufm.duality.copositive import SUPPORTS_LIMIT, largest_on_supports
from ufm.model.problem import Problem

#: Directions count as the same above this cosine, atoms as violating above 1 plus this margin.
PARALLEL = 0.999
MARGIN = 1e-9
POWER_STEPS = 40
DOUBLINGS = 40
REFINEMENTS = 5


@dataclasses.dataclass(frozen=True)
class Atoms:
    """Unit directions in class space and the classifier columns that go with them, strongest first."""

    u: Float[np.ndarray, "atoms C"]
    w: Float[np.ndarray, "atoms K"]


def violating_atoms(dual: Float[np.ndarray, "C K"], nonnegative: bool) -> Atoms:
    """Return all directions found with ``|A' u| > 1``."""
    directions = _cone_directions(dual) if nonnegative else np.linalg.svd(dual, full_matrices=False)[0].T
    images = directions @ dual
    sizes = np.linalg.norm(images, axis=1)
    order = np.argsort(-sizes)
    order = order[sizes[order] > 1 + MARGIN]
    return Atoms(directions[order], -images[order] / sizes[order][:, None])


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

    # Bracket, then regula falsi (Illinois) for all at once: exact when atoms touch disjoint classes, as most do.
    low = np.zeros(len(atoms.u))
    high = np.full(len(atoms.u), (problem.nuclear_weights * np.sqrt(problem.counts)).min())
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
