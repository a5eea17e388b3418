"""Figure of the benchmark: gap against seconds for every solver, step time against the machine, cost against size."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, canvas

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
}
FLOOR = 1e-10


def figure(results: dict[str, list[Record]]) -> Figure:
    """Draw all that was measured.

    Args:
        results: records by part: race, roofline, scaling; any may be empty.
    """
    raced = dict.fromkeys((record["workload"], record["level"]) for record in results["race"])
    panels: list[tuple[str, Any]] = [("race", key) for key in raced]
    panels += [("roofline", None)] if results["roofline"] else []
    panels += [("scaling", axis) for axis in dict.fromkeys(r["axis"] for r in results["scaling"])]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with canvas(PAGE, 2.4 * rows + 0.5) as drawn:
        axes = np.ravel(drawn.subplots(rows, columns, squeeze=False))
        for place, (part, key) in zip(axes, panels, strict=False):
            PANELS[part](place, results[part], key)
        for unused in axes[len(panels) :]:
            unused.set_axis_off()
        if results["race"]:
            handles, labels = axes[0].get_legend_handles_labels()
            drawn.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
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
    axes.set(
        xscale="log", yscale="log", ylim=(FLOOR / 2, 20), xlabel="seconds", ylabel="relative objective gap"
    )
    axes.set_title(f"{key[0]}\n{key[1]} level", loc="left", fontsize=8)


def _roofline_panel(axes: Axes, records: list[Record], _: None) -> None:
    parts = {"traffic_seconds": "reading, writing", "products_seconds": "products", "seconds": "step"}
    places = np.arange(len(records))
    for offset, ((field, label), colour) in enumerate(zip(parts.items(), (ORANGE, GREEN, BLUE), strict=True)):
        heights = [1e3 * record[field] for record in records]
        axes.bar(places + 0.27 * (offset - 1), heights, 0.25, color=colour, label=label)
    axes.set_xticks(places, [f"{r['workload']}\n{r['precision']}" for r in records], fontsize=6)
    axes.set(ylabel="ms", yscale="log")
    axes.set_title("one step against the machine", loc="left", fontsize=8)
    axes.legend(frameon=False, fontsize=6)


def _scaling_panel(axes: Axes, records: list[Record], axis: str) -> None:
    chosen = [record for record in records if record["axis"] == axis]
    sizes = np.array([record["value"] for record in chosen], dtype=float)
    times = 1e3 * np.array([record["seconds"] for record in chosen])
    axes.plot(sizes, times, "o-", color=BLUE, ms=4, lw=1.2)
    linear = times[-1] * sizes / sizes[-1]
    together = axis == "problems together"
    if not together:
        axes.plot(sizes, linear, color=BLACK, lw=0.8, ls=":", label="linear")
        axes.legend(frameon=False, fontsize=6)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms per problem" if together else "ms per step")
    axes.set_title(f"cost against {axis}", loc="left", fontsize=8)


PANELS: dict[str, Any] = {"race": _race_panel, "roofline": _roofline_panel, "scaling": _scaling_panel}
