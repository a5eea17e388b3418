"""Sweeps on many machines: batches as tasks of `dask.distributed`, whose workers write their files themselves.

The plan is that of a single process, and so are the widths at which batches are solved: whoever solves a batch, its
file is the same. What a lost worker had in hand is computed again, what fails is tried again; the longest batches
begin first, so that all workers end together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ufm.inputs.checks import CheckpointError, InputError, positive_integer
from ufm.sweeps.batch_work import solve_batch
from ufm.sweeps.grid import Grid
from ufm.sweeps.plan import Batch
from ufm.sweeps.store import Place, write_batch

#: How often a batch that failed is tried again.
RETRIES = 2
#: Workers share a machine: each has one thread for what NumPy does, and JAX looks for devices where the client does.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclasses.dataclass(frozen=True)
class Work:
    """One batch as a task.

    Attributes:
        grid: the grid.
        number: of the batch.
        batch: what is in it.
        matrices: whether to keep matrices.
        place: where to write the batch; None to return it.
        version: of the client's `ufm`, which the worker's must be.
    """

    grid: Grid
    number: int
    batch: Batch
    matrices: bool
    place: Place | None
    version: str

    def do(self) -> tuple[int, dict[str, np.ndarray] | None, list[str]]:
        """Solve the batch, on a worker; return its number, its rows unless they are written, and who failed."""
        here = importlib.metadata.version("ufm")
        if here != self.version:
            raise InputError(
                f"worker on {socket.gethostname()} has ufm {here} and the client {self.version}; install the same"
            )
        batch = self.batch
        members = [self.grid.member(int(index)) for index in batch.members]
        rows, failures = solve_batch(self.grid, batch.members, members, batch.width, self.matrices)
        if self.place is None:
            return self.number, rows, failures
        write_batch(self.place, self.number, batch.members, rows)
        return self.number, None, failures


def run_on(client: Any, tasks: Sequence[Work], done: Callable[[int, Any, list[str]], None]) -> None:
    """Have workers do the tasks, the longest first; call ``done`` with what each returned, as it ends.

    Raises:
        CheckpointError: if a batch takes down the workers that try it.
        Exception: what a batch raised when it was tried for the last time.
    """
    from distributed import KilledWorker, as_completed

    ordered = sorted(tasks, key=lambda task: -task.batch.cost)
    futures = [client.submit(Work.do, task, retries=RETRIES, pure=False) for task in ordered]
    try:
        for future in as_completed(futures):
            done(*future.result())
    except KilledWorker as reason:
        raise CheckpointError(
            f"a batch was lost with every worker that tried it ({reason}); batches written before are kept, "
            "go on with --resume"
        ) from None
    finally:
        client.cancel(futures)


@contextlib.contextmanager
def connected(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """Yield a client of workers on this machine or of a scheduler elsewhere; None if neither is asked for.

    Args:
        workers: number of processes to start here.
        scheduler: address of a Dask scheduler, as in ``tcp://10.0.0.1:8786``.

    Raises:
        InputError: if both are given, or the scheduler cannot be reached.
    """
    if workers is not None and scheduler is not None:
        raise InputError(
            f"workers = {workers} are started here, scheduler = {scheduler} has its own; give one"
        )
    if workers is None and scheduler is None:
        yield None
        return
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if workers is not None:
            address = stack.enter_context(
                LocalCluster(
                    n_workers=positive_integer("workers", workers),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    scheduler_kwargs={
                        "dashboard_address": "127.0.0.1:0"
                    },  # no dashboard, yet it takes a port
                    env=_environment(),
                )
            )
        try:
            client = Client(address)
        except (OSError, ValueError) as reason:
            raise InputError(f"scheduler {scheduler} cannot be reached: {reason}") from None
        yield stack.enter_context(client)


def _environment() -> Mapping[str, str]:
    return ENVIRONMENT | {name: os.environ[name] for name in ("JAX_PLATFORMS",) if name in os.environ}
