"""A sign of life on a terminal while something of unknown length is being done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def waiting(text: str, show: bool) -> Iterator[None]:
    """Show ``text`` with a spinner and the time elapsed on stderr; gone without a trace when the work is done."""
    if not show:
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(text, total=None)
        yield
