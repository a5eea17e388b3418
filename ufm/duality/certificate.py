r"""A duality gap for any point of any unconstrained-feature model: optimality as a number.

For every class choose a vector ``Q_k`` in the domain of the conjugate ``loss_k*``. Then for *all* ``(W, H, b)``

    ``P(W, H, b) >= D(Q) = - sum_k (n_k/N) loss_k*(Q_k)``    whenever ``polar(A) <= 1``,                      (3)

where ``A`` has rows ``A_k = sqrt(n_k)/(N sqrt(lambda_W lambda_H)) Q_k`` and ``polar(A)`` is the largest singular
value of A for free features and ``max_{u >= 0, |u| = 1} |A' u|`` for non-negative ones. Proof: Fenchel-Young on
every sample with the Q of its class; ``(1/N) sum_i <Q_{y_i}, W h_i> = sum_j <B' v^j, w^j>`` over coordinates j with
``B = sqrt(lambda_W lambda_H) A``, ``v^j_k = sum_{i in k} h_i^j / sqrt(n_k)`` and ``|v^j| <= |H^j|``
(Cauchy-Schwarz), hence at least ``-sqrt(lambda_W lambda_H) sum_j |w^j||H^j|``, which the regulariser makes up for.
A regularised bias subtracts ``|sum_k (n_k/N) Q_k|^2/(2 lambda_b)``; an unregularised one requires that sum to be 0.

A fixed classifier leaves a convex problem in H, and every Q in the domain is feasible at the price of what the
features can gain: ``D(Q) = -sum_k (n_k/N) [loss_k*(Q_k) + |(-W' Q_k)_+|^2 / (2 N lambda_H,k)]`` (without the positive
part for free features), attained at the optimum: the price is what
``(n_k/N) <Q_k, W h> + (n_k lambda_H,k/2) |h|^2`` is at least.

The bound holds for a loss that is not convex, too, but need not be attained: its gap may stay open at the optimum.

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
from ufm.duality.row_sums import RowSums, add_up, blocks, by_row, logits_of, sum_by_class
from ufm.inputs.arrays import point_of
from ufm.model.objective import Variables
from ufm.model.problem import Problem, bias_curvature
from ufm.model.stack import Stack, member

#: Numbers that the stacks judged together may have: few enough that their temporaries stay in cache.
STACK_SIZE = 2**18


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known about a point: its objective, a lower bound on *every* point's objective, and the residual.

    Attributes:
        objective: ``P`` at the point.
        lower_bound: ``D <= P*``; minus infinity when there is none (a loss without a conjugate, infeasible point).
        polar: bound on ``polar(A)`` of the raw class-mean gradients; above 1 an escape move may exist.
        residual: norm of the projected gradient in balanced coordinates over ``sqrt(2 P)``, the scale of a point.
        num_classes: ``K``, which scales the allowance for rounding (the number of contexts, if there are more).

    Objective and bound are in the unit of the loss (nats for cross-entropy).

    Source: the module docstring, equation (3).

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
        return bool(-ROUNDING * self.num_classes <= self.relative_gap <= tol)


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
    return certify_rows(problem, Variables(np.asarray(weight, np.float64), features, bias), labels)[0]


def certify_rows(
    problem: Problem, point: Variables, labels: Int[np.ndarray, " rows"], curvature: float | None = None
) -> tuple[Certificate, RowSums]:
    """Return the certificate of a point that has been checked, and the sums over its rows that it was made from.

    Args:
        problem: the problem.
        point: ``(W, H, b)``; features may be mapped from a file.
        labels: class of every row.
        curvature: as in `ufm.duality.row_sums.add_up`.
    """
    with np.errstate(all="ignore"):
        multiplicities = (problem.counts / np.bincount(labels, minlength=problem.num_classes))[labels]
        *parts, sums = _judged(problem, point, labels, multiplicities, True, curvature)
    objective, lower_bound, polar, residual = map(float, parts)
    size = max(problem.num_classes, problem.num_logits)
    return Certificate(objective, lower_bound, polar, residual, size), sums


def certificates(
    stack: Stack,
    points: Variables,
    tol: Float[np.ndarray, " members"],
    residual: Float[np.ndarray, " members"],
    thorough: bool = False,
) -> list[Certificate]:
    """Certify one point of every member of a stack, with no more work than their limits ask for.

    Args:
        stack: the problems.
        points: their points, stacked, rows as their level says.
        tol: relative gap that is asked of each; where it is met the bound is not sharpened any further.
        residual: where the residual is above this, the point cannot be optimal and the bound is not sharpened either.
        thorough: sharpen every bound.

    Returns:
        One certificate per member, in order.
    """
    found: dict[int, Certificate] = {}
    for group in _alike(stack, points.features[0].size + stack.num_classes**2):
        found |= zip(group, _evaluated(stack, points, group, thorough), strict=True)
        if thorough:
            continue
        left = [i for i in group if not found[i].certifies(tol[i]) and found[i].residual <= residual[i]]
        if left:
            found |= zip(left, _evaluated(stack, points, left, thorough=True), strict=True)
    return [found[i] for i in range(len(stack))]


def _evaluated(stack: Stack, points: Variables, members: list[int], thorough: bool) -> list[Certificate]:
    """Return the certificates of members of equal loss and labels."""
    mine = stack.take(members)
    with np.errstate(all="ignore"):
        *parts, _ = _judged(mine, member(points, members), mine.labels[0], mine.multiplicities, thorough)
    columns, size = (part.tolist() for part in parts), max(stack.num_classes, stack.num_logits)
    return [
        Certificate(objective, lower_bound, polar, residual, size)
        for objective, lower_bound, polar, residual in zip(*columns, strict=True)
    ]


def _alike(stack: Stack, size: int) -> list[list[int]]:
    """Return the members in groups of equal loss, labels and kind of bias, of limited size together."""
    kinds: dict[Any, list[int]] = {}
    for i, problem in enumerate(stack.problems):
        labels = stack.labels[i].tobytes() if stack.level == "sample" else b""
        kinds.setdefault((problem.loss, problem.bias == 0, labels), []).append(i)
    most = max(1, STACK_SIZE // size)
    return [group[first : first + most] for group in kinds.values() for first in range(0, len(group), most)]


def _judged(
    problem: Any,
    point: Variables,
    labels: np.ndarray,
    multiplicities: np.ndarray,
    thorough: bool,
    curvature: float | None = None,
) -> tuple[Any, Any, Any, Any, RowSums]:
    """Return objective, lower bound, polar, relative residual and sums of a point, or of a stack of points."""
    rows_per_class = np.bincount(labels, minlength=problem.num_classes)
    fixed = problem.classifier
    moved = False if fixed is None else ~np.all(np.isclose(point.weight, fixed, 1e-6), axis=(-2, -1))
    if fixed is not None:
        point = point._replace(weight=fixed)
    sums = add_up(problem, point.weight, point.features, labels, point.bias, multiplicities, curvature)
    objective = sums.loss / problem.num_samples + _regulariser(problem, point, sums.charge)
    usable = (
        sums.feasible
        & ~np.asarray(moved)
        & np.all(np.isfinite(sums.slopes), axis=(-2, -1))
        & np.all(rows_per_class > 0)
    )
    lower_bound, polar = np.full(usable.shape, -math.inf), np.full(usable.shape, math.nan)
    if problem.loss.bounded and np.any(usable):
        slopes, means = (part / rows_per_class[:, None] for part in (sums.slopes, sums.features))
        balanced = means * np.sqrt(problem.feature_decays * problem.counts)[..., None]
        slopes = np.where(usable[..., None, None], slopes, math.nan)
        lower_bound, polar = best_lower_bound(problem, slopes, balanced, thorough)
    positive = objective > 0
    residual = _residual(problem, point, sums) / np.sqrt(2 * np.where(positive, objective, 1.0))
    return objective, lower_bound, polar, np.where(positive, residual, math.inf), sums


def objective_values(problem: Any, point: Variables, labels: np.ndarray, multiplicities: np.ndarray) -> Any:
    """Return ``P`` of a point, or of a stack of points, in float64."""
    decays = np.take(problem.feature_decays, labels, axis=-1) * multiplicities
    loss = charge = 0.0
    for part in blocks(point.features.shape[-2], point.features.shape[-1]):
        rows = point.features[..., part, :]
        logits = logits_of(point.weight, rows, point.bias)
        values = by_row(problem.loss.value, logits, labels[part])
        loss = loss + np.sum(multiplicities[..., part] * values, axis=-1)
        charge = charge + np.sum(decays[..., part] * np.einsum("...ij,...ij->...i", rows, rows), axis=-1)
    return loss / problem.num_samples + _regulariser(problem, point, charge)


def class_means(
    rows: Float[np.ndarray, "*members rows any"], labels: Int[np.ndarray, " rows"], num_classes: int
) -> Float[np.ndarray, "*members C any"]:
    """Return the mean row of every class, in class order."""
    rows_per_class = np.bincount(labels, minlength=num_classes)
    return sum_by_class(rows, labels, num_classes) / rows_per_class[:, None]


def _regulariser(problem: Any, point: Variables, charge: Any) -> Any:
    value = np.asarray(problem.charged_decay) / 2 * np.sum(point.weight**2, axis=(-2, -1)) + charge / 2
    if point.bias is not None:
        value = value + np.asarray(problem.bias) / 2 * np.sum(point.bias**2, axis=-1)
    return value


def _residual(problem: Any, point: Variables, sums: RowSums) -> Any:
    """Return the norm of the projected gradient in balanced coordinates (the bias in its own)."""
    samples, decay = np.asarray(problem.num_samples), np.asarray(problem.weight_decay)
    in_weight = sums.weight_slope / samples[..., None, None] + decay[..., None, None] * point.weight
    square = (problem.classifier is None) * np.sum(in_weight**2, axis=(-2, -1)) / decay + sums.stationarity
    if point.bias is not None:
        in_bias = sums.bias_slope / samples[..., None] + np.asarray(problem.bias)[..., None] * point.bias
        square = square + np.sum(in_bias**2, axis=-1) / bias_curvature(problem)
    return np.sqrt(square)
