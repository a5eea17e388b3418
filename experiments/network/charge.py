"""Who pays for features in a network trained the usual way, samples or classes?

Networks of `usual.py` on long-tailed digits, MNIST-1D and drawn inputs, one thing changed at a time on a fixed grid.
For each the exponent g of ``lambda_H,k = lambda_H (N/(K n_k))^g`` is estimated from margins, from norms, and from the
norms of class means minus their mean (`ufm.verification.effective`), averaged over cyclic shifts of which class is
large, with standard errors: that removes the classes' own difficulty. Printed besides: the mean cosine of class means
(0 in the model), and the residual of the last layer given its features (0 where it is stationary), relative to its
decay; at the end how g from margins goes with depth, against `sharing.py`.

    python -m experiments.network.charge [--quick]
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.network.sharing import fitted, law, sharing_of_inputs
from experiments.network.training import subset
from experiments.network.usual import PLAIN, Data, Setting, Task, features_of, samples_of, trained
from ufm import metrics
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, VERMILLION, canvas
from ufm.training.summary import simplex_distance
from ufm.verification.effective import estimate_decays
from ufm.verification.measured import MeasuredLayer, measured_geometry

COUNTS = np.round(np.geomspace(160, 16, 10)).astype(int)
EXPONENTS = ("margins", "norms", "centred")

HEADER = f"{'data':8s}{'changed':22s}  n{'g: margins':>12s}{'norms':>12s}{'centred':>12s}   cos  res"

#: What is changed, one at a time; the usual setting first.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"depth": depth} for depth in (1, 2, 4, 6)),
    *({"power": power} for power in (0.5, 1.0)),
)
#: Likewise, with half as many networks.
MORE: tuple[dict[str, Any], ...] = (
    *({"feature_decay": decay} for decay in (1e-3, 1e-2)),
    {"bias": True},
    {"normalised": True},
    *({"power": 1.0, "length": length} for length in (1.0, 2.0, 4.0)),
    *({"length": length} for length in (1.0, 2.0, 4.0)),
    *({"weight_decay": decay} for decay in (1e-3, 4e-3)),
    *({"width": width} for width in (32, 128)),
    {"batch": None},
    {"shifts": False},
)
USUAL = Setting(length=8.0)
REAL: tuple[Data, ...] = ("digits", "mnist1d")
DRAWN: tuple[Data, ...] = ("same", "mixed", "noise")
GRID = tuple(
    USUAL._replace(data=data, networks=networks, **change)
    for changes, networks, sets in (
        (CHANGES, 10, REAL),
        (MORE, 5, REAL),
        (({"depth": 1}, {"depth": 2}, {}), 5, DRAWN),
    )
    for change in changes
    for data in sets
)
QUICK = tuple(USUAL._replace(length=1.0, depth=depth, networks=2) for depth in (3, 1))
#: A class is lost if its margin is below this many nats; networks that lost one say nothing of g.
LOST = 0.3
#: Depths whose last layers are further from stationary than this fraction of their decay are not held to the law.
STATIONARY = 0.1


class Run(NamedTuple):
    """One network: the three exponents, numbers that are zero in the model, and its classes by falling count.

    Attributes:
        exponents: g from margins, from norms, and from centred norms; NaN if a class is lost.
        constancy: factors by which ``c_k n_k q_k |h_k|^2/M_k`` deviates, with norms and with centred norms; likewise.
        sharing: the exponent c of the inputs.
        cosine: mean over pairs of class means.
        simplex: distance of the centred class means from a simplex ETF, the mean of ``|cosine + 1/(K-1)|``.
        residual: of the last layer given its features, over its decay.
        accuracy: on the training set.
        margins: in nats.
        squared_norms: of class means.
    """

    exponents: Float[np.ndarray, " 3"]
    constancy: Float[np.ndarray, " 2"]
    sharing: float
    cosine: float
    simplex: float
    residual: float
    accuracy: float
    margins: Float[np.ndarray, " K"]
    squared_norms: Float[np.ndarray, " K"]


def label(setting: Setting) -> str:
    """Say what is changed."""
    own, usual = setting._asdict(), USUAL._asdict()
    hidden = ("data", "networks")
    changed = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in own.items()
        if name not in hidden and value != usual[name]
    ]
    text = ", ".join(changed) or "as usual"
    for name, short in (
        ("batch None", "full batch"),
        (" True", ""),
        ("normalised", "batch normalisation"),
        ("shifts False", "no hidden biases"),
        ("feature_decay", "feature decay"),
    ):
        text = text.replace(name, short)
    return text.replace("weight_decay", "weight decay").replace("power ", "weights n^-")


def measure(setting: Setting, shift: int) -> Run:
    """Train one network, class ``shift`` being the largest, and look at its last layer."""
    counts = np.roll(COUNTS, shift)
    inputs, labels = subset(*samples_of(setting.data), counts, seed=shift)
    weights = counts**-setting.power
    loss = ufm.WeightedCrossEntropy(weights * counts.sum() / (counts @ weights)) if setting.power else PLAIN
    [(_, network)] = trained(setting, Task(inputs, labels, loss), len(counts), shift)
    features = np.asarray(features_of(network, jnp.asarray(inputs)), np.float64)
    weight = np.asarray(network["weight"], np.float64)
    bias = np.asarray(network["bias"], np.float64) if setting.bias else None
    statistics = metrics.measure(features, labels, weight, bias)
    measured = measured_geometry(statistics, loss)
    logits = features @ weight.T + (0.0 if bias is None else bias)
    pull = loss.gradient(logits, labels).T @ features / len(labels) + setting.weight_decay * weight
    cosines = metrics.cosines(measured.means)
    return Run(
        *exponents(measured, statistics.counts, loss),
        sharing_of_inputs(inputs, labels),
        float((cosines.sum() - np.trace(cosines)) / cosines.size * len(counts) / (len(counts) - 1)),
        simplex_distance(measured.means - measured.means.mean(axis=0)),
        float(np.linalg.norm(pull) / np.linalg.norm(weight) / setting.weight_decay),
        metrics.accuracy(statistics),
        np.roll(measured.margins, -shift),
        np.roll(measured.norms**2, -shift),
    )


def exponents(
    measured: MeasuredLayer, counts: Float[np.ndarray, " K"], loss: ufm.Loss
) -> tuple[np.ndarray, np.ndarray]:
    """Return g from margins, from norms, and from centred norms, and the two constancies; NaN if a class is lost."""
    if measured.margins.min() < LOST:
        return np.full(3, np.nan), np.full(2, np.nan)
    centred = metrics.norms(measured.means - measured.means.mean(axis=0))
    first, second = (
        estimate_decays(measured.margins, counts, 1.0, 1.0, loss=loss, norms=norms)
        for norms in (measured.norms, centred)
    )
    if first is None or second is None:
        return np.full(3, np.nan), np.full(2, np.nan)
    found = (first.charge_from_margins, first.charge_from_norms, second.charge_from_norms)
    return np.array(found, float), np.array((first.constancy, second.constancy), float)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Return means over networks, of the exponents over those that kept all classes, with standard errors."""
    columns = {name: np.array([getattr(run, name) for run in runs]) for name in Run._fields}
    kept = ~np.isnan(columns["exponents"]).any(axis=1)
    known = columns["exponents"][kept]
    nothing = [math.nan] * len(EXPONENTS)
    return {name: values.mean(axis=0).tolist() for name, values in columns.items()} | {
        "used": len(known),
        "exponents": known.mean(axis=0).tolist() if len(known) else nothing,
        "errors": (known.std(axis=0, ddof=1) / len(known) ** 0.5).tolist() if len(known) > 1 else nothing,
        "constancy": columns["constancy"][kept].mean(axis=0).tolist() if len(known) else [math.nan] * 2,
        "sharing_error": float(columns["sharing"].std(ddof=1)) / len(runs) ** 0.5,
        "each": columns["exponents"].tolist(),
    }


