"""Moves for runs that first-order steps do not bring to an end: Newton's method, and a start drawn in."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from ufm.duality.certificate import objective_values
from ufm.model.objective import Variables, to_point
from ufm.model.problem import Level, Problem, row_labels, row_multiplicities
from ufm.model.stack import build_objective, scaling
from ufm.solvers.escape import Move
from ufm.solvers.newton import newton
from ufm.solvers.vectors import RowVector, Vector

#: Steps after which a run that creeps is given to Newton's method; easy problems never get there.
LATE = 500
#: Evaluations that it may take at a time: then it is for escape moves again.
MOST_EVALUATIONS = 1000
#: An escape move that closes less than this share of the gap does not keep a run from it.
NEGLIGIBLE = 1e-2
#: Variables up to which it forms Hessians, up to which all of their eigenvalues are computed, and the relative step
#: of the differences that stand for products with larger ones.
MOST, DENSE, DIFFERENCE = 4000, 400, 1e-7
#: Objectives that differ by less are equal: then the more stationary point is the better one.
EQUAL = 1e-14
#: A start is drawn in until its objective is at most so many times that at zero, by at most so many halvings.
WORSE, HALVINGS = 2.0, 60


def second_order(vector: Vector, evaluations: int) -> Move | None:
    """Return where Newton's method leads from the start of a convex loss's objective, or None if that is no better.

    Args:
        vector: the objective, in balanced coordinates.
        evaluations: at most so many of it.
    """
    x = vector.start
    if len(x) > MOST or not vector.objective.weight_decay > 0:
        return None
    with np.errstate(all="ignore"):
        reached, spent = newton(vector, evaluations)
    (before, at), (after, there) = vector(x), vector(reached)
    flatter = vector.residual(reached, after, there) < vector.residual(x, before, at)
    better = after < before or (after <= before * (1 + EQUAL) and flatter)
    return (
        Move(vector.point(reached), f"{spent} Newton steps", max(before - after, 0.0), spent)
        if better
        else None
    )


def row_vector(problem: Problem, level: Level, variables: Variables) -> RowVector:
    """Return the objective of a problem on one vector, which starts at the given point."""
    scales = scaling(problem, level, "balanced")
    objective = build_objective(problem, level, "balanced", "float64")
    return RowVector(objective, to_point(variables, scales, "float64"))


def least_curvature(problem: Problem, level: Level, point: Variables) -> float:
    """Return the least eigenvalue of the Hessian at a point, in balanced coordinates that are free to move.

    The regulariser alone has curvature 1. Rotations of free features leave 0; a stationary point at which it is
    negative is a saddle, from which there is a way down.
    """
    vector = row_vector(problem, level, point)
    x = vector.start
    gradient = vector(x)[1]
    movable = vector.movable(x, gradient)
    if len(x) <= DENSE:
        return float(np.linalg.eigvalsh(vector.hessian(x)[np.ix_(movable, movable)])[0])

    def bend(v: np.ndarray) -> np.ndarray:
        v = np.where(movable, np.ravel(v), 0.0)
        step = DIFFERENCE * np.linalg.norm(x) / (np.linalg.norm(v) or 1.0)
        return np.where(movable, vector(x + step * v)[1] - gradient, 0.0) / step

    operator = LinearOperator((len(x), len(x)), bend, dtype=np.float64)
    first = np.random.default_rng(0).normal(size=len(x)) * movable
    return float(eigsh(operator, 1, which="SA", tol=1e-4, v0=first, return_eigenvectors=False)[0])


def drawn_in(problem: Problem, level: Level, point: Variables) -> Variables:
    """Return a point drawn towards zero along its ray until it is hardly worse than zero itself.

    No point whose regulariser is above the objective at zero is optimal, so it comes that near at once; then it is
    halved until its objective is. For a convex loss ``P(t x) <= (1 - t^2) P(0) + t^2 P(x)``: that always gets better.
    Features of a fixed classifier are left alone.
    """
    labels, times = row_labels(problem, level), row_multiplicities(problem, level)
    scales = scaling(problem, level, "balanced")
    parts = [point.weight * scales.weight, point.features * scales.rows[:, None]]
    parts += [] if point.bias is None else [point.bias * scales.bias]
    largest = max(float(np.max(np.abs(part))) for part in parts)
    if problem.classifier is not None or not 0 < largest < math.inf:
        return point
    norm = largest * math.sqrt(sum(float(np.sum((part / largest) ** 2)) for part in parts))
    at_zero = float(objective_values(problem, _times(point, 0.0), labels, times))
    factor = min(1.0, math.sqrt(2 * at_zero) / norm)
    with np.errstate(all="ignore"):
        for _ in range(HALVINGS):
            drawn = _times(point, factor)
            if objective_values(problem, drawn, labels, times) <= WORSE * at_zero:
                break
            factor /= 2
    return drawn


def _times(point: Variables, factor: float) -> Variables:
    bias = None if point.bias is None else point.bias * factor
    return Variables(point.weight * factor, point.features * factor, bias)
