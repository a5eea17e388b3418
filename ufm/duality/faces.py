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

import numpy as np
from jaxtyping import Bool, Float

from ufm.model.problem import Problem

#: Newton steps onto a face, and conjugate gradient iterations for each.
NEWTON_STEPS = 4
INNER_STEPS = 40
#: Constraints further from active than this are left alone: the point is far from optimal.
LINEAR_RANGE = 0.5


def onto_spectral_face(
    problem: Problem, dual: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "K K"]:
    """Return A with the singular values of all active directions set to 1 (free features).

    Args:
        problem: the problem.
        dual: ``A``.
        gram: ``M``.
    """
    left, values, right = np.linalg.svd(_centred(problem, dual))
    energies = np.einsum("ki,ki->i", left, _per_class(gram) @ left)
    active = (energies + values**2 > 1) & (values > LINEAR_RANGE)  # the direction that is centred away has 0
    return (left * np.where(active, 1.0, values)) @ right


def onto_cone_face(
    problem: Problem, dual: Float[np.ndarray, "K K"], gram: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "K K"]:
    """Return A with ``(A A')_kl = [k = l]`` for all active pairs, itself included (non-negative features).

    Newton's method with the smallest correction ``P X A``, X symmetric and zero off the active pairs, P the
    projection that keeps ``sum_k sqrt(n_k) A_k`` where it is: ``X -> P X A A' + A A' X P`` on the active
    pairs is positive semidefinite, so conjugate gradients solve for X in products of K x K matrices.

    Args:
        problem: the problem.
        dual: ``A``.
        gram: ``M``.
    """
    identity, energies = np.eye(len(dual)), _per_class(gram)
    dual = _centred(problem, dual)
    for _ in range(NEWTON_STEPS):
        crossed = dual @ dual.T
        active = energies + crossed > identity
        excess = np.where(active, crossed - identity, 0.0)
        if not np.finfo(np.float64).eps < np.max(np.abs(excess)) < LINEAR_RANGE:
            break
        change = functools.partial(_change, problem, crossed, active)
        dual = dual - _centred(problem, _conjugate_gradients(change, excess)) @ dual
    return dual


def _change(
    problem: Problem, crossed: Float[np.ndarray, "K K"], active: Bool[np.ndarray, "K K"], x: np.ndarray
) -> np.ndarray:
    """Return ``P X A A' + A A' X P`` on the active pairs."""
    half = _centred(problem, x) @ crossed
    return np.where(active, half + half.T, 0.0)


def _per_class(gram: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """``M`` in units of its mean diagonal, to be compared with slacks, which are at most one."""
    trace = np.trace(gram)
    return gram * (len(gram) / trace) if trace > 0 else gram


def _centred(problem: Problem, rows: Float[np.ndarray, "K any"]) -> Float[np.ndarray, "K any"]:
    """``rows`` projected so that ``sum_k sqrt(n_k) rows_k = 0``, if the problem's bias is unregularised."""
    if problem.bias != 0:
        return rows
    direction = np.sqrt(problem.priors)
    return rows - np.outer(direction, direction @ rows)


def _conjugate_gradients(change: Callable[[np.ndarray], np.ndarray], target: np.ndarray) -> np.ndarray:
    """Solve ``change(x) = target`` for a positive semidefinite linear map, from zero."""
    x, residual = np.zeros_like(target), target
    direction, square = residual, np.vdot(residual, residual)
    enough = 1e-20 * square
    for _ in range(INNER_STEPS):
        image = change(direction)
        bend = np.vdot(direction, image)
        if not bend > 0 or square <= enough:
            break
        x = x + (square / bend) * direction
        residual = residual - (square / bend) * image
        previous, square = square, np.vdot(residual, residual)
        direction = residual + (square / previous) * direction
    return x
