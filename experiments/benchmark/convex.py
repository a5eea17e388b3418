r"""Free features without a bias are a convex problem, which general conic solvers take as it is.

``min_Z sum_k (n_k/N) loss_k(Z_k) + sqrt(lambda_W lambda_H) |diag(sqrt n) Z|_*`` over K x K logits, d at least K: a
semidefinite program with exponential cones, in CVXPY. The clock is the solver's own; CVXPY's rewriting counts as
compilation.

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from experiments.benchmark.peers import Case, Course


def solve_conic(case: Case, course: Course, solver: str) -> None:
    """Solve the nuclear-norm form by ``"SCS"`` or ``"CLARABEL"`` and record the objective where it ends."""
    import cvxpy as cp

    problem = case.problem
    K, roots = problem.num_classes, np.sqrt(problem.counts)
    logits = cp.Variable((K, K))
    losses = cp.log_sum_exp(logits, axis=1) - cp.diag(logits)
    decay = problem.nuclear_weight * cp.normNuc(cp.multiply(roots[:, None], logits))
    program = cp.Problem(cp.Minimize(problem.priors @ losses + decay))
    options = {
        "SCS": {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iters": 10**6, "time_limit_secs": course.limit},
        "CLARABEL": {"time_limit": course.limit},
    }
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it may be inaccurate is what the gap says
        program.solve(solver=solver, **options[solver])
    whole = time.perf_counter() - started
    stats: Any = program.solver_stats
    course.compiling = whole - stats.solve_time
    found = logits.value
    own = problem.loss.value(found, np.arange(K))
    value = problem.priors @ own + problem.nuclear_weight * np.linalg.norm(roots[:, None] * found, "nuc")
    course.seconds, course.steps = stats.solve_time, stats.num_iters
    course.records.append((course.seconds, course.steps, float(value) / course.optimum - 1))
