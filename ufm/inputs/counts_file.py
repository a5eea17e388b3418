"""Class counts from a file as it lies around: a table, a column, JSON, or the list of a data set's images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ufm.inputs.checks import InputError, label_order

#: Larger files are no list of counts.
MAX_BYTES = 2**28
HOW = "a file of counts holds one count a line, lines 'class,count', lines 'path label', or JSON"


def read_counts(path: Path) -> list[Any]:
    """Return the counts that a file holds, unchecked.

    One count a line, or several between commas; lines ``class,count`` with or without a header; lines ``path label``,
    one for each sample, as data sets come with; a JSON list, or an object of counts by class. Tables keep their
    order, labels and the names of an object are sorted, integers as integers.

    Raises:
        InputError: if there is no such file, or it holds nothing of the kind.
    """
    try:
        if not path.is_file():
            raise InputError(f"counts: there is no file {path}")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"counts file {path} is too large; {HOW}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as reason:
        if isinstance(reason, InputError):
            raise
        raise InputError(f"counts file {path} cannot be read ({reason}); {HOW}") from None
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("[", "{")):
        return _from_json(path, text)
    lines = [line for line in (raw.partition("#")[0].strip() for raw in text.splitlines()) if line]
    rows = [re.split(r"\s*[,;\t]\s*", line.strip(",;\t ")) for line in lines]
    if all(len(row) == 1 for row in rows):
        rows = [line.rsplit(maxsplit=1) for line in lines]
    counts = _from_rows(rows)
    if counts is None:
        raise InputError(f"counts file {path} is not understood; {HOW}")
    return counts


def _from_json(path: Path, text: str) -> list[Any]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"counts file {path} is no valid JSON ({reason}); {HOW}") from None
    if isinstance(held, Mapping):
        return [held[name] for name in sorted(held, key=label_order)]
    if not isinstance(held, list):
        raise InputError(f"counts file {path} must hold a list or an object of counts; {HOW}")
    return held


def _from_rows(rows: Sequence[Sequence[str]]) -> list[Any] | None:
    """Return the counts in a table, or None if it is none."""
    named = (
        re.fullmatch(r"labels?|class(es)?|targets?|categor(y|ies)", rows[0][-1], re.IGNORECASE)
        if rows
        else None
    )
    begins = len(rows) > 1 and not _is_whole(rows[0][-1]) and _is_whole(rows[1][-1])
    header = rows[0] if begins or named else None
    data = rows[1:] if header else rows
    if len(rows) == 1 and all(map(_is_whole, rows[0])):
        return [int(cell) for cell in rows[0]]
    widths = {len(row) for row in data}
    if widths == {1} and all(_is_whole(row[0]) for row in data):
        return [int(row[0]) for row in data]
    if widths != {2}:
        return None
    if header is None or not re.search(r"count|number|samples|size|^n$", header[-1], re.IGNORECASE):
        of_samples = header is not None or all(re.search(r"[/\\]|\.\w+$", row[0]) for row in data)
        if of_samples:
            tally = Counter(row[1] for row in data)
            return [tally[label] for label in sorted(tally, key=label_order)]
    return [int(row[1]) for row in data] if all(_is_whole(row[1]) for row in data) else None


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d{1,18}", text) is not None
