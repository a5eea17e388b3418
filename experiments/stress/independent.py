"""A second opinion on solutions of the cross-entropy model, in NumPy alone: nothing of `ufm` is imported.

For non-negative features, no bias and one feature row per class it recomputes from the raw arrays

* the objective ``P = sum_k (n_k/N) log(1 + sum_{j != k} exp(z_kj - z_kk)) + lambda_W/2 |W|^2 + lambda_H/2
  sum_k n_k |h_k|^2``;
* a lower bound on the optimal value: with p_k the softmax of the logits, distributions ``r_k = onehot_k + t_k (p_k -
  onehot_k)`` give ``P* >= sum_k (n_k/N) Entropy(r_k)`` whenever the matrix with rows ``A_k = sqrt(n_k) (r_k -
  onehot_k) / (N sqrt(lambda_W lambda_H))`` satisfies ``|A' u| <= |u|`` for all ``u >= 0``;
* the optimal value in closed form for d >= K (Dang, Tran, Nguyen, Ho, ICML 2024), which bounds it for d < K;

and compares them with what the solver reported and with what it was asked for.

Not a script: a part of `python -m experiments.stress`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

#: Relative difference that rounding may leave between two ways to compute the same number.
ROUNDING = 1e-11


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a solver says about a point: the point, its numbers, and whether it calls them certified to ``tol``."""

    counts: np.ndarray
    weight_decay: float
    feature_decay: float
    weight: np.ndarray
    features: np.ndarray
    objective: float
    lower_bound: float
    certified: bool
    tol: float

    @classmethod
    def of(cls, solution: Any) -> Claim:
        """Return what a solution claims; only its numbers are read."""
        problem = solution.problem
        return cls(
            problem.counts,
            problem.weight_decay,
            problem.feature_decay,
            solution.weight,
            solution.features,
            solution.objective,
            solution.certificate.lower_bound,
            solution.certified,
            solution.tol,
        )


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What the verifier found, and what it objects to; no complaint means that the claim stands."""

    objective: float
    lower_bound: float
    optimum: float
    complaints: tuple[str, ...]

    @property
    def relative_gap(self) -> float:
        """``(P - D)/P`` with the verifier's own bound D."""
        return 1 - self.lower_bound / self.objective


def judge(claim: Claim) -> Opinion:
    """Recompute everything about a claim and list every disagreement."""
    parts = (claim.weight, claim.features, claim.objective, claim.lower_bound)
    if not all(np.all(np.isfinite(part)) for part in parts):
        return Opinion(np.nan, np.nan, np.nan, ("something is not finite",))
    logits = claim.features @ claim.weight.T
    value = objective(claim, logits)
    bound = lower_bound(claim, logits)
    best = optimal_value(claim.counts, claim.weight_decay, claim.feature_decay)
    above, below = 1 + ROUNDING, 1 - ROUNDING
    objections = {
        "a feature is negative": np.any(claim.features < 0),
        "the objective is not what was reported": abs(claim.objective - value) > ROUNDING * value,
        "the objective is below the optimal value": value < below * best,
        "the reported lower bound is above the optimal value": claim.lower_bound > above * best,
        "the verifier's own lower bound is above the optimal value": bound > above * best,
        "the reported gap is larger than asked": claim.certified
        and claim.objective - claim.lower_bound > claim.tol * claim.objective,
        "the verifier's gap is larger than asked": claim.certified and value - bound > claim.tol * value,
        "certified, but farther from the optimal value than asked": claim.certified
        and value - best > (claim.tol + ROUNDING) * value,
    }
    return Opinion(value, bound, best, tuple(text for text, holds in objections.items() if holds))


def objective(claim: Claim, logits: np.ndarray) -> float:
    """Return ``P``."""
    shares = claim.counts / claim.counts.sum()
    regulariser = claim.weight_decay * np.sum(claim.weight**2)
    regulariser += claim.feature_decay * (claim.counts @ np.sum(claim.features**2, axis=1))
    losses = np.logaddexp(0.0, np.logaddexp.reduce(_margins(logits), axis=1))
    return float(shares @ losses + regulariser / 2)


def lower_bound(claim: Claim, logits: np.ndarray) -> float:
    """Return the better of two bounds: all classes moved by one factor, or each by its own and then all by one."""
    margins = _margins(logits)
    odds = np.exp(margins - np.logaddexp(0.0, np.logaddexp.reduce(margins, axis=1))[:, None])
    length = np.sqrt(claim.counts) / claim.counts.sum()
    length = length / np.sqrt(claim.weight_decay) / np.sqrt(claim.feature_decay)
    norms = length * np.sqrt(np.sum(odds**2, axis=1) + odds.sum(axis=1) ** 2)
    shrunk = 1 / np.maximum(norms, 1.0)
    wrong = np.where(norms > 0, np.maximum(norms, odds.sum(axis=1)), 1.0)  # odds that are all zero stay so
    stretched = 1 / wrong
    gains = entropies(stretched[:, None] * odds) > entropies(shrunk[:, None] * odds)
    factors = (np.ones_like(norms), np.where(gains, stretched, shrunk))
    return max(_scaled_bound(claim, length, factor[:, None] * odds) for factor in factors)


def _scaled_bound(claim: Claim, length: np.ndarray, odds: np.ndarray) -> float:
    """Make a dual point feasible by one factor, from the largest row sum of the positive part of ``A A'``."""
    dual = odds - np.diag(odds.sum(axis=1))
    gram = (dual * length[:, None]) @ (dual * length[:, None]).T
    eigenvalue = np.max(np.sum(np.maximum(gram, 0.0), axis=1))  # no eigenvalue exceeds the largest row sum
    factor = 1 / max(1.0, np.sqrt(eigenvalue) * (1 + len(odds) * np.finfo(float).eps))
    return float(claim.counts / claim.counts.sum() @ entropies(factor * odds))


def optimal_value(counts: np.ndarray, weight_decay: float, feature_decay: float) -> float:
    """Return the optimal value for d >= K: the mean entropy of outputs with ``q_k`` off the target.

    ``q_k = min(1/K, N sqrt(lambda_W lambda_H / (K (K-1) n_k)))``.
    """
    K, N = len(counts), counts.sum()
    wrong = N * np.sqrt(weight_decay) * np.sqrt(feature_decay) / np.sqrt(K * (K - 1) * counts)
    wrong = np.minimum(wrong, 1 / K)
    inside = (K - 1) * wrong * np.log(wrong) + (1 - (K - 1) * wrong) * np.log1p(-(K - 1) * wrong)
    return float(-(counts / N) @ inside)


def entropies(odds: np.ndarray) -> np.ndarray:
    """Return the entropy of every distribution whose off-target probabilities are the rows (0 on the diagonal)."""
    mass = np.minimum(odds.sum(axis=1), 1.0)
    logs = np.log(odds, out=np.zeros_like(odds), where=odds > 0)
    rest = np.log1p(-mass, out=np.zeros_like(mass), where=mass < 1)
    return -np.sum(odds * logs, axis=1) - (1 - mass) * rest


def _margins(logits: np.ndarray) -> np.ndarray:
    """Return ``z_kj - z_kk`` off the diagonal and minus infinity on it."""
    margins = logits - np.diagonal(logits)[:, None]
    np.fill_diagonal(margins, -np.inf)
    return margins
