"""Plain text for an 80-column terminal: sentences, tables, and how far long work has come.

In tables classes of equal count share a line. Progress goes to stderr and only where it is asked for.
"""

from __future__ import annotations

import contextlib
import html
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Num

Item = TypeVar("Item")

WIDTH = 80
#: Above this number of different counts the middle of the table is left out.
LINES = 24
#: Entries of a column below this share of its largest are rounding, and printed as 0.
ROUNDING = 1e-13


class Readable:
    """What prints as a few lines that a person reads: with ``print``, at a prompt and in a notebook."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def wrapped(text: str, break_long_words: bool = True) -> str:
    """Return the text in lines of at most 80 columns, all but the first indented.

    Args:
        text: a paragraph.
        break_long_words: keep even words that are longer than a line within it; paths are better left whole.

    Example:
        >>> print(wrapped("class " * 20))
        class class class class class class class class class class class class class
          class class class class class class class
    """
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=break_long_words
    )


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
    groups, rounded = count_groups(counts), [_without_rounding(np.asarray(each)) for each in columns.values()]
    lines = [
        [
            f"{count:.6g}" if isinstance(count, float) else str(count),
            str(len(members)),
            *(_cell(values[members]) for values in rounded),
        ]
        for count, members in groups
    ]
    if len(lines) > LINES:
        hidden = len(lines) - LINES
        half = LINES // 2
        gap = [f"({hidden} more)", *[""] * (len(columns) + 1)]
        lines = [*lines[:half], gap, *lines[-half:]]
    return plain_table(["count", "classes", *columns], lines)


def _without_rounding(values: np.ndarray) -> np.ndarray:
    """Return a column with 0 for what is nothing beside its largest entry: a margin of 1e-16 is no margin."""
    if values.dtype.kind != "f":
        return values
    return np.where(np.abs(values) < ROUNDING * np.max(np.abs(values), initial=0.0), 0.0, values)


def _cell(values: np.ndarray) -> str:
    if values.dtype.kind in "US":
        distinct = sorted(set(values.tolist()))
        return distinct[0] if len(distinct) == 1 else "mixed"
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-5 * max(abs(low), abs(high)) or high - low < 1e-9:
        value = float(np.median(values))
        return f"{value:.5g}" if value == 0 or abs(value) > 1e-9 else f"{value:.0e}"
    return f"{low:.3g}..{high:.3g}"


def finite(value: Any) -> Any:
    """Return nested data with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_table(headers: Sequence[str], lines: Iterable[Sequence[str]], words: Sequence[str] = ()) -> str:
    """Return an aligned table without colour or box characters, at most 80 columns wide.

    Args:
        headers: one per column.
        lines: cells as text; those too wide are folded.
        words: headers of columns that hold words and are left-justified. If there are any, only the first column
            is folded.

    Example:
        >>> print(plain_table(["class", "margin"], [["10", "4.5"], ["2", "0"]]))
        class  margin
           10     4.5
            2       0
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.width = WIDTH - 1 if words else None
    for number, header in enumerate(headers):
        table.add_column(
            header,
            justify="left" if header in words else "right",
            overflow="fold",
            no_wrap=bool(words) and number > 0,
            ratio=1 if words and number == 0 else None,
        )
    for line in lines:
        table.add_row(*line)
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, no_color=True, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


class Progress:
    """Where work says how far it has come. This one keeps silent."""

    def advance(self, more: int = 1) -> None:
        """Say that some more pieces of the work are done."""

    def show(self, share: float, words: str) -> None:
        """Say which share of the work is done, and anything in words."""

    def line(self, text: str) -> None:
        """Write a line that stays."""


class _Bar(Progress):
    """Tells a `rich.progress.Progress` with one task."""

    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task

    def advance(self, more: int = 1) -> None:
        self.bar.update(self.task, advance=more)
        state = self.bar.tasks[0]
        rate = "" if state.speed is None else f", {state.speed:.3g} per s"
        self.bar.update(self.task, words=f"{state.completed:.0f}/{state.total:.0f}{rate}")

    def show(self, share: float, words: str) -> None:
        self.bar.update(self.task, completed=share, words=words)

    def line(self, text: str) -> None:
        self.bar.console.print(text, style="yellow", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(
    show: bool, text: str, total: int | None = None, done: int = 0, stays: bool = False
) -> Iterator[Progress]:
    """Yield where to say how far the work has come: a bar on stderr, or nothing.

    Args:
        show: whether to show anything.
        text: what is being done.
        total: pieces of work, 1 for shares; None if unknown: the bar then only says that something happens.
        done: pieces done before.
        stays: leave the bar when the work is done; otherwise it goes without a trace.
    """
    if not show:
        yield Progress()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.fields[words]}"),
        progress.TimeElapsedColumn() if total in (None, 1) else progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=not stays) as bar:
        yield _Bar(bar, bar.add_task(text, total=total, completed=done, words=""))


def track(items: Iterable[Item], text: str, total: int | None = None, show: bool = True) -> Iterator[Item]:
    """Yield the items under a progress bar.

    Args:
        items: anything to iterate over.
        text: what is being done with them.
        total: how many there are; by default their length.
        show: whether to show the bar.
    """
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with progress_bar(show, text, count, stays=True) as bar:
        for item in items:
            yield item
            bar.advance()
