"""Figures of sweeps: curves over one axis, maps over two; solved beside predicted. Nothing here solves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ufm.inputs.checks import InputError
from ufm.inputs.files import write_output, write_whole
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, SUFFIXES, VERMILLION, Style, canvas, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Axis labels of the commonest dimensions.
LABELS = {
    "ratio": "imbalance ratio $R$",
    "nuclear_weight": r"$\sqrt{\lambda_W \lambda_H}$",
    "weight_decay": r"$\lambda_W$",
    "feature_decay": r"$\lambda_H$",
    "dim": "feature dimension $d$",
    "n_max": "samples of the largest class",
}
#: What maps are drawn of.
MAPPED = ("num_collapsed", "predicted_num_collapsed", "collapse_mismatches", "certified", "relative_gap")
#: Most figures drawn of one sweep.
MOST_FIGURES = 24


def draw_figures(
    dataset: xr.Dataset, folder: Path, suffix: str = ".png", style: Style = "paper", panel: str | None = None
) -> list[Path]:
    """Draw the figures of a data set into a folder and return their paths.

    One figure for every combination of the axes that are not drawn along: the two longest numeric axes span a map,
    one alone carries curves. What has not been computed yet is left blank.

    Args:
        dataset: what `ufm.sweep` returned.
        folder: where to put them.
        suffix: ``.png``, or ``.pdf`` or ``.svg`` for vector graphics.
        style: ``"paper"``, or ``"screen"``: half as large again.
        panel: letter of the one panel to draw, from the left, at the width of a column; None for all.

    Raises:
        InputError: if there is no numeric axis, nothing computed yet, too many figures to draw, or the folder cannot
            be written to.
    """
    if suffix not in SUFFIXES:
        raise InputError(f"suffix must be one of {', '.join(SUFFIXES)}, got {suffix!r}")
    if not np.any(dataset.status != "missing"):
        raise InputError(f"{folder} holds no results yet")
    for name in MAPPED:
        dataset[name].load()  # once, and not for every part anew
    paths = []
    for name, part in slices(dataset, drawn_axes(dataset)):
        if np.all(part.status == "missing"):
            continue
        path = folder / f"{name}{suffix}"
        data = picture(sweep_figure(part), suffix, style=style, panel=panel)
        write_output(path, functools.partial(write_whole, data=data))
        paths.append(path)
    return paths


def drawn_axes(dataset: xr.Dataset) -> list[str]:
    """Return the at most two longest axes with numeric coordinates, in the order of the data set.

    Raises:
        InputError: if there is none.
    """
    numeric = [
        str(dim)
        for dim in dataset.status.dims
        if dataset[dim].dtype.kind in "if" and dim != "seed" and dataset.sizes[dim] > 1
    ]
    if not numeric:
        raise InputError("a figure needs an axis with at least two numbers, such as counts.ratio")
    longest = sorted(numeric, key=lambda dim: -dataset.sizes[dim])[:2]
    return [dim for dim in numeric if dim in longest]


def slices(dataset: xr.Dataset, drawn: list[str]) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield a file name and the part of the data set for every combination of the other axes."""
    others = [str(dim) for dim in dataset.status.dims if dim not in drawn]
    count = int(np.prod([dataset.sizes[dim] for dim in others], dtype=np.int64))
    if count > MOST_FIGURES:
        raise InputError(
            f"this sweep would need {count} figures, {MOST_FIGURES} are drawn at most; select a part of it"
        )
    for number, positions in enumerate(itertools.product(*(range(dataset.sizes[dim]) for dim in others))):
        where = dict(zip(others, positions, strict=True))
        part = dataset.isel(where)
        words = ", ".join(f"{dim} = {part[dim].item()}" for dim in others)
        yield "sweep" if count == 1 else f"sweep-{number:02d}", part.assign_attrs(title=words)


