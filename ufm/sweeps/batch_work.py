"""One batch from members to the rows that are kept of them: the same in this process and on a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from ufm.solvers.engine import as_asked, solve_many
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Setup, Task
from ufm.sweeps.grid import Grid, Places
from ufm.sweeps.measure import measure_members
from ufm.sweeps.member import Member
from ufm.sweeps.plan import Batch


def solve_batch(
    grid: Grid, batch: Batch, matrices: bool, report: Callable[[int], None] = lambda members: None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Solve members of equal shape; return what is kept of them, and a line for each that is not certified.

    Args:
        grid: the grid that they are of.
        batch: their places in it, and how many are on the device at a time.
        matrices: whether to keep K x K matrices.
        report: called with the number of members solved, now and then.
    """
    members = [grid.member(int(index)) for index in batch.members]
    solved = solve_together(members, batch.width, _sharding(), report)
    return measure_members(members, solved, matrices), list(_failures(grid, batch.members, members, solved))


def solve_together(
    members: Sequence[Member],
    width: int,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Callable[[int], None] = lambda members: None,
) -> list[Outcome]:
    """Solve members of equal `Member.shape`, at most ``width`` at a time (`ufm.solvers.engine.solve_many`)."""
    first = members[0]
    tasks = [
        Task(
            member.problem,
            member.limits,
            member.fields["seed"],
            escapes=member.fields["escapes"],
            starts=member.fields["starts"],
        )
        for member in members
    ]
    setup = Setup(first.level, first.rule, first.precision)
    return [
        as_asked(task, end, setup, member.fields["level"])
        for task, end, member in zip(
            tasks, solve_many(tasks, setup, width, sharding, report), members, strict=True
        )
    ]


def _sharding() -> jax.sharding.NamedSharding | None:
    """Return how to spread members over the local devices, if there is more than one."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    mesh = jax.sharding.Mesh(np.array(devices), ("members",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))


def _failures(
    grid: Grid, indices: Places, members: Sequence[Member], solved: Sequence[Outcome]
) -> Iterator[str]:
    """Say which members are not certified though they could be, and how to run each of them alone."""
    for index, member, end in zip(indices, members, solved, strict=True):
        if end.status not in (Status.CERTIFIED, Status.NO_CERTIFICATE):
            where = grid.describe(grid.position(int(index))) or "the only member"
            gap = end.certificate.relative_gap
            text = f"{gap:.1e}" if math.isfinite(gap) else "unknown"
            yield f"{end.status} at {where}: relative gap {text}; alone: {member.command()}"
