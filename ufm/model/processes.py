"""One answer for all processes of a distributed run: what the first one found.

Every process runs the same program and has to make the same decisions, or the next step waits for ever. They follow
from float64 arithmetic on the host, which may differ in the last digit from machine to machine.
"""

from __future__ import annotations

import socket
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from ufm.inputs.checks import InputError

Answer = TypeVar("Answer")


def join_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect this process with the others of a distributed run, before JAX is used for anything else.

    Args:
        coordinator: ``HOST:PORT`` of the first process; None under Slurm, Open MPI or on a TPU pod, where JAX finds
            out by itself.
        num_processes: how many there are.
        process_id: which this is, from 0.

    Raises:
        InputError: if JAX cannot tell which processes there are, or the coordinator has no address.
    """
    if coordinator is not None:  # JAX would wait for minutes, then end the process
        host, _, port = coordinator.rpartition(":")
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
        except (OSError, OverflowError, ValueError):
            raise InputError(
                f"coordinator must be HOST:PORT of a machine that is found, got {coordinator!r}"
            ) from None
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join the other processes ({error}); outside a cluster give --coordinator HOST:PORT, "
            "--num-processes and --process-id"
        ) from error


def agreed(answer: Answer) -> Answer:
    """Return the first process's ``answer``, a pytree of numbers and arrays of the same shapes everywhere."""
    if jax.process_count() == 1:
        return answer
    return jax.tree.map(
        _from_bytes, multihost_utils.broadcast_one_to_all(jax.tree.map(_bytes, answer)), answer
    )


def _bytes(part: Any) -> UInt8[np.ndarray, " bytes"]:
    """Return a part as bytes: as a number it would be rounded to float32 wherever JAX is not allowed float64."""
    return np.frombuffer(np.asarray(part).tobytes(), np.uint8)


def _from_bytes(shared: UInt8[np.ndarray, " bytes"], mine: Any) -> Any:
    """Return the part of the kind of ``mine`` whose bytes are ``shared``."""
    kind = np.asarray(mine)
    part = np.asarray(shared).view(kind.dtype).reshape(kind.shape)
    return type(mine)(part) if isinstance(mine, bool | int | float) else part


def is_first_process() -> bool:
    """Return whether this process is the one that prints and writes."""
    return jax.process_index() == 0