def sweep_figure(dataset: xr.Dataset) -> Figure:
    """Return the figure of a data set with one or two axes: curves, or maps of the number of collapsed classes."""
    curves = dataset.status.ndim == 1
    with canvas(PAGE, 2.0 if curves else 2.3) as figure:
        if curves:
            _curves(figure, list(figure.subplots(1, 4)), dataset)
        else:
            draw_phases(figure, list(figure.subplots(1, 3)), dataset)
        if dataset.attrs.get("title"):
            figure.suptitle(dataset.attrs["title"])
    return figure


def _curves(figure: Figure, panels: list[Axes], dataset: xr.Dataset) -> None:
    """Margins and norms of the largest and the smallest class, and how many classes collapse."""
    from matplotlib.ticker import MaxNLocator

    (dim,) = (str(dim) for dim in dataset.status.dims)
    x = dataset[dim].values
    counts = dataset.class_counts.values
    largest = np.argmax(np.where(np.isnan(counts), -np.inf, counts), axis=1)
    ends = {"largest class": largest, "smallest class": _last_smallest(counts)}
    quantities = {
        "margin (nats)": ("margins", "predicted_margins"),
        r"feature norm $|h_k|$": ("norms", "predicted_norms"),
        r"classifier norm $|w_k|$": ("weight_norms", "predicted_weight_norms"),
    }
    for axes, (label, (name, predicted)) in zip(panels, quantities.items(), strict=False):
        for (who, where), colour, marker in zip(ends.items(), (BLUE, ORANGE), "os", strict=True):
            rows = np.arange(len(x))
            wanted = dataset[predicted].values[rows, where]
            label_once = "predicted" if who == "largest class" else None
            axes.plot(x, wanted, color=BLACK, linewidth=0.9, zorder=1, label=label_once)
            axes.plot(x, dataset[name].values[rows, where], marker, color=colour, markersize=3, label=who)
        axes.set_ylabel(label)
    panels[3].plot(x, _known(dataset), color=BLACK, linewidth=0.9, drawstyle="steps-mid")
    solved = np.where(dataset.status == "missing", np.nan, dataset.num_collapsed)
    panels[3].plot(x, solved, "D", color=GREEN, markersize=3, label="all classes")
    panels[3].set_ylabel("collapsed classes")
    panels[3].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = [handle for axes in (panels[0], panels[3]) for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    for axes in panels:
        axes.set_xlabel(LABELS.get(dim, dim))
        if logarithmic(x):
            axes.set_xscale("log")
            _label_sparsely(axes.xaxis, x)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))


def _last_smallest(counts: np.ndarray) -> np.ndarray:
    """Index of the last class with the smallest count, class padding left out."""
    reversed_counts = np.where(np.isnan(counts), np.inf, counts)[:, ::-1]
    return counts.shape[1] - 1 - np.argmin(reversed_counts, axis=1)


