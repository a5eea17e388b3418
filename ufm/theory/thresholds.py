r"""Where the closed forms say that classes collapse: counts, decays, imbalance ratios, and class weights.

Everything here follows from one inequality, ``n_k <= c a / (c_k^2 (1-e)^2)`` with ``c = N^2 lambda_W
lambda_H`` (`ufm.theory.assumptions`), and honours class weights ``c_k`` and label smoothing ``e``. A class
*at* its threshold is collapsed.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import (
    InputError,
    class_counts,
    finite_vector,
    one_of,
    positive_float,
    positive_integer,
)
from ufm.losses import CrossEntropy, Loss
from ufm.model.problem import Problem
from ufm.theory.assumptions import CollapseRule, collapse_rule, exchangeable
from ufm.theory.prediction import not_covered

Fixed = Literal["minority", "majority", "total"]


def collapse_counts(problem: Problem) -> Float[np.ndarray, " K"]:
    r"""Return ``c a / (c_k^2 (1-e)^2)``, the count at or below which class k collapses, given N.

    Raises:
        ClosedFormError: if no theorem covers the loss, features and bias of ``problem``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058); weights and smoothing as in `predict_nonnegative`.

    Example:
        >>> problem = Problem([500, 100], 2, weight_decay=0.01, feature_decay=0.01)
        >>> collapse_counts(problem).round(9).tolist()
        [72.0, 72.0]
    """
    with np.errstate(over="ignore"):  # no count survives weights that small
        return (problem.num_samples * problem.nuclear_weight * _rule(problem).root) ** 2


def collapse_nuclear_weights(problem: Problem) -> Float[np.ndarray, " K"]:
    r"""Return ``c_k (1-e) sqrt(n_k / a) / N``, the ``sqrt(lambda_W lambda_H)`` at which class k collapses.

    Raises:
        ClosedFormError: if no theorem covers the loss, features and bias of ``problem``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058).

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3)
        >>> collapse_nuclear_weights(problem).round(6).tolist()[4:6]
        [0.007071, 0.003162]
    """
    return np.sqrt(problem.counts) / (problem.num_samples * _rule(problem).root)


def largest_nuclear_weight(problem: Problem) -> float:
    """Return the ``sqrt(lambda_W lambda_H)`` below which, and only below which, every class lives.

    Example:
        >>> round(largest_nuclear_weight(Problem([100] * 4, 4, 1e-3, 1e-3)), 6)
        0.021651
    """
    return float(np.min(collapse_nuclear_weights(problem)))


def largest_decay_product(problem: Problem) -> float:
    """Return the ``lambda_W lambda_H`` below which, and only below which, every class lives.

    Example:
        >>> round(largest_decay_product(Problem([100] * 4, 4, 1e-3, 1e-3)), 9)
        0.00046875
    """
    return largest_nuclear_weight(problem) ** 2


def count_collapsed(problem: Problem, nuclear_weights: Any) -> Int[np.ndarray, " weights"]:
    """Return how many classes are collapsed at each of several ``sqrt(lambda_W lambda_H)``.

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3)
        >>> count_collapsed(problem, [1e-3, 5e-3, 1e-2]).tolist()
        [0, 5, 10]
    """
    queries = finite_vector("nuclear_weights", nuclear_weights, positive=True)
    return np.searchsorted(np.sort(collapse_nuclear_weights(problem)), queries, side="right")


def extra_samples_to_live(problem: Problem, index: int) -> int | None:
    r"""Return the fewest samples that class ``index`` alone must gain in order not to collapse.

    The other classes stay as they are. Solves ``n + m > f (N + m)^2`` for the smallest integer m >= 0
    exactly: the class must outgrow a threshold that grows with it. The solutions m are an interval,
    possibly empty.

    Args:
        problem: any problem with a collapse inequality.
        index: class index k.

    Returns:
        The number m (0 for a living class), or None if no number of samples for this class alone helps.

    Raises:
        InputError: if there is no such class.
        ClosedFormError: if no theorem covers the problem.

    Source: collapse inequality of Dang et al., ICML 2024 (arXiv:2401.02058), solved for the count.

    Example:
        >>> problem = Problem([500] * 5 + [50] * 5, 10, weight_decay=5e-3, feature_decay=2e-3)
        >>> extra_samples_to_live(problem, 9)
        37
    """
    if not 0 <= index < problem.num_classes:
        raise InputError(f"index must be in 0..{problem.num_classes - 1}, got {index}")
    if problem.bias is not None or (problem.features == "free" and not problem.loss.squared):
        raise not_covered(
            "with a bias or free features the theorem needs equal counts, and these become unequal"
        )
    rule = _rule(problem)
    count, total = int(problem.counts[index]), problem.num_samples
    factor = rule.exact_factor(problem, float(rule.weights[index]))

    def lives(extra: int) -> bool:
        return count + extra > factor * (total + extra) ** 2

    if lives(0):
        return 0
    # the excess over the threshold is concave and peaks within one sample above this; if it is not positive
    # here it is nowhere, because its curvature 2 f is at most 1/2 whenever its peak is positive
    alive = math.floor(1 / (2 * factor)) - total
    if alive <= 0 or not lives(alive):
        return None
    dead = 0
    while alive - dead > 1:
        middle = (alive + dead) // 2
        dead, alive = (dead, middle) if lives(middle) else (middle, alive)
    return alive


def _rule(problem: Problem) -> CollapseRule:
    """The collapse rule, if it still holds when the decays are varied in the presence of a bias."""
    rule = collapse_rule(problem)
    if problem.bias is not None:
        if problem.loss.squared:
            raise not_covered("the MSE theorem needs a model without bias")
        if not exchangeable(problem, rule.weights):
            raise not_covered("with a bias the collapse thresholds need equal counts and equal class weights")
    return rule


def equalising_weights(counts: Any) -> Float[np.ndarray, " K"]:
    r"""Return class weights proportional to ``n_k^{-1/2}``, which give every class the same margin.

    Scaled so that the average weight of a sample is one: ``sum_k n_k c_k = N``. With them all classes live or
    all collapse, and all live whenever all live without weights.

    Raises:
        InputError: if the counts are invalid.

    Source: the collapse inequality with ``c_k^2 n_k`` constant.

    Example:
        >>> equalising_weights([400, 100]).round(4).tolist()
        [0.8333, 1.6667]
    """
    roots = np.sqrt(class_counts(counts))
    return np.sum(roots**2) / np.sum(roots) / roots


def critical_imbalance_ratio(
    num_majority: int,
    num_minority: int,
    weight_decay: float,
    feature_decay: float,
    *,
    fixed: Fixed,
    size: float | int,
    loss: Loss | None = None,
) -> float:
    r"""Return ``R_0``: the minority of a step profile is collapsed for every imbalance ratio ``R >= R_0``.

    The profile has ``num_majority`` classes of ``R n`` samples, then ``num_minority`` classes of n. With A
    and B the two numbers of classes, K = A + B, ``k = lambda_W lambda_H K / ((K-1) c_B^2 (1-e)^2)``:

    * ``fixed="minority"`` (size is n): ``R_0 = (1/sqrt(k n) - B) / A``.
    * ``fixed="majority"`` (size is ``R n``): ``1/R_0`` is the smaller root t of ``k R n (A + B t)^2 = t``.
      Here fewer minority samples also shrink N, so that a minority collapsed at R = 1 may live for some R <
      R_0.
    * ``fixed="total"`` (size is N): ``R_0 = (1/(k N) - B) / A``.

    Args:
        num_majority: number of majority classes, A >= 1.
        num_minority: number of minority classes, B >= 1.
        weight_decay: ``lambda_W``.
        feature_decay: ``lambda_H``.
        fixed: which size stays the same when R changes.
        size: its value, in samples; a real number, because R is one.
        loss: of the cross-entropy family; per-class parameters list the majority classes first.

    Returns:
        ``R_0 >= 1``; exactly 1 when the minority is collapsed at every ratio.

    Raises:
        InputError: if an argument is invalid.
        ClosedFormError: if the loss is not covered or the minority classes have different weights.

    Source: collapse inequality of Dang et al., ICML 2024 (arXiv:2401.02058), solved for R.

    Example:
        >>> round(critical_imbalance_ratio(5, 5, 1e-4, 1e-3, fixed="minority", size=100), 6)
        59.0
    """
    majority, minority = (
        positive_integer("num_majority", num_majority),
        positive_integer("num_minority", num_minority),
    )
    one_of("fixed", fixed, ("minority", "majority", "total"))
    size = positive_float("size", size)
    K = majority + minority
    problem = Problem(np.ones(K, dtype=int), K, weight_decay, feature_decay, loss=loss or CrossEntropy())
    root = _rule(problem).root[majority:]
    if np.ptp(root) > 0:
        raise not_covered("the critical ratio of a step profile needs minority classes of equal weight")
    strength = (problem.nuclear_weight * float(root[0])) ** 2 * size
    if fixed == "minority":
        ratio = (1 / math.sqrt(strength) - minority) / majority
    elif fixed == "total":
        ratio = (1 / strength - minority) / majority
    else:
        ratio = _ratio_at_fixed_majority(majority, minority, strength)
    return max(1.0, ratio)


def _ratio_at_fixed_majority(majority: int, minority: int, strength: float) -> float:
    """Largest R with ``strength (majority + minority / R)^2 R = 1``, or 1 if there is none."""
    discriminant = 1 - 4 * strength * majority * minority
    if discriminant < 0:
        return 1.0
    return (1 - 2 * strength * majority * minority + math.sqrt(discriminant)) / (2 * strength * majority**2)
