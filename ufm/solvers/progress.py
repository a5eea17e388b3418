"""How far one solve has come: the digits of the gap that are closed, of those that are asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ufm.text import progress_bar


@contextlib.contextmanager
def gap_progress(
    progress: bool | Callable[[dict[str, Any]], None], tol: float
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the function to call with every record: the caller's own, one that moves a bar, or nothing."""
    if callable(progress):
        yield progress
        return
    with progress_bar(bool(progress), "solving", total=1) as bar:

        def report(record: dict[str, Any]) -> None:
            gap = record["relative_gap"]
            closed = math.log(max(gap, tol)) / math.log(tol) if 0 < gap < 1 and tol < 1 else float(gap <= tol)
            bar.show(closed, f"step {record['step']}  gap {gap:.1e}  target {tol:.0e}")

        yield report