def draw_phases(figure: Figure, panels: list[Axes], dataset: xr.Dataset) -> None:
    """Draw maps of the number of collapsed classes, solved and predicted, mismatches marked, and of the gap.

    Args:
        figure: the figure that holds the panels.
        panels: two or three axes.
        dataset: a data set with two axes; the first is drawn upwards.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    x, y = (_edges(dataset[dim].values) for dim in dataset.status.dims[::-1])
    most = dataset.sizes["class"]
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 1, most + 1)))
    levels = BoundaryNorm(np.arange(-0.5, most + 1), most + 1)
    missing = dataset.status.values == "missing"
    maps = {"solved": np.where(missing, np.nan, dataset.num_collapsed.values), "predicted": _known(dataset)}
    for axes, (title, values) in zip(panels, maps.items(), strict=False):
        shown = axes.pcolormesh(x, y, values, cmap=colours, norm=levels, rasterized=True)
        axes.set_title(title, loc="left")
    bar = figure.colorbar(shown, ax=panels[:2], label="collapsed classes", ticks=_ticks(most))
    bar.minorticks_off()
    _mark_mismatches(panels[0], dataset)
    if len(panels) > 2:
        gaps = np.log10(np.maximum(dataset.relative_gap.values, 1e-16))
        shown = panels[2].pcolormesh(x, y, gaps, cmap="magma", vmin=-16, vmax=-6, rasterized=True)
        panels[2].set_title("certificate", loc="left")
        figure.colorbar(
            shown, ax=panels[2], label=r"$\log_{10}$ relative gap", ticks=[-16, -14, -12, -10, -8, -6]
        )
    for number, axes in enumerate(panels):
        _map_axes(axes, dataset)
        if number:
            axes.set_ylabel("")


def _mark_mismatches(axes: Axes, dataset: xr.Dataset) -> None:
    """Cross out members whose collapsed classes differ from the prediction, circle those that are not certified."""
    vertical, horizontal = (dataset[dim].values for dim in dataset.status.dims)
    cases = {
        "differs": (dataset.collapse_mismatches.values > 0, "x", VERMILLION),
        "not certified": (~dataset.certified.values & (dataset.status.values != "missing"), "o", ORANGE),
    }
    for label, (mask, marker, colour) in cases.items():
        rows, columns = np.nonzero(mask)
        if len(rows):
            face: Any = colour if marker == "x" else "none"
            axes.plot(
                horizontal[columns],
                vertical[rows],
                marker,
                color=colour,
                markerfacecolor=face,
                markersize=4,
                label=label,
            )
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _map_axes(axes: Axes, dataset: xr.Dataset) -> None:
    vertical, horizontal = (str(dim) for dim in dataset.status.dims)
    axes.set_xlabel(LABELS.get(horizontal, horizontal))
    axes.set_ylabel(LABELS.get(vertical, vertical))
    if logarithmic(dataset[horizontal].values):
        axes.set_xscale("log")
        _label_sparsely(axes.xaxis, dataset[horizontal].values)
    if logarithmic(dataset[vertical].values):
        axes.set_yscale("log")
        _label_sparsely(axes.yaxis, dataset[vertical].values)


def _label_sparsely(axis: Axis, values: np.ndarray) -> None:
    """Label powers of ten, over short ranges also three or two and five times them: matplotlib's would overlap."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

    low, high = np.min(values), np.max(values)
    subs = (1, 2, 5) if high < 12 * low else (1, 3) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=5))
    powers = LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))
    powers.set_axis(axis)
    plain = low > 1e-4 and high < 1e4 and high < 100 * low
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}") if plain else powers)
    axis.set_minor_formatter(NullFormatter())


def _known(dataset: xr.Dataset) -> np.ndarray:
    """Predicted number of collapsed classes, NaN where there is none: no closed form, and no other start."""
    predicted = dataset.predicted_num_collapsed.values
    return np.where(predicted >= 0, predicted, np.nan)


def logarithmic(values: np.ndarray) -> bool:
    """Return whether positive values are spread more evenly in their logarithms."""
    if len(values) < 3 or np.min(values) <= 0:
        return False
    logs, plain = np.diff(np.sort(np.log(values))), np.diff(np.sort(values))
    return bool(np.std(logs) / np.mean(logs) < np.std(plain) / np.mean(plain))


def _edges(values: np.ndarray) -> np.ndarray:
    """Return the borders between neighbouring values, on a logarithmic scale if that is theirs."""
    if logarithmic(values):
        return np.exp(_edges_of(np.log(values)))
    return _edges_of(values.astype(np.float64))


def _edges_of(values: np.ndarray) -> np.ndarray:
    middles = (values[1:] + values[:-1]) / 2
    return np.concatenate([[1.5 * values[0] - values[1] / 2], middles, [1.5 * values[-1] - values[-2] / 2]])


def _ticks(most: int) -> np.ndarray:
    return np.unique(np.linspace(0, most, min(most, 10) + 1).round().astype(int))
