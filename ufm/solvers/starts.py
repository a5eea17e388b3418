"""The best of several random starts, for problems in which a start may end short of the optimum.

Those are problems of d < K; and one start in thousands of the others, where classes share directions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from ufm.model.problem import Level
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Task

#: Starts of a task that stalls although the loss is convex and every class could have a coordinate of its own. Groups
#: have local minima that classes have not, and are cheap.
IF_STALLED: dict[Level, int] = {"group": 10, "class": 4, "sample": 1}


def best_of_starts(
    tasks: Sequence[Task], level: Level, solve: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """Solve tasks; those that end uncertified begin again with the next seeds, and the lowest end counts.

    Its steps are its own, with those of starts that stalled where only one was asked for.

    Args:
        tasks: the tasks, each with how many starts it has.
        level: of their feature rows.
        solve: solves tasks, each from one start.
    """
    ends = solve(tasks)
    for number in itertools.count(1):
        left = [
            i
            for i, (task, end) in enumerate(zip(tasks, ends, strict=True))
            if number < _starts(task, end, level)
        ]
        if not left:
            break
        again = [_next_start(tasks[i], ends[i], number) for i in left]
        for i, end in zip(left, solve(again), strict=True):
            lower = end.certificate.objective < ends[i].certificate.objective
            best = end if lower or end.status is Status.CERTIFIED else ends[i]
            steps = best.steps if number < tasks[i].starts else ends[i].steps + end.steps
            ends[i] = dataclasses.replace(best, steps=steps)
    return ends


def _next_start(task: Task, end: Outcome, number: int) -> Task:
    """Return the task from the next seed; with the steps that are left, if only one start was asked for."""
    most = task.limits.max_steps - (0 if number < task.starts else end.steps)
    limits = dataclasses.replace(task.limits, max_steps=most)
    return dataclasses.replace(task, seed=task.seed + number, limits=limits)


def _starts(task: Task, end: Outcome, level: Level) -> int:
    """Return how many starts a task has, given how it ended."""
    problem = task.problem
    if task.start is not None or end.status is Status.CERTIFIED:
        return 1
    roomy = problem.loss.convex and problem.loss.labelled and problem.dim >= problem.num_classes
    again = end.status is Status.STALLED and end.steps < task.limits.max_steps and roomy and task.escapes
    return max(task.starts, IF_STALLED[level] if again else 1)
