"""Lower bounds on the optimal value from the class-mean gradients of any point.

A dual point has one row per class, ``Q_k`` in the domain of ``loss_k*``, with ``polar(A) <= 1`` for
``A_k = sqrt(n_k)/(N l_k) Q_k``. Every candidate below becomes feasible by a last common factor, so each gives a valid
bound and the best one counts. Leading axes are members of a stack; without them everything is about one problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm.duality.faces import has_free_bias, onto_cone_face, onto_shared_face, onto_spectral_face
from ufm.duality.polar import LARGEST, LAST_LIMIT, ROUNDING, polar_bound
from ufm.duality.row_sums import by_row
from ufm.model.problem import Problem


def dual_scales(problem: Any) -> Float[np.ndarray, "*members K"]:
    """Return ``sqrt(n_k)/(N l_k)``, the factors that take Q to A, of a problem or of a stack."""
    return np.sqrt(problem.counts) / (np.asarray(problem.num_samples)[..., None] * problem.nuclear_weights)


def dual_value(problem: Any, dual: Float[np.ndarray, "*members C K"]) -> Any:
    """Return ``D(Q) = -sum_k (n_k/N) loss_k*(Q_k)``, less the conjugate of a regularised bias.

    A lower bound on the optimal value if ``polar(A) <= 1`` and, for an unregularised bias, ``sum_k n_k Q_k``
    vanishes.
    """
    conjugate = by_row(problem.loss.conjugate, dual, np.arange(dual.shape[-2]))
    if problem.classifier is not None:
        pull = -dual @ problem.classifier
        gain = np.sum((np.maximum(pull, 0) if problem.features == "nonnegative" else pull) ** 2, axis=-1)
        conjugate = conjugate + gain / (
            2 * np.asarray(problem.num_samples)[..., None] * problem.feature_decays
        )
    value = -np.sum(problem.priors * conjugate, axis=-1)
    if problem.bias is not None and not has_free_bias(problem):
        value = value - np.sum(_mean(problem, dual) ** 2, axis=-1) / (2 * np.asarray(problem.bias))
    return value


def best_lower_bound(
    problem: Any,
    raw: Float[np.ndarray, "*members C K"],
    means: Float[np.ndarray, "*members C d"],
    thorough: bool = True,
) -> tuple[Any, Any]:
    """Return the best lower bound on the optimal value found from ``raw``, and a bound on its polar.

    Args:
        problem: a problem whose loss has a conjugate, or a stack.
        raw: class means of the gradient of the loss in the logits, at any point.
        means: ``g_k``, the class means of that point in balanced coordinates. They only suggest which constraints
            are active; the bound is valid whatever they are.
        thorough: try all candidates; else only the cheapest that may close the gap.
    """
    shared = _shared(problem, means)
    finite = np.all(np.isfinite(raw), axis=(-2, -1))
    raw = np.where(finite[..., None, None], raw, 0.0)
    if problem.classifier is not None:
        return np.where(finite, feasible_value(problem, raw), -math.inf)[()], np.zeros(finite.shape)[()]
    polar = polar_bound(dual_scales(problem)[..., None] * raw, problem.features, shared, thorough)
    best = np.full(np.shape(polar), -math.inf)
    for candidate in _candidates(problem, raw, means, thorough, shared is not None):
        best = np.fmax(best, feasible_value(problem, candidate, shared, thorough))
    return np.where(finite, best, -math.inf)[()], np.where(finite, polar, math.nan)[()]


def best_dual(
    problem: Problem, raw: Float[np.ndarray, "C K"], means: Float[np.ndarray, "C d"]
) -> Float[np.ndarray, "C K"]:
    """Return the feasible Q whose value is the best bound found from ``raw``; arguments as above, one problem."""
    shared = _shared(problem, means)
    if problem.classifier is not None:
        return _feasible(problem, raw, None)
    candidates = _candidates(problem, raw, means, True, shared is not None)
    found = [_feasible(problem, candidate, shared) for candidate in candidates]
    return max(found, key=lambda dual: np.nan_to_num(_value(problem, dual), nan=-math.inf))


def _shared(problem: Any, means: np.ndarray) -> np.ndarray | None:
    """Return the Gram matrix of class means where classes may share directions, else None."""
    shares = problem.features != "free" and (problem.loss.shares_directions or problem.bias is not None)
    return means @ means.mT if shares else None


def feasible_value(
    problem: Any,
    dual: Float[np.ndarray, "*members C K"],
    gram: Float[np.ndarray, "*members C C"] | None = None,
    thorough: bool = False,
) -> Any:
    """Scale a candidate into the feasible set and return its value; minus infinity where that fails.

    Args:
        problem: the problem, or a stack.
        dual: ``Q``.
        gram: of the class means, where it may sharpen the bound on the polar.
        thorough: whether that may take a while.
    """
    return _value(problem, _feasible(problem, dual, gram, thorough))


def _feasible(problem: Any, dual: np.ndarray, gram: np.ndarray | None, thorough: bool = True) -> np.ndarray:
    dual = _feasible_for_bias(problem, dual)
    if problem.classifier is not None:
        return dual
    polar = polar_bound(dual_scales(problem)[..., None] * dual, problem.features, gram, thorough)
    return dual / np.maximum(1.0, polar)[..., None, None]


def _value(problem: Any, dual: np.ndarray) -> Any:
    """Return the value of a feasible dual point; minus infinity where a free bias is not balanced."""
    value = dual_value(problem, dual)
    if has_free_bias(problem):
        allowance = ROUNDING * dual.shape[-1] * _mean(problem, np.abs(dual))
        value = np.where(np.all(np.abs(_mean(problem, dual)) <= allowance, axis=-1), value, -math.inf)
    return value


def _mean(problem: Any, dual: np.ndarray) -> np.ndarray:
    """Return ``sum_k (n_k/N) Q_k``."""
    return (problem.priors[..., None, :] @ dual)[..., 0, :]


def _feasible_for_bias(problem: Any, dual: np.ndarray) -> np.ndarray:
    """Move into the domain of the conjugate and, for an unregularised bias, to ``sum_k n_k Q_k = 0``."""
    labels = np.arange(dual.shape[-2])
    dual = by_row(problem.loss.into_domain, dual, labels)
    if not has_free_bias(problem):
        return dual
    flat, priors = dual.reshape(-1, *dual.shape[-2:]), np.broadcast_to(problem.priors, dual.shape[:-1])
    pairs = zip(flat, priors.reshape(-1, len(labels)), strict=True)
    return np.stack([problem.loss.centre(rows, labels, own) for rows, own in pairs]).reshape(dual.shape)


def _candidates(
    problem: Any, raw: np.ndarray, means: np.ndarray, thorough: bool, sharing: bool
) -> Iterator[np.ndarray]:
    """Yield dual points, the cheapest first: rows moved onto the boundary, the face, the raw one."""
    scales = dual_scales(problem)[..., None]
    dual = _feasible_for_bias(problem, raw)
    usable = np.all(np.abs(scales * dual) < LARGEST, axis=(-2, -1), keepdims=True)  # false for NaN
    safe = np.where(usable, dual, 0.0)
    if problem.features == "free":
        yield np.where(usable, onto_spectral_face(problem, scales * safe, means) / scales, math.nan)
    else:
        yield np.where(usable, _rows_onto_boundary(problem, safe), math.nan)
        if thorough:
            face = onto_cone_face(problem, scales * safe, means @ means.mT)
            yield np.where(usable, face / scales, math.nan)
        if thorough and sharing and dual.shape[-2] <= LAST_LIMIT:
            face = onto_shared_face(problem, scales * safe, means @ means.mT)
            yield np.where(usable, face / scales, math.nan)
    if thorough:
        yield raw


def _rows_onto_boundary(problem: Any, dual: np.ndarray) -> np.ndarray:
    """Scale every class to ``|A_k| = 1`` where it is too long, or where stretching it raises the bound."""
    loss, labels = problem.loss, np.arange(dual.shape[-2])
    norms = np.linalg.norm(dual_scales(problem)[..., None] * dual, axis=-1)
    factors = 1 / np.where(norms > 0, norms, 1.0)
    shrunk = np.minimum(factors, 1.0)[..., None] * dual
    stretched = by_row(loss.into_domain, factors[..., None] * dual, labels)
    gain = by_row(loss.conjugate, shrunk, labels) - by_row(loss.conjugate, stretched, labels)
    return np.where((gain > 0)[..., None], stretched, shrunk)
