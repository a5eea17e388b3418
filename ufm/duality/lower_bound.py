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

from ufm.duality.faces import onto_cone_face, onto_spectral_face
from ufm.duality.polar import ROUNDING, polar_bound
from ufm.model.problem import Problem


def dual_scales(problem: Problem) -> Float[np.ndarray, " K"]:
    """Return ``sqrt(n_k)/(N sqrt(lambda_W lambda_H))``, the factors that take Q to A."""
    return np.sqrt(problem.counts) / (problem.num_samples * problem.nuclear_weight)


def dual_value(problem: Problem, dual: Float[np.ndarray, "K K"]) -> float:
    """Return ``D(Q) = -sum_k (n_k/N) loss_k*(Q_k)``, less the conjugate of a regularised bias.

    A lower bound on the optimal value if ``polar(A) <= 1`` and, for an unregularised bias, ``sum_k n_k Q_k``
    vanishes.
    """
    conjugate = problem.loss.conjugate(dual, np.arange(problem.num_classes))
    value = -float(problem.priors @ conjugate)
    if problem.bias:
        value -= float(np.sum((problem.priors @ dual) ** 2)) / (2 * problem.bias)
    return value


def best_lower_bound(
    problem: Problem, raw: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]
) -> tuple[float, float]:
    """Return the best lower bound on the optimal value found from ``raw``, and a bound on its polar.

    Args:
        problem: a problem with a convex loss.
        raw: class means of the gradient of the loss in the logits, at any point.
        gram: ``lambda_H sqrt(n_k n_l) <h_k, h_l>`` of the class means of that point. It only suggests which
            constraints are active; the bound is valid whatever it is.
    """
    shared = gram if problem.loss.shares_directions or problem.bias is not None else None
    polar = polar_bound(dual_scales(problem)[:, None] * raw, problem.features, shared)
    if not math.isfinite(polar):
        return -math.inf, math.nan
    bounds = [feasible_value(problem, candidate, shared) for candidate in _candidates(problem, raw, gram)]
    return max(bound for bound in (-math.inf, *bounds) if not math.isnan(bound)), polar


def feasible_value(
    problem: Problem, dual: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"] | None = None
) -> float:
    """Scale a candidate into the feasible set and return its value; minus infinity where that fails.

    Args:
        problem: the problem.
        dual: ``Q``.
        gram: of the class means, where it may sharpen the bound on the polar.
    """
    dual = _feasible_for_bias(problem, dual)
    allowance = ROUNDING * problem.num_classes * (problem.priors @ np.abs(dual))
    if problem.bias == 0 and not np.all(np.abs(problem.priors @ dual) <= allowance):
        return -math.inf
    polar = polar_bound(dual_scales(problem)[:, None] * dual, problem.features, gram)
    return dual_value(problem, dual / max(1.0, polar))


def _feasible_for_bias(problem: Problem, dual: np.ndarray) -> np.ndarray:
    """Move into the domain of the conjugate and, for an unregularised bias, to ``sum_k n_k Q_k = 0``."""
    labels = np.arange(problem.num_classes)
    dual = problem.loss.into_domain(dual, labels)
    return problem.loss.centre(dual, labels, problem.priors) if problem.bias == 0 else dual


def _candidates(problem: Problem, raw: np.ndarray, gram: np.ndarray) -> Iterator[np.ndarray]:
    """Yield dual points: the raw one, and others moved onto the boundary of the feasible set."""
    yield raw
    scales = dual_scales(problem)[:, None]
    dual = _feasible_for_bias(problem, raw)
    if not np.all(np.isfinite(dual)):
        return
    if problem.features == "free":
        yield onto_spectral_face(problem, scales * dual, gram) / scales
        return
    yield _rows_onto_boundary(problem, dual)
    yield onto_cone_face(problem, scales * dual, gram) / scales


def _rows_onto_boundary(problem: Problem, dual: np.ndarray) -> np.ndarray:
    """Scale every class to ``|A_k| = 1`` where it is too long, or where stretching it raises the bound."""
    labels = np.arange(problem.num_classes)
    norms = np.linalg.norm(dual_scales(problem)[:, None] * dual, axis=1)
    factors = 1 / np.where(norms > 0, norms, 1.0)
    shrunk = np.minimum(factors, 1.0)[:, None] * dual
    stretched = problem.loss.into_domain(factors[:, None] * dual, labels)
    gain = problem.loss.conjugate(shrunk, labels) - problem.loss.conjugate(stretched, labels)
    return np.where((gain > 0)[:, None], stretched, shrunk)
