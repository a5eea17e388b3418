"""Lower bounds on the optimal value from the class-mean gradients of any point.

A dual point has one row per class, ``Q_k`` in the domain of ``loss_k*``, with ``polar(A) <= 1`` for
``A_k = sqrt(n_k)/(N sqrt(lambda_W lambda_H)) Q_k``. Every candidate below becomes feasible by a last common
factor, so each gives a valid bound and the best one counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ufm.polar import ROUNDING, polar_bound
from ufm.problem import Problem

#: Alternations between scaling onto the boundary and restoring ``sum_k n_k Q_k = 0`` (unregularised bias).
SWEEPS = 30
#: Singular values this close to 1 are tried as lying on the boundary exactly.
NEAR_ONE = (0.0, 1e-10, 1e-7, 1e-4, 1e-2)
#: Above this number of classes the singular value decomposition of a candidate is not worth its time.
DECOMPOSITION_LIMIT = 2000


def dual_scales(problem: Problem) -> Float[np.ndarray, " K"]:
    """Return ``sqrt(n_k)/(N sqrt(lambda_W lambda_H))``, the factors that take Q to A."""
    return np.sqrt(problem.counts) / (problem.num_samples * problem.nuclear_weight)


def dual_value(problem: Problem, dual: Float[np.ndarray, "K K"]) -> float:
    """Return ``D(Q) = -sum_k (n_k/N) loss_k*(Q_k)``, less the conjugate of a regularised bias."""
    conjugate = problem.loss.conjugate(dual, np.arange(problem.num_classes))
    value = -float(problem.priors @ conjugate)
    if problem.bias:
        value -= float(np.sum((problem.priors @ dual) ** 2)) / (2 * problem.bias)
    return value


def best_lower_bound(problem: Problem, raw: Float[np.ndarray, "K K"]) -> tuple[float, float]:
    """Return the best lower bound on the optimal value found from ``raw``, and a bound on its polar.

    Args:
        problem: a problem with a convex loss.
        raw: class means of the gradient of the loss in the logits, at any point.
    """
    scales = dual_scales(problem)[:, None]
    polar = polar_bound(scales * raw, problem.features)
    if not math.isfinite(polar):
        return -math.inf, math.nan
    bounds = [_feasible_value(problem, candidate) for candidate in _candidates(problem, raw)]
    return max(bound for bound in (-math.inf, *bounds) if not math.isnan(bound)), polar


def _feasible_value(problem: Problem, dual: np.ndarray) -> float:
    """Scale a candidate into the feasible set and return its value; minus infinity where that fails."""
    labels = np.arange(problem.num_classes)
    dual = problem.loss.into_domain(dual, labels)
    if problem.bias == 0:
        dual = problem.loss.centre(dual, labels, problem.priors)
        mass = problem.priors @ np.abs(dual)
        if not np.all(np.abs(problem.priors @ dual) <= ROUNDING * problem.num_classes * mass):
            return -math.inf
    polar = polar_bound(dual_scales(problem)[:, None] * dual, problem.features)
    return dual_value(problem, dual / max(1.0, polar))


def _candidates(problem: Problem, raw: np.ndarray) -> Iterator[np.ndarray]:
    """Yield dual points: the raw one, and others moved onto the boundary of the feasible set piece by piece."""
    yield raw
    scales = dual_scales(problem)[:, None]
    moves = [_rows_onto_boundary] if problem.features == "nonnegative" else []
    matrix = scales * raw
    crossed = matrix @ matrix.T
    np.fill_diagonal(crossed, 0.0)
    if problem.num_classes <= DECOMPOSITION_LIMIT and (problem.features == "free" or np.any(crossed > 0)):
        moves += [_SingularValues(cutoff) for cutoff in NEAR_ONE]
    for move in moves:
        dual = move(problem, raw)
        for _ in range(SWEEPS if problem.bias == 0 else 0):
            moved = problem.loss.centre(dual, np.arange(problem.num_classes), problem.priors)
            previous, dual = dual, move(problem, moved)
            if np.allclose(dual, previous, rtol=1e-15, atol=0):
                break
        yield dual


def _rows_onto_boundary(problem: Problem, dual: np.ndarray) -> np.ndarray:
    """Scale every class by itself to ``|A_k| = 1`` where it is too long, or where stretching it raises the bound."""
    labels = np.arange(problem.num_classes)
    norms = np.linalg.norm(dual_scales(problem)[:, None] * dual, axis=1)
    factors = 1 / np.where(norms > 0, norms, 1.0)
    shrunk = np.minimum(factors, 1.0)[:, None] * dual
    stretched = problem.loss.into_domain(factors[:, None] * dual, labels)
    gain = problem.loss.conjugate(shrunk, labels) - problem.loss.conjugate(stretched, labels)
    return np.where((gain > 0)[:, None], stretched, shrunk)


class _SingularValues:
    """Clip the singular values of A at 1 and lift those within ``cutoff`` below it: the spectral ball's boundary."""

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff

    def __call__(self, problem: Problem, dual: np.ndarray) -> np.ndarray:
        scales = dual_scales(problem)[:, None]
        left, values, right = np.linalg.svd(scales * dual)
        return (left * np.where(values >= 1 - self.cutoff, 1.0, values)) @ right / scales
