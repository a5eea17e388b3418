"""The smallest size that a problem is solved in: groups, contexts that differ, about K coordinates; all if need be.

The certificate does not depend on the dimension: a point that is optimal in fewer coordinates, padded with zeros, is
optimal in all. A few more than K leave room for escape moves. By Jensen's inequality contexts of equal target, weight
and decay share the best feature, and are one; bounds and residual are the same either way. A start that a caller
gives, dynamics that an observer watches, and the field's own step rules keep every coordinate. Nor does the
certificate depend on symmetry: a grouped point that is certified is optimal among all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ufm.inputs.checks import InputError
from ufm.model.groups import much_smaller, why_not_grouped
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem
from ufm.solvers.rule import StepRule
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Record, Setup, Task
from ufm.targets import equal_rows


def chosen_level(
    problem: Problem, level: Level | Literal["auto"], rule: StepRule, free: bool = True
) -> Level:
    """Return the level to solve at: as asked, or by itself.

    Args:
        problem: the problem.
        level: as asked; ``"auto"``: groups where they are much fewer than classes, else classes.
        rule: the step rule.
        free: whether the start is random and nobody looks on.

    Raises:
        InputError: if groups are asked for and the problem, the rule or the start has none.
    """
    balanced = rule.coordinates == "balanced"
    if level == "auto":
        small = free and balanced and rule.descends and problem.loss.convex and much_smaller(problem)
        return "group" if small else "class"
    if level == "group":
        reason = why_not_grouped(problem)
        if reason is None and not balanced:
            reason = "the step rule must work in balanced coordinates"
        if reason is None and not free:
            reason = "start and observe are for rows of features"
        if reason is not None:
            raise InputError(f"level group is not for this run: {reason}; use level='class'")
    return level


def coordinates_needed(num_classes: int) -> int:
    """Return with how many coordinates a problem of so many classes is solved first: ``ceil(1.25 K) + 4``."""
    return math.ceil(1.25 * num_classes) + 4


def _rank(problem: Problem) -> int:
    """Return the largest rank that an optimum may need: free features none above that of the logits."""
    C, K = problem.num_classes, problem.num_logits
    return min(C, K) if problem.features == "free" else C


def in_few_numbers(
    tasks: Sequence[Task], setup: Setup, solve: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """Solve tasks of equal shape at the smallest size: with contexts that are alike as one, in few coordinates.

    Args:
        tasks: the tasks.
        setup: what they share.
        solve: solves tasks of equal shape.
    """
    first = tasks[0].problem
    free = all(task.start is None and task.observe is None for task in tasks)
    if first.loss.labelled or not free or setup.level != "class":
        return _in_few_coordinates(tasks, setup, solve)
    alike = [_equal_contexts(task.problem) for task in tasks]
    ends: dict[int, Outcome] = {}
    for size in {len(part[0]) for part in alike}:
        mine = [i for i, part in enumerate(alike) if len(part[0]) == size]
        merged = [dataclasses.replace(tasks[i], problem=_merged(tasks[i].problem, *alike[i])) for i in mine]
        for i, end in zip(mine, _in_few_coordinates(merged, setup, solve), strict=True):
            point = end.variables._replace(features=end.variables.features[alike[i][1]])
            ends[i] = dataclasses.replace(end, point=point)
    return [ends[i] for i in range(len(tasks))]


def _equal_contexts(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of every set of contexts that are alike, and the set of every context."""
    loss: Any = problem.loss
    weights = np.broadcast_to(loss.weights, problem.counts.shape)
    return equal_rows(np.column_stack([loss.table, weights, problem.feature_decays]))


def _merged(problem: Problem, first: np.ndarray, of: np.ndarray) -> Problem:
    if len(first) == len(of):
        return problem
    whole: Any = problem.loss
    loss = whole.of_contexts(first)
    return problem.replace(
        counts=np.bincount(of, problem.counts).astype(problem.counts.dtype),
        feature_decay=problem.feature_decays[first],
        targets=loss.table,
        loss=loss,
    )


def _in_few_coordinates(
    tasks: Sequence[Task], setup: Setup, solve: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """In few coordinates where that is enough; go on in all of them where it is not."""
    problem = tasks[0].problem
    dim, needed = problem.dim, coordinates_needed(_rank(problem))
    free = all(task.start is None and task.observe is None for task in tasks) and problem.classifier is None
    apt = setup.level == "class" and setup.rule.descends and problem.loss.convex
    if not (apt and free and needed < dim):
        return solve(tasks)
    narrow = [dataclasses.replace(task, problem=task.problem.replace(dim=needed)) for task in tasks]
    ends = [dataclasses.replace(end, point=_padded(end.variables, dim)) for end in solve(narrow)]
    left = [
        i
        for i, (task, end) in enumerate(zip(tasks, ends, strict=True))
        if end.status is not Status.CERTIFIED and end.steps < task.limits.max_steps
    ]
    if left:
        further = solve([_remaining(tasks[i], ends[i]) for i in left])
        for i, end in zip(left, further, strict=True):
            ends[i] = _joined(ends[i], end)
    return ends


def going_on(task: Task, end: Outcome, solve: Callable[[Task], Outcome]) -> Outcome:
    """Go on from the end of a task, in full size, with the steps that are left, if there are any."""
    if end.steps >= task.limits.max_steps:
        return dataclasses.replace(end, point=end.variables)
    return _joined(end, solve(_remaining(task, end)))


def _padded(variables: Variables, dim: int) -> Variables:
    """Return the point with coordinates of zeros up to ``dim``."""
    weight, features = (
        np.pad(part, ((0, 0), (0, dim - part.shape[1]))) for part in (variables.weight, variables.features)
    )
    return Variables(weight, features, variables.bias)


def _remaining(task: Task, end: Outcome) -> Task:
    """Return the task of going on from an end with the steps that are left."""
    limits = dataclasses.replace(task.limits, max_steps=task.limits.max_steps - end.steps)
    report: Any = None
    if task.report is not None:
        last, tell = end.history[-1], task.report

        def report(record: Record) -> None:
            tell(_later(record, last))

    return dataclasses.replace(task, limits=limits, start=lambda: end.variables, report=report)


def _later(record: Record, last: Record) -> Record:
    """Return a record of what followed another."""
    times = {name: record[name] + last[name] for name in ("step", "seconds")}
    bound = max(record["lower_bound"], last["lower_bound"])  # it holds for every point of both
    gap = (record["objective"] - bound) / record["objective"] if record["objective"] > 0 else math.inf
    return record | times | {"lower_bound": bound, "relative_gap": gap}


def _joined(first: Outcome, then: Outcome) -> Outcome:
    """Return both ends as one."""
    history = first.history
    if history:
        history += tuple(_later(record, history[-1]) for record in then.history)
    return dataclasses.replace(
        then, steps=first.steps + then.steps, escapes=first.escapes + then.escapes, history=history
    )
