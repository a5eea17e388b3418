"""A progress bar for sweeps on stderr: members solved, rate, time left, and a line per failed member."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """What a sweep tells while it runs."""

    def solved(self, members: int) -> None:
        """Say that some more members are solved."""

    def failed(self, line: str) -> None:
        """Say that a member failed."""


class _Silent:
    def solved(self, members: int) -> None:
        """Say nothing."""

    def failed(self, line: str) -> None:
        """Say nothing."""


@contextlib.contextmanager
def sweep_progress(show: bool, total: int, before: int) -> Iterator[Progress]:
    """Yield where to report to: a rich progress bar, or nothing.

    Args:
        show: whether to show anything.
        total: number of members.
        before: how many of them an earlier run has solved.
    """
    if not show:
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    rate = TextColumn("{task.fields[rate]:.0f} per s")
    columns = (
        TextColumn("solving"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        rate,
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("solving", total=total, completed=before, rate=0.0)

        class Shown:
            def solved(self, members: int) -> None:
                bar.update(task, advance=members)
                bar.update(task, rate=bar.tasks[0].speed or 0.0)

            def failed(self, line: str) -> None:
                console.print(line, style="yellow", highlight=False, soft_wrap=True)

        yield Shown()
