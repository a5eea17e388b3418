r"""The Layer-Peeled Model: norms capped instead of penalised, by way of the penalised problem equal to it.

Fang et al. minimise, over free features and a classifier,

    ``L(W, H) = (1/N) sum_k sum_{i in k} CE_k(W h_i)``   subject to ``(1/K) sum_k |w_k|^2 <= E_W``,
    ``(1/K) sum_k (1/n_k) sum_{i in k} |h_i|^2 <= E_H``.

Its features are charged per *class*, those of `ufm.Problem` per *sample*. Both are reconciled exactly by
moving the counts from the samples into the loss: take one sample of every class and class weights ``c_k = K
n_k/N``,

    ``P_l(W, H) = (1/K) sum_k c_k CE_k(W h_k) + (lambda_W/2) sum_k |w_k|^2 + (lambda_H/2) sum_k |h_k|^2``,

with ``lambda_W = l sqrt(E_H/E_W)`` and ``lambda_H = l sqrt(E_W/E_H)``: a `ufm.Problem` with counts 1, ..., 1
and `ufm.WeightedCrossEntropy`. Its data term is L of class means, and replacing the features of a class by
their mean raises neither L (Jensen) nor the cap.

Proof of equivalence. *Bound*: if D bounds ``P_l`` from below, then at every point within the caps ``L >= P_l
- lambda_W K E_W/2 - lambda_H K E_H/2 >= D - l K sqrt(E_W E_H)``. *Attained*: a minimiser of ``P_l`` has
``lambda_W |W|^2 = lambda_H |H|^2`` (scale W by s and H by 1/s), hence ``|W|^2 = t K E_W`` and ``|H|^2 = t K
E_H`` with one t. Where t = 1 both caps hold with equality, and with ``D = min P_l`` the bound is L itself:
the minimiser of the penalised problem is one of the capped problem. Such an l exists: ``|W| |H| = t K
sqrt(E_W E_H)`` depends on the optimal logits alone, which are unique (L is strictly convex but for a
constant added to each row, and that costs norm of W); it is continuous and decreasing in l, zero for large
l, and unbounded for l -> 0, where L has no minimiser.

So a scalar equation is left. For any l the optimum scaled to meet the caps is a feasible point and the bound
above a certificate for it, off by the *square* of ``t - 1``; the search for l stops when this gap closes. What
``t`` is off by is the *residual* of the penalised solution over a curvature that vanishes where classes merge,
while its own gap is off by the square of that: so the residual, not the gap, is what must be small.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from ufm.duality.polar import ROUNDING
from ufm.inputs.checks import InputError, finite_vector, gap_tolerance, positive_float, positive_integer
from ufm.losses import WeightedCrossEntropy
from ufm.model.problem import FeatureSet, Problem
from ufm.solvers.settings import RESIDUALS
from ufm.theory import Prediction, predict

#: Most iterations of one scalar equation, once its root is bracketed.
MAX_ITERATIONS = 60
#: The penalised problem is solved to this multiple of the gap of the capped one,
INNER_GAP = 0.1
#: and to this multiple of its square root in the residual, which leaves ``t`` exact enough at curvatures of 1e-3.
INNER_RESIDUAL = 1e-4
#: Gap and residual of the solutions that decide about the ratio of collapse: what float64 can show.
EXACT_GAP, EXACT_RESIDUAL = 1e-13, 1e-11
#: Accuracy that the ratio of collapse keeps with them.
BEST_ACCURACY = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class LayerPeeled:
    """The Layer-Peeled Model with cross-entropy: norms capped instead of penalised.

    Args:
        counts: samples per class; only their ratios matter, so any positive numbers will do.
        dim: feature dimension ``d``.
        weight_cap: ``E_W``, the largest mean squared norm of a classifier row.
        feature_cap: ``E_H``, the largest mean squared norm of the features, every class counting alike.
        features: ``"free"``, as in the paper, or ``"nonnegative"``; the equivalence holds for both.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: Fang, He, Long, Su, PNAS 2021 (arXiv:2101.12699).

    Example:
        >>> model = LayerPeeled([10] * 5 + [1] * 5, dim=10, features="nonnegative")
        >>> model.predict().margins.round(4).tolist()[4:6]
        [4.5325, 0.1815]
    """

    counts: Float[np.ndarray, " K"] | Any
    dim: int | Any
    weight_cap: float | Any = 1.0
    feature_cap: float | Any = 5.0
    features: FeatureSet | Any = "free"

    def __post_init__(self) -> None:
        """Normalise and check every field."""
        fields = {
            "counts": finite_vector("counts", self.counts, positive=True),
            "dim": positive_integer("dim", self.dim),
            "weight_cap": positive_float("weight_cap", self.weight_cap),
            "feature_cap": positive_float("feature_cap", self.feature_cap),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self.penalised(1.0)

    @property
    def reach(self) -> float:
        """``K sqrt(E_W E_H)``, the nuclear norm of the optimal logits."""
        return len(self.counts) * math.sqrt(self.weight_cap) * math.sqrt(self.feature_cap)

    def penalised(self, nuclear_weight: float) -> Problem:
        """Return the penalised problem whose optimum is that of the model with a multiple of its caps."""
        if nuclear_weight**2 < np.finfo(np.float64).tiny:  # which becomes a product of decays
            raise InputError(
                f"weight_cap and feature_cap must leave margins of a few hundred nats at most, got caps whose logits "
                f"have nuclear norm {self.reach:g}"
            )
        K, ratio = len(self.counts), math.sqrt(self.feature_cap / self.weight_cap)
        return Problem(
            np.ones(K, dtype=np.int64),
            self.dim,
            weight_decay=nuclear_weight * ratio,
            feature_decay=nuclear_weight / ratio,
            loss=WeightedCrossEntropy(K * self.counts / self.counts.sum()),
            features=self.features,
        )

    def predict(self) -> Prediction:
        """Return the optimum in closed form: that of the penalised problem whose optimum meets the caps.

        Its objective is the penalised one; ``L`` is smaller by ``l K sqrt(E_W E_H)``.

        Raises:
            ClosedFormError: naming the assumption that fails (free features need equal counts); then `solve`.
            InputError: if the caps are too large for floating-point arithmetic.

        Source: `ufm.theory.predict`, and the equivalence of the module's docstring.
        """

        def predicted(log_price: float) -> Prediction:
            return predict(self.penalised(math.exp(log_price)))

        def excess(log_price: float) -> float:
            found = predicted(log_price)
            return float(np.linalg.norm(found.weight_norms) * np.linalg.norm(found.norms)) / self.reach - 1

        return predicted(_crossing(excess, math.log(_balanced_price(self)), 0.4))

    def solve(
        self,
        seed: int = 0,
        *,
        tol: float = 1e-8,
        start: LayerPeeledSolution | None = None,
        max_steps: int = 100_000,
    ) -> LayerPeeledSolution:
        """Find the penalties whose optimum meets the caps, and certify the result within the caps.

        Args:
            seed: of the random start.
            tol: relative gap to certify, below 1.
            start: the solution of a similar model, to start from.
            max_steps: step limit of every penalised problem.

        Raises:
            InputError: naming the argument, its value and the requirement.

        Example:
            >>> solution = LayerPeeled([10] * 5 + [1] * 5, dim=10).solve()
            >>> solution.certified, round(float(np.mean(solution.weight**2)) * 10, 9)
            (True, 1.0)
        """
        trials = _Trials(self, gap_tolerance("tol", tol), seed, max_steps, start)
        first, step = (_balanced_price(self), 0.4) if start is None else (start.nuclear_weight, 0.05)
        _crossing(trials.excess, math.log(first), step)
        if trials.best is None:
            raise InputError(f"caps of product {self.reach:g} are too small for floating-point arithmetic")
        return dataclasses.replace(trials.best, solves=trials.solves)

    def data_loss(self, weight: Float[np.ndarray, "K d"], features: Float[np.ndarray, "K d"]) -> float:
        """Return ``L`` of a classifier and class means."""
        loss = self.penalised(1.0).loss
        return float(np.mean(loss.value(features @ weight.T, np.arange(len(self.counts)))))


@dataclasses.dataclass(frozen=True, eq=False)
class LayerPeeledSolution:
    """An optimum of the Layer-Peeled Model, both caps met with equality, and its certificate.

    Attributes:
        model: the model.
        weight: ``W``.
        features: class means ``H``.
        nuclear_weight: ``l = sqrt(lambda_W lambda_H)``, the price of the caps.
        objective: ``L`` at this point.
        lower_bound: ``D - l K sqrt(E_W E_H)``, which no point within the caps is below.
        tol: the relative gap that was asked for.
        solves: number of penalised problems solved.
    """

    model: LayerPeeled
    weight: Float[np.ndarray, "K d"]
    features: Float[np.ndarray, "K d"]
    nuclear_weight: float
    objective: float
    lower_bound: float
    tol: float
    solves: int

    @property
    def relative_gap(self) -> float:
        """``(L - bound)/L``."""
        return (self.objective - self.lower_bound) / self.objective

    @property
    def certified(self) -> bool:
        """Whether this is the global optimum to ``tol``; never if the bound exceeds the objective."""
        return bool(-ROUNDING * len(self.weight) <= self.relative_gap <= self.tol)


class _Trials:
    """Penalised problems solved so far, each from the one before, and the best point within the caps."""

    def __init__(
        self, model: LayerPeeled, tol: float, seed: int, max_steps: int, start: LayerPeeledSolution | None
    ) -> None:
        from ufm.solvers.solve import solve  # `predict` needs no JAX

        self.model, self.tol, self.solves = model, tol, 0
        self.best: LayerPeeledSolution | None = None
        self.warm = None if start is None else (start.weight, start.features)
        self.solve = functools.partial(
            solve,
            seed=seed,
            tol=INNER_GAP * tol,
            residual_tol=min(INNER_RESIDUAL * math.sqrt(tol), RESIDUALS["float64"][0]),
            max_steps=max_steps,
        )

    def excess(self, log_price: float) -> float:
        """Return ``t - 1`` at a price, or 0 to end the search when the gap within the caps is closed."""
        price = math.exp(log_price)
        found = self.solve(self.model.penalised(price), start=self.warm)
        self.solves += 1
        excess = _norms_product(found) / self.model.reach - 1
        if not excess > -1:
            return -1.0
        candidate = _onto_caps(self.model, found, price, self.tol)
        self.warm = (candidate.weight, candidate.features)
        if self.best is None or not candidate.relative_gap > self.best.relative_gap:
            self.best = candidate
        return 0.0 if candidate.certified else excess


def collapse_ratio(
    num_majority: int,
    num_minority: int,
    *,
    weight_cap: float = 1.0,
    feature_cap: float = 5.0,
    accuracy: float = 1e-6,
) -> float:
    """Return ``R_0``, the imbalance ratio from which on all minority classifiers of a step profile are equal.

    The minority is collapsed if and only if the price ``l`` of the caps reaches ``n_B/N`` (`twin_thresholds`
    of `ufm.theory` with unit counts and class weights ``K n_k/N``), hence if and only if the optimum at ``l
    = n_B/N`` is at least as large as the caps allow. ``R_0`` is where it is exactly as large; one solve for
    every trial R. Free features, ``dim`` at least K.

    Args:
        num_majority: number of majority classes, A >= 1.
        num_minority: number of minority classes, B >= 2.
        weight_cap: ``E_W``.
        feature_cap: ``E_H``.
        accuracy: relative accuracy of ``R_0``, at least 1e-9.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: minority collapse of Fang, He, Long, Su, PNAS 2021 (arXiv:2101.12699).

    Example:
        >>> round(collapse_ratio(5, 5), 5)
        12.19245
    """
    from ufm.solvers.solve import solve

    majority = positive_integer("num_majority", num_majority)
    minority = positive_integer("num_minority", num_minority)
    if minority < 2:
        raise InputError(f"num_minority must be at least 2 (one class has no twin), got {minority}")
    accuracy = positive_float("accuracy", accuracy)
    if accuracy < BEST_ACCURACY:
        raise InputError(f"accuracy must be at least {BEST_ACCURACY:g}, got {accuracy:g}")
    merged: tuple[np.ndarray, np.ndarray] | None = None

    def excess(log_ratio: float) -> float:
        nonlocal merged
        counts = np.repeat([math.exp(log_ratio), 1.0], [majority, minority])
        model = LayerPeeled(counts, majority + minority, weight_cap, feature_cap)
        problem = model.penalised(1 / counts.sum())
        if merged is None:
            merged = _merged(solve(problem), majority)
        found = solve(problem, start=merged, tol=EXACT_GAP, residual_tol=EXACT_RESIDUAL)
        merged = _merged(found, majority)
        return _norms_product(found) / model.reach - 1

    return math.exp(_crossing(excess, math.log(4.0), -1.0, accuracy / 2))


def _merged(solution: Any, majority: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a solution with one minority row, which is what it has at its threshold.

    There nothing pulls minority rows together to first or second order: from rows apart the solver creeps.
    """
    weight, features = solution.weight.copy(), solution.features.copy()
    for rows in (weight, features):
        rows[majority:] = rows[majority:].mean(axis=0)
    return weight, features


