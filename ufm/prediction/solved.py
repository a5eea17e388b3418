"""A prediction for every problem: the theorem's where there is one, else the certified solver's."""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from ufm import theory
from ufm.metrics.collapse import row_margins
from ufm.model.problem import Problem
from ufm.theory.prediction import ClosedFormError, Matrix, Prediction

if TYPE_CHECKING:
    from ufm.solvers.solution import Solution

#: Relative gap asked for; most problems end orders of magnitude below it.
TOL = 1e-10
#: A feature that moves no logit by more than this is as good as zero, where margins say nothing of collapse.
STILL = 1e-3
MATRICES = ("gram_features", "gram_weights", "logits")


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
    point, everyone = solution.group, np.arange(problem.num_classes)
    matrices = _matrices(solution) if point is None else [partial(point.rows, name) for name in MATRICES]
    first, group = (everyone, everyone) if point is None else (point.groups.first, point.groups.of_class)
    own = [matrix(first)[np.arange(len(first)), first] for matrix in matrices[:2]]
    norms, weight_norms = (np.sqrt(np.maximum(squares, 0.0))[group] for squares in own)
    margins = row_margins(matrices[2](first), first, problem.loss.shift_invariant)[group]
    bias = solution.bias if point is None or point.bias is None else point.bias[group]
    shift = bias.mean() if bias is not None and problem.loss.shift_invariant else 0.0
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
        _gram_features=matrices[0],
        _gram_weights=matrices[1],
        _logits=lambda rows: matrices[2](rows) - shift,
        bias=None if bias is None else bias - shift,
        relative_gap=certificate.relative_gap,
    )


def _matrices(solution: Solution) -> list[Matrix]:
    """Return what makes rows of the matrices in `MATRICES` from rows of W and H."""
    weight, features = solution.weight, solution.features
    bias = 0.0 if solution.bias is None else solution.bias
    return [
        lambda rows: features[rows] @ features.T,
        lambda rows: weight[rows] @ weight.T,
        lambda rows: features[rows] @ weight.T + bias,
    ]
