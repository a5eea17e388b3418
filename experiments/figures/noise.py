"""Label noise against minority collapse: how wrong labels move the collapse threshold of small classes.

Five majority classes of 500 R samples, five minority classes of 500; labels are wrong with probability f, any other
class alike. Soft targets say this exactly: row k is the law of the label of class k. With f K/(K-1) = e
they are (1-e) I + e/K, so that theorem (T) applies: a minority collapses when
sqrt(lambda_W lambda_H) >= (1 - e) sqrt(n_min (K-1)/K)/N. Noise lowers the threshold by the factor 1 - f K/(K-1), at
every ratio. Below, every cell is solved to a certified optimum; the curve is the closed form.

    python -m experiments.figures.noise [--resume] [--quick] [--suffix pdf]
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tyro
import xarray as xr
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, canvas
from ufm.sweeps import summary

MAJOR, MINORITY, CLASSES, DIM = 5, 500, 10, 12
#: Regularisation at which the minority of a noiseless problem of this ratio collapses.
CRITICAL = 40.0
RATIOS = (1, 3, 10, 30)
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE), "osD^"


def counts_of(ratio: float) -> list[int]:
    """Return the profile of a ratio."""
    return [round(MINORITY * ratio)] * MAJOR + [MINORITY] * (CLASSES - MAJOR)


def threshold(ratio: Any, flip: Any = 0.0) -> Any:
    """Return ``sqrt(lambda_W lambda_H)`` at which the minority collapses."""
    samples = MAJOR * MINORITY * (np.asarray(ratio) + 1)
    kept = 1 - np.asarray(flip) * CLASSES / (CLASSES - 1)
    return kept * np.sqrt(MINORITY * (CLASSES - 1) / CLASSES) / samples


def figure(dataset: xr.Dataset) -> Figure:
    """Return the figure: collapsed cells with the closed form between them, and margins against the flip rate."""
    with canvas(PAGE, 2.7) as drawn:
        cells, margins = drawn.subplots(1, 2)
        collapsed = dataset.collapsed.isel({"class": -1}).transpose("ratio", "flip")
        flips, ratios = collapsed.flip.values, collapsed.ratio.values
        shown = cells.pcolormesh(
            flips, ratios, collapsed.values.astype(float), cmap="Greys", vmin=0, vmax=2.5, shading="nearest"
        )
        shown.set_rasterized(True)
        dense = np.geomspace(ratios.min(), ratios.max(), 400)
        edge = (1 - threshold(CRITICAL) / threshold(dense)) * (CLASSES - 1) / CLASSES
        cells.plot(edge[edge >= 0], dense[edge >= 0], color=BLACK, label="closed form")
        cells.set_yscale("log")
        cells.set(xlabel="probability of a wrong label", ylabel="imbalance ratio $R$")
        cells.set_xlim(flips.min(), flips.max())
        cells.set_title("(a) minority collapsed (grey)", loc="left")
        for ratio, colour, marker in zip(RATIOS, COLOURS, MARKERS, strict=True):
            line = dataset.sel(ratio=ratio, method="nearest").isel({"class": -1})
            style = {"color": colour, "linewidth": 1.0, "zorder": 1}
            margins.plot(flips, line.predicted_margins, **style)
            margins.plot(
                flips, line.margins, marker, color=colour, markersize=3.2, markerfacecolor="none",
                label=f"$R = {float(line.ratio):.3g}$",
            )  # fmt: skip
        margins.set(xlabel="probability of a wrong label", ylabel="minority margin (nats)")
        margins.set_title("(b) what is left of the margin", loc="left")
        handles, labels = margins.get_legend_handles_labels()
        drawn.legend(*cells.get_legend_handles_labels(), loc="outside lower left")
        drawn.legend(handles, labels, loc="outside lower right", ncols=4)
    return drawn


def main(outputs: OmitArgPrefixes[Outputs] = Outputs(), resume: bool = False, quick: bool = False) -> int:
    """Solve by sweep, compare with the closed form, draw; return 1 if anything is uncertified or off.

    Args:
        outputs: where results and the picture go.
        resume: go on with the data set of an earlier run.
        quick: 5 x 8 cells instead of 18 x 28.
    """
    results = outputs.of("noise", quick)
    ratios = np.unique(np.r_[RATIOS, np.geomspace(1, 60, 5 if quick else 25).round(2)])
    axes = {
        "targets.flip": np.linspace(0, 0.9, 6 if quick else 19).round(3).tolist(),
        "ratio": [{"label": float(ratio), "counts": counts_of(ratio)} for ratio in ratios],
    }
    fixed = {"dim": DIM, "nuclear_weight": float(threshold(CRITICAL)), "tol": 1e-10}
    axes["targets.flip"] = axes["targets.flip"][:-1]  # at (K-1)/K = 0.9 labels say nothing
    dataset = ufm.sweep(fixed, axes, out=results.folder / "sweep", resume=resume, progress=True).load()
    table = {
        f"R = {ratio}": {f"flip {flip}": float(threshold(ratio, flip)) for flip in (0.0, 0.1, 0.2, 0.4)}
        for ratio in RATIOS
    }
    report = {
        "members": dataset.status.size,
        "certified": int(dataset.certified.sum()),
        "mismatches": int((dataset.collapse_mismatches > 0).sum()),
        "largest objective deviation": float(np.abs(dataset.objective_deviation).max()),
        "sqrt(lambda_W lambda_H)": fixed["nuclear_weight"],
        "thresholds": table,
    }
    results.save(report, "report")
    results.draw(figure(dataset))
    print(summary(dataset))
    print(json.dumps(report, indent=1))
    return int(report["certified"] < report["members"])


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
