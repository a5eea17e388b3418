"""Sweeps on many machines: batches as tasks of `dask.distributed`, whose workers write their files themselves.

The plan is that of a single process, and so are the widths at which batches are solved: whoever solves a batch, its
file is the same. What a lost worker had in hand is computed again, what fails is tried on others; the longest batches
begin first, so that all workers end together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ufm.inputs.checks import CheckpointError, InputError, positive_integer
from ufm.sweeps.batch_work import solve_batch
from ufm.sweeps.grid import Grid
from ufm.sweeps.plan import Batch
from ufm.sweeps.store import KEPT, Place, write_batch

#: How many further workers try a batch that failed on one.
RETRIES = 2
#: Workers share a machine: one thread each for what NumPy does, and no accelerator's memory taken beforehand.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ENVIRONMENT["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
#: Ctrl-C reaches all processes of a terminal; workers leave it to the client, which ends them.
UNDISTURBED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
#: Every process would look fifty times a second whether it is late, and a hundred at what it does; nobody asks.
UNWATCHED: dict[str, Any] = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.worker.profile.enabled": False,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One batch as a task.

    Attributes:
        number: of the batch.
        batch: what is in it.
        matrices: whether to keep matrices.
        place: where to write the batch; None to return it.
        version: of the client's `ufm`, which the worker's must be.
    """

    number: int
    batch: Batch
    matrices: bool
    place: Place | None
    version: str

    def do(self, grid: Grid) -> tuple[int, dict[str, np.ndarray] | None, list[str]]:
        """Solve the batch of a grid; return its number, its rows unless they are written, and who failed."""
        here = importlib.metadata.version("ufm")
        if here != self.version:
            raise InputError(
                f"worker on {socket.gethostname()} has ufm {here} and the client {self.version}; install the same"
            )
        batch = self.batch
        rows, failures = solve_batch(grid, batch, self.matrices)
        if self.place is None:
            return self.number, rows, failures
        write_batch(self.place, self.number, batch.members, rows)
        return self.number, None, failures

    def tried(self, grid: Grid) -> tuple[str, Any]:
        """Return this worker's address and what `do` returns or raises there."""
        from distributed import get_worker

        address = get_worker().address
        try:
            return address, self.do(grid)
        except Exception as error:  # whatever it is, another worker may do better
            return address, error


def run_on(
    client: Any,
    grid: Grid,
    tasks: Sequence[Work],
    done: Callable[[int, Any, list[str]], None],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Have workers do the tasks, the longest first; call ``done`` with what each returned, as it ends.

    What fails on a worker is tried on others, what a lost worker had in hand is done again.

    Args:
        client: of `dask.distributed`.
        grid: what the tasks are of.
        tasks: the tasks.
        done: called with the number of a batch, its rows unless they are written, and who failed.
        say: called once with a sentence for every worker that fails at something.

    Raises:
        CheckpointError: if a batch takes down the workers that try it, or the scheduler is lost.
        Exception: what a batch raised on the last worker that there was to try it.
    """
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    shared = client.submit(_itself, grid, pure=False)  # sent once, and made again with a worker that is lost

    def submit(task: Work, **where: Any) -> Any:
        return client.submit(Work.tried, task, shared, pure=False, **where)

    under_way = {submit(task): task for task in sorted(tasks, key=lambda task: -task.batch.cost)}
    failed = dict[int, set[str]]()
    told = set[str]()
    try:
        ends = as_completed(under_way)
        for future in ends:
            (worker, end), task = future.result(), under_way.pop(future)
            if not isinstance(end, Exception):
                done(*end)
                continue
            tried = failed.setdefault(task.number, set())
            tried.add(worker)
            others = sorted(client.nthreads().keys() - tried)
            if not others or len(tried) > RETRIES:
                raise end
            if worker not in told:
                say(f"{worker} failed, others try instead: {end}")
                told.add(worker)
            again = submit(task, workers=others, allow_other_workers=True, priority=1)
            under_way[again] = task
            ends.add(again)
    except KilledWorker as reason:
        raise CheckpointError(
            f"a batch was lost with every worker that tried it ({reason}); {KEPT}"
        ) from None
    except (CancelledError, CommClosedError):  # between two answers, or within one
        raise CheckpointError(f"the scheduler was lost; {KEPT}") from None
    finally:
        with contextlib.suppress(CommClosedError):
            client.cancel([shared, *under_way])


def _itself(grid: Grid) -> Grid:
    return grid


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
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        # in place of Dask's own variables: returning memory at every chance costs workers a quarter of their time
        settings = UNWATCHED | {"distributed.nanny.pre-spawn-environ": _environment()}
        stack.enter_context(dask.config.set(settings))
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
                    },  # there is none, yet it takes a port
                    silence_logs=logging.CRITICAL,  # errors come with the answers; a late heartbeat is none
                    preload=UNDISTURBED,
                )
            )
        try:
            client = Client(address)
        except (OSError, ValueError) as reason:
            raise InputError(f"scheduler {scheduler} cannot be reached: {reason}") from None
        yield stack.enter_context(client)


def _environment() -> Mapping[str, str]:
    """Return what workers here are told: to look for devices where this process does, and keep programs likewise."""
    import jax

    names = ("jax_platforms", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    told = {name.upper(): getattr(jax.config, name, None) for name in names}
    return ENVIRONMENT | {name: str(value) for name, value in told.items() if value is not None}
