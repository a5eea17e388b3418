r"""Where the closed forms say that classes collapse: counts, decays, imbalance ratios, and class weights.

Everything here follows from the slope of the scalar problems at zero margin (`ufm.theory.scalar`), ``n_k <= f_k N^2``
with ``f_k = lambda_W lambda_H,k a^2 / phi_k'(0)^2``; for cross-entropy with class weights ``c_k`` and label smoothing
``e``, ``a^2 / phi_k'(0)^2 = K/(K-1) / (c_k^2 (1-e)^2)``. A class *at* its threshold is collapsed.

``charge`` is the exponent g of who pays for a feature, ``lambda_H,k = lambda_H (N/(K n_k))^g``: samples (0, the
default) or classes (1), see `ufm.conventions.charged`. Where counts change, decays so charged change with them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import (
    InputError,
    class_counts,
    finite_vector,
    nonnegative_float,
    one_of,
    positive_float,
    positive_integer,
)
from ufm.losses import CrossEntropy, Loss
from ufm.model.problem import Problem
from ufm.theory import simplex_etf, symmetric
from ufm.theory.prediction import not_covered
from ufm.theory.scalar import ScalarProblems

Fixed = Literal["minority", "majority", "total"]


def collapse_counts(problem: Problem) -> Float[np.ndarray, " K"]:
    r"""Return ``f_k N^2``, the count at or below which class k collapses, given N and its decay.

    Accuracy: 1e-13, relative.

    Raises:
        ClosedFormError: if no theorem covers the loss, features and bias of ``problem``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058); extended as in `ufm.theory.symmetric`.

    Example:
        >>> problem = Problem([500, 100], 2, weight_decay=0.01, feature_decay=0.01)
        >>> collapse_counts(problem).round(9).tolist()
        [72.0, 72.0]
    """
    with np.errstate(over="ignore"):  # no count survives weights that small
        return (problem.num_samples * problem.nuclear_weights * _scalar(problem).root) ** 2


def collapse_nuclear_weights(problem: Problem) -> Float[np.ndarray, " K"]:
    r"""Return ``sqrt(n_k / f_k) l / N``, the ``l = sqrt(lambda_W lambda_H)`` at which class k collapses.

    Where classes have decays of their own these keep their ratios, and ``lambda_H`` is their mean over samples.

    Accuracy: 1e-13, relative.

    Raises:
        ClosedFormError: if no theorem covers the loss, features and bias of ``problem``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058).

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3)
        >>> collapse_nuclear_weights(problem).round(6).tolist()[4:6]
        [0.007071, 0.003162]
    """
    costs = problem.nuclear_weights / problem.nuclear_weight
    return np.sqrt(problem.counts) / (problem.num_samples * _scalar(problem).root * costs)


def largest_nuclear_weight(problem: Problem) -> float:
    """Return the ``sqrt(lambda_W lambda_H)`` below which, and only below which, every class lives.

    Accuracy: 1e-13, relative.

    Example:
        >>> round(largest_nuclear_weight(Problem([100] * 4, 4, 1e-3, 1e-3)), 6)
        0.021651
    """
    return float(np.min(collapse_nuclear_weights(problem)))


def largest_decay_product(problem: Problem) -> float:
    """Return the ``lambda_W lambda_H`` below which, and only below which, every class lives.

    Accuracy: 1e-13, relative.

    Example:
        >>> round(largest_decay_product(Problem([100] * 4, 4, 1e-3, 1e-3)), 9)
        0.00046875
    """
    return largest_nuclear_weight(problem) ** 2


def count_collapsed(problem: Problem, nuclear_weights: Any) -> Int[np.ndarray, " weights"]:
    """Return how many classes are collapsed at each of several ``sqrt(lambda_W lambda_H)``.

    Accuracy: exact, but for weights within 1e-13 of a threshold.

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3)
        >>> count_collapsed(problem, [1e-3, 5e-3, 1e-2]).tolist()
        [0, 5, 10]
    """
    queries = finite_vector("nuclear_weights", nuclear_weights, positive=True)
    return np.searchsorted(np.sort(collapse_nuclear_weights(problem)), queries, side="right")


def extra_samples_to_live(problem: Problem, index: int, charge: float | int = 0) -> int | None:
    r"""Return the fewest samples that class ``index`` alone must gain in order not to collapse.

    The other classes stay as they are. Solves ``n + m > f(m) (N + m)^2`` for the smallest integer m >= 0 exactly: the
    class must outgrow a threshold that grows with it, ``f(m) = f (1 + m/N)^g (1 + m/n)^-g``. The solutions m are an
    interval, possibly empty, that contains ``m = (1+g) N - (2+g) n`` if it is not.

    Args:
        problem: any problem with a collapse inequality.
        index: class index k.
        charge: the exponent g with which the decays of the problem depend on the counts.

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
    if problem.bias is not None or not symmetric.covers(problem):
        raise not_covered(
            "with a bias or free features the theorem needs equal counts, and these become unequal"
        )
    g = nonnegative_float("charge", charge)
    count, total = Fraction(float(problem.counts[index])), Fraction(float(problem.num_samples))
    factor = _scalar(problem).factor(index)

    def lives(extra: int) -> bool:
        f = factor if g == 0 else factor * Fraction(float((1 + extra / total) / (1 + extra / count)) ** g)
        return count + extra > f * (total + extra) ** 2

    if lives(0):
        return 0
    best = math.floor((1 + Fraction(g)) * total - (2 + Fraction(g)) * count)
    alive = next((extra for extra in (max(best, 0), max(best, 0) + 1) if lives(extra)), None)
    if alive is None:
        return None
    dead = 0
    while alive - dead > 1:
        middle = (alive + dead) // 2
        dead, alive = (dead, middle) if lives(middle) else (middle, alive)
    return alive


