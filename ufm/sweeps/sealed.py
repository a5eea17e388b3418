"""Files that are there completely or not at all, and whose every byte is covered by a checksum inside.

An archive is an ordinary ``.npz`` file: ``numpy.load`` reads it. The SHA-256 of all its bytes before stands at its
end, in the comment that a zip file may have. A description is JSON with the SHA-256 of its content as an entry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError
from ufm.inputs.files import PARTIAL, replacing

#: Length of a checksum in hexadecimal digits.
DIGITS = 64


class DamageError(ValueError):
    """A file is not what was written."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it; raise `OSError` if that fails, leaving what was there before."""
    with replacing(
        path, f".{path.name}.{secrets.token_hex(4)}{PARTIAL}"
    ) as stream:  # others may write here, too
        stream.write(content)


def write_archive(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a sealed archive; equal arrays make equal files."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * DIGITS
    content = buffer.getvalue()[:-DIGITS]
    write_whole(path, content + hashlib.sha256(content).hexdigest().encode())


class Archive:
    """A sealed archive, checked when it is opened and again whenever it has changed since.

    Args:
        path: the file.

    Raises:
        DamageError: if it is not as it was written.
        InputError: if it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._check()

    def _check(self) -> None:
        """Compare the whole file with its checksum, and remember which file that was."""
        try:
            with self.path.open("rb") as stream:
                self.signature = _signature(stream.fileno())
                content = stream.read()
        except OSError as reason:
            raise _unreadable(self.path, reason) from None
        if hashlib.sha256(content[:-DIGITS]).hexdigest().encode() != content[-DIGITS:]:
            raise DamageError("it does not match its checksum")

    def read(self, names: Iterable[str]) -> list[np.ndarray]:
        """Return some arrays; nothing else is read.

        Raises:
            DamageError: if the file has been damaged in the meantime, or an array is missing.
        """
        try:
            with self.path.open("rb") as stream:
                if _signature(stream.fileno()) != self.signature:
                    self._check()
                with np.load(stream, allow_pickle=False) as archive:  # checks the CRC-32 of what it reads
                    return [archive[name] for name in names]
        except OSError as reason:
            raise _unreadable(self.path, reason) from None
        except (KeyError, ValueError, zipfile.BadZipFile) as reason:
            raise DamageError(f"it cannot be read: {reason}") from None


def _unreadable(path: Path, reason: OSError) -> ValueError:
    """Return what to raise: something else in a file's place is damage, and what may not be read is whole perhaps."""
    if isinstance(reason, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return DamageError(f"it cannot be read: {reason.strerror}")
    return InputError(f"{path} cannot be read: {reason.strerror or reason}")


def _signature(file: int) -> tuple[int, ...]:
    status = os.fstat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON values with their checksum."""
    write_whole(path, _described(content))


def read_description(path: Path) -> dict[str, Any]:
    """Return the JSON values of a description, the checksum left out.

    Raises:
        DamageError: if it is not as it was written.
        FileNotFoundError: if it is not there.
    """
    try:
        written = path.read_bytes()
        content = json.loads(written)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise _unreadable(path, reason) from None
    except ValueError as reason:
        raise DamageError(f"it cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise DamageError("it does not match its checksum")
    old = "checksum" not in content and content.get("format") == 1  # the first format had none
    content.pop("checksum", None)
    if not old and written != _described(content):
        raise DamageError("it does not match its checksum")
    return content


def _described(content: Mapping[str, Any]) -> bytes:
    return json.dumps({"checksum": checksum(content), **content}, indent=1).encode()


def checksum(content: Any) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
