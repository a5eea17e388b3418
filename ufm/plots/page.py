"""A verification as one page of HTML that needs nothing else: no network, no script, the picture inside it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from ufm.plots.style import picture
from ufm.text import class_table
from ufm.verification.measured import VECTORS

if TYPE_CHECKING:
    from ufm.verification.report import Report

#: Classes listed as those furthest from their prediction.
LISTED = 12
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; }}
table {{ border-collapse: collapse; font-size: 0.875rem; }}
th, td {{ padding: 0.15rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
pre {{ overflow-x: auto; font-size: 0.8125rem; line-height: 1.35; }}
img {{ max-width: 100%; }}
.scroll {{ overflow-x: auto; }}
.fail {{ color: #a33b00; font-weight: bold; }}
.unresolved {{ color: #7a5500; }}
.info {{ color: #555; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def report_page(report: Report) -> str:
    """Return a report as an HTML page: verdict, table, picture, classes, what was assumed.

    Args:
        report: what `ufm.verify` returned.
    """
    parts = [
        "<h1>Measured and predicted geometry</h1>",
        _paragraph(report.title),
        report_fragment(report),
        *(_paragraph(sentence) for sentence in report.sentences()),
        "<h2>Classes</h2>",
        _picture(report),
        *_classes(report),
        "<h2>What was assumed</h2>",
        _list(_assumptions(report)),
        "<h2>What the rows measure</h2>",
        _list(f"{row.name}: {row.meaning}" for row in report.rows),
    ]
    return PAGE.format(title=escape(report.summary()), body="\n".join(parts))


def report_fragment(report: Report) -> str:
    """Return the verdict and the table of a report as a piece of HTML, as notebooks show it."""
    table = _table(
        ("property", "predicted", "measured", "error", "tolerance", "verdict"),
        (row.cells() for row in report.rows),
        [row.verdict for row in report.rows],
    )
    return f"<p><strong>{escape(report.summary())}</strong></p>\n{table}"


def _classes(report: Report) -> Iterable[str]:
    """Yield the classes furthest from their predictions, and all classes by their count."""
    if report.prediction is not None:
        yield from _furthest(report, report.prediction.collapsed)
    if report.unresolved_classes:
        yield _paragraph(f"Collapse cannot be decided for: {', '.join(map(str, report.unresolved_classes))}.")
    yield "<h3>All, by count</h3>"
    yield f"<pre>{escape(class_table(report.measured.counts, report.columns))}</pre>"
    if report.problem is None or report.problem.loss.labelled:
        yield _paragraph(
            "|h| is the norm of the class mean, |w| that of the classifier row, both without unit; margins are in "
            "nats. Columns with * are predicted."
        )


def _furthest(report: Report, collapsed: Bool[np.ndarray, " K"]) -> Iterable[str]:
    """Yield a table of the classes furthest from what is due to them."""
    counts, seen = report.measured.counts, report.columns
    due = {name: seen[f"{name}*"] for name in VECTORS}
    scales = {name: float(np.max(values)) or 1.0 for name, values in due.items()}
    distances = np.max([np.abs(seen[name] - due[name]) / scales[name] for name in due], axis=0)
    yield "<h3>Furthest from their prediction</h3>"
    lines = [
        [
            str(k),
            f"{counts[k]:g}",
            *(f"{seen[name][k]:.4g} ({due[name][k]:.4g})" for name in VECTORS),
            "yes" if collapsed[k] else "no",
            f"{distances[k]:.1e}",
        ]
        for k in np.argsort(-distances, kind="stable")[:LISTED].tolist()
    ]
    heads = (f"{name} (predicted)" for name in VECTORS)
    yield _table(("class", "samples", *heads, "to collapse", "distance"), lines)
    yield _paragraph(
        "Distance: of |h|, |w| or margin, the largest, over the largest predicted of all classes."
    )


def _assumptions(report: Report) -> Iterable[str]:
    if report.problem is not None:
        yield str(report.problem).replace("\n", "; ")
    if report.prediction is not None:
        yield f"Predicted by: {report.prediction.source}"
    yield report.basis
    yield from report.notes


def _picture(report: Report) -> str:
    data = base64.b64encode(picture(report.plot(), colours=256)).decode()
    words = "Gram matrices, norms and margins of the classes"
    if report.problem is not None and not report.problem.loss.labelled:
        words = "Spectra, norms and divergences of the contexts"
    if report.prediction is not None:
        words += ", measured beside predicted"
    return f'<img alt="{words}" src="data:image/png;base64,{data}">'


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    def cells(texts: Iterable[str], tag: str) -> str:
        return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)

    newline = "\n"
    rows = [f"<tr>{cells(heads, 'th')}</tr>"]
    rows += [
        f'<tr class="{kind}">{cells(line, "td")}</tr>'
        for line, kind in zip(lines, kinds or itertools.repeat(""), strict=False)
    ]
    return f'<div class="scroll"><table>\n{newline.join(rows)}\n</table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(sentences: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in sentences) + "\n</ul>"
