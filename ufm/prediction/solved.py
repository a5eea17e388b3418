"""A prediction for every problem: the theorem's where there is one, else the certified solver's."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float

from ufm import theory
from ufm.model.problem import Problem
from ufm.theory.prediction import ClosedFormError, Prediction

#: Relative gap asked for; most problems end orders of magnitude below it.
TOL = 1e-10
#: A feature that moves no logit by more than this is as good as zero, where margins say nothing of collapse.
STILL = 1e-3


def predict(problem: Problem, solve: bool = False) -> Prediction:
    """Return the geometry of the global optimum: in closed form, or (if asked) solved where there is none.

    The same record either way; its ``source`` says where it comes from, and with what gap. Solved predictions are
    kept, so that asking again for the same problem costs nothing.

    Args:
        problem: the problem.
        solve: whether to solve a problem without a closed form. This loads JAX.

    Raises:
        ClosedFormError: without ``solve``, one sentence that says which assumption of the theorems fails.

    Source: `ufm.theory.predict` lists the theorems; `ufm.solve` is the solver.

    Example:
        >>> predict(Problem([500] * 5 + [50] * 5, 10, weight_decay=5e-3, feature_decay=1e-6)).source[:33]
        'theorem: Dang, Tran, Nguyen, Ho, '
        >>> uneven = Problem([30, 20, 10], 3, weight_decay=1e-2, feature_decay=1e-3, features="free")
        >>> predict(uneven, solve=True).source[:20]
        'solved, relative gap'
    """
    try:
        return theory.predict(problem)
    except ClosedFormError:
        if not solve:
            raise
    return _solved(problem)


@functools.lru_cache(maxsize=16)
def _solved(problem: Problem) -> Prediction:
    from ufm.solvers.solve import solve  # loads JAX

    solution = solve(problem, tol=TOL)
    certificate = solution.certificate
    weight, features, bias = solution.weight, solution.features, solution.bias
    if bias is not None and problem.loss.shift_invariant:
        bias = bias - bias.mean()
    logits = features @ weight.T + (0.0 if bias is None else bias)
    norms, weight_norms = np.linalg.norm(features, axis=1), np.linalg.norm(weight, axis=1)
    margins = _margins(logits, problem.loss.shift_invariant)
    gap = max(certificate.gap, 1e-13 * certificate.objective)
    bounds = problem.loss.zero_margins(gap * problem.num_samples / problem.counts)
    still: Bool[np.ndarray, " K"] = norms * weight_norms.max() <= STILL
    return Prediction(
        problem=problem,
        theorem=f"solved, relative gap {max(certificate.relative_gap, 0.0):.1e}",
        norms=norms,
        weight_norms=weight_norms,
        margins=margins,
        collapsed=still if bounds is None or not np.isfinite(gap) else margins <= bounds,
        objective=certificate.objective,
        _gram_features=functools.partial(_gram, features),
        _gram_weights=functools.partial(_gram, weight),
        _logits=functools.partial(np.copy, logits),
        bias=bias,
        relative_gap=certificate.relative_gap,
    )


def _gram(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    return rows @ rows.T


def _margins(logits: Float[np.ndarray, "K K"], log_odds: bool) -> Float[np.ndarray, " K"]:
    """Label against the mean other class as log-odds, as in `ufm.metrics.margins`, or against the largest."""
    K = len(logits)
    others = np.where(np.eye(K, dtype=bool), -np.inf, logits)
    if not log_odds:
        return np.diagonal(logits) - others.max(axis=1)
    return np.diagonal(logits) - np.logaddexp.reduce(others, axis=1) + np.log(K - 1)
