"""Files that the command line reads and writes: what can be wrong is found before any work is done."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int

from ufm.inputs.checks import InputError, OutputError, memory_bytes

HOW_TO_WRITE = "write it with numpy.savez(FILE, features=..., labels=..., weight=...)"
#: What a file that is being written is called at the end.
PARTIAL = ".partial"
#: Files that are being written, under the names that they have until they are whole.
UNFINISHED: set[Path] = set()


def open_regular(file: Path) -> IO[bytes]:
    """Open a file to read from, and nothing else: a pipe or a device could be read from for ever.

    Raises:
        InputError: if it is none.
        OSError: if it cannot be opened.
    """
    if file.exists() and not file.is_file():
        raise InputError(
            f"{file} must be a file, got {'a folder' if file.is_dir() else 'a pipe or a device'}"
        )
    return file.open("rb")


@contextlib.contextmanager
def open_archive(file: Path) -> Iterator[Any]:
    """Open an npz file to read arrays from: a regular file that is no larger inside than it says, or fits memory.

    Raises:
        InputError: if it is none, or declares more than there is.
        OSError: if it cannot be opened.
    """
    with open_regular(file) as stream:
        if not zipfile.is_zipfile(stream):
            raise InputError(f"{file} is not an npz archive; {HOW_TO_WRITE}")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            for member in archive.zip.infolist():
                _check_member(file, archive.zip, member)
            yield archive


def _check_member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise `InputError` if an array is declared larger than what the archive has of it, or than memory."""
    if member.file_size > memory_bytes():
        raise InputError(
            f"{file} holds an array of {member.file_size:,} bytes, more than this machine's memory"
        )
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        declared = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and declared != member.file_size - stream.tell():
            raise ValueError(f"{member.filename} declares {declared:,} bytes and has {member.file_size:,}")


@contextlib.contextmanager
def replacing(path: Path, name: str = "") -> Iterator[IO[bytes]]:
    """Write a file under another name, and put it in its place when it is whole and on the disk.

    The other name is by default the file's with ``.partial`` behind it.
    Whatever goes wrong, a signal included, what was there before is there still, and nothing else.
    """
    partial = path.with_name(name or path.name[:200] + PARTIAL)
    UNFINISHED.add(partial)
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    finally:
        UNFINISHED.discard(partial)


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
    path = path_of(name, path)
    try:
        if not path.parent.is_dir():
            raise InputError(f"{name} {path} needs a folder that exists: create {path.parent} first")
        there = path.exists()
        if (there and not path.is_file()) or not os.access(path if there else path.parent, os.W_OK):
            raise InputError(f"{name} {path} cannot be written there: choose another place")
    except OSError as reason:  # a name that is too long, links in a circle
        raise InputError(f"{name} {path} cannot be written there ({reason.strerror})") from None


def check_folder(name: str, path: Path) -> None:
    """Raise `InputError` if a folder at ``path`` could be neither made nor written to."""
    path = path_of(name, path)
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"{name} {path} cannot be a folder to write to: choose another place")
        if len(path.name.encode()) > 255:
            raise InputError(f"{name} must have a name of at most 255 characters, got {len(path.name)}")
    except OSError as reason:
        raise InputError(f"{name} {path} cannot be a folder there ({reason.strerror})") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with replacing(path) as stream:
        stream.write(data)


def write_output(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file, or raise `OutputError` saying why it cannot be written."""
    try:
        write(path)
    except (OSError, ValueError) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise OutputError(f"{path} could not be written ({why}): choose another place") from None
