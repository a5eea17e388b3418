"""Plain text for an 80-column terminal: sentences, tables, and a spinner while it takes long.

In tables classes of equal count share a line.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Num

WIDTH = 80
#: Above this number of different counts the middle of the table is left out.
LINES = 24


def wrapped(text: str) -> str:
    """Return the text in lines of at most 80 columns, all but the first indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def count_range(counts: Num[np.ndarray, " K"]) -> str:
    """Return the largest and the smallest count in words, or the one that all classes share.

    Example:
        >>> count_range(np.array([20, 30])), count_range(np.array([20, 20]))
        ('30 to 20', '20')
    """
    largest, smallest = (
        f"{n:.6g}" if counts.dtype.kind == "f" else str(n) for n in (counts.max(), counts.min())
    )
    return f"{largest} to {smallest}" if largest != smallest else largest


def count_groups(counts: Num[np.ndarray, " K"]) -> list[tuple[float, Int[np.ndarray, " members"]]]:
    """Return (count, classes of that count), largest count first."""
    order = np.argsort(-counts, kind="stable")
    edges = np.flatnonzero(np.diff(counts[order])) + 1
    return [(counts[members[0]].item(), members) for members in np.split(order, edges)]


def class_table(counts: Num[np.ndarray, " K"], columns: dict[str, Any]) -> str:
    """Return one line per different count; a cell is the value its classes share, or their range.

    Args:
        counts: ``n_k``.
        columns: header to per-class vector (numbers or strings).
    """
    groups = count_groups(counts)
    lines = [
        [
            f"{count:.6g}" if isinstance(count, float) else str(count),
            str(len(members)),
            *(_cell(np.asarray(values)[members]) for values in columns.values()),
        ]
        for count, members in groups
    ]
    if len(lines) > LINES:
        hidden = len(lines) - LINES
        half = LINES // 2
        gap = [f"({hidden} more)", *[""] * (len(columns) + 1)]
        lines = [*lines[:half], gap, *lines[-half:]]
    return plain_table(["count", "classes", *columns], lines)


def _cell(values: np.ndarray) -> str:
    if values.dtype.kind in "US":
        distinct = sorted(set(values.tolist()))
        return distinct[0] if len(distinct) == 1 else "mixed"
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-5 * max(abs(low), abs(high)) or high - low < 1e-9:
        value = float(np.median(values))
        return f"{value:.5g}" if value == 0 or abs(value) > 1e-9 else f"{value:.0e}"
    return f"{low:.3g}..{high:.3g}"


def plain_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned table without colour or box characters."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for header in headers:
        table.add_column(header, justify="right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, no_color=True, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


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
