"""Who pays for features in a network trained the usual way, samples or classes?

Networks of `usual.py` on long-tailed digits and MNIST-1D, one thing changed at a time on a fixed grid. For each the
exponent g of ``lambda_H,k = lambda_H (N/(K n_k))^g`` is estimated from margins, from norms, and from the norms of
class means minus their mean (`ufm.verification.effective`), averaged over cyclic shifts of which class is large,
with standard errors: that removes the classes' own difficulty. Printed besides: the mean cosine of class means (0 in
the model), and the residual of the last layer given its features (0 where it is stationary), relative to its decay.

    python -m experiments.network.charge [--quick]
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.network.training import subset
from experiments.network.usual import PLAIN, Setting, Task, features_of, samples_of, trained
from ufm import metrics
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
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
    *({"power": 1.0, "length": length} for length in (1.0, 2.0)),
    *({"length": length} for length in (1.0, 2.0)),
    {"weight_decay": 4e-3},
    {"width": 32},
    {"batch": None},
    {"width": 128},
    {"weight_decay": 1e-3},
)
USUAL = Setting(length=8.0)
GRID = tuple(
    USUAL._replace(data=data, networks=networks, **change)
    for changes, networks in ((CHANGES, 10), (MORE, 5))
    for change in changes
    for data in ("digits", "mnist1d")
)
QUICK = tuple(USUAL._replace(length=1.0, depth=depth, networks=2) for depth in (3, 1))
#: A class is lost if its margin is below this many nats; networks that lost one say nothing of g.
LOST = 0.3


class Run(NamedTuple):
    """One network: the three exponents, two numbers that are zero in the model, and its classes by falling count."""

    exponents: Float[np.ndarray, " 3"]
    cosine: float
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
        exponents(measured, statistics.counts, loss),
        float((cosines.sum() - np.trace(cosines)) / cosines.size * len(counts) / (len(counts) - 1)),
        float(np.linalg.norm(pull) / np.linalg.norm(weight) / setting.weight_decay),
        metrics.accuracy(statistics),
        np.roll(measured.margins, -shift),
        np.roll(measured.norms**2, -shift),
    )


def exponents(measured: MeasuredLayer, counts: Float[np.ndarray, " K"], loss: ufm.Loss) -> np.ndarray:
    """Return g from margins, from norms, and from the norms of centred class means; NaN if a class is lost."""
    if measured.margins.min() < LOST:
        return np.full(3, np.nan)
    centred = metrics.norms(measured.means - measured.means.mean(axis=0))
    found = [
        estimate_decays(measured.margins, counts, 1.0, 1.0, loss=loss, norms=norms)
        for norms in (measured.norms, centred)
    ]
    values = [found[0] and found[0].charge_from_margins, *(one and one.charge_from_norms for one in found)]
    return np.array([np.nan if value is None else value for value in values])


def summary(runs: list[Run]) -> dict[str, Any]:
    """Return means over networks, of the exponents over those that kept all classes, with standard errors."""
    columns = {name: np.array([getattr(run, name) for run in runs]) for name in Run._fields}
    known = columns["exponents"][~np.isnan(columns["exponents"]).any(axis=1)]
    nothing = [math.nan] * len(EXPONENTS)
    return {name: values.mean(axis=0).tolist() for name, values in columns.items()} | {
        "used": len(known),
        "exponents": known.mean(axis=0).tolist() if len(known) else nothing,
        "errors": (known.std(axis=0, ddof=1) / len(known) ** 0.5).tolist() if len(known) > 1 else nothing,
    }


def line(row: dict[str, Any]) -> str:
    """Write a setting and what was found."""
    found = "".join(f"{g:5.2f} ± {e:.2f}" for g, e in zip(row["exponents"], row["errors"], strict=True))
    return (
        f"{row['data']:8s}{row['label']:22s}{row['used']:3d}{found}{row['cosine']:6.2f}{row['residual']:5.2f}"
    )


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw the exponents with two standard errors: a line for every change, a panel for every data set."""
    names = list(dict.fromkeys(row["label"] for row in rows))
    sets = list(dict.fromkeys(row["data"] for row in rows))
    with canvas(PAGE, 1.0 + 0.19 * len(names)) as drawing:
        panels = drawing.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
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
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return drawing


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
    results.draw(figure(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
