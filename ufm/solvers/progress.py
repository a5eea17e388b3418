"""A progress bar for one solve: the digits of the gap that are closed, and those still to go."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress_bar(
    progress: bool | Callable[[dict[str, Any]], None], tol: float
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the function to call with every record: the caller's own, a rich progress bar, or nothing."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("solving"),
        BarColumn(bar_width=24),
        TextColumn("step {task.fields[step]}  gap {task.fields[gap]:.1e}  target {task.fields[tol]:.0e}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("solving", total=1.0, step=0, gap=math.inf, tol=tol)

        def report(record: dict[str, Any]) -> None:
            gap = record["relative_gap"]
            closed = math.log(max(gap, tol)) / math.log(tol) if 0 < gap < 1 and tol < 1 else float(gap <= tol)
            bar.update(task, completed=closed, step=record["step"], gap=gap)

        yield report
