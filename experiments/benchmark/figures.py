"""Figure of the benchmark: gap against seconds for every solver, step time against the machine, cost against size.

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, SKY, canvas

Record = dict[str, Any]

LINES = {
    "ufm": (BLUE, "-", 2.2),
    "ufm, 64 together": (BLUE, ":", 1.2),
    "scipy L-BFGS-B": (ORANGE, "-", 1.2),
    "scipy, rescaled": (ORANGE, ":", 1.2),
    "jaxopt PG": (GREEN, "-", 1.2),
    "jaxopt PG, rescaled": (GREEN, ":", 1.2),
    "jaxopt LBFGSB": (GREEN, "--", 1.2),
    "torch SGD + clamp": (PURPLE, "-", 1.2),
    "torch Adam + clamp": (PURPLE, "--", 1.2),
    "SCS": (SKY, "-", 1.2),
    "Clarabel": (BLACK, "-", 1.2),
}
FLOOR = 1e-10
#: Panels of races in a row.
RACES = 4


def figure(results: dict[str, list[Record]]) -> Figure:
    """Draw all that was measured.

    Args:
        results: records by part: race, roofline, scaling; any may be empty.
    """
    raced = dict.fromkeys((record["workload"], record["level"]) for record in results["race"])
    races: list[tuple[str, Any]] = [("race", key) for key in raced]
    others: list[tuple[str, Any]] = [
        ("roofline", name) for name in dict.fromkeys(r["workload"] for r in results["roofline"])
    ]
    others += [("scaling", axis) for axis in dict.fromkeys(r["axis"] for r in results["scaling"])]
    rows = [races[start : start + RACES] for start in range(0, len(races), RACES)] + (
        [others] if others else []
    )
    with canvas(PAGE, 0.5 + 1.7 * len(rows)) as drawn:
        parts = np.ravel(drawn.subfigures(len(rows), 1, squeeze=False))
        for part, row in zip(parts, rows, strict=True):
            for axes, (kind, key) in zip(np.ravel(part.subplots(1, len(row))), row, strict=True):
                PANELS[kind](axes, results[kind], key)
        if races:
            entries = {
                label: handle
                for axes in drawn.axes[: len(races)]
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            drawn.legend(entries.values(), entries, loc="outside upper center", ncols=4)
        bars = [axes for axes in drawn.axes if axes.containers]
        if bars:
            drawn.legend(*bars[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def _race_panel(axes: Axes, records: list[Record], key: tuple[str, str]) -> None:
    for record in records:
        if (record["workload"], record["level"]) != key:
            continue
        course = np.array(record["course"], dtype=float)
        colour, style, width = LINES[record["solver"]]
        gaps = np.minimum.accumulate(np.clip(course[:, 2], FLOOR, 1e3))
        seconds = np.maximum(course[:, 0], 1e-4)
        marker = "o" if len(course) == 1 else ""
        (line,) = axes.plot(seconds, gaps, style, color=colour, lw=width, marker=marker, ms=4)
        line.set(label=record["solver"], drawstyle="steps-post")
    axes.axhline(1e-8, color=BLACK, lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", ylim=(FLOOR / 2, 20), xlabel="seconds", ylabel="relative gap")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.minorticks_off()
    axes.set_title(f"{key[0]}\n{key[1]} level", loc="left")


def _roofline_panel(axes: Axes, records: list[Record], workload: str) -> None:
    chosen = [record for record in records if record["workload"] == workload]
    parts = {
        "traffic_seconds": "reading, writing alone",
        "products_seconds": "products alone",
        "seconds": "one step",
    }
    places = np.arange(len(chosen))
    for offset, ((field, label), colour) in enumerate(zip(parts.items(), (ORANGE, GREEN, BLUE), strict=True)):
        heights = [1e3 * record[field] for record in chosen]
        axes.bar(places + 0.27 * (offset - 1), heights, 0.25, color=colour, label=label)
    axes.set_xticks(places, [record["precision"].removeprefix("float") + " bits" for record in chosen])
    axes.set_ylabel("ms")
    axes.set_title(f"{workload}\none step", loc="left")


def _scaling_panel(axes: Axes, records: list[Record], axis: str) -> None:
    chosen = [record for record in records if record["axis"] == axis]
    sizes = np.array([record["value"] for record in chosen], dtype=float)
    times = 1e3 * np.array([record["seconds"] for record in chosen])
    axes.plot(sizes, times, "o-", color=BLUE, ms=3, lw=1.0)
    together = axis == "problems together"
    if not together:
        axes.plot(sizes, times[-1] * sizes / sizes[-1], color=BLACK, lw=0.8, ls=":")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="together" if together else axis,
        ylabel="ms per problem" if together else "ms per step",
    )
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.minorticks_off()
    axes.set_title("cost of\na problem" if together else "cost,\ndotted: linear", loc="left")


PANELS: dict[str, Any] = {"race": _race_panel, "roofline": _roofline_panel, "scaling": _scaling_panel}
