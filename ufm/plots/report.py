"""The figure of a verification: learned beside predicted, class by class.

The last panel is how the solver got there, or, without a history, every error over its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.metrics.collapse import gram_cosines
from ufm.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PAGE,
    PURPLE,
    SHADE,
    SKY,
    VERMILLION,
    YELLOW,
    canvas,
    round_below,
)
from ufm.theory.prediction import Prediction
from ufm.verification.measured import MatrixName
from ufm.verification.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Makes rows of a K x K matrix.
_Rows = Callable[[np.ndarray], np.ndarray]
#: Gram matrices of more classes are shown in blocks, one pixel each.
LARGEST_IMAGE = 100
#: Up to this many classes every class has its tick label.
LABELLED_CLASSES = 12
#: Heights of the two rows of panels in inches, and of one row name in the panel of tolerances.
ABOVE, BELOW, ROW = 1.9, 2.3, 0.115


def report_figure(report: Report) -> Figure:
    """Return the figure of a verification: learned beside predicted, class by class, and how it was reached.

    Above, Gram matrices of class means and of classifier rows; below, norms, margins with collapsed classes
    shaded, and either the convergence (for a solution with a history) or every error over its tolerance.
    Classes are in the order of decreasing counts.

    Args:
        report: what `ufm.verify` returned.

    Returns:
        A matplotlib figure; write it with `ufm.plots.style.save_figure`.
    """
    prediction, judged = report.prediction, [] if len(report.history) > 1 else judged_rows(report)
    below = max(BELOW, 1.3 + ROW * len(judged))
    with canvas(PAGE, ABOVE + below) as figure:
        halves: Any = figure.subfigures(2, 1, height_ratios=(ABOVE, below))
        order = np.argsort(-report.measured.counts, kind="stable")
        _gram_panels(halves[0], report, prediction, order)
        *panels, last = halves[1].subplots(1, 4)
        _class_panels(panels, report, prediction, order)
        halves[1].legend(*panels[0].get_legend_handles_labels(), loc="outside lower left")
        last_panel(last, report)
        if last.get_legend_handles_labels()[0]:
            halves[1].legend(*last.get_legend_handles_labels(), loc="outside lower right", ncols=4)
        titled = [axes for axes in figure.axes if axes.get_title(loc="left")]
        for letter, axes in zip("abcdefgh", titled, strict=False):
            axes.set_title(f"({letter}) {axes.get_title(loc='left')}", loc="left")
    return figure


def _gram_panels(
    figure: Any, report: Report, prediction: Prediction | None, order: Int[np.ndarray, " K"]
) -> None:
    """Measured beside predicted on one colour scale; without prediction, Gram matrices beside cosines."""
    panels = figure.subplots(1, 4)
    measured = report.measured
    contents: list[tuple[str, _Rows, str, _Rows]] = []
    sides: tuple[tuple[str, MatrixName, np.ndarray], ...] = (
        ("h", "gram_features", measured.norms),
        ("w", "gram_weights", measured.weight_norms),
    )
    for letter, name, norms in sides:
        product = rf"$\langle {letter}_k, {letter}_l\rangle$"
        seen = partial(measured.rows, name)
        if prediction is None:
            cosine = rf"$\cos({letter}_k, {letter}_l)$"
            contents.append((product, seen, cosine, partial(_cosines, seen, norms)))
        else:
            contents.append((f"{product} measured", seen, "predicted", partial(prediction.rows, name)))
    for pair, (title, first, other_title, second) in zip((panels[:2], panels[2:]), contents, strict=True):
        blocks = [_blocks(rows, order) for rows in (first, second)]
        if prediction is not None:
            _image(pair[0], title, blocks[0], order, _colours(blocks))
            shown = _image(pair[1], other_title, blocks[1], order, _colours(blocks))
            _colour_bar(figure, shown, list(pair), len(order))
            continue
        scales = (_colours(blocks[:1]), {"cmap": "PuOr", "vmin": -1.0, "vmax": 1.0})
        for axes, text, block, scale in zip(pair, (title, other_title), blocks, scales, strict=True):
            _colour_bar(figure, _image(axes, text, block, order, scale), [axes], len(order))
    panels[0].set_ylabel(_class_label(len(order)))


def _image(
    axes: Axes, title: str, block: np.ndarray, order: Int[np.ndarray, " K"], colours: dict[str, Any]
) -> Any:
    edge = len(order) + 0.5
    shown = axes.imshow(block, extent=(0.5, edge, edge, 0.5), interpolation="nearest", **colours)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(True)
    _class_axis(axes, order, "x")
    _class_axis(axes, order, "y")
    return shown


def _colour_bar(figure: Any, shown: Any, axes: list[Axes], num_classes: int) -> None:
    """A colour bar with round ticks; on the asinh scale near the ends, at a tenth of that, and zero."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.03, aspect=16)
    bar.outline.set_linewidth(0.4)
    if hasattr(shown.norm, "linear_width"):
        top = round_below(shown.norm.vmax)
        near_zero = shown.norm(top / 10) < 0.62  # the labels would overlap
        ticks = top * (np.array([-1.0, 0.0, 1.0]) if near_zero else np.array([-1.0, -0.1, 0.0, 0.1, 1.0]))
        bar.set_ticks(ticks, labels=[f"{tick:.12g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
        bar.minorticks_off()
    else:
        bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    if num_classes > LARGEST_IMAGE:
        bar.set_label("largest in block")


def _blocks(rows: _Rows, order: Int[np.ndarray, " K"]) -> Float[np.ndarray, "m m"]:
    """Return the matrix in this order, or of each square block the entry of largest size: a diagonal stays visible.

    Only as many rows as a block has are formed at a time.
    """
    K = len(order)
    size = -(-K // LARGEST_IMAGE)
    if size == 1:
        return rows(order)[:, order]
    blocks = []
    for start in range(0, K, size):
        strip = rows(order[start : start + size])[:, order]
        strip = np.pad(strip, ((0, 0), (0, -K % size))).reshape(len(strip), -1, size)
        tiles = strip.swapaxes(0, 1).reshape(strip.shape[1], -1)
        blocks.append(np.take_along_axis(tiles, np.abs(tiles).argmax(axis=1)[:, None], axis=1)[:, 0])
    return np.stack(blocks)


def _cosines(rows: _Rows, norms: Float[np.ndarray, " K"], classes: Int[np.ndarray, " rows"]) -> np.ndarray:
    """Return the cosines of some classes with all."""
    return gram_cosines(rows(classes), norms[classes], norms)


def _colours(blocks: list[np.ndarray]) -> dict[str, Any]:
    """Sequential from zero for non-negative matrices, diverging around zero for the others."""
    values = np.concatenate([block.ravel() for block in blocks])
    high = float(np.abs(values).max()) or 1.0
    if values.min() < -1e-6 * high:
        from matplotlib.colors import AsinhNorm

        # off the diagonal entries are smaller by a factor of the number of classes
        width = high * max(0.5 / max(len(block) for block in blocks), 0.005)
        return {"cmap": "PuOr", "norm": AsinhNorm(linear_width=width, vmin=-high, vmax=high)}
    return {"cmap": "cividis", "vmin": 0.0, "vmax": high}


def _class_axis(axes: Axes, order: Int[np.ndarray, " K"], which: str) -> None:
    """Label every class if there are few, ranks otherwise."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    K = len(order)
    if K <= LABELLED_CLASSES:
        axis.set_ticks(np.arange(1, K + 1), [str(k) for k in order])
    else:
        from matplotlib.ticker import MaxNLocator

        axis.set_major_locator(MaxNLocator(nbins=3, integer=True, steps=[1, 2, 5, 10]))
    if which == "x":
        axes.set_xlabel(_class_label(K))


def _class_label(K: int) -> str:
    return "class, by count" if K <= LABELLED_CLASSES else "rank by count"


def _class_panels(
    panels: list[Axes], report: Report, prediction: Prediction | None, order: Int[np.ndarray, " K"]
) -> None:
    measured = report.measured
    contents = (
        ("class means", r"norm $|h_k|$", measured.norms, "norms", BLUE),
        ("classifier rows", r"norm $|w_k|$", measured.weight_norms, "weight_norms", GREEN),
        ("margins", r"margin $M_k$ (nats)", measured.margins, "margins", VERMILLION),
    )
    for axes, (title, label, values, name, colour) in zip(panels, contents, strict=True):
        wanted = None if prediction is None else getattr(prediction, name)[order]
        _shade(axes, _collapsed(report, prediction)[order])
        _dots_on_curve(axes, values[order], wanted, colour)
        axes.set_title(title, loc="left")
        axes.set_ylabel(label)
        _class_axis(axes, order, "x")


def _collapsed(report: Report, prediction: Prediction | None) -> Bool[np.ndarray, " K"]:
    return np.zeros(len(report.measured.norms), dtype=bool) if prediction is None else prediction.collapsed


def _shade(axes: Axes, collapsed: Bool[np.ndarray, " K"]) -> None:
    """Shade every run of collapsed classes."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], collapsed, [False]]).astype(int)))
    for number, (start, stop) in enumerate(edges.reshape(-1, 2)):
        label = "predicted to collapse" if number == 0 else None
        axes.axvspan(start + 0.5, stop + 0.5, color=SHADE, linewidth=0, zorder=0, label=label)


def _dots_on_curve(axes: Axes, measured: np.ndarray, predicted: np.ndarray | None, colour: str) -> None:
    K = len(measured)
    rank = np.arange(1, K + 1)
    size, width = (14.0, 1.0) if K <= LABELLED_CLASSES else (8.0, 0.7)
    axes.scatter(
        rank, measured, s=size, color=colour, label="measured", zorder=2, linewidths=0, rasterized=K > 500
    )
    if predicted is not None:
        # few classes: dots on the curve; many: a thin curve on the band of dots
        above = 1 if K <= LABELLED_CLASSES else 3
        axes.step(rank, predicted, where="mid", color=BLACK, label="predicted", zorder=above, linewidth=width)
    top = max(float(measured.max()), 0.0 if predicted is None else float(predicted.max()))
    low = min(float(measured.min()), 0.0)
    axes.set_xlim(0.5, K + 0.5)
    axes.set_ylim(low - 0.04 * (top - low or 1.0), top + 0.12 * (top - low or 1.0))


def convergence_panel(axes: Axes, history: tuple[dict[str, Any], ...]) -> None:
    """Relative gap, residual and every recorded metric of neural collapse over the steps; escape moves are lines."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    labels = {"relative_gap": "relative duality gap", "residual": "KKT residual"}
    names = [name for name in labels if name in history[0]]
    names += [name for name in history[0] if name.startswith("nc") and name not in names]
    colours = (BLACK, BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW)
    styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 2)))
    for number, name in enumerate(names[: len(colours)]):
        steps = np.array([record["step"] for record in history if name in record], dtype=float)
        values = np.array([record[name] for record in history if name in record], dtype=float)
        good = np.isfinite(values) & (values > 0)
        if np.any(good):
            label = labels.get(name, name.upper())
            axes.semilogy(steps[good], values[good], color=colours[number], ls=styles[number], label=label)
    escapes = [record["step"] for record in history if "escape" in (record.get("event") or "")]
    for number, step in enumerate(escapes):
        axes.axvline(step, color=BLACK, lw=0.6, ls=(0, (1, 2)), label=None if number else "escape move")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_title("convergence", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("relative size")


def last_panel(axes: Axes, report: Report) -> None:
    """How the solver got there, or without a history every error over its tolerance."""
    if len(report.history) > 1:
        convergence_panel(axes, report.history)
    else:
        tolerance_panel(axes, judged_rows(report))


def judged_rows(report: Report) -> list[tuple[Row, float]]:
    """Every judged row that has a tolerance, and its error over it."""
    judged = [row for row in report.rows if row.verdict in ("pass", "fail")]
    return [(row, row.error / row.tolerance) for row in judged if row.tolerance and row.error is not None]


def tolerance_panel(axes: Axes, pairs: list[tuple[Row, float]]) -> None:
    """Every judged row: its error over its tolerance; right of the line it fails."""
    from matplotlib.ticker import LogLocator, NullLocator

    if not pairs:
        axes.axis("off")
        axes.set_title("nothing judged", loc="left")
        return
    rows = [row for row, _ in pairs]
    ratios = np.array([max(ratio, 1e-6) for _, ratio in pairs])
    height = np.arange(len(rows))[::-1]
    failed = np.array([row.verdict == "fail" for row in rows])
    axes.scatter(ratios[~failed], height[~failed], s=10, color=BLUE, linewidths=0)
    axes.scatter(ratios[failed], height[failed], s=16, color=VERMILLION, marker="X", linewidths=0)
    axes.axvline(1.0, color=BLACK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=3))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(height, [row.name for row in rows])
    axes.set_xlabel("error / tolerance\n(dots pass, crosses fail)", loc="right")
    axes.set_title("verdicts", loc="left")