def _crossing(function: Callable[[float], float], first: float, step: float, width: float = 1e-15) -> float:
    """Return where a function crosses zero: growing steps bracket it, Brent's method narrows it to ``width``.

    Args:
        function: expensive; decreasing for a positive ``step``, increasing for a negative one.
        first: where to look first.
        step: the first step, taken where the function is positive, and back where it is negative.
        width: absolute accuracy.
    """
    value = functools.cache(function)
    if value(first) == 0:
        return first
    sign = math.copysign(1.0, value(first))
    near, far = first, first + sign * step
    while sign * value(far) > 0:
        step *= 3
        near, far = far, far + sign * step
    return optimize.brentq(value, near, far, xtol=width, maxiter=MAX_ITERATIONS, disp=False)


def _balanced_price(model: LayerPeeled) -> float:
    """The off-target probability at the optimum for equal counts, which is ``l`` there: a place to start."""
    K = len(model.counts)
    return 1 / (math.exp(min(model.reach / (K - 1), 500.0)) + K - 1)


def _norms_product(solution: Any) -> float:
    return float(np.linalg.norm(solution.weight) * np.linalg.norm(solution.features))


def _onto_caps(model: LayerPeeled, found: Any, price: float, tol: float) -> LayerPeeledSolution:
    """Scale a solution of the penalised problem to meet both caps, and bound the capped problem."""
    K = len(model.counts)
    weight = found.weight * (math.sqrt(K * model.weight_cap) / np.linalg.norm(found.weight))
    features = found.features * (math.sqrt(K * model.feature_cap) / np.linalg.norm(found.features))
    return LayerPeeledSolution(
        model=model,
        weight=weight,
        features=features,
        nuclear_weight=price,
        objective=model.data_loss(weight, features),
        lower_bound=found.certificate.lower_bound - price * model.reach,
        tol=tol,
        solves=0,
    )
