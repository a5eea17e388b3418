"""Who is at work in a folder or on a file: a file names the processes; a second run is refused while they live.

The claim of a folder stays when a run ends, empty of holders. A process that died without saying so leaves its name
behind; on its own machine that is noticed, and its claim passes to the next.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ufm.inputs.checks import InputError
from ufm.inputs.files import UNFINISHED

#: Processes may share a folder: (which, of how many). All that are at work there must have been told the same number.
Share = tuple[int, int]


@contextlib.contextmanager
def claimed(path: Path, share: Share = (0, 1), work: Path | None = None) -> Iterator[bool]:
    """Hold the claim ``path`` while the block runs; yield whether nobody else holds it.

    Args:
        path: the file that names who is at work.
        share: which of how many processes this is.
        work: the file that is claimed, whose claim is removed with the run; its folder, whose claim stays, if None.

    Raises:
        InputError: naming who holds it, if that is somebody else's whole or the same share.
    """
    mine = _myself() | {"share": list(share)}
    with _holders(path) as holders:
        others = [holder for holder in holders if _lives(holder)]
        for other in others:
            if other["share"][1] != share[1] or other["share"][0] == share[0]:
                raise InputError(_refusal(path, other, work))
        holders[:] = [*others, mine]
    if work is not None:
        UNFINISHED.add(path)
    try:
        yield not others
    finally:
        with contextlib.suppress(OSError, InputError), _holders(path) as holders:
            holders[:] = [holder for holder in holders if holder != mine]
            if work is not None:
                path.unlink()
        UNFINISHED.discard(path)


@contextlib.contextmanager
def _holders(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the list of holders and write it back, one process at a time where the system can tell them apart."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as reason:
        raise InputError(f"{path} cannot be written: {reason.strerror or reason}") from None
    with os.fdopen(file, "r+b", buffering=0) as stream:
        with contextlib.suppress(
            ImportError, OSError
        ):  # not on every system, not on every network file system
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        if not os.fstat(file).st_nlink:  # removed by the run that it was of, just before
            raise InputError(f"{path} has just been given up by another run; begin again")
        before = stream.read()
        try:
            holders = json.loads(before)["holders"] if before.strip() else []
            held = [dict(holder) for holder in holders]
            for holder in held:
                _ = holder["pid"] + holder["share"][0] + holder["share"][1], holder["host"] + holder["since"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(f"{path} is damaged; delete it if no other run is at work there") from None
        yield held
        content = json.dumps({"holders": held}).encode().ljust(len(before))
        try:  # in place and in one go, so that no kill leaves half of it
            if os.pwrite(file, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as reason:
            if not before:
                path.unlink()
            raise InputError(f"{path} cannot be written: {reason.strerror or reason}") from None


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": pid, "host": socket.gethostname(), "born": _born(pid), "since": since}


def _lives(holder: dict[str, Any]) -> bool:
    """Return whether a holder may be at work: on another machine nobody can tell."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return holder.get("born") is None or _born(holder["pid"]) == holder["born"]


def _born(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one of the same number; None where unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _refusal(path: Path, holder: dict[str, Any], work: Path | None) -> str:
    who = f"process {holder['pid']} on {holder['host']}"
    place, kind = (path.parent, "folder") if work is None else (work, "file")
    sentence = f"{place} is in use: {who} has been at work there since {holder['since']}"
    if holder["host"] == socket.gethostname():
        return f"{sentence}; wait for it, stop it, or choose another {kind}"
    return f"{sentence}; wait for it, or delete {path} if that process is no more"
