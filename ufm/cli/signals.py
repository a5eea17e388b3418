"""Ctrl-C and SIGTERM: one sentence and exit code 130 or 143, at once, from the first import on.

Nothing is raised: an exception out of nowhere has crashed libraries in their imports, and been swallowed by others.
The process just ends, without tearing down what threads are still at work on. That loses nothing, since every file is
written under another name until it is whole (`ufm.inputs.files.replacing`): what is not whole is removed here.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys

SENTENCES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SHOW_CURSOR = "\r\x1b[2K\x1b[?25h"  # which a progress bar hides
_ending = _thread.allocate_lock()  # `threading` is imported when the handlers are there


def listen() -> None:
    """Mind the signals from now on; in the main thread of a process that is ours."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    except ValueError:  # in another thread than the main one
        return
    for number in SENTENCES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for what a shell has put into the background
            signal.signal(number, lambda number, _: end(number))
    import threading

    threading.Thread(target=_watch, args=(reading,), daemon=True, name="ufm-signals").start()


def _watch(reading: int) -> None:
    """End the process while the main thread is in a long computation, where no handler runs."""
    while (number := os.read(reading, 1)[0]) not in SENTENCES:
        pass
    end(number)


def end(number: int) -> None:
    """Say why, remove what is not whole, and leave without looking back."""
    if not _ending.acquire(blocking=False):
        return  # the other thread, or what this signal has interrupted, is about to end the process
    files = sys.modules.get("ufm.inputs.files")
    for path in list(getattr(files, "UNFINISHED", ())):
        try:  # noqa: SIM105 - no import may be needed here: this one may have been interrupted
            path.unlink()
        except OSError:
            pass
    try:
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        os.write(2, f"{cursor}ufm: {SENTENCES[signal.Signals(number)]}\n".encode())
    except (OSError, ValueError, AttributeError):
        pass
    os._exit(128 + number)
