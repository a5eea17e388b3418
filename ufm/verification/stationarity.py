r"""How much one block step still lowers the objective: a KKT residual that a duality gap bounds rigorously.

For one block x with the others fixed, and L at least the curvature of P along it, the projected gradient step
``x+ = project(x - grad/L)`` satisfies ``P(x) - P(x+) >= (L/2) |x - x+|^2``. As ``P(x) - P* <= eps`` this
gives ``L |x - x+|^2 <= 2 eps`` for each of the blocks W, H (row by row), b. The residual is zero exactly at
KKT points.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.arrays import rows_of
from ufm.model.problem import Problem

#: Rows are worked on in blocks of about this many logits.
_BLOCK_ENTRIES = 2**18


def block_step_residual(
    problem: Problem,
    weight: Float[np.ndarray, "K d"],
    features: Float[np.ndarray, "rows d"],
    labels: Int[np.ndarray, " rows"],
    bias: Float[np.ndarray, " K"] | None,
    multiplicities: Float[np.ndarray, " rows"],
    objective: float,
) -> float:
    r"""Return the largest ``sqrt(L) |x - x+| / sqrt(2 P)``, at most the square root of the relative gap.

    Args:
        problem: the problem.
        weight: ``W``.
        features: ``H``; must be non-negative if the problem says so.
        labels: class of every row.
        bias: ``b``, for a problem that has one.
        multiplicities: samples that every row stands for.
        objective: ``P`` at this point.

    Source: Nesterov, Introductory Lectures on Convex Optimization (2004), gradient mapping, Theorem 2.2.7.
    """
    curvature = float(np.max(problem.loss.curvature(np.arange(problem.num_classes))))
    weight_curvature = curvature * spectral_square(weight)
    in_weight, in_bias = problem.weight_decay * weight, np.zeros(len(weight))
    square, energy = 0.0, 0.0
    size = max(1, _BLOCK_ENTRIES // max(weight.shape))
    for start in range(0, len(features), size):
        part = slice(start, start + size)
        h, m = np.asarray(rows_of(features, part), np.float64), multiplicities[part] / problem.num_samples
        logits = h @ weight.T if bias is None else h @ weight.T + bias
        slopes = m[:, None] * problem.loss.gradient(logits, labels[part])
        in_weight = in_weight + slopes.T @ h
        in_bias = in_bias + slopes.sum(axis=0)
        energy += float(m @ np.einsum("ij,ij->i", h, h))
        decays = problem.num_samples * problem.feature_decays[labels[part]] * m
        square += _feature_step(problem, h, slopes @ weight, decays, decays + weight_curvature * m)
    if problem.classifier is None:
        square = max(
            square, float(np.vdot(in_weight, in_weight)) / (problem.weight_decay + curvature * energy)
        )
    if bias is not None:
        in_bias = in_bias + (problem.bias or 0.0) * bias
        square = max(square, float(in_bias @ in_bias) / ((problem.bias or 0.0) + curvature))
    return math.sqrt(square / (2 * objective)) if objective > 0 else math.inf


def _feature_step(
    problem: Problem, features: np.ndarray, slopes: np.ndarray, decays: np.ndarray, curvatures: np.ndarray
) -> float:
    """Return ``sum_i L_i |h_i - h_i+|^2``."""
    step = (slopes + decays[:, None] * features) / curvatures[:, None]
    if problem.features == "nonnegative":
        step = np.minimum(step, features)
    return float(curvatures @ np.einsum("ij,ij->i", step, step))


def spectral_square(matrix: Float[np.ndarray, "m n"]) -> float:
    """Return the square of the largest singular value."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)
