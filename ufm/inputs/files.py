"""Files that the command line reads and writes: what can be wrong is found before any work is done."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ufm.inputs.checks import InputError

REQUIRED, OPTIONAL = ("features", "labels", "weight"), ("bias",)
HOW_TO_WRITE = "write it with numpy.savez(FILE, features=..., labels=..., weight=...)"


def read_layer(file: Path) -> dict[str, Any]:
    """Return the arrays of a last layer from an npz file: features (N, d), labels (N,), weight (K, d)[, bias (K,)].

    Raises:
        InputError: if there is no such file, it is no npz, or an array is missing; saying what to do.
    """
    try:
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise InputError(f"{file} is not an npz archive; {HOW_TO_WRITE}")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                missing = [name for name in REQUIRED if name not in archive]
                if missing:
                    held = ", ".join(archive.files) or "nothing"
                    raise InputError(f"{file} lacks {', '.join(missing)} (it holds {held}); {HOW_TO_WRITE}")
                return {name: archive[name] for name in (*REQUIRED, *OPTIONAL) if name in archive}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {file}; `ufm solve --save {file.name}` would write one") from None
    except Exception as reason:
        raise InputError(f"{file} is damaged or holds objects ({reason}); {HOW_TO_WRITE}") from None


def path_of(name: str, value: Any) -> Path:
    """Return ``value`` as a path, or raise `InputError`."""
    try:
        path = Path(os.fsdecode(value))
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a path, got {value!r}") from None
    if "\0" in str(path):
        raise InputError(f"{name} must be a path without NUL characters, got {str(path)!r}")
    return path


def counts_of(labels: np.ndarray, num_classes: int) -> Int[np.ndarray, " K"]:
    """Return the number of samples of every class, or raise `InputError` if labels are not in ``0..K-1``."""
    from ufm.inputs.arrays import label_array

    if labels.size == 0:
        raise InputError("labels must have at least one entry, got none")
    return np.bincount(label_array(labels, num_classes), minlength=num_classes)


def check_output(name: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Raise `InputError` if ``path`` could not be written: before the work whose result it is for.

    Args:
        name: of the flag, for the message.
        path: None for no output.
        suffixes: the formats that there are; any if empty.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{name} must end in {', '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"{name} {path} needs a folder that exists: create {path.parent} first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{name} {path} cannot be written there: choose another place")


def write_output(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file, or raise `InputError` saying why it cannot be written."""
    try:
        write(path)
    except (OSError, ValueError) as reason:
        raise InputError(f"{path} could not be written ({reason}): choose another place") from None
