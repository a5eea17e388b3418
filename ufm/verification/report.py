"""What `ufm.verify` found: rows of predicted against measured, as plain text, as JSON and as a figure."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ufm.inputs.files import replacing
from ufm.model.problem import Problem
from ufm.text import Readable, finite, plain_table, wrapped
from ufm.theory.prediction import Prediction
from ufm.verification.measured import VECTORS, Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["pass", "fail", "unresolved", "info"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One property.

    Attributes:
        name: short name, as in the literature where there is one.
        meaning: what it measures, in a sentence.
        predicted: predicted value; None if nothing is predicted.
        measured: measured value; None if it could not be measured.
        error: their distance, in the terms of the tolerance; None if nothing is compared.
        tolerance: largest error that passes; None if nothing is judged.
        verdict: ``"pass"``, ``"fail"``, ``"unresolved"`` (the tolerance is too wide for a verdict) or
            ``"info"``.
        where: the class (or pair of classes) with the largest error relative to its tolerance, if there is
            one.
        note: anything else that a reader should know.
    """

    name: str
    meaning: str
    predicted: float | int | None
    measured: float | int | None
    error: float | int | None
    tolerance: float | int | None
    verdict: Verdict
    where: str = ""
    note: str = ""

    def cells(self) -> list[str]:
        """Return the row as text: name, predicted, measured, error, tolerance, verdict."""
        values = [_number(self.predicted), _number(self.measured), _short(self.error), _short(self.tolerance)]
        return [self.name, *values, self.verdict]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report(Readable):
    """The outcome of a verification. ``str(report)`` is the table.

    Attributes:
        rows: one per property.
        title: what was verified, in a sentence.
        basis: where the tolerances come from, in a sentence.
        notes: further sentences, among them why there is no closed form if there is none.
        measured: the measured geometry; of contexts, a `ufm.verification.contexts.MeasuredContexts`.
        prediction: the predicted one, or None.
        problem: the problem, or the one fitted to the data if none was given, or None.
        unresolved_classes: classes whose collapse cannot be decided.
        history: records of the solver, for the figure.
        estimate: effective decays, if they were estimated from the data; ready for JSON.

    The rows make a table of pandas by ``pandas.DataFrame(report.to_dict()["rows"])``; margins are in nats, norms have
    no unit.

    Source: `ufm.verify`; every row's ``meaning``.

    Example:
        >>> import ufm
        >>> report = ufm.verify(ufm.solve(Problem([30, 20], dim=4, weight_decay=1e-2, feature_decay=1e-3)))
        >>> report["margins"].verdict, report.counts()["fail"]
        ('pass', 0)
    """

    rows: tuple[Row, ...]
    title: str
    basis: str
    notes: tuple[str, ...]
    measured: Measured | Any
    prediction: Prediction | None
    problem: Problem | None
    unresolved_classes: tuple[int, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    estimate: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether no row fails and at least one passes."""
        verdicts = {row.verdict for row in self.rows}
        return "fail" not in verdicts and "pass" in verdicts

    def __getitem__(self, name: str) -> Row:
        """Return the row called ``name``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row called {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def by_name(self, names: Sequence[str]) -> Report:
        """Return the report with the names of classes in the place of their numbers; as it is if there are none."""
        if not names:
            return self

        def named(row: Row) -> Row:
            where = re.sub(r"\b\d+\b(?! more)", lambda number: names[int(number[0])], row.where)
            return dataclasses.replace(row, where=where)

        first = ", ".join(f"{k} {name}" for k, name in enumerate(names[:12])) + (
            ", ..." if names[12:] else ""
        )
        note = f"Labels are names, numbered in alphabetical order as the rows of weight must be: {first}."
        return dataclasses.replace(self, rows=tuple(map(named, self.rows)), notes=(*self.notes, note))

    def counts(self) -> dict[str, int]:
        """Return how many rows have each verdict."""
        kinds: tuple[Verdict, ...] = ("pass", "fail", "unresolved", "info")
        return {kind: sum(row.verdict == kind for row in self.rows) for kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the large arrays, ready for JSON; numbers that are not finite become None."""
        return {
            "passed": self.passed,
            "title": self.title,
            "basis": self.basis,
            "notes": list(self.notes),
            "verdicts": self.counts(),
            "unresolved_classes": list(self.unresolved_classes),
            "theorem": None if self.prediction is None else self.prediction.theorem,
            "estimate": finite(self.estimate),
            "rows": [finite(dataclasses.asdict(row)) for row in self.rows],
            "classes": finite(self.measured.to_dict()),
        }

    def sentences(self) -> list[str]:
        """Return what is to be said about single rows: why they fail, and notes."""
        return [sentence for row in self.rows for sentence in _row_sentences(row)]

    def summary(self) -> str:
        """Return the verdict in one sentence."""
        counts = self.counts()
        parts = [f"{number} {_VERBS[kind]}" for kind, number in counts.items() if number]
        return f"{'PASSED' if self.passed else 'NOT PASSED'}: of {len(self.rows)} rows {', '.join(parts)}."

    def table(self, *, meanings: bool = False) -> str:
        """Return the report as plain text, at most 80 columns wide, without colour.

        Args:
            meanings: add what every row measures.
        """
        parts = [wrapped(self.title), _rows_as_text(self.rows), wrapped(self.summary()), wrapped(self.basis)]
        parts += [wrapped(note) for note in self.notes]
        parts += [wrapped(sentence) for sentence in self.sentences()]
        if meanings:
            parts += ["What the rows measure"]
            parts += [wrapped(f"{row.name}: {row.meaning}") for row in self.rows]
        return "\n".join(parts)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        from ufm.plots.page import report_fragment

        return report_fragment(self)

    @property
    def columns(self) -> dict[str, Any]:
        """What a table by count shows: what is measured, and beside it with a star what is predicted."""
        shown = {}
        for name, seen in self.measured.columns.items():
            shown[name] = seen
            if self.prediction is not None:
                shown[f"{name}*"] = getattr(self.prediction, VECTORS[name])
        return shown

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return table, picture, classes and assumptions as one self-contained page of HTML.

        Args:
            path: where to write it; None for nowhere.
        """
        from ufm.plots.page import report_page

        page = report_page(self)
        if path is not None:
            with replacing(Path(path)) as stream:
                stream.write(page.encode())
        return page

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        style: Literal["paper", "screen"] = "paper",
        panel: str | None = None,
    ) -> Figure:
        """Return `ufm.plots.report.report_figure`, written to ``path`` (PNG, PDF or SVG) if given.

        Args:
            path: where to write it.
            style: ``"paper"``, at the width of a page, or ``"screen"``: half as large again with the same type.
            panel: letter of a single panel to write, at the width of a column; None for all.
        """
        from ufm.plots.contexts import context_figure
        from ufm.plots.report import report_figure
        from ufm.plots.style import save_figure

        labelled = self.problem is None or self.problem.loss.labelled
        figure = report_figure(self) if labelled else context_figure(self)
        if path is not None:
            save_figure(figure, path, style=style, panel=panel)
        return figure


_VERBS = {"pass": "pass", "fail": "fail", "unresolved": "are unresolved", "info": "are for information"}


def _row_sentences(row: Row) -> Iterable[str]:
    if row.verdict == "fail":
        place = f" (worst: {row.where})" if row.where else ""
        yield f"{row.name} fails{place}: {row.meaning}"
    if row.note:
        yield f"{row.name}: {row.note}"


def _rows_as_text(rows: Iterable[Row]) -> str:
    headers = ["property", "predicted", "measured", "error", "tolerance", "verdict"]
    return plain_table(headers, [row.cells() for row in rows], words=("property", "verdict"))


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _short(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.1e}"
