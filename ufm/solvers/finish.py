"""Moves for runs that first-order steps do not bring to an end: a quasi-Newton descent, and a start drawn in.

Where decays vanish (squared error), counts differ a billionfold or a bias is free, curvatures differ by ten orders of
magnitude in balanced coordinates too, and momentum needs as many steps as their root. L-BFGS-B of SciPy learns the
curvature from its own steps: squared error at counts 951, 198 and decays 1e-10 is closed to 1e-10 in 150 of its
iterations, where 100,000 steps leave 1e-3. It runs on the host on runs that are not done after `LATE` steps, and
again after twice as many; its evaluations count as steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, eigsh, minres

from ufm.duality.certificate import objective_value, objective_values
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem, row_labels, row_multiplicities
from ufm.model.stack import scaling
from ufm.solvers.escape import Move

#: Steps after which a run that creeps is given to the quasi-Newton method; easy problems never get there.
LATE = 500
#: Evaluations that it may take at a time: then it is for escape moves again.
MOST_EVALUATIONS = 2000
#: An escape move that closes less than this share of the gap does not keep a run from it.
NEGLIGIBLE = 1e-2
#: Pairs that it remembers, times it begins anew (in units of the point it has reached), and the most variables: at
#: K = d = 210 an evaluation on the host costs several steps.
MEMORY, ROUNDS, MOST = 30, 4, 20_000
#: Newton steps after it, products with the Hessian for each, relative step of differences, residual that is enough.
NEWTON_STEPS, INNER_STEPS, DIFFERENCE, STATIONARY = 4, 200, 1e-7, 1e-9
#: Variables up to which all eigenvalues of a Hessian are computed.
DENSE = 400
#: A start is drawn in until its objective is at most so many times that at zero, by at most so many halvings.
WORSE, HALVINGS = 2.0, 60


def quasi_newton(problem: Problem, level: Level, point: Variables | Any, evaluations: int) -> Move | None:
    """Return where L-BFGS-B leads from a point of class level, or None if that is no lower.

    Args:
        problem: the problem, of convex loss.
        level: level of the feature rows; None is returned for groups, and where the classifier is fixed.
        point: where to begin.
        evaluations: at most about so many of the objective.
    """
    apt = level != "group" and problem.loss.convex and problem.classifier is None
    if not apt or point.weight.size + point.features.size > MOST:
        return None
    balanced = _Balanced(problem, level, point)
    x, left = balanced.start, evaluations
    with np.errstate(all="ignore"):
        first = value = balanced(x)[0]
        for _ in range(ROUNDS):
            unit = math.sqrt(np.mean(x[: balanced.bias_from] ** 2)) or 1.0
            found = minimize(
                lambda y, unit=unit, scale=value: balanced.scaled(y, unit, scale),
                x / unit,
                jac=True,
                method="L-BFGS-B",
                bounds=balanced.bounds,
                options={"maxcor": MEMORY, "maxfun": left, "maxiter": left, "ftol": 0.0, "gtol": 1e-13},
            )
            reached, left = balanced(found.x * unit)[0], left - found.nfev
            if not reached < value:
                break
            x, value = found.x * unit, reached
            if left <= 0:
                break
        x, left = _stationary(balanced, x, left)
    moved = balanced.variables(x)
    before, after = (
        objective_value(problem, p.weight, p.features, balanced.labels, p.bias) for p in (point, moved)
    )
    decrease, spent = before - after, evaluations - left
    if not (value < first and decrease > 0):
        return None
    return Move(moved, f"{spent} quasi-Newton evaluations", decrease, spent)


def _stationary(balanced: _Balanced, x: np.ndarray, left: int) -> tuple[np.ndarray, int]:
    """Return a more stationary point and the evaluations left: Newton steps on the coordinates that are free to move.

    Comparing objectives, L-BFGS-B stops at half of the digits. MINRES bears the Hessian's null space, that of
    rotations; differences of gradients stand for its products.
    """
    gradient = balanced(x)[1]
    for _ in range(NEWTON_STEPS):
        free = (x > balanced.bounds[:, 0]) | (gradient < 0)
        slope, size = np.where(free, gradient, 0.0), float(np.linalg.norm(x))
        norm = float(np.linalg.norm(slope))
        if left < INNER_STEPS or not STATIONARY * size < norm < math.inf:
            break

        curvature = balanced.curvature(x, gradient, free)
        change = minres(curvature, -slope / norm, rtol=1e-4, maxiter=INNER_STEPS)[0] * norm
        moved = np.maximum(x + np.where(free, change, 0.0), balanced.bounds[:, 0])
        following, left = balanced(moved)[1], left - INNER_STEPS
        moving = (moved > balanced.bounds[:, 0]) | (following < 0)
        if not np.linalg.norm(following[moving]) < norm / 2:
            break
        x, gradient = moved, following
    return x, left


class _Balanced:
    """The objective on one vector of balanced coordinates, in NumPy."""

    def __init__(self, problem: Problem, level: Level, point: Variables) -> None:
        self.problem, self.shapes = problem, (point.weight.shape, point.features.shape)
        self.scales = scaling(problem, level, "balanced")
        self.labels, self.split = row_labels(problem, level), point.weight.size
        self.share = row_multiplicities(problem, level) / problem.num_samples
        self.bias_from = self.split + point.features.size
        self.to_logits = (1 / (self.scales.weight * self.scales.rows))[:, None]
        parts = [point.weight * self.scales.weight, point.features * self.scales.rows[:, None]]
        parts += [] if point.bias is None else [point.bias * self.scales.bias]
        self.start = np.concatenate([part.ravel() for part in parts])
        lowest = np.full(len(self.start), -np.inf)
        if problem.features == "nonnegative":
            lowest[self.split : self.bias_from] = 0.0
        self.bounds = np.stack([lowest, np.full(len(lowest), np.inf)], axis=1)

    def parts(self, x: Float[np.ndarray, " all"]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return classifier, features and bias of a vector."""
        weight, features = x[: self.split], x[self.split : self.bias_from]
        bias = None if self.problem.bias is None else x[self.bias_from :]
        return weight.reshape(self.shapes[0]), features.reshape(self.shapes[1]), bias

    def variables(self, x: Float[np.ndarray, " all"]) -> Variables:
        """Return a vector as ``(W, H, b)``."""
        weight, features, bias = self.parts(x)
        scales = self.scales
        own = None if bias is None else bias / scales.bias
        return Variables(weight / scales.weight, features / scales.rows[:, None], own)

    def __call__(self, x: Float[np.ndarray, " all"]) -> tuple[float, Float[np.ndarray, " all"]]:
        """Return the objective and its gradient."""
        weight, features, bias = self.parts(x)
        logits = (features @ weight.T) * self.to_logits
        decays = np.ones(len(x))
        if bias is not None:
            logits = logits + bias / self.scales.bias
            decays[self.bias_from :] = self.problem.bias / self.scales.bias**2
        loss, share = self.problem.loss, self.share
        value = share @ loss.value(logits, self.labels) + decays @ x**2 / 2
        slopes = share[:, None] * loss.gradient(logits, self.labels)
        scaled = slopes * self.to_logits
        gradient = [(scaled.T @ features).ravel(), (scaled @ weight).ravel()]
        gradient += [] if bias is None else [slopes.sum(axis=0) / self.scales.bias]
        return float(value), np.concatenate(gradient) + decays * x

    def curvature(self, x: np.ndarray, gradient: np.ndarray, free: np.ndarray) -> LinearOperator:
        """Return the Hessian on the coordinates that are free to move, by differences of gradients."""

        def bend(v: np.ndarray) -> np.ndarray:
            v = np.where(free, np.ravel(v), 0.0)
            step = DIFFERENCE * np.linalg.norm(x) / (np.linalg.norm(v) or 1.0)
            return np.where(free, self(x + step * v)[1] - gradient, 0.0) / step

        return LinearOperator((len(x), len(x)), bend, dtype=np.float64)

    def scaled(self, y: np.ndarray, unit: float, scale: float) -> tuple[float, np.ndarray]:
        """Return the objective in units of ``scale`` at ``unit y``, with its gradient in y."""
        value, gradient = self(y * unit)
        return value / scale, gradient * (unit / scale)


def least_curvature(problem: Problem, level: Level, point: Variables) -> float:
    """Return the least eigenvalue of the Hessian at a point, in balanced coordinates that are free to move.

    The regulariser alone has curvature 1. Rotations of free features leave 0; a stationary point at which it is
    negative is a saddle, from which there is a way down.
    """
    balanced = _Balanced(problem, level, point)
    x = balanced.start
    gradient = balanced(x)[1]
    free = (x > balanced.bounds[:, 0]) | (gradient < 0)
    operator = balanced.curvature(x, gradient, free)
    if len(x) <= DENSE:
        chosen = np.flatnonzero(free)
        matrix = np.stack([operator.matvec(row) for row in np.eye(len(x))[chosen]])[:, chosen]
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    first = np.random.default_rng(0).normal(size=len(x)) * free
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