def line(row: dict[str, Any]) -> str:
    """Write a setting and what was found."""
    found = "".join(f"{g:5.2f} ± {e:.2f}" for g, e in zip(row["exponents"], row["errors"], strict=True))
    return (
        f"{row['data']:8s}{row['label']:22s}{row['used']:3d}{found}{row['cosine']:6.2f}{row['residual']:5.2f}"
    )


class Course(NamedTuple):
    """How g from margins goes with depth on a data set, and the exponent c of `sharing.py` that explains it."""

    data: str
    depth: Float[np.ndarray, " rows"]
    charge: Float[np.ndarray, " rows"]
    error: Float[np.ndarray, " rows"]
    sharing: float
    sharing_error: float
    rms: float
    of_inputs: float


def courses(rows: list[dict[str, Any]]) -> list[Course]:
    """Return one course for every data set: its stationary rows that differ from the usual one in depth alone."""
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [
            row for row in rows if row["data"] == data and row["used"] > 1 and row["residual"] < STATIONARY
        ]
        own = [row for row in own if row["label"] in ("as usual", f"depth {row['depth']}")]
        if own:
            columns = [(row["depth"], row["exponents"][0], row["errors"][0], row["sharing"]) for row in own]
            depth, middle, error, inputs = np.array(sorted(columns), float).T
            fit = fitted(depth, middle, error)
            found.append(Course(data, depth, middle, error, *fit, float(inputs.mean())))
    return found


