"""Does the last layer of a real network, trained on imbalanced data, reach the predicted geometry?

A ReLU network on scikit-learn's digits (or any data), trained on exactly the package's objective: mean cross-entropy
plus ``lambda_W/2 |W|^2`` for the classifier plus ``lambda_H/2 sum_i |h_i|^2`` for the last features; the layers below
are not decayed. The settings are step and long-tailed counts, each with ``sqrt(lambda_W lambda_H)`` well below and
past the value at which the smallest class collapses. In minibatches the penalty of the features is converted by
`ufm.conventions`, so that the objective stays the same on average.

The duality gap of the trained last layer says how far it is from *every* choice of features and classifier, not only
from what this network can express.

    python -m experiments.network [--batch-size 100] [--quick]
    python -m experiments.network --dataset FILE.npz --counts 500x5,50x5 --level 0.3

Not a script: a part of `python -m experiments.network`.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.network.training import (
    QUICK,
    Snapshot,
    Training,
    digits,
    load,
    problem_at,
    recorded,
    subset,
    train,
)
from ufm import metrics
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, SHADE, VERMILLION, canvas
from ufm.profiles import parse_counts
from ufm.text import track
from ufm.verification.observer import collapse_observer

#: Counts and level: sqrt(lambda_W lambda_H) over the value at which the smallest class collapses.
SETTINGS = {
    "step": ("150x5,30x5", 0.25),
    "step, past": ("150x5,30x5", 1.4),
    "long tail": ("exp:K=10,n_max=170,ratio=10", 0.25),
    "long tail, past": ("exp:K=10,n_max=170,ratio=10", 1.5),
}
#: Residuals of the ICML 2024 paper and how they are drawn.
RESIDUALS = {
    "nc2_h": (BLUE, "-"),
    "nc2_w": (GREEN, "--"),
    "nc2_wwt": (ORANGE, "-."),
    "nc3_wh": (VERMILLION, ":"),
}
#: Smallest value that a logarithmic axis shows.
FLOOR = 1e-6
SHADES = matplotlib.colormaps["viridis"]


def look(problem: ufm.Problem, observe: Any, snapshot: Snapshot, labels: np.ndarray) -> dict[str, Any]:
    """Return everything that is followed over epochs."""
    weight, features = snapshot.weight, snapshot.features
    statistics = metrics.measure(features, labels, weight)
    certificate = ufm.certify(problem, weight, features, labels)
    return {
        "epoch": snapshot.epoch,
        "loss": metrics.mean_cross_entropy(statistics),
        "error": 1 - metrics.accuracy(statistics),
        "objective": certificate.objective,
        "relative_gap": certificate.relative_gap,
        "margins": metrics.margins(statistics),
        "norms": metrics.norms(statistics.means),
        "weight_norms": metrics.norms(weight),
        **observe(SimpleNamespace(weight=weight, features=features, bias=None), labels),
    }


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One trained network: what was followed, where it ended, and the verdict."""

    name: str
    problem: ufm.Problem
    curves: dict[str, np.ndarray]
    report: Any
    seconds: float

    @property
    def error(self) -> float:
        """Training error over the samples of classes that are predicted to live."""
        living = np.repeat(~self.report.prediction.collapsed, self.problem.counts)
        correct = self.report.measured.statistics.logits.correct[~self.report.prediction.collapsed].sum()
        return 1 - float(correct) / max(int(living.sum()), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curves, ready for JSON."""
        return {
            "name": self.name,
            "counts": self.problem.counts.tolist(),
            "dim": self.problem.dim,
            "weight_decay": self.problem.weight_decay,
            "feature_decay": self.problem.feature_decay,
            "predicted_collapsed": np.flatnonzero(self.report.prediction.collapsed).tolist(),
            "living_error": self.error,
            "relative_gap": float(self.curves["relative_gap"][-1]),
            "seconds": self.seconds,
            **{name: float(self.curves[name][-1]) for name in ("nc1", *RESIDUALS)},
            "report": self.report.to_dict(),
        }


def follow(
    name: str,
    data: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray,
    level: float,
    training: Training,
    tolerance: float,
) -> tuple[Outcome, Snapshot]:
    """Train in one setting and verify the last layer."""
    started = time.perf_counter()
    problem = problem_at(counts, training.dim or training.width, level)
    inputs, labels = subset(*data, counts, training.seed)
    observe, records = collapse_observer(problem), []
    for snapshot in track(
        train(problem, inputs, labels, training),
        total=len(recorded(training.epochs, training.records)),
        text=f"{name:16}",
    ):
        records.append(look(problem, observe, snapshot, labels))
    report = ufm.verify(
        features=snapshot.features,
        labels=labels,
        weight=snapshot.weight,
        problem=problem,
        tolerance=tolerance,
    )
    curves = {key: np.array([record[key] for record in records]) for key in records[0]}
    return Outcome(name, problem, curves, report, time.perf_counter() - started), snapshot


def summary(outcomes: list[Outcome]) -> str:
    """Return one line per setting."""
    residuals = "".join(f"{name.upper():>9}" for name in RESIDUALS)
    lines = [f"{'':15}{'error*':>7}{'gap':>9}{residuals}{'lost':>5}{'of':>3}{'s':>5}"]
    for outcome in outcomes:
        lost = outcome.report["collapsed classes"]
        sizes = "".join(f"{outcome.curves[key][-1]:9.1e}" for key in ("relative_gap", *RESIDUALS))
        lines.append(
            f"{outcome.name:15}{outcome.error:7.4f}{sizes}{lost.measured:5}{lost.predicted:3}"
            f"{outcome.seconds:5.0f}"
        )
    return "\n".join(
        [*lines, "* of classes predicted to live; lost: collapsed classes, of as many predicted"]
    )


def figure(outcomes: list[Outcome]) -> Figure:
    """Return the figure: for every setting one row of convergence, margins and norms over epochs, and the end."""
    with canvas(PAGE, 0.9 + 1.65 * len(outcomes)) as drawing:
        grid = drawing.subplots(len(outcomes), 4, squeeze=False, width_ratios=(1.15, 1, 1, 1))
        scale = _class_scale(outcomes)
        for row, outcome in zip(grid, outcomes, strict=True):
            _residual_panel(row[0], outcome)
            _class_curves(row[1], outcome, "margins", r"margin $M_k$ (nats)", scale)
            _class_curves(row[2], outcome, "norms", r"norm of mean $|h_k|$", scale)
            _final_panel(row[3], outcome)
        for axes in grid[-1][:3]:
            axes.set_xlabel("epoch")
        grid[-1][3].set_xlabel("samples of the class")
        drawing.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
        drawing.legend(*grid[0][3].get_legend_handles_labels(), loc="outside lower right")
        shades = ScalarMappable(scale, SHADES)
        bar = drawing.colorbar(
            shades, ax=list(grid[:, 1:3].ravel()), location="bottom", shrink=0.6, aspect=40
        )
        bar.locator, bar.formatter = (
            LogLocator(subs=(1, 2, 5)),
            FuncFormatter(lambda size, place: f"{size:g}"),
        )
        bar.minorticks_off()
        bar.set_label("samples of the class (curves); black: predicted")
        titles = ("residuals, gap", "margins", "feature norms", "after training")
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title, loc="left")
    return drawing


def _epoch_axis(axes: Axes, epochs: np.ndarray) -> np.ndarray:
    axes.set_xscale("log")
    axes.set_xlim(0.9, epochs[-1] * 1.1)
    return np.maximum(epochs, 1)


def _residual_panel(axes: Axes, outcome: Outcome) -> None:
    curves = outcome.curves
    epochs = _epoch_axis(axes, curves["epoch"])
    for name, (colour, style) in RESIDUALS.items():
        axes.plot(epochs, curves[name], color=colour, ls=style, label=name.upper())
    axes.plot(epochs, curves["nc1"], color=PURPLE, ls=(0, (5, 1)), label="NC1")
    axes.plot(epochs, curves["relative_gap"], color=BLACK, lw=1.6, label="duality gap")
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, 30)
    axes.set_ylabel(f"{outcome.name}\nrelative size")


def _class_scale(outcomes: list[Outcome]) -> LogNorm:
    """Colours by the size of a class, the same in all rows: dark for small classes, light for large ones."""
    sizes = np.concatenate([outcome.problem.counts for outcome in outcomes])
    return LogNorm(sizes.min(), 2 * sizes.max())  # the lightest shades are hard to see


def _class_curves(axes: Axes, outcome: Outcome, name: str, label: str, scale: LogNorm) -> None:
    """One curve per class, its prediction as a black tick at the right end."""
    epochs = _epoch_axis(axes, outcome.curves["epoch"])
    predicted = getattr(outcome.report.prediction, name)
    for k in range(outcome.problem.num_classes):
        axes.plot(epochs, outcome.curves[name][:, k], color=SHADES(scale(outcome.problem.counts[k])), lw=0.9)
    axes.plot(
        np.full(len(predicted), epochs[-1]),
        predicted,
        "_",
        color=BLACK,
        ms=9,
        mew=1.4,
        clip_on=False,
        zorder=4,
    )
    axes.set_ylim(bottom=-0.03 * max(predicted.max(), outcome.curves[name][1:].max()))
    axes.set_ylabel(label)


def _final_panel(axes: Axes, outcome: Outcome) -> None:
    """Final margins against counts, on the predicted curve, which continues to zero at the collapse threshold."""
    problem, measured = outcome.problem, outcome.report.measured
    threshold = float(ufm.theory.collapse_counts(problem)[0])
    low, high = min(problem.counts.min(), threshold) / 1.5, problem.counts.max() * 1.3
    sizes = np.geomspace(low, high, 300)
    odds = np.sqrt(np.maximum(sizes / threshold, 1.0))
    axes.axvspan(low, max(threshold, low), color=SHADE, lw=0, label="predicted to collapse")
    axes.plot(sizes, np.log1p(problem.num_classes * (odds - 1)), color=BLACK, lw=1.0, label="predicted")
    axes.scatter(problem.counts, measured.margins, s=16, color=VERMILLION, lw=0, zorder=3, label="network")
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
    axes.set_ylabel(r"margin $M_k$ (nats)")


def main(
    training: tyro.conf.OmitArgPrefixes[Training] = Training(),
    settings: tuple[str, ...] = tuple(SETTINGS),
    dataset: Path | None = None,
    counts: str | None = None,
    level: float = 0.25,
    tolerance: float = 0.02,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Train, verify, save and draw; return 1 if a row of a report fails.

    Args:
        training: architecture and optimisation.
        settings: which of the built-in settings to train in.
        dataset: npz file with arrays x (one sample per row) and y (labels from 0); None: digits.
        counts: training samples of every class instead of the settings; for a dataset, by default all.
        level: with counts or a dataset: sqrt(lambda_W lambda_H) over the value at which the smallest class collapses.
        tolerance: of the report: residuals are held to it, norms and margins to it times the largest predicted.
        outputs: where results and the picture go.
        quick: a small network, two settings and a tolerance of 0.1.
    """
    if quick:
        training, settings, tolerance = QUICK, settings[:2], 0.1
    results = outputs.of("network", quick)
    data = digits() if dataset is None else load(dataset)
    chosen = {name: (parse_counts(SETTINGS[name][0]), SETTINGS[name][1]) for name in settings}
    if dataset is not None or counts is not None:
        chosen = {"custom": (parse_counts(counts) if counts else np.bincount(data[1]), level)}
    outcomes = []
    for name, (sizes, strength) in chosen.items():
        outcome, last = follow(name, data, sizes, strength, training, tolerance)
        stem = name.replace(", ", "-").replace(" ", "-")
        labels = np.repeat(np.arange(len(sizes)), sizes)
        np.savez(
            results.folder / f"{stem}.npz",
            features=last.features,
            labels=labels,
            weight=last.weight,
            **cast("dict[str, Any]", outcome.curves),
        )
        results.save(outcome.to_dict(), stem)
        print(outcome.report.table(), end="\n\n", flush=True)
        outcomes.append(outcome)
    print(summary(outcomes))
    results.draw(figure(outcomes))
    return int(not all(outcome.report.passed for outcome in outcomes))
