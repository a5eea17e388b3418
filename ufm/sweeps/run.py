"""Run a grid: cut it into batches, solve them, keep the results, and say how it goes."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ufm.inputs.checks import InputError, positive_integer
from ufm.sweeps.batch_work import solve_batch
from ufm.sweeps.dataset import Memory, layout_of
from ufm.sweeps.grid import Grid
from ufm.sweeps.member import Member
from ufm.sweeps.store import Store
from ufm.text import Progress, progress_bar

#: Members of a batch, and the memory their solver states may take, in bytes.
BATCH_SIZE = 2048
BATCH_BYTES = 1 << 29
#: Members on the device at a time (see `solve_many`).
WIDTH = 512


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
    client: Any = None,
) -> xr.Dataset:
    """Solve every member of ``grid`` and return the data set (see `ufm.sweeps.sweep` for the arguments)."""
    members = list(grid.members())
    batches = plan(members, positive_integer("batch_size", batch_size))
    mine = _share(len(batches), process_index, process_count)
    if client is not None and process_count > 1:
        raise InputError(f"process_count must be 1 where a client has workers, got {process_count}")
    alike = Counter(member.shape for member in members)
    layout = layout_of(grid, max(member.problem.num_classes for member in members), matrices)
    settings = {"matrices": matrices, "batch_size": batch_size}
    store: Memory | Store = Memory(layout, batches)
    if out is not None:
        store = Store(Path(out), layout, batches, settings, grid.content())
    total = sum(len(batches[batch]) for batch in mine)
    with contextlib.ExitStack() as stack:
        done = stack.enter_context(store.opened(resume or process_count > 1, (process_index, process_count)))
        todo = [batch for batch in mine if batch not in done]
        left = sum(len(batches[batch]) for batch in todo)
        bar = stack.enter_context(progress_bar(progress, "solving", total, total - left, stays=True))
        widths = {}
        for batch in todo:
            first = members[batches[batch][0]]
            widths[batch] = width(first, min(batch_size, alike[first.shape]))
        if client is None:
            _run_here(grid, members, batches, widths, matrices, store, bar)
        else:
            _run_there(client, grid, batches, widths, matrices, store, bar)
    return store.dataset()


def _run_here(
    grid: Grid,
    members: Sequence[Member],
    batches: Sequence[Sequence[int]],
    widths: dict[int, int],
    matrices: bool,
    store: Memory | Store,
    bar: Progress,
) -> None:
    """Solve batches one after the other in this process."""
    for batch, wide in widths.items():
        chosen = [members[i] for i in batches[batch]]
        rows, failures = solve_batch(grid, batches[batch], chosen, wide, matrices, bar.advance)
        store.write(batch, rows)
        for line in failures:
            bar.line(line)


def _run_there(
    client: Any,
    grid: Grid,
    batches: Sequence[Sequence[int]],
    widths: dict[int, int],
    matrices: bool,
    store: Memory | Store,
    bar: Progress,
) -> None:
    """Have the workers of a Dask client solve batches."""
    from ufm.sweeps.cluster import Work, run_on

    def ended(batch: int, rows: dict[str, np.ndarray] | None, failures: list[str]) -> None:
        if rows is not None:
            store.write(batch, rows)
        bar.advance(len(batches[batch]))
        for line in failures:
            bar.line(line)

    version = importlib.metadata.version("ufm")
    tasks = [
        Work(grid, batch, batches[batch], wide, matrices, store.place, version)
        for batch, wide in widths.items()
    ]
    run_on(client, tasks, ended)


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
