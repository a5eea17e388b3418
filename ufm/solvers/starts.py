"""The best of several random starts, for problems in which a start may end short of the optimum.

Those are the problems of d < K, and now and then groups, which have fewer moves than classes to get away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Task

#: Starts of a grouped task that stalls although every class could have a coordinate of its own.
GROUP_STARTS = 4


def best_of_starts(
    tasks: Sequence[Task], solve: Callable[[Sequence[Task]], list[Outcome]], if_stalled: int = 1
) -> list[Outcome]:
    """Solve tasks; those that end uncertified begin again with the next seeds, and the lowest end counts.

    Args:
        tasks: the tasks, each with how many starts it has.
        solve: solves tasks, each from one start.
        if_stalled: how many starts a task has that stalls.
    """
    ends = solve(tasks)
    for number in range(1, max(if_stalled, *(task.starts for task in tasks))):
        left = [
            i
            for i, (task, end) in enumerate(zip(tasks, ends, strict=True))
            if task.start is None
            and end.status is not Status.CERTIFIED
            and number < max(task.starts, if_stalled if end.status is Status.STALLED else 1)
        ]
        if not left:
            break
        again = [dataclasses.replace(tasks[i], seed=tasks[i].seed + number) for i in left]
        for i, end in zip(left, solve(again), strict=True):
            lower = end.certificate.objective < ends[i].certificate.objective
            ends[i] = end if lower or end.status is Status.CERTIFIED else ends[i]
    return ends