def course_table(found: list[Course]) -> str:
    """Return a line for every data set: c from depths and from inputs, and g as measured and by the law."""
    lines = [f"{'data':8s}{'c: fitted':>14s}{'of inputs':>10s}{'rms':>6s}  g at depths: measured (law)"]
    for one in found:
        points = zip(one.depth, one.charge, law(one.depth, one.sharing), strict=True)
        text = ", ".join(f"{g:.2f} ({own:.2f})" for _, g, own in points)
        depths = "/".join(f"{depth:g}" for depth in one.depth)
        lines.append(
            f"{one.data:8s}{one.sharing:7.2f} ± {one.sharing_error:.2f}{one.of_inputs:10.2f}{one.rms:6.2f}  {depths}:"
        )
        lines.append(f"{'':10s}{text}")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw the exponents with two standard errors, a line for every change, and below g against depth and c."""
    names = list(dict.fromkeys(row["label"] for row in rows))
    sets = [data for data in REAL if any(row["data"] == data for row in rows)]
    with canvas(PAGE, 3.4 + 0.19 * len(names)) as drawing:
        heights = (0.8 + 0.19 * len(names), 2.6)
        upper, lower = cast(Any, drawing.subfigures(2, 1, height_ratios=heights))
        _course_panels(lower.subplots(1, 2), courses(rows))
        panels = upper.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
        for axes, data in zip(panels, sets, strict=True):
            axes.vlines([0, 1], -0.5, len(names) - 0.5, color=BLACK, lw=0.5)
            for i, (name, colour) in enumerate(zip(EXPONENTS, (BLUE, VERMILLION, GREEN), strict=True)):
                own = [row for row in rows if row["data"] == data]
                places = [names.index(row["label"]) + 0.22 * (i - 1) for row in own]
                middle, error = ([row[key][i] for row in own] for key in ("exponents", "errors"))
                bars = 2 * np.array(error)
                axes.errorbar(middle, places, xerr=bars, fmt="o", ms=2.5, lw=0.8, color=colour, label=name)
            axes.set(title=data, xlabel="charge exponent g (0: samples, 1: classes)")
            axes.set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        upper.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return drawing


def _course_panels(panels: Any, found: list[Course]) -> None:
    """Draw g from margins against depth with the law of each data set's c, and both ways to c."""
    left, right = panels
    everywhere = np.linspace(1, 6, 51)
    for one, colour in zip(found, (BLUE, VERMILLION, GREEN, ORANGE, PURPLE), strict=False):
        left.errorbar(
            one.depth, one.charge, 2 * one.error, fmt="o", ms=3, lw=0.8, color=colour, label=one.data
        )
        left.plot(everywhere, law(everywhere, one.sharing), color=colour, lw=0.8)
        right.errorbar(one.of_inputs, one.sharing, 2 * one.sharing_error, fmt="o", ms=3, lw=0.8, color=colour)
    right.plot([0, 1], [0, 1], color=BLACK, lw=0.5)
    left.set(xlabel="hidden layers L", ylabel="g from margins (lines: 1 - 2c/(L+1))")
    right.set(xlabel="c from the inputs, untrained", ylabel="c from g at all depths")
    left.legend(loc="lower right", ncols=2)


def main(quick: bool = False, outputs: OmitArgPrefixes[Outputs] = Outputs()) -> int:
    """Print a line for every setting of the grid, and draw the exponents.

    Args:
        quick: two settings, two shifts, short training: to see that it runs.
        outputs: where results go.
    """
    results = outputs.of("charge", quick)
    print(HEADER)
    rows = []
    for setting in QUICK if quick else GRID:
        shifts = range(0, len(COUNTS), len(COUNTS) // setting.networks)
        found = summary([measure(setting, shift) for shift in shifts])
        rows.append(setting._asdict() | {"label": label(setting)} | found)
        print(line(rows[-1]), flush=True)
        results.save(rows)
    print(course_table(courses(rows)))
    results.draw(figure(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
