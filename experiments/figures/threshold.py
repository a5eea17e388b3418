"""Through the collapse threshold: what the minority does as the imbalance ratio R passes R_0, for several lambda.

Five majority classes of 5,000 samples, five minority classes of 5,000/R. For each sqrt(lambda_W lambda_H) there is a
critical ratio R_0 (`ufm.theory.critical_imbalance_ratio`, majority fixed) beyond which all minority features are zero
and all minority classifier rows are the same: feature norm and logit margin vanish and the cosine between minority
rows becomes one. Dots are solved to a certified global optimum from random starts, curves are closed forms.

    python -m experiments.figures.threshold [--resume] [--quick] [--suffix pdf]
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
from ufm.plots.style import BLUE, GREEN, ORANGE, PAGE, PURPLE, canvas
from ufm.sweeps import summary
from ufm.theory import critical_imbalance_ratio

MAJORITY, CLASSES, DIM = 5000, 10, 16
#: Critical ratios that the regularisation is chosen for.
CRITICAL = (4.0, 12.0, 40.0, 120.0)
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE), "osD^"
QUANTITIES = {
    "norm": (r"minority feature norm $|h_k|$", "norms"),
    "margin": ("minority margin (nats)", "margins"),
    "cosine": ("cosine of minority classifier rows", "weight_cosines"),
}


def counts_of(minority: int) -> list[int]:
    """Return the profile with this many samples in every minority class."""
    return [MAJORITY] * (CLASSES // 2) + [minority] * (CLASSES // 2)


def decays() -> dict[float, float]:
    """Return sqrt(lambda_W lambda_H) for every critical ratio: collapse at sqrt(n_min (K-1)/K)/N."""
    found = {}
    for ratio in CRITICAL:
        minority = MAJORITY / ratio
        samples = CLASSES / 2 * (MAJORITY + minority)
        found[ratio] = float(np.sqrt(minority * (CLASSES - 1) / CLASSES) / samples)
    return found


def axes_of(points: int) -> dict[str, Any]:
    """Return the axes: imbalance ratios that whole numbers of samples have, and the regularisations."""
    minorities = np.unique(np.rint(MAJORITY / np.geomspace(1, 500, points)).astype(int))[::-1]
    ratios = [{"label": MAJORITY / int(n), "counts": counts_of(int(n))} for n in minorities]
    return {"nuclear_weight": list(decays().values()), "ratio": ratios}


def curves(nuclear_weight: float) -> dict[str, np.ndarray]:
    """Return the closed forms of a minority class at every ratio that whole numbers of samples have."""
    found: dict[str, list[float]] = {"ratio": [], "norm": [], "margin": [], "cosine": []}
    for minority in np.unique(np.rint(MAJORITY / np.geomspace(1, 500, 600)).astype(int)):
        prediction = ufm.predict(ufm.Problem(counts_of(int(minority)), DIM, nuclear_weight, nuclear_weight))
        gram = prediction.gram_weights
        found["ratio"].append(MAJORITY / int(minority))
        found["norm"].append(float(prediction.norms[-1]))
        found["margin"].append(float(prediction.margins[-1]))
        found["cosine"].append(float(gram[-1, -2] / gram[-1, -1]) if gram[-1, -1] > 0 else np.nan)
    return {name: np.array(values) for name, values in found.items()}


def figure(dataset: xr.Dataset) -> Figure:
    """Return the figure: one panel per quantity, one colour and marker per regularisation."""
    with canvas(PAGE, 2.6) as drawn:
        panels: Any = drawn.subplots(1, 3)
        for weight, colour, marker in zip(dataset.nuclear_weight.values, COLOURS, MARKERS, strict=True):
            expected, solved = curves(float(weight)), dataset.sel(nuclear_weight=weight).isel({"class": -1})
            critical = critical_imbalance_ratio(
                5, 5, float(weight), float(weight), fixed="majority", size=MAJORITY
            )
            level = rf"\sqrt{{\lambda_W \lambda_H}} = {1e4 * weight:.3g} \cdot 10^{{-4}}"
            label = rf"${level}$ ($R_0 = {critical:.3g}$)"
            for axes, (name, (_, variable)) in zip(panels, QUANTITIES.items(), strict=True):
                axes.plot(expected["ratio"], expected[name], color=colour, linewidth=1.0, zorder=1)
                axes.plot(
                    solved.ratio,
                    solved[variable],
                    marker,
                    color=colour,
                    markersize=3.2,
                    markerfacecolor="none",
                    markeredgewidth=0.7,
                    label=label,
                    linewidth=0,
                )
                axes.axvline(critical, color=colour, linewidth=0.7, linestyle=":", zorder=0)
        for axes, (title, _) in zip(panels, QUANTITIES.values(), strict=True):
            axes.set_xscale("log")
            axes.set_xlabel("imbalance ratio $R$")
            axes.set_ylabel(title)
        panels[2].set_ylim(top=1.05)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=2)
    return drawn


def main(
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    resume: bool = False,
    quick: bool = False,
) -> int:
    """Solve, compare with the closed form, draw; return 1 if anything is uncertified or off the curve.

    Args:
        outputs: where results and the picture go.
        resume: go on with the data set of an earlier run.
        quick: 9 ratios instead of 41.
    """
    points = 9 if quick else 41
    results = outputs.of("threshold", quick)
    fixed = {"dim": DIM, "tol": 1e-10, "residual_tol": 1e-9}
    dataset = ufm.sweep(
        fixed, axes_of(points), out=results.folder / "sweep", resume=resume, progress=True
    ).load()
    worst = {name: float(dataset[name].max()) for name in ("norm_deviation", "margin_deviation")}
    report = worst | {"members": dataset.status.size, "certified": int(dataset.certified.sum())}
    report |= {"mismatches": int((dataset.collapse_mismatches > 0).sum())}
    results.save(report, "report")
    results.draw(figure(dataset))
    print(summary(dataset))
    print(json.dumps(report, indent=1))
    return int(report["certified"] < report["members"] or report["norm_deviation"] > 1e-3)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
