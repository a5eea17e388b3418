"""Ctrl-C and SIGTERM: one sentence and exit code 130 or 143, within two seconds, from the first import on.

The first signal raises `Stopped` wherever the main thread is, so that whatever writes a file cleans up behind itself.
A long computation, or a library that swallows the exception, may not let that happen soon: a thread that the signal
wakes ends the process then. Nothing is torn down afterwards, which with threads still at work has crashed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

#: Seconds that the main thread has to stop by itself.
GRACE = 1.5
SENTENCES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_said = threading.Lock()


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to stop; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def listen() -> None:
    """Mind the signals from now on; only in the main thread of a process that is ours."""
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SENTENCES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for what a shell has put into the background
            signal.signal(number, _stop)
    sys.unraisablehook = _without_interrupts
    threading.Thread(target=_insist, args=(reading,), daemon=True, name="ufm-signals").start()


def _stop(number: int, frame: object) -> None:
    for each in SENTENCES:
        signal.signal(each, signal.SIG_IGN)  # what cleans up is left in peace
    raise Stopped(number)


def _insist(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in SENTENCES:
        pass
    time.sleep(GRACE)
    end(Stopped(number), True)


def _without_interrupts(fault: sys.UnraisableHookArgs) -> None:
    if not isinstance(fault.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(fault)


def end(stop: KeyboardInterrupt, program: bool) -> int:
    """Say why, and return the exit code; where this is the whole ``program``, leave without looking back."""
    number = getattr(stop, "number", signal.SIGINT)
    if program and not _said.acquire(blocking=False):
        time.sleep(60)  # the other thread is about to end the process
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"ufm: {SENTENCES[number]}", file=sys.stderr, flush=True)
    if program:
        files = sys.modules.get("ufm.inputs.files")
        for path in list(getattr(files, "UNFINISHED", ())):
            with contextlib.suppress(OSError):
                path.unlink()
        os._exit(128 + number)
    return 128 + number
