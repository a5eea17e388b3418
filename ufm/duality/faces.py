r"""Moving a dual point onto the face of the feasible set that the optimum lies on.

At the optimum complementarity holds between the Gram matrix ``M`` of the balanced class means (``M_kl =
lambda_H sqrt(n_k n_l) <h_k, h_l>``) and the slack of the dual constraints: free features use only singular
directions of A with value 1; non-negative ones only pairs of classes with ``(A A')_kl = [k = l]``, all other
entries being smaller. Near the optimum the rule "active if the primal variable exceeds the dual slack" (the
active set of semismooth Newton methods) finds these constraints from the point itself. A dual point that
meets them exactly is off by the *square* of the distance to the optimum in its bound; one that is merely
scaled into the feasible set is off by the first power.

An unregularised bias adds the linear constraint ``sum_k sqrt(n_k) A_k = 0``, which both moves respect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.duality.copositive import onto_face

#: Newton steps onto a face, and conjugate gradient iterations for each.
NEWTON_STEPS = 4
INNER_STEPS = 40
#: Constraints further from active than this are left alone: the point is far from optimal.
LINEAR_RANGE = 0.5


def onto_spectral_face(
    problem: Any, dual: Float[np.ndarray, "*members C K"], means: Float[np.ndarray, "*members C d"]
) -> Float[np.ndarray, "*members C K"]:
    """Return A with the singular values of all active directions set to 1 (free features).

    Args:
        problem: the problem, or a stack.
        dual: ``A``.
        means: balanced class means, whose Gram matrix is ``M``.
    """
    dual = _centred(problem, dual)
    tall = dual.shape[-2] > dual.shape[-1]
    squares, vectors = np.linalg.eigh(
        dual.mT @ dual if tall else dual @ dual.mT
    )  # a third of the work of an SVD
    values = np.sqrt(np.maximum(squares, 0.0))
    near = values > LINEAR_RANGE  # the direction that is centred away has 0
    few = slice(values.shape[-1] - int(np.max(np.sum(near, axis=-1), initial=0)), None)  # they are sorted
    squares, values, near, vectors = squares[..., few], values[..., few], near[..., few], vectors[..., few]
    factors = np.where(near, 1 / np.where(near, values, 1.0), 0.0)
    left = dual @ vectors * factors[..., None, :] if tall else vectors
    energies = np.sum((means.mT @ left) ** 2, axis=-2)
    energies = energies * _unit(np.sum(means**2, axis=(-2, -1)), means.shape[-2])[..., None]
    active = near & (energies + squares > 1)
    change = np.where(active, factors - 1, 0.0)[..., None, :]
    right = vectors.mT if tall else (left.mT @ dual) * factors[..., None]
    return dual + (left * (values[..., None, :] * change)) @ right


def onto_cone_face(
    problem: Any, dual: Float[np.ndarray, "*members C K"], gram: Float[np.ndarray, "*members C C"]
) -> Float[np.ndarray, "*members C K"]:
    """Return A with ``(A A')_kl = [k = l]`` for all active pairs, itself included (non-negative features).

    Newton's method with the smallest correction ``P X A``, X symmetric and zero off the active pairs, P the
    projection that keeps ``sum_k sqrt(n_k) A_k`` where it is: ``X -> P X A A' + A A' X P`` on the active
    pairs is positive semidefinite, so conjugate gradients solve for X in products of K x K matrices.

    Args:
        problem: the problem, or a stack.
        dual: ``A``.
        gram: ``M``.
    """
    identity, energies = np.eye(dual.shape[-2]), _per_class(gram)
    dual = _centred(problem, dual)
    for _ in range(NEWTON_STEPS):
        crossed = dual @ dual.mT
        active = energies + crossed > identity
        excess = np.where(active, crossed - identity, 0.0)
        size = np.max(np.abs(excess), axis=(-2, -1), keepdims=True)
        near = (np.finfo(np.float64).eps < size) & (size < LINEAR_RANGE)
        if not np.any(near):
            break
        change = functools.partial(_change, problem, crossed, active)
        correction = conjugate_gradients(change, np.where(near, excess, 0.0))
        dual = dual - _centred(problem, correction) @ dual
    return dual


def onto_shared_face(
    problem: Any, dual: Float[np.ndarray, "*members C K"], gram: Float[np.ndarray, "*members C C"]
) -> Float[np.ndarray, "*members C K"]:
    """Return A with ``(A A' + S) u = u`` for all directions u in use and a multiplier S >= 0 (non-negative features).

    Where classes share directions the face is not one of pairs (`ufm.duality.copositive`).

    Args:
        problem: the problem, or a stack.
        dual: ``A``.
        gram: ``M``.
    """
    dual = _centred(problem, dual).copy()
    kept = np.broadcast_to(np.sqrt(problem.priors) * has_free_bias(problem), dual.shape[:-1])
    for at in np.ndindex(dual.shape[:-2]):
        dual[at] = onto_face(dual[at], gram[at], kept[at])
    return dual


def _change(
    problem: Any,
    crossed: Float[np.ndarray, "*members K K"],
    active: Bool[np.ndarray, "*members K K"],
    x: np.ndarray,
) -> np.ndarray:
    """Return ``P X A A' + A A' X P`` on the active pairs."""
    half = _centred(problem, x) @ crossed
    return np.where(active, half + half.mT, 0.0)


def _per_class(gram: Float[np.ndarray, "*members K K"]) -> Float[np.ndarray, "*members K K"]:
    """``M`` in units of its mean diagonal, to be compared with slacks, which are at most one."""
    return gram * _unit(np.trace(gram, axis1=-2, axis2=-1), gram.shape[-1])[..., None, None]


def _unit(trace: Any, size: int) -> Any:
    usable = trace > size * np.finfo(np.float64).tiny  # its reciprocal is finite
    return np.where(usable, size / np.where(usable, trace, 1.0), 1.0)


def _centred(problem: Any, rows: Float[np.ndarray, "*members K any"]) -> Float[np.ndarray, "*members K any"]:
    """``rows`` projected so that ``sum_k sqrt(n_k) rows_k = 0``, if the problem's bias is unregularised."""
    if not has_free_bias(problem):
        return rows
    direction = np.sqrt(problem.priors)[..., None]
    return rows - direction @ (direction.mT @ rows)


def has_free_bias(problem: Any) -> bool:
    """Return whether the bias is unregularised, of a problem or of every member of a stack."""
    return problem.bias is not None and not np.any(problem.bias)


def conjugate_gradients(change: Callable[[np.ndarray], np.ndarray], target: np.ndarray) -> np.ndarray:
    """Solve ``change(x) = target`` for positive semidefinite linear maps, one per member, from zero."""
    x, residual, direction = np.zeros_like(target), target, target
    square = _inner(residual, residual)
    enough = 1e-20 * square
    for _ in range(INNER_STEPS):
        image = change(direction)
        bend = _inner(direction, image)
        going = (bend > 0) & (square > enough)
        if not np.any(going):
            break
        length = np.where(going, square / np.where(going, bend, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        following = _inner(residual, residual)
        direction = residual + np.where(going, following / np.where(going, square, 1.0), 0.0) * direction
        square = following
    return x


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...ij->...", a, b)[..., None, None]
