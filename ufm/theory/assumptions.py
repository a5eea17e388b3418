r"""What the theorems assume, and the one inequality by which all of them decide which classes collapse.

Every closed form here says: class k collapses if and only if

    ``n_k <= c * a / (c_k^2 (1 - e)^2)``,   ``c = N^2 lambda_W lambda_H``,

with class weights ``c_k``, label smoothing ``e`` and a frame constant ``a``: ``K/(K-1)`` for non-negative
features and softmax losses (general orthogonal frame seen through centred logits), 1 for free features
(simplex ETF) and for MSE.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ufm.model.problem import Problem
from ufm.theory.prediction import not_covered

#: Relative distance to the threshold below which float64 cannot be trusted and integers decide.
_TIE = 1e-12
#: Floor of ``x_k``, far below any that matters, so that extreme class weights give finite margins.
_SMALLEST = 1e-290


class SoftmaxTargets(NamedTuple):
    """Class weights ``c_k`` and label smoothing ``e`` of a loss of the cross-entropy family."""

    weights: Float[np.ndarray, " K"]
    smoothing: float


def softmax_targets(problem: Problem) -> SoftmaxTargets:
    """Return class weights and smoothing of the loss.

    Raises:
        ClosedFormError: if the loss is not (weighted, smoothed) softmax cross-entropy of the logits
        themselves.
    """
    loss = problem.loss.softmax_parameters(problem.num_classes)
    if loss is None:
        name = type(problem.loss).__name__
        raise not_covered(f"the theorems need cross-entropy or MSE, and the loss is {name}")
    if np.any(loss.scales != 1):
        raise not_covered("the theorems need plain logits, and the loss multiplies them per class")
    if np.ptp(loss.offsets) > 0:
        raise not_covered("the theorems need plain logits, and the loss adjusts them per class")
    return SoftmaxTargets(loss.weights, loss.smoothing)


class CollapseRule(NamedTuple):
    """Class k collapses iff ``n_k <= c (numerator / denominator) / (weights_k^2 (1 - smoothing)^2)``."""

    numerator: int
    denominator: int
    weights: Float[np.ndarray, " K"]
    smoothing: float

    @property
    def root(self) -> Float[np.ndarray, " K"]:
        """``r_k`` such that class k collapses iff ``sqrt(n_k) <= N sqrt(lambda_W lambda_H) r_k``."""
        return np.sqrt(self.numerator / self.denominator) / (self.weights * (1.0 - self.smoothing))

    def holds(self, problem: Problem, count: int, weight: float) -> bool:
        """Decide the inequality for one class in exact rational arithmetic (floats are rationals)."""
        return count <= problem.num_samples**2 * self.exact_factor(problem, weight)

    def exact_factor(self, problem: Problem, weight: float) -> Fraction:
        """Return ``f`` such that a class of this weight collapses iff ``n_k <= f N^2``, exactly."""
        product = Fraction(problem.weight_decay) * Fraction(problem.feature_decay)
        squared = (Fraction(weight) * (1 - Fraction(self.smoothing))) ** 2
        return product * Fraction(self.numerator, self.denominator) / squared


def collapse_rule(problem: Problem) -> CollapseRule:
    """Return the collapse inequality of the theorem that covers the loss and feature set of ``problem``.

    The inequality is the one at zero bias; whether a bias is zero is the business of the theorem (`predict`).

    Raises:
        ClosedFormError: if no theorem covers the loss, or features are free and classes not exchangeable.
    """
    K = problem.num_classes
    if problem.loss.squared:
        return CollapseRule(1, 1, np.ones(K), 0.0)
    weights, smoothing = softmax_targets(problem)
    if problem.features == "nonnegative":
        return CollapseRule(K, K - 1, weights, smoothing)
    if not exchangeable(problem, weights):
        raise not_covered("cross-entropy with free features needs equal counts and equal class weights")
    return CollapseRule(1, 1, weights, smoothing)


def exchangeable(problem: Problem, weights: Float[np.ndarray, " K"]) -> bool:
    """Whether all classes have the same count and the same weight, so that they may be permuted freely."""
    return bool(np.ptp(problem.counts) == 0 and np.ptp(weights) == 0)


def saturation(problem: Problem, rule: CollapseRule) -> Float[np.ndarray, " K"]:
    """Return ``x_k = sqrt(threshold_k / n_k)``: class k collapses iff ``x_k >= 1``."""
    with np.errstate(over="ignore", under="ignore"):  # class weights may be anything positive
        x = problem.num_samples * problem.nuclear_weight * rule.root / np.sqrt(problem.counts)
    return np.maximum(x, _SMALLEST)


def collapsed_classes(problem: Problem, rule: CollapseRule) -> Bool[np.ndarray, " K"]:
    """Return which classes satisfy the rule, exactly: ties are decided in integers, not by rounding."""
    x = saturation(problem, rule)
    flags = x >= 1
    close = np.flatnonzero(np.abs(x - 1) <= _TIE)
    pairs = list(zip(problem.counts[close].tolist(), rule.weights[close].tolist(), strict=True))
    exact = {pair: rule.holds(problem, *pair) for pair in set(pairs)}
    flags[close] = [exact[pair] for pair in pairs]
    return flags


def slack(x: Float[np.ndarray, " K"], collapsed: Bool[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Return ``1 - x``, exactly 0 for collapsed classes and never rounded down to 0 for living ones."""
    return np.where(collapsed, 0.0, np.maximum(1.0 - x, np.finfo(np.float64).epsneg))