def _scalar(problem: Problem) -> ScalarProblems:
    """The scalar problems, if they still hold when the decays are varied in the presence of a bias."""
    if not symmetric.covers(problem):
        return simplex_etf.scalar_problems(problem)
    found = symmetric.scalar_problems(problem)
    if problem.bias is not None and not found.exchangeable:
        raise not_covered("with a bias the collapse thresholds need equal counts and equal class weights")
    return found


def equalising_weights(counts: Any, charge: float | int = 0) -> Float[np.ndarray, " K"]:
    r"""Return class weights proportional to ``n_k^{-(1+g)/2}``, which give every class the same margin.

    Scaled so that the average weight of a sample is one: ``sum_k n_k c_k = N``. With them all classes live or
    all collapse, and (for g = 0) all live whenever all live without weights.

    Accuracy: 1e-13, relative.

    Args:
        counts: samples per class.
        charge: g, 0 if samples pay for their features, 1 if classes do.

    Raises:
        InputError: if the counts are invalid.

    Source: the collapse inequality with ``c_k^2 n_k / lambda_H,k`` constant.

    Example:
        >>> equalising_weights([400, 100]).round(4).tolist()
        [0.8333, 1.6667]
    """
    n = class_counts(counts).astype(np.float64)
    weights = n ** (-(1 + nonnegative_float("charge", charge)) / 2)
    return weights * (n.sum() / (n @ weights))


def critical_imbalance_ratio(
    num_majority: int,
    num_minority: int,
    weight_decay: float,
    feature_decay: float,
    *,
    fixed: Fixed,
    size: float | int,
    loss: Loss | None = None,
    charge: float | int = 0,
) -> float:
    r"""Return ``R_0``: the minority of a step profile is collapsed for every imbalance ratio ``R >= R_0``.

    The profile has ``num_majority`` classes of ``R n`` samples, then ``num_minority`` classes of n. With A and B the
    two numbers of classes, K = A + B and ``k = lambda_W lambda_H a^2 / phi_B'(0)^2 / K^g`` the minority is collapsed
    iff ``n^(1+g) <= k N^(2+g)``, where ``N = n (A R + B)``:

    * ``fixed="minority"`` (size is n): for g = 0 ``R_0 = (1/sqrt(k n) - B) / A``.
    * ``fixed="majority"`` (size is ``R n``): ``1/R_0`` is the smallest root t of ``t^(1+g) = k R n (A + B t)^(2+g)``.
      Here fewer minority samples also shrink N, so that a minority collapsed at R = 1 may live for some R < R_0.
    * ``fixed="total"`` (size is N): for g = 0 ``R_0 = (1/(k N) - B) / A``.

    Accuracy: 1e-13, relative.

    Args:
        num_majority: number of majority classes, A >= 1.
        num_minority: number of minority classes, B >= 1.
        weight_decay: ``lambda_W``.
        feature_decay: ``lambda_H``.
        fixed: which size stays the same when R changes.
        size: its value, in samples; a real number, because R is one.
        loss: a symmetric loss; per-class parameters list the majority classes first.
        charge: g, 0 if samples pay for their features, 1 if classes do.

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
    root, g = _scalar(problem).root[majority:], nonnegative_float("charge", charge)
    if np.ptp(root) > 0:
        raise not_covered("the critical ratio of a step profile needs minority classes of equal weight")
    # with sizes in units of the fixed one: the minority collapses iff n^(1+g) <= strength N^(2+g)
    strength = (problem.nuclear_weight * float(root[0])) ** 2 * size / K**g
    if fixed == "minority":
        ratio = (strength ** (-1 / (2 + g)) - minority) / majority
    elif fixed == "total":
        ratio = (strength ** (-1 / (1 + g)) - minority) / majority
    else:
        ratio = _ratio_at_fixed_majority(majority, minority, strength, g)
    return max(1.0, ratio)


def _ratio_at_fixed_majority(majority: int, minority: int, strength: float, g: float) -> float:
    """Largest R with ``R^-(1+g) = strength (majority + minority / R)^(2+g)``, or 1 if there is none above."""
    from scipy.optimize import brentq  # only where a root is needed: `import ufm` stays fast

    def excess(log_t: float) -> float:
        inner = math.log(majority + minority * math.exp(log_t))
        return (1 + g) * log_t - math.log(strength) - (2 + g) * inner

    low = (math.log(strength) + (2 + g) * math.log(majority)) / (1 + g)  # ignoring the minority's part of N
    high = min(0.0, math.log((1 + g) * majority / minority))  # where the excess is largest
    if not (low < high and excess(high) >= 0):
        return 1.0
    return math.exp(-float(brentq(excess, low, high, xtol=1e-15, rtol=1e-15)))
