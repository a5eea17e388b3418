r"""How much one block step still lowers the objective: a KKT residual that a duality gap bounds rigorously.

For one block x with the others fixed, and L at least the curvature of P along it, the projected gradient step
``x+ = project(x - grad/L)`` satisfies ``P(x) - P(x+) >= (L/2) |x - x+|^2``. As ``P(x) - P* <= eps`` this
gives ``L |x - x+|^2 <= 2 eps`` for each of the blocks W, H (row by row), b. The residual is zero exactly at
KKT points.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from ufm.duality.row_sums import RowSums
from ufm.model.problem import Problem


def feature_curvature(problem: Problem, weight: Float[np.ndarray, "K d"]) -> float:
    """Return the most that the loss of a sample can curve in its features: what `RowSums.step` is asked with."""
    return _loss_curvature(problem) * spectral_square(weight)


def block_step_residual(
    problem: Problem,
    weight: Float[np.ndarray, "K d"],
    bias: Float[np.ndarray, " K"] | None,
    sums: RowSums,
    objective: float,
) -> float:
    r"""Return the largest ``sqrt(L) |x - x+| / sqrt(2 P)``, at most the square root of the relative gap.

    Args:
        problem: the problem.
        weight: ``W``.
        bias: ``b``, for a problem that has one.
        sums: over the rows, added up with `feature_curvature`.
        objective: ``P`` at this point.

    Source: Nesterov, Introductory Lectures on Convex Optimization (2004), gradient mapping, Theorem 2.2.7.
    """
    samples, curvature, square = problem.num_samples, _loss_curvature(problem), float(sums.step)
    if problem.classifier is None:
        in_weight = sums.weight_slope / samples + problem.weight_decay * weight
        most = problem.weight_decay + curvature * float(sums.energy) / samples
        square = max(square, float(np.vdot(in_weight, in_weight)) / most)
    if bias is not None:
        in_bias = sums.bias_slope / samples + (problem.bias or 0.0) * bias
        square = max(square, float(in_bias @ in_bias) / ((problem.bias or 0.0) + curvature))
    return math.sqrt(square / (2 * objective)) if objective > 0 else math.inf


def _loss_curvature(problem: Problem) -> float:
    return float(np.max(problem.loss.curvature(np.arange(problem.num_classes))))


def spectral_square(matrix: Float[np.ndarray, "m n"]) -> float:
    """Return the square of the largest singular value."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)
