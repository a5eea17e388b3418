"""Solve an unconstrained-feature model: choose a start, a rule and limits, run the loop, return the solution."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ufm.inputs.arrays import real_array
from ufm.inputs.checks import InputError, fits_memory, positive_float, positive_integer
from ufm.inputs.files import path_of
from ufm.model.groups import GroupPoint
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem, a_problem
from ufm.solvers.checkpoint import Checkpoints
from ufm.solvers.coordinates import chosen_level
from ufm.solvers.engine import as_asked, solve_one
from ufm.solvers.fingerprint import run_key
from ufm.solvers.finish import drawn_in
from ufm.solvers.limits import Precision
from ufm.solvers.progress import gap_progress
from ufm.solvers.rule import StepRule
from ufm.solvers.rules import rule_parameters, step_rule
from ufm.solvers.settings import SETTINGS, check_settings, limits
from ufm.solvers.solution import Solution
from ufm.solvers.task import Observer, Record, Setup, Task


def solve(
    problem: Problem | Any,
    level: Level | Literal["auto"] | Any = SETTINGS["level"].default,
    solver: str | StepRule | Any | None = None,
    seed: int | Any = SETTINGS["seed"].default,
    tol: float | Any = SETTINGS["tol"].default,
    max_steps: int | Any = SETTINGS["max_steps"].default,
    progress: bool | Callable[[Record], None] | Any = False,
    *,
    starts: int | Any = SETTINGS["starts"].default,
    start: Variables | Solution | tuple[Any, ...] | Any | None = None,
    escapes: bool | Any = SETTINGS["escapes"].default,
    residual_tol: float | Any | None = SETTINGS["residual_tol"].default,
    precision: Precision | Any = SETTINGS["precision"].default,
    record_every: int | Any | None = None,
    observe: Observer | Any | None = None,
    devices: Sequence[jax.Device] | Any | None = None,
    checkpoint: str | os.PathLike[str] | Any | None = None,
    checkpoint_every: float | Any = 60.0,
    resume: bool = False,
    **parameters: Any,
) -> Solution:
    """Minimise the objective of ``problem`` and certify the answer.

    The start is random and the method first-order, until it creeps; the closed forms of `ufm.theory` are never
    consulted. With ``dim >= K``, a convex loss and up to 16 classes all of 4,851 random problems over many decades
    of counts and decays ended certified, from starts random, zero, tiny, huge or stuck; beyond, a few creep.

    Args:
        problem: the problem.
        level: ``"class"``: one feature row per class; ``"sample"``: one per sample; ``"group"``: classes that are
            alike as one (`ufm.model.groups`; ``dim >= K``, any start is random, the rule works in balanced
            coordinates). All have the same optimal value; only samples can show within-class variability. ``"auto"``:
            groups where they are much fewer than classes, and classes from where those end, if not certified.
        solver: step rule: a name (``"accelerated"`` if omitted, ``"sgd"``, ``"momentum"``, ``"adam"``), or an object
            such as `ProjectedGradient(optax transformation)`.
        seed: of the random start.
        tol: relative duality gap ``(P - D)/P`` to certify; below 1, as ``D = 0`` proves nothing.
        max_steps: limit on the number of steps.
        progress: True for a progress bar on stderr, or a function that is given every record of the history.
        starts: random starts to try, from ``seed`` on, until one is certified; the best one is returned, with its own
            steps. Where ``dim < K`` the ends of several starts differ. A run that stalls although every class could
            have a coordinate of its own tries a few more by itself, and tells the steps of all.
        start: a `Solution` or a tuple ``(weight, features)`` or ``(weight, features, bias)`` to start from. The
            default rule draws it in along its ray where its regulariser is above the objective at zero.
        escapes: whether to use escape moves when stuck.
        residual_tol: relative projected gradient to reach before stopping, besides ``tol``; by default 1e-7 in
            float64 and 1e-4 in float32. The errors of norms and angles are of this order.
        precision: ``"float64"`` (the caller's JAX settings are left alone) or ``"float32"``.
        record_every: steps between two records of the history; by default 20, growing with the run.
        observe: called with ``(variables, labels)`` at every record; its dict of numbers joins the record.
        devices: devices that share the samples at sample level; all that JAX sees, in every process, if omitted.
        checkpoint: file to write the state of the run to, now and then, so that it can go on after a kill. It must
            not exist unless ``resume``. Such a run is one start, in all its coordinates.
        checkpoint_every: least number of seconds between two of them.
        resume: go on from ``checkpoint``; the answer is that of the undisturbed run.
        parameters: of a step rule by name: ``learning_rate`` of sgd, momentum and adam, ``window`` of accelerated.

    Returns:
        A `Solution`; look at ``.status`` before anything else.

    Raises:
        InputError: naming the argument, its value and what is required.
        CheckpointError: if the last checkpoint cannot be written; the one before it is intact, and the answer is
            the error's ``solution``. One that fails on the way is tried again.

    Source: `ufm.solvers.accelerated` for the step rule, `ufm.duality.certificate` for the bound, `ufm.solvers.escape`
    for the moves, each with its proofs and papers.

    Example:
        >>> import ufm
        >>> problem = ufm.Problem([500, 50], dim=4, weight_decay=5e-3, feature_decay=1e-5)
        >>> solution = ufm.solve(problem)
        >>> str(solution.status), solution.certificate.relative_gap < 1e-8
        ('certified', True)
    """
    unknown = [name for name in parameters if name not in rule_parameters(parameters)]
    if unknown:
        raise TypeError(f"solve() got an unexpected keyword argument {unknown[0]!r}")
    a_problem(problem)
    _check_parts(progress, observe, devices)
    settings = check_settings(
        {
            "level": level,
            "seed": seed,
            "starts": starts,
            "tol": tol,
            "max_steps": max_steps,
            "escapes": escapes,
            "residual_tol": residual_tol,
            "precision": precision,
        }
    )
    if isinstance(solver, type):
        raise InputError(f"solver must be a step rule such as ufm.Accelerated(), got {solver!r}")
    rule = step_rule(SETTINGS["solver"].default if solver is None else solver, parameters)
    seed, bounds = settings["seed"], limits(settings)
    free = start is None and observe is None
    if settings["starts"] > 1 and not (free and checkpoint is None):
        raise InputError(f"starts must be 1 with start, observe or checkpoint, got {settings['starts']}")
    level = chosen_level(problem, settings["level"], rule, free)
    if level != "group":
        _check_size(problem, level)
    if record_every is not None:
        record_every = positive_integer("record_every", record_every)
    given = None if start is None else functools.partial(_checked_start, problem, level, start, rule.descends)
    checkpoints = None
    if checkpoint is not None:
        key = run_key(problem, level, rule, precision, seed if given is None else given())
        checkpoints = Checkpoints(
            path_of("checkpoint", checkpoint), positive_float("checkpoint_every", checkpoint_every), key
        )
        if not resume:
            checkpoints.begin_anew()
    elif resume:
        raise InputError("resume needs checkpoint, the file to go on from")
    setup = Setup(level, rule, precision, devices)
    held = contextlib.nullcontext() if checkpoints is None else checkpoints.held()
    with held, gap_progress(progress, bounds.tol) as report:
        way = (settings["escapes"], report, record_every, observe, settings["starts"])
        task = Task(problem, bounds, seed, given, *way)
        outcome = as_asked(task, solve_one(task, setup, checkpoints, resume), setup, settings["level"])
    if problem.classifier is not None:  # as it was given, not as the precision of the run has it
        outcome = dataclasses.replace(outcome, point=outcome.variables._replace(weight=problem.classifier))
    solution = Solution(
        problem,
        "class" if level == "group" and not isinstance(outcome.point, GroupPoint) else level,
        outcome.point,
        outcome.status,
        outcome.certificate,
        bounds.tol,
        outcome.steps,
        outcome.history,
    )
    if checkpoints is not None:
        checkpoints.require_written(solution)
    return solution


def _check_size(problem: Problem, level: Level) -> None:
    """Raise `InputError` if the points of a problem would not fit into memory."""
    sampled = level == "sample"
    rows = int(problem.num_samples) if sampled else problem.num_classes
    logits = 0 if sampled else rows * problem.num_logits  # those of samples are never there all at once
    fits_memory(
        f"{rows:,} rows of {problem.dim:,} features"
        + ("" if sampled else f" and {problem.num_logits:,} logits"),
        4 * (rows + problem.num_logits) * problem.dim // jax.process_count() + logits,
        f"try {'--level class' if sampled else 'fewer classes'}, a smaller dim, or more machines",
    )


def _check_parts(progress: Any, observe: Any, devices: Any) -> None:
    """Raise `InputError` if one of what the loop calls or uses is not what it must be."""
    for name, value in (("progress", None if isinstance(progress, bool) else progress), ("observe", observe)):
        if value is not None and not callable(value):
            raise InputError(f"{name} must be a function, got {value!r}")
    known = isinstance(devices, list | tuple) and devices and all(isinstance(d, jax.Device) for d in devices)
    if devices is not None and not known:
        raise InputError(f"devices must be a list of JAX devices, got {devices!r}")


def _checked_start(problem: Problem, level: Level, start: Any, descends: bool) -> Variables:
    """Return a user's start as `Variables`, drawn in if the objective is to descend, or raise `InputError`."""
    if not isinstance(start, Solution | tuple | list) or (
        not isinstance(start, Solution) and len(start) not in (2, 3)
    ):
        got = f"{len(start)} parts" if isinstance(start, tuple | list) else type(start).__name__
        raise InputError(
            f"start must be a Solution, (weight, features) or (weight, features, bias), got {got}"
        )
    given = (start.weight, start.features, start.bias) if isinstance(start, Solution) else tuple(start)
    bias = given[2] if len(given) == 3 else None
    if problem.bias is None and bias is not None:
        raise InputError("start must have no bias because the problem has none")
    if problem.bias is not None and bias is None:
        bias = np.zeros(problem.num_logits)
    rows = problem.num_classes if level == "class" else problem.num_samples
    shapes = {
        "weight": (problem.num_logits, problem.dim),
        "features": (rows, problem.dim),
        "bias": (problem.num_logits,),
    }
    parts: list[Any] = []
    for (name, shape), value in zip(shapes.items(), (*given[:2], bias), strict=True):
        array = None if value is None and name == "bias" else real_array(f"start {name}", value, len(shape))
        if array is not None and array.shape != shape:
            raise InputError(f"start {name} must have shape {shape}, got {array.shape}")
        if array is not None and not np.all(np.isfinite(array)):
            raise InputError(f"start {name} must be finite, got NaN or infinity")
        if (
            name == "weight"
            and problem.classifier is not None
            and not np.array_equal(np.asarray(array), problem.classifier)
        ):
            raise InputError("start weight must be the classifier of the problem, which is fixed")
        parts.append(None if array is None else array.astype(np.float64, copy=False))
    return drawn_in(problem, level, Variables(*parts)) if descends else Variables(*parts)
