"""Moves for runs that first-order steps do not bring to an end: second-order methods, and a start drawn in."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, eigsh

from ufm.duality.certificate import objective_values
from ufm.model.objective import Variables, to_point
from ufm.model.problem import Level, Problem, row_labels, row_multiplicities
from ufm.model.stack import build_objective, scaling
from ufm.solvers.escape import Move
from ufm.solvers.newton import newton
from ufm.solvers.vectors import RowVector, Vector

#: Steps after which a run that creeps is given to a second-order method, Newton's or L-BFGS-B, which easy problems
#: never need; and after which it has resisted the cheaper one.
LATE, LATER, STUBBORN = 300, 500, 2000
#: Evaluations that it may take at a time: then it is for escape moves again.
MOST_EVALUATIONS = 2000
#: An escape move that closes less than this share of the gap does not keep a run from it.
NEGLIGIBLE = 1e-2
#: Variables up to which Newton's method is tried first, at all, and L-BFGS-B: at K = d = 100 an evaluation on the
#: host costs several steps. And up to which all eigenvalues of a Hessian are computed.
FEW, MOST, MANY, DENSE = 1500, 2500, 20_000, 400
#: Evaluations of Newton's method with more variables than the first of these, where each takes up to a second.
COSTLY = 150
#: Relative step of the differences that stand for products with larger ones.
DIFFERENCE = 1e-7
#: Pairs that L-BFGS-B remembers, and times it begins anew, in units of the point that it has reached.
MEMORY, ROUNDS = 30, 4
#: Objectives that differ by less are equal: then the more stationary point is the better one.
EQUAL = 1e-14
#: A start is drawn in until its objective is at most so many times that at zero, by at most so many halvings.
WORSE, HALVINGS = 2.0, 60


def late_from(problem: Problem, level: Level) -> int:
    """Return the steps after which a run that creeps is given to the second-order method for its size."""
    rows = problem.num_samples if level == "sample" else problem.num_classes
    few = level == "group" or (problem.num_classes + rows) * problem.dim <= FEW
    return LATE if few else LATER


def second_order(vector: Vector, evaluations: int, costly: bool) -> Move | None:
    """Return where Newton's method, or with many variables L-BFGS-B, leads from the start: of a convex loss.

    Args:
        vector: the objective, in balanced coordinates.
        evaluations: at most so many of it.
        costly: whether Newton's method is to be tried with many variables too.

    Returns:
        A move of no steps if that is no better than where it began; None if it has too many variables, or is of a
        fixed classifier.
    """
    if len(vector.start) > MANY or not vector.objective.weight_decay > 0:
        return None
    many = len(vector.start) > FEW
    exactly = not many or (costly and len(vector.start) <= MOST)
    evaluations = min(evaluations, COSTLY) if many and exactly else evaluations
    with np.errstate(all="ignore"):
        x, spent = (newton if exactly else quasi_newton)(vector, evaluations)
    (before, at), (after, there) = vector(vector.start), vector(x)
    flatter = vector.residual(x, after, there) < vector.residual(vector.start, before, at) / 2
    if after < before * (1 - EQUAL) or (after <= before * (1 + EQUAL) and flatter):
        kind = "Newton steps" if exactly else "quasi-Newton evaluations"
        return Move(vector.point(x), f"{spent} {kind}", max(before - after, 0.0), spent)
    return Move(vector.point(vector.start), "nothing", 0.0)


def quasi_newton(vector: Vector, most: int) -> tuple[Float[np.ndarray, " all"], int]:
    """Return where L-BFGS-B leads from a vector's start, and the evaluations that it took, about ``most`` at most.

    It learns the curvature from its own steps, but not what is ten orders of magnitude below the largest.
    """
    x, left = vector.start, most
    value = vector(x)[0]
    bounds = np.stack([vector.lowest, np.full(len(x), np.inf)], axis=1)
    for _ in range(ROUNDS):
        unit = math.sqrt(np.mean(x[: vector.bias_from] ** 2)) or 1.0
        found = minimize(
            lambda y, unit=unit, scale=value: _scaled(vector, y, unit, scale),
            x / unit,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxcor": MEMORY, "maxfun": left, "maxiter": left, "ftol": 0.0, "gtol": 1e-13},
        )
        left -= found.nfev
        reached = vector(found.x * unit)[0]
        if not reached < value:
            break
        x, value = found.x * unit, reached
        if left <= 0:
            break
    return x, most - left


def _scaled(vector: Vector, y: np.ndarray, unit: float, scale: float) -> tuple[float, np.ndarray]:
    value, gradient = vector(y * unit)
    return value / scale, gradient * (unit / scale)


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
