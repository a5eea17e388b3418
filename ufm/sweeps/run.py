"""Run a grid: cut it into batches, solve them, keep the results, and say how it goes."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ufm.inputs.checks import InputError, positive_integer
from ufm.sweeps.batch_work import solve_batch
from ufm.sweeps.dataset import Memory, layout_of
from ufm.sweeps.grid import Grid
from ufm.sweeps.plan import BATCH_SIZE, Batch, plan
from ufm.sweeps.store import Store
from ufm.text import Progress, progress_bar


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
    planned = plan(grid, positive_integer("batch_size", batch_size))
    batches = planned.members
    mine = _share(len(batches), process_index, process_count)
    if client is not None and process_count > 1:
        raise InputError(f"process_count must be 1 where a client has workers, got {process_count}")
    layout = layout_of(grid, planned.num_classes, matrices)
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
        chosen = {batch: planned.batches[batch] for batch in todo}
        if client is None:
            _run_here(grid, chosen, matrices, store, bar)
        else:
            _run_there(client, grid, chosen, matrices, store, bar)
    return store.dataset()


def _run_here(
    grid: Grid,
    batches: dict[int, Batch],
    matrices: bool,
    store: Memory | Store,
    bar: Progress,
) -> None:
    """Solve batches one after the other in this process."""
    for number, batch in batches.items():
        rows, failures = solve_batch(grid, batch, matrices, bar.advance)
        store.write(number, rows)
        for line in failures:
            bar.line(line)


def _run_there(
    client: Any,
    grid: Grid,
    batches: dict[int, Batch],
    matrices: bool,
    store: Memory | Store,
    bar: Progress,
) -> None:
    """Have the workers of a Dask client solve batches."""
    from ufm.sweeps.cluster import Work, run_on

    def ended(batch: int, rows: dict[str, np.ndarray] | None, failures: list[str]) -> None:
        if rows is not None:
            store.write(batch, rows)
        bar.advance(len(batches[batch].members))
        for line in failures:
            bar.line(line)

    version = importlib.metadata.version("ufm")
    tasks = [Work(number, batch, matrices, store.place, version) for number, batch in batches.items()]
    run_on(client, grid, tasks, ended, bar.line)


def _share(batches: int, index: int, count: int) -> list[int]:
    """Return the batches of one of several processes."""
    count = positive_integer("process_count", count)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise InputError(f"process_index must be from 0 to process_count - 1 = {count - 1}, got {index!r}")
    return list(range(index, batches, count))
