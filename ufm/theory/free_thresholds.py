r"""Sharp collapse thresholds of softmax losses with free features, for models with and without a bias.

There is no closed form of the optimum, but two statements are exact. Both follow from the dual matrix B
with rows ``B_k = (sqrt(n_k)/N) Q_k`` (Q the class's loss gradient), whose spectral norm is at most ``l =
sqrt(lambda_W lambda_H)`` at the optimum and whose restriction to directions that the logits use has norm l.

1. Twins (classes with equal count and loss parameters) are exchangeable, so B acts on *contrasts* of twins
   as the number ``s (1-e-g)`` with ``s = a c sqrt(n)/N`` and g >= 0 the gap between a twin's own and its
   siblings' probability. If g > 0 the logits use the contrasts and ``l = s (1-e-g) < s (1-e)``; if g = 0
   then ``s (1-e) <= l``. Hence twins become indistinguishable if and only if ``l >= (1-e) a c sqrt(n) /
   N``.
2. Everything collapses if and only if ``l >= |B|`` at the optimum over the bias alone.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.losses.softmax import softmax
from ufm.model.problem import Problem
from ufm.theory.prediction import not_covered

#: Largest number of different kinds of classes for which the spectral norm of total collapse is computed.
MAX_KINDS = 2_000


@dataclasses.dataclass(frozen=True, eq=False)
class TwinThreshold:
    """When classes of equal count (and equal loss parameters) become indistinguishable from one another.

    Attributes:
        count: their common count n.
        classes: their indices, at least two.
        nuclear_weight: they share one classifier row and one feature iff ``sqrt(lambda_W lambda_H)``
        reaches this.
    """

    count: float
    classes: Int[np.ndarray, " twins"]
    nuclear_weight: float


class _Kinds(NamedTuple):
    """Kinds of exchangeable classes by ascending count: parameters, sizes, and the classes in that order."""

    counts: np.ndarray
    costs: np.ndarray  # l_k / l, where classes have decays of their own
    weights: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    order: np.ndarray
    smoothing: float

    def contrasts(self, num_samples: float) -> np.ndarray:
        """``(1-e) a c sqrt(n) / N``, the norm of the dual matrix on contrasts of twins."""
        return (
            (1 - self.smoothing)
            * self.scales
            * self.weights
            * np.sqrt(self.counts)
            / num_samples
            / self.costs
        )


def _kinds(problem: Problem) -> _Kinds:
    if problem.features != "free":
        raise not_covered("these thresholds are for free features")
    loss = problem.loss.softmax_parameters(problem.num_classes)
    if loss is None:
        name = type(problem.loss).__name__
        raise not_covered(f"these thresholds need a softmax loss, and the loss is {name}")
    costs = problem.nuclear_weights / problem.nuclear_weight
    rows = np.stack([problem.counts.astype(float), costs, loss.weights, loss.scales, loss.offsets])
    order = np.lexsort(rows[::-1])
    rows = rows[:, order]
    starts = np.flatnonzero(np.append(True, np.any(rows[:, 1:] != rows[:, :-1], axis=0)))
    sizes = np.diff(np.append(starts, problem.num_classes))
    counts, costs, weights, scales, offsets = rows[:, starts]
    return _Kinds(counts, costs, weights, scales, offsets, sizes, order, loss.smoothing)


def twin_thresholds(problem: Problem) -> tuple[TwinThreshold, ...]:
    r"""Return, for every group of twins, the ``sqrt(lambda_W lambda_H)`` at which they cannot be told apart.

    ``threshold = (1-e) a c sqrt(n) / N`` with class weight c, logit multiplier a and smoothing e
    (cross-entropy: ``sqrt(n) / N``). It holds with any bias or none. A class without a twin has no such
    threshold.

    Accuracy: 1e-13, relative.

    Args:
        problem: free features, a softmax loss, ``dim`` at least K; its decays are not used.

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Hong and Ling 2023 (arXiv:2309.09725), minority collapse of two-cluster data; extended to any
    profile.

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3, features="free", bias=0.01)
        >>> [(t.count, round(t.nuclear_weight, 6)) for t in twin_thresholds(problem)]
        [(100, 0.003333), (500, 0.007454)]
    """
    kinds = _kinds(problem)
    if problem.dim < problem.num_classes:
        raise not_covered(
            f"these thresholds need dim of at least K = {problem.num_classes}, got {problem.dim}"
        )
    thresholds = kinds.contrasts(problem.num_samples)
    groups = np.split(kinds.order, np.cumsum(kinds.sizes)[:-1])
    found = [
        TwinThreshold(problem.counts[group[0]].item(), group, float(threshold))
        for group, threshold in zip(groups, thresholds, strict=True)
        if len(group) > 1
    ]
    return tuple(sorted(found, key=lambda twins: twins.nuclear_weight))


def minority_collapse_weight(problem: Problem) -> float:
    """Return the ``sqrt(lambda_W lambda_H)`` at which the smallest classes become indistinguishable.

    ``sqrt(n_minority) / N`` for cross-entropy, with any bias or none: see `twin_thresholds`.

    Accuracy: 1e-13, relative.

    Raises:
        ClosedFormError: if the smallest classes are not at least two equals, or the problem is not covered.

    Source: Hong and Ling 2023 (arXiv:2309.09725).

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3, features="free")
        >>> round(minority_collapse_weight(problem) * 3000 / 100**0.5, 12)
        1.0
    """
    size = np.sum(problem.counts == np.min(problem.counts))
    for twins in twin_thresholds(problem):
        if twins.count == np.min(problem.counts) and len(twins.classes) == size:
            return twins.nuclear_weight
    raise not_covered("the smallest classes must be at least two, with equal loss parameters")


def total_collapse_weight(problem: Problem) -> float:
    r"""Return the ``sqrt(lambda_W lambda_H)`` at and above which every feature is zero.

    The spectral norm of ``diag(c sqrt(n)) (1 p' - T) diag(a) / N``, where p are the probabilities at the
    optimal bias alone and ``T = (1-e) I + e/K`` the targets. For cross-entropy on a step profile with at
    least two majority classes it is ``sqrt(n_majority) / N``, whatever the bias: p mixes the uniform and the
    empirical distribution, and for both of these ``|diag(sqrt(n)) (1 p' - I)| <= sqrt(n_majority)``.

    Accuracy: 1e-13, relative.

    Args:
        problem: free features and a softmax loss, any dim; of its decays only the bias's is used.

    Raises:
        ClosedFormError: if the problem is not covered, or has more than `MAX_KINDS` kinds of classes.

    Source: first-order condition at zero features of the nuclear-norm problem of Hong and Ling 2023.

    Example:
        >>> problem = Problem([500] * 5 + [100] * 5, 10, 1e-3, 1e-3, features="free", bias=0.01)
        >>> round(total_collapse_weight(problem), 6)
        0.007454
    """
    kinds = _kinds(problem)
    contrasts = kinds.contrasts(problem.num_samples)
    largest = float(np.max(contrasts, where=kinds.sizes > 1, initial=0.0))
    plain = problem.bias is None and np.ptp(kinds.scales) == 0 and np.ptp(kinds.offsets) == 0
    if plain and largest == np.max(contrasts):
        return largest  # centring shrinks every other direction
    if len(kinds.sizes) > MAX_KINDS:
        raise not_covered(f"total collapse is computed for at most {MAX_KINDS} kinds of classes")
    roots = np.sqrt(kinds.sizes)
    p = _probabilities_of_bias(problem, kinds)
    block = np.outer(roots, roots * (p - kinds.smoothing / problem.num_classes))
    block -= (1 - kinds.smoothing) * np.eye(len(roots))
    left = kinds.weights * np.sqrt(kinds.counts) / problem.num_samples / kinds.costs
    return max(largest, float(np.linalg.norm(left[:, None] * block * kinds.scales, 2)))


def _probabilities_of_bias(problem: Problem, kinds: _Kinds) -> Float[np.ndarray, " kinds"]:
    """Probability of one class of every kind when all features are zero and the bias is optimal."""
    pull = kinds.counts / problem.num_samples * kinds.weights
    total = float(np.sum(kinds.sizes * pull))
    target = (1 - kinds.smoothing) * pull / total + kinds.smoothing / problem.num_classes
    if problem.bias == 0:
        return target
    bias = np.zeros(len(pull))
    if problem.bias is not None:
        bias = _regularised_bias(kinds, total, target, problem.bias)
    return _probabilities(kinds, bias)


def _probabilities(kinds: _Kinds, bias: Float[np.ndarray, " kinds"]) -> Float[np.ndarray, " kinds"]:
    return softmax(kinds.scales * bias + kinds.offsets + np.log(kinds.sizes)) / kinds.sizes


def _regularised_bias(
    kinds: _Kinds, total: float, target: Float[np.ndarray, " kinds"], decay: float
) -> Float[np.ndarray, " kinds"]:
    """Minimise ``total * CE(target, softmax(a b + o)) + decay/2 |b|^2`` by damped Newton steps."""
    sizes, scales, bias = kinds.sizes, kinds.scales, np.zeros(len(target))

    def value(b: np.ndarray) -> float:
        fit = np.sum(sizes * target * np.log(_probabilities(kinds, b)))
        return float(decay / 2 * np.sum(sizes * b**2) - total * fit)

    for _ in range(100):
        p = _probabilities(kinds, bias)
        gradient = sizes * (total * scales * (p - target) + decay * bias)
        spread = sizes * scales * p
        hessian = np.diag(total * spread * scales + decay * sizes) - total * np.outer(spread, spread)
        # every step is orthogonal to this direction, which the data term does not see
        hessian += total * np.outer(sizes / scales, sizes / scales)
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step <= 1e-18 * total:  # so near that the last step, in full, squares the error
            return bias - step
        size, start = 1.0, value(bias)
        while size > 1e-10 and value(bias - size * step) > start:
            size /= 2
        bias = bias - size * step
    return bias
