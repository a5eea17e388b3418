"""Flags and streams of a process that solves together with others."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Annotated

from tyro.conf import arg

from ufm.inputs.checks import InputError


@dataclasses.dataclass(frozen=True)
class ProcessFlags:
    """Several processes that share the samples of one problem, each with its own devices."""

    distributed: Annotated[
        bool, arg(help="this is one of several processes; Slurm, MPI and TPU pods say which")
    ] = False
    coordinator: Annotated[str | None, arg(help="elsewhere: HOST:PORT of the first process")] = None
    num_processes: Annotated[int | None, arg(help="elsewhere: how many processes there are")] = None
    process_id: Annotated[int | None, arg(help="elsewhere: which this is, from 0")] = None

    def join(self) -> bool:
        """Join the others, if there are any; return whether this is the process that prints and writes."""
        given = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed:
            if any(part is not None for part in given):
                raise InputError("coordinator, num_processes and process_id need --distributed")
            return True
        from ufm.model.processes import is_first_process, join_processes

        _keep_stdout_for_python()
        join_processes(*given)
        return is_first_process()


def _keep_stdout_for_python() -> None:
    """Send to stderr what compiled libraries write to stdout, as those that connect processes do."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = ours
