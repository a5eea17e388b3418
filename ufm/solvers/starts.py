"""The best of several random starts, for problems in which a start may end short of the optimum: those of d < K."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Task


def best_of_starts(tasks: Sequence[Task], solve: Callable[[Sequence[Task]], list[Outcome]]) -> list[Outcome]:
    """Solve tasks; those that end uncertified begin again with the next seeds, and the lowest end counts.

    Args:
        tasks: the tasks, each with how many starts it has.
        solve: solves tasks, each from one start.
    """
    ends = solve(tasks)
    for number in range(1, max(task.starts for task in tasks)):
        left = [
            i
            for i, (task, end) in enumerate(zip(tasks, ends, strict=True))
            if number < task.starts and task.start is None and end.status is not Status.CERTIFIED
        ]
        if not left:
            break
        again = [dataclasses.replace(tasks[i], seed=tasks[i].seed + number) for i in left]
        for i, end in zip(left, solve(again), strict=True):
            lower = end.certificate.objective < ends[i].certificate.objective
            ends[i] = end if lower or end.status is Status.CERTIFIED else ends[i]
    return ends
