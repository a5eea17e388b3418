"""A progress bar for sweeps on stderr: members solved, rate, time left, and a line per failed member."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Progress:
    """Where a sweep tells how it goes. This one keeps silent."""

    def solved(self, members: int) -> None:
        """Say that some more members are solved."""

    def failed(self, line: str) -> None:
        """Say that a member failed."""


class _Bar(Progress):
    """Tells a `rich.progress.Progress` with one task."""

    def __init__(self, bar: Any, total: int, before: int) -> None:
        self.bar = bar
        self.task = bar.add_task("solving", total=total, completed=before, rate="")

    def solved(self, members: int) -> None:
        self.bar.update(self.task, advance=members)
        speed = self.bar.tasks[0].speed
        self.bar.update(self.task, rate="" if speed is None else f"{speed:.0f} per s")

    def failed(self, line: str) -> None:
        self.bar.console.print(line, style="yellow", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def sweep_progress(show: bool, total: int, before: int) -> Iterator[Progress]:
    """Yield where to report to: a rich progress bar, or nothing.

    Args:
        show: whether to show anything.
        total: number of members.
        before: how many of them an earlier run has solved.
    """
    if not show:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    rate = TextColumn("{task.fields[rate]}")
    columns = (
        TextColumn("solving"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        rate,
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, total, before)
