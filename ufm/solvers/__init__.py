"""Solve an unconstrained-feature model: choose a start, a rule and limits, run the loop, return the solution."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ufm.objective import Variables
from ufm.problem import LEVELS, Level, Problem, row_labels
from ufm.solution import Solution
from ufm.solvers.accelerated import Accelerated
from ufm.solvers.checkpoint import Checkpoints
from ufm.solvers.fingerprint import run_key
from ufm.solvers.judge import Limits
from ufm.solvers.loop import drive
from ufm.solvers.progress import progress_bar
from ufm.solvers.rule import StepRule
from ufm.solvers.run import Observer, Record, Run
from ufm.solvers.start import random_start
from ufm.validation import (
    InputError,
    gap_tolerance,
    nonnegative_integer,
    one_of,
    positive_float,
    positive_integer,
)

Precision = Literal["float64", "float32"]
#: Default bound on the relative residual, and the residual that rounding leaves, for each precision.
RESIDUALS: dict[str, tuple[float, float]] = {"float64": (1e-7, 1e-13), "float32": (1e-4, 1e-6)}


def solve(
    problem: Problem,
    level: Level = "class",
    solver: StepRule | None = None,
    seed: int = 0,
    tol: float = 1e-8,
    max_steps: int = 100_000,
    progress: bool | Callable[[Record], None] = False,
    *,
    start: Variables | Solution | tuple[Any, ...] | None = None,
    escapes: bool = True,
    residual_tol: float | None = None,
    precision: Precision = "float64",
    record_every: int | None = None,
    observe: Observer | None = None,
    devices: Sequence[jax.Device] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
) -> Solution:
    """Minimise the objective of ``problem`` and certify the answer.

    The start is random and the method first-order; the closed forms of `ufm.theory` are never consulted. With
    ``dim >= K`` every start ends at the certified global optimum.

    Args:
        problem: the problem.
        level: ``"class"``: one feature row per class; ``"sample"``: one per sample. Both have the same optimal
            value; only the second can show within-class variability.
        solver: step rule; `Accelerated()` if omitted, or `ProjectedGradient(optax transformation)`.
        seed: of the random start.
        tol: relative duality gap ``(P - D)/P`` to certify; below 1, as ``D = 0`` proves nothing.
        max_steps: limit on the number of steps.
        progress: True for a progress bar on stderr, or a function that is given every record of the history.
        start: a `Solution` or a tuple ``(weight, features)`` or ``(weight, features, bias)`` to start from.
        escapes: whether to use escape moves when stuck.
        residual_tol: relative projected gradient to reach before stopping, besides ``tol``; by default 1e-7 in
            float64 and 1e-4 in float32. The errors of norms and angles are of this order.
        precision: ``"float64"`` (the caller's JAX settings are left alone) or ``"float32"``.
        record_every: steps between two records of the history; by default 20, growing with the run.
        observe: called with ``(variables, labels)`` at every record; its dict of numbers joins the record.
        devices: devices that share the samples at sample level; all that JAX sees, in every process, if omitted.
        checkpoint: file to write the state of the run to, now and then, so that it can go on after a kill. It must
            not exist unless ``resume``.
        checkpoint_every: least number of seconds between two of them.
        resume: go on from ``checkpoint``; the answer is that of the undisturbed run.

    Returns:
        A `Solution`; look at ``.status`` before anything else.

    Raises:
        InputError: naming the argument, its value and what is required.
        CheckpointError: if a checkpoint cannot be written; the one before it is intact.

    Example:
        >>> import ufm
        >>> problem = ufm.Problem([500, 50], dim=4, weight_decay=5e-3, feature_decay=1e-5)
        >>> solution = ufm.solve(problem)
        >>> str(solution.status), solution.certificate.relative_gap < 1e-8
        ('certified', True)
    """
    one_of("level", level, LEVELS)
    one_of("precision", precision, tuple(RESIDUALS))
    residual, stationary = RESIDUALS[precision]
    limits = Limits(
        tol=gap_tolerance("tol", tol),
        residual=residual if residual_tol is None else positive_float("residual_tol", residual_tol),
        stationary=stationary,
        max_steps=positive_integer("max_steps", max_steps),
    )
    seed = nonnegative_integer("seed", seed)
    if record_every is not None:
        record_every = positive_integer("record_every", record_every)
    first = functools.partial(random_start, problem, level, seed)
    if start is not None:
        first = functools.partial(_checked_start, problem, level, start)
    rule = Accelerated() if solver is None else solver
    checkpoints = None
    if checkpoint is not None:
        key = run_key(problem, level, rule, precision, seed if start is None else first())
        checkpoints = Checkpoints(Path(checkpoint), positive_float("checkpoint_every", checkpoint_every), key)
        if not resume:
            checkpoints.begin_anew()
    elif resume:
        raise InputError("resume needs checkpoint, the file to go on from")
    with _precision(precision), progress_bar(progress, limits.tol) as report:
        run = Run(problem, level, rule, first, precision, observe, report, devices)
        outcome = drive(run, limits, escapes, record_every, checkpoints, resume)
    return Solution(
        problem,
        level,
        outcome.variables.weight,
        outcome.variables.features,
        row_labels(problem, level),
        outcome.variables.bias,
        outcome.status,
        outcome.certificate,
        limits.tol,
        outcome.steps,
        outcome.history,
    )


@contextlib.contextmanager
def _precision(precision: Precision) -> Iterator[None]:
    """Allow float64 for this solve only, and full-precision products where an accelerator would round to TF32."""
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        yield


def _checked_start(problem: Problem, level: Level, start: Any) -> Variables:
    """Return a user's start as `Variables`, or raise `InputError`."""
    given = (start.weight, start.features, start.bias) if isinstance(start, Solution) else tuple(start)
    if len(given) not in (2, 3):
        raise InputError(
            f"start must be (weight, features) or (weight, features, bias), got {len(given)} parts"
        )
    weight, features = (np.asarray(part, np.float64) for part in given[:2])
    bias = given[2] if len(given) == 3 else None
    if problem.bias is not None:
        bias = np.zeros(problem.num_classes) if bias is None else np.asarray(bias, np.float64)
    elif bias is not None:
        raise InputError("start must have no bias because the problem has none")
    rows = len(row_labels(problem, level))
    shapes = {
        "weight": (problem.num_classes, problem.dim),
        "features": (rows, problem.dim),
        "bias": (problem.num_classes,),
    }
    for name, value in (("weight", weight), ("features", features), ("bias", bias)):
        if value is not None and value.shape != shapes[name]:
            raise InputError(f"start {name} must have shape {shapes[name]}, got {value.shape}")
        if value is not None and not np.all(np.isfinite(value)):
            raise InputError(f"start {name} must be finite, got NaN or infinity")
    return Variables(weight, features, bias)
