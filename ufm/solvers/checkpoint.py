"""Checkpoints: the whole state of a solve in one file, from which it goes on exactly as it would have.

The file is an npz, replaced atomically: whenever the process dies there is a whole one, the last. Feature rows that
only fill a layout are not saved, so a run may go on with another number of devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ufm.inputs.checks import CheckpointError, InputError
from ufm.inputs.claim import claimed
from ufm.inputs.files import open_archive, replacing
from ufm.model.processes import agreed, is_first_process
from ufm.solvers.batch import Alone
from ufm.solvers.run import Run

#: Changes when the contents of a checkpoint do.
FORMAT = 3


@dataclasses.dataclass
class Checkpoints:
    """Writes checkpoints of one run now and then, and takes it up again from the last.

    Args:
        path: the file.
        every: least number of seconds between two checkpoints.
        key: what the run is about (`ufm.solvers.fingerprint`); a checkpoint of another is refused.
    """

    path: Path
    every: float
    key: str

    def __post_init__(self) -> None:
        if not self.path.parent.is_dir():
            raise InputError(f"checkpoint must be a file in a folder that exists, got {self.path}")
        self.written = time.monotonic()
        self.last_step: int | None = None
        self.failure = ""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from the file while the block runs; raise `InputError`, in every process, if one has it."""
        refused = ""
        with contextlib.ExitStack() as stack:
            if is_first_process():
                claim = self.path.with_name(self.path.name[:200] + ".claim")
                try:
                    stack.enter_context(claimed(claim, work=self.path))
                except InputError as error:
                    refused = str(error)
            if agreed(bool(refused)):
                raise InputError(refused or f"the first process cannot have checkpoint {self.path}")
            yield

    def begin_anew(self) -> None:
        """Raise `InputError` if the file exists: hours of another run may be in it."""
        if self.path.is_dir():
            raise InputError(f"checkpoint must be a file, got the folder {self.path}")
        if self.path.exists():
            raise InputError(f"checkpoint {self.path} exists; resume from it, give another file or delete it")

    def keep(self, device: Alone, run: Run, now: bool = False) -> None:
        """Write a checkpoint if it is time to, or ``now``; not twice at one step."""
        if self.last_step == run.steps:
            return
        if agreed(now or time.monotonic() - self.written >= self.every):
            self.write(device, run)
            self.written = time.monotonic()

    def write(self, device: Alone, run: Run) -> None:
        """Write a checkpoint; every process then knows of a failure, which may be over by the next."""
        leaves = [_on_host(leaf, device) for leaf in jax.tree.leaves(device.state)]
        failure = self._replace(run, leaves) if is_first_process() else None
        if agreed(failure is not None):
            self.failure = failure or f"the first process cannot write checkpoint {self.path}"
        else:
            self.failure, self.last_step = "", run.steps

    def require_written(self, solution: Any) -> None:
        """Raise `CheckpointError`, which holds the solution, if the last checkpoint could not be written."""
        if self.failure:
            error = CheckpointError(self.failure)
            error.solution = solution
            raise error

    def _replace(self, run: Run, leaves: list[np.ndarray]) -> str | None:
        """Put a new file in the place of the old one; return why that failed, if it did."""
        about = {"format": FORMAT, "key": self.key, "run": run.before_look}
        arrays: dict[str, Any] = {"about": json.dumps(about)}
        arrays.update((f"leaf{i}", leaf) for i, leaf in enumerate(leaves))
        try:
            with replacing(self.path) as stream:
                np.savez(stream, **arrays)
        except OSError as error:
            kept = (
                "there is none" if self.last_step is None else f"the one of step {self.last_step} is intact"
            )
            return f"cannot write checkpoint {self.path}: {error.strerror or error}; {kept}"
        return None

    def restore(self, device: Alone, run: Run) -> None:
        """Put a run where the checkpoint left it, just before a look; raise `InputError` if it does not fit."""
        about, leaves = self._read()
        if about["key"] != self.key:
            raise InputError(
                f"{self.path} belongs to another run: problem, level, solver, start and precision must be the same; "
                "use another file"
            )
        now, structure = jax.tree.flatten(device.state)
        fits = len(leaves) == len(now) and all(
            leaf.shape[1:] == old.shape[1:] and leaf.dtype == old.dtype
            for leaf, old in zip(leaves, now, strict=True)
        )
        if not fits:
            raise InputError(f"{self.path} was written by another version of the solver; use another file")
        remembered = about["run"]
        if (
            not isinstance(remembered, dict)
            or set(remembered) != set(run.memory)
            or not remembered["history"]
        ):
            raise InputError(
                f"{self.path} is not a whole checkpoint (the record of the run); use another file"
            )
        device.state = jax.tree.unflatten(structure, map(_on_device, leaves, now))
        run.memory = remembered
        self.last_step = run.steps

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        try:
            with open_archive(self.path) as file:
                about = json.loads(str(file["about"]))
                leaves = [file[f"leaf{i}"] for i in range(len(file.files) - 1)]
            if about["format"] == FORMAT:
                about = {name: about[name] for name in ("format", "key", "run")}
        except FileNotFoundError:
            raise InputError(
                f"there is no checkpoint {self.path} to resume from; leave out resume to begin"
            ) from None
        except PermissionError:
            raise InputError(
                f"checkpoint {self.path} may not be read: its permissions are for others"
            ) from None
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # zip, header, compression, type, JSON: everything that a file can be wrong in
            raise InputError(f"{self.path} is not a whole checkpoint ({error}); use another file") from None
        if about["format"] != FORMAT:
            raise InputError(f"{self.path} was written by another version of the solver; use another file")
        return about, leaves


def _on_host(leaf: jax.Array, device: Alone) -> np.ndarray:
    """Return a leaf of the state in NumPy, without the rows that only fill the layout."""
    if not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    whole = np.asarray(leaf)
    if device.layout is not None and whole.ndim == 2 and len(whole) == device.layout.rows:
        return whole[: device.stack.labels.shape[1]]
    return whole


def _on_device(leaf: np.ndarray, old: jax.Array) -> jax.Array:
    """Return a saved leaf as the one it replaces is laid out."""
    if leaf.ndim and len(leaf) < len(old):
        leaf = np.pad(leaf, [(0, len(old) - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))
    return jax.device_put(leaf, old.sharding)
