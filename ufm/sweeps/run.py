"""Run a grid: cut it into batches, solve them, keep the results, and say how it goes."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from ufm.inputs.checks import InputError, positive_integer
from ufm.solvers.engine import solve_many
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Setup, Task
from ufm.sweeps.dataset import Memory, layout_of
from ufm.sweeps.grid import Grid
from ufm.sweeps.measure import measure_members
from ufm.sweeps.member import Member
from ufm.sweeps.store import Store
from ufm.text import Progress, progress_bar

#: Members of a batch, and the memory their solver states may take, in bytes.
BATCH_SIZE = 2048
BATCH_BYTES = 1 << 29
#: Members on the device at a time (see `solve_many`).
WIDTH = 512

Report = Callable[[int], None]


def run_grid(
    grid: Grid,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    matrices: bool = False,
    batch_size: int = BATCH_SIZE,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = False,
) -> xr.Dataset:
    """Solve every member of ``grid`` and return the data set (see `ufm.sweeps.sweep` for the arguments)."""
    members = list(grid.members())
    batches = plan(members, positive_integer("batch_size", batch_size))
    mine = _share(len(batches), process_index, process_count)
    alike = Counter(member.shape for member in members)
    num_classes = max(member.problem.num_classes for member in members)
    settings = {"matrices": matrices, "batch_size": batch_size}
    store: Memory | Store
    layout = layout_of(grid, num_classes, matrices)
    store = (
        Memory(layout, batches)
        if out is None
        else Store(Path(out), layout, batches, settings, grid.content())
    )
    total = sum(len(batches[batch]) for batch in mine)
    with contextlib.ExitStack() as stack:
        done = stack.enter_context(store.opened(resume or process_count > 1, (process_index, process_count)))
        todo = [batch for batch in mine if batch not in done]
        left = sum(len(batches[batch]) for batch in todo)
        bar = stack.enter_context(progress_bar(progress, "solving", total, total - left, stays=True))
        for batch in todo:
            chosen = [members[i] for i in batches[batch]]
            wide = width(chosen[0], min(batch_size, alike[chosen[0].shape]))
            solved = solve_together(chosen, wide, _sharding(), bar.advance)
            store.write(batch, measure_members(chosen, solved, matrices))
            _report_failures(grid, batches[batch], chosen, solved, bar)
    return store.dataset()


def solve_together(
    members: Sequence[Member],
    width: int,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Report = lambda members: None,
) -> list[Outcome]:
    """Solve members of equal `Member.shape`, at most ``width`` at a time (`ufm.solvers.engine.solve_many`)."""
    first = members[0]
    tasks = [
        Task(member.problem, member.limits, member.fields["seed"], escapes=member.fields["escapes"])
        for member in members
    ]
    return solve_many(tasks, Setup(first.level, first.rule, first.precision), width, sharding, report)


def plan(members: Sequence[Member], batch_size: int) -> list[list[int]]:
    """Return the batches: members of equal shape in grid order, at most ``batch_size``, of limited memory."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, member in enumerate(members):
        groups.setdefault(member.shape, []).append(index)
    batches = []
    for group in groups.values():
        size = min(batch_size, _affordable(members[group[0]]))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def width(member: Member, most: int) -> int:
    """Return how many members of this shape to have on the device at a time, of at most so many."""
    return min(WIDTH, most, _affordable(member))


def _affordable(member: Member) -> int:
    """How many solver states of this shape fit into `BATCH_BYTES`."""
    K, rows, dim = member.shape[:3]
    return max(1, BATCH_BYTES // (8 * (12 * (K + rows) * dim + 6 * rows * K)))


def _share(batches: int, index: int, count: int) -> list[int]:
    """Return the batches of one of several processes."""
    count = positive_integer("process_count", count)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise InputError(f"process_index must be from 0 to process_count - 1 = {count - 1}, got {index!r}")
    return list(range(index, batches, count))


def _sharding() -> jax.sharding.NamedSharding | None:
    """Return how to spread members over the local devices, if there is more than one."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    mesh = jax.sharding.Mesh(np.array(devices), ("members",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("members"))


def _report_failures(
    grid: Grid, indices: Sequence[int], members: Sequence[Member], solved: Sequence[Outcome], bar: Progress
) -> None:
    """Say which members are not certified though they could be, and how to run each of them alone."""
    for index, member, end in zip(indices, members, solved, strict=True):
        if end.status not in (Status.CERTIFIED, Status.NO_CERTIFICATE):
            position = [int(i) for i in np.unravel_index(index, grid.shape)] if grid.shape else []
            where = grid.describe(position) or "the only member"
            gap = end.certificate.relative_gap
            text = f"{gap:.1e}" if math.isfinite(gap) else "unknown"
            bar.line(f"{end.status} at {where}: relative gap {text}; alone: {member.command()}")
