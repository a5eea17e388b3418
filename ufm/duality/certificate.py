r"""A duality gap for any point of any convex unconstrained-feature model: optimality as a number.

For every class choose a vector ``Q_k`` in the domain of the conjugate ``loss_k*``. Then for *all* ``(W, H, b)``

    ``P(W, H, b) >= D(Q) = - sum_k (n_k/N) loss_k*(Q_k)``    whenever ``polar(A) <= 1``,                      (3)

where ``A`` has rows ``A_k = sqrt(n_k)/(N sqrt(lambda_W lambda_H)) Q_k`` and ``polar(A)`` is the largest singular
value of A for free features and ``max_{u >= 0, |u| = 1} |A' u|`` for non-negative ones. Proof: Fenchel-Young on
every sample with the Q of its class; ``(1/N) sum_i <Q_{y_i}, W h_i> = sum_j <B' v^j, w^j>`` over coordinates j with
``B = sqrt(lambda_W lambda_H) A``, ``v^j_k = sum_{i in k} h_i^j / sqrt(n_k)`` and ``|v^j| <= |H^j|``
(Cauchy-Schwarz), hence at least ``-sqrt(lambda_W lambda_H) sum_j |w^j||H^j|``, which the regulariser makes up for.
A regularised bias subtracts ``|sum_k (n_k/N) Q_k|^2/(2 lambda_b)``; an unregularised one requires that sum to be 0.

No theorem about the optimum is used, any d and both levels are covered, and everything is float64 NumPy at the
point that is returned. Candidates for Q start from the class means of the loss gradient. Scaling all of them by
one factor until ``polar = 1`` leaves a gap of the order of the *first* power of the distance to the optimum.
Moving every class, pair of classes or singular direction in use exactly onto the boundary, where they lie at the
optimum, leaves one of the order of its *square*, the same as the objective's own error (`ufm.duality.faces`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.duality.lower_bound import best_lower_bound
from ufm.duality.polar import ROUNDING
from ufm.duality.row_sums import RowSums, add_by_class, add_up, blocks, logits_of
from ufm.inputs.arrays import point_of
from ufm.model.problem import Problem, bias_curvature


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known about a point: its objective, a lower bound on *every* point's objective, and the residual.

    Attributes:
        objective: ``P`` at the point.
        lower_bound: ``D <= P*``; minus infinity when there is none (non-convex loss, infeasible point).
        polar: bound on ``polar(A)`` of the raw class-mean gradients; above 1 an escape move may exist.
        residual: norm of the projected gradient in balanced coordinates over ``sqrt(2 P)``, the scale of a point.
        num_classes: ``K``, which scales the allowance for rounding.

    Example:
        >>> Certificate(objective=2.0, lower_bound=1.5, polar=1.2, residual=0.1, num_classes=3).relative_gap
        0.25
    """

    objective: float
    lower_bound: float
    polar: float
    residual: float
    num_classes: int

    @property
    def gap(self) -> float:
        """``P - D``, an upper bound on how far the objective is from the global optimum."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """``(P - D)/P``."""
        return self.gap / self.objective if self.objective > 0 else math.inf

    def certifies(self, tol: float) -> bool:
        """Return whether the point is the global optimum to relative gap ``tol``.

        False whenever anything is not finite, and for a gap more negative than rounding can explain, which would
        mean that the dual point was not feasible.
        """
        return -ROUNDING * self.num_classes <= self.relative_gap <= tol


def certify(
    problem: Problem,
    weight: Float[np.ndarray, "K d"] | Any,
    features: Float[np.ndarray, "rows d"] | Any,
    labels: Int[np.ndarray, " rows"] | Any,
    bias: Float[np.ndarray, " K"] | Any | None = None,
) -> Certificate:
    """Certify a point: evaluate the objective and the best lower bound that its class-mean gradients give.

    A row of class k stands for ``n_k / (rows of class k)`` samples: one row per class, one per sample, or any
    other equal split are all covered. Every class needs at least one row, or nothing is certified.

    Args:
        problem: the problem; its ``dim`` is not used, the bound holds for every dimension.
        weight: ``W``.
        features: ``H``; a negative entry where the problem forbids it leaves the point uncertified.
        labels: class of every row.
        bias: ``b``, for a problem that has one.

    Returns:
        A `Certificate`, in the unit of the loss; a point that is not finite has one that certifies nothing.

    Raises:
        InputError: naming the argument whose type or shape does not fit.

    Source: the module docstring, equation (3).

    Example:
        >>> import ufm
        >>> problem = Problem([30, 20], 4, weight_decay=1e-2, feature_decay=1e-3)
        >>> found = certify(problem, np.zeros((2, 4)), np.zeros((2, 4)), np.arange(2))
        >>> round(found.objective, 4), found.lower_bound < found.objective
        (0.6931, True)
    """
    weight, features, labels, bias = point_of(problem, weight, features, labels, bias)
    rows_per_class = np.bincount(labels, minlength=problem.num_classes)
    with np.errstate(all="ignore"):
        multiplicities = (problem.counts / rows_per_class)[labels]
        sums = add_up(problem, weight, features, labels, bias, multiplicities)
        objective = sums.loss / problem.num_samples + _regulariser(problem, weight, sums.squares, bias)
        lower_bound, polar = -math.inf, math.nan
        complete = bool(np.all(rows_per_class > 0)) and bool(np.all(np.isfinite(sums.slopes)))
        if problem.loss.convex and sums.feasible and complete:
            slopes, means = (part / rows_per_class[:, None] for part in (sums.slopes, sums.features))
            balanced = means * np.sqrt(problem.feature_decay * problem.counts)[:, None]
            lower_bound, polar = best_lower_bound(problem, slopes, balanced @ balanced.T)
        residual = _residual(problem, weight, bias, sums)
        residual = residual / math.sqrt(2 * objective) if objective > 0 else math.inf
    return Certificate(objective, lower_bound, polar, residual, problem.num_classes)


def objective_value(
    problem: Problem,
    weight: Float[np.ndarray, "K d"],
    features: Float[np.ndarray, "rows d"],
    labels: Int[np.ndarray, " rows"],
    bias: Float[np.ndarray, " K"] | None = None,
) -> float:
    """Return ``P(W, H, b)`` in float64; rows stand for samples as in `certify`."""
    multiplicities = (problem.counts / np.bincount(labels, minlength=problem.num_classes))[labels]
    loss = squares = 0.0
    for part in blocks(len(features), weight.shape[1]):
        rows, times = features[part], multiplicities[part]
        loss += float(times @ problem.loss.value(logits_of(weight, rows, bias), labels[part]))
        squares += float(times @ np.einsum("ij,ij->i", rows, rows))
    return loss / problem.num_samples + _regulariser(problem, weight, squares, bias)


def class_means(
    rows: Float[np.ndarray, "rows any"], labels: Int[np.ndarray, " rows"], num_classes: int
) -> Float[np.ndarray, "K any"]:
    """Return the mean row of every class, in class order."""
    rows_per_class = np.bincount(labels, minlength=num_classes)
    if len(rows) == num_classes and np.all(rows_per_class == 1):
        return rows[np.argsort(labels)]
    sums = np.zeros((num_classes, rows.shape[1]))
    add_by_class(sums, rows, labels)
    return sums / rows_per_class[:, None]


def _regulariser(problem: Problem, weight: np.ndarray, squares: float, bias: np.ndarray | None) -> float:
    value = problem.weight_decay / 2 * np.vdot(weight, weight) + problem.feature_decay / 2 * squares
    if bias is not None:
        value += (problem.bias or 0.0) / 2 * np.vdot(bias, bias)
    return float(value)


def _residual(problem: Problem, weight: np.ndarray, bias: np.ndarray | None, sums: RowSums) -> float:
    """Return the norm of the projected gradient in balanced coordinates (the bias in its own)."""
    in_weight = sums.weight_slope / problem.num_samples + problem.weight_decay * weight
    square = np.vdot(in_weight, in_weight) / problem.weight_decay + sums.stationarity
    if bias is not None:
        in_bias = sums.bias_slope / problem.num_samples + (problem.bias or 0.0) * bias
        square += np.vdot(in_bias, in_bias) / bias_curvature(problem)
    return math.sqrt(square)
