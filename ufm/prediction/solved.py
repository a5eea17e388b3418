"""A prediction for every problem: the theorem's where there is one, else the certified solver's."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ufm import theory
from ufm.metrics import still
from ufm.metrics.collapse import row_margins
from ufm.model.problem import Problem
from ufm.theory.prediction import ClosedFormError, Matrix, Prediction

if TYPE_CHECKING:
    from ufm.solvers.solution import Solution

#: A start that nobody else begins from: a solution is not compared with itself.
SEED = 1_000_003
#: Relative gap asked for; most problems end orders of magnitude below it.
TOL = 1e-10
#: Gap up to which a solved prediction is compared with.
USABLE = 1e-5
#: What is solved without being asked: so many kinds of classes at most (or classes, where only these are solved),
#: in so many steps.
KINDS, STEPS = 150, 5_000
#: Solved predictions that are kept.
KEPT = 16
MATRICES = ("gram_features", "gram_weights", "logits")
_kept: OrderedDict[Problem, Prediction] = OrderedDict()


def predict(problem: Problem | Any, solve: bool = False) -> Prediction:
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


def best_known(problem: Problem) -> tuple[Prediction | None, tuple[str, ...]]:
    """Return what a problem is compared with, and sentences: a theorem's prediction, or that of a small solve.

    None where solving would take long and nobody has asked for it (``predict(problem, solve=True)`` once is enough),
    or where the gap stays open: then a sentence says so.
    """
    try:
        return theory.predict(problem), ()
    except ClosedFormError as error:
        reason = str(error).partition(";")[0]
    reason = f"{reason[:1].upper()}{reason[1:]}"
    if problem not in _kept and (kinds := _kinds(problem)) > KINDS:
        return None, (
            f"{reason}; with {kinds} kinds of classes the optimum is solved only if asked for: call "
            f"ufm.predict(problem, solve=True) first.",
        )
    found = _solved(problem, STEPS)
    gap = found.relative_gap
    if gap is None or not gap <= USABLE:
        return None, (
            f"{reason}; solved instead, but the duality gap stays at {gap:.1e}: nothing to compare.",
        )
    return found, (
        f"{reason}; predicted is the optimum of a solve of its own, relative gap {max(gap, 0):.1e}.",
    )


def _kinds(problem: Problem) -> int:
    from ufm.model.groups import groups_of, why_not_grouped  # loads JAX

    return problem.num_classes if why_not_grouped(problem) else len(groups_of(problem))


def _solved(problem: Problem, max_steps: int | None = None) -> Prediction:
    found = _kept.get(problem)
    if found is None or (max_steps is None and not (found.relative_gap or 0.0) <= TOL):
        found = _kept[problem] = _solve(problem, max_steps)
    _kept.move_to_end(problem)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return found


def _solve(problem: Problem, max_steps: int | None) -> Prediction:
    from ufm.solvers.solve import solve  # loads JAX

    limit: Any = {} if max_steps is None else {"max_steps": max_steps}
    solution = solve(problem, seed=SEED, tol=TOL, **limit)
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
    by_margin = bounds is not None and np.isfinite(gap)
    return Prediction(
        problem=problem,
        theorem=f"solved, relative gap {max(certificate.relative_gap, 0.0):.1e}",
        norms=norms,
        weight_norms=weight_norms,
        margins=margins,
        collapsed=margins <= bounds if by_margin else still(norms, weight_norms),
        objective=certificate.objective,
        _gram_features=matrices[0],
        _gram_weights=matrices[1],
        _logits=lambda rows: matrices[2](rows) - shift,
        bias=None if bias is None else bias - shift,
        relative_gap=certificate.relative_gap,
        _dual=_dual(solution),
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


def _dual(solution: Solution) -> Matrix | None:
    """Return what makes rows of the feasible dual point whose bound is the solution's; None without a bound."""
    from ufm.duality.groups import GroupDual
    from ufm.duality.lower_bound import best_dual

    problem, point = solution.problem, solution.group
    if not np.isfinite(solution.certificate.lower_bound):
        return None
    if point is not None:
        found = GroupDual.of(problem, point.groups)
        element = found.algebra.roots * found.best_dual(point.point)
        return partial(point.groups.expand_rows, element)
    features, bias = solution.features, 0.0 if solution.bias is None else solution.bias
    raw = problem.loss.gradient(features @ solution.weight.T + bias, np.arange(problem.num_classes))
    balanced = features * np.sqrt(problem.feature_decays * problem.counts)[:, None]
    return best_dual(problem, raw, balanced).__getitem__
