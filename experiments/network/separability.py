"""Are classes further apart than they are wide, and what does the loss alone say about it?

P(inter-class distance > intra-class distance) of last-layer features, its confidence interval, and the three lower
bounds of `ufm.separability`, along the training of a ReLU network (`training.py`) and along a solve of the model
itself with one row per sample; drawn against the mean cross-entropy. Below, the distributions of the squared norms
``|C W (x_i - x_j)|^2`` that the classifier sees, with gamma laws of equal moments.

    python -m experiments.network.separability [--level 0.02] [--weighting classes] [--pairs 100000] [--quick]
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import tyro
from jax.scipy.special import gammainc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.network.training import QUICK, Training, digits, problem_at, recorded, subset, train
from ufm.metrics.separability import Separability, SquaredNorms
from ufm.plots.style import BLACK, BLUE, ORANGE, PAGE, VERMILLION, canvas
from ufm.profiles import parse_counts
from ufm.text import track

#: Every bound, its label, colour and line style; (2) is often all but (3), and is drawn broad beneath it.
BOUNDS = {
    "profile_bound": ("bound (1), every loss", BLUE, "-"),
    "class_bound": ("bound (2), loss of every class", ORANGE, "-"),
    "mean_bound": ("bound (3), mean loss", BLACK, ":"),
}
Weighting = Literal["pairs", "classes"]


def along_training(
    problem: ufm.Problem, training: Training, weighting: Weighting, pairs: int
) -> list[tuple[int, Separability]]:
    """Measure at recorded epochs of the network."""
    inputs, labels = subset(*digits(), problem.counts, training.seed)
    snapshots = track(
        train(problem, inputs, labels, training),
        total=len(recorded(training.epochs, training.records)),
        text="network",
    )
    return [
        (
            snapshot.epoch,
            ufm.separability(snapshot.features, labels, snapshot.weight, weighting=weighting, pairs=pairs),
        )
        for snapshot in snapshots
    ]


def along_solve(
    problem: ufm.Problem, record_every: int, weighting: Weighting, pairs: int, seed: int
) -> list[tuple[int, Separability]]:
    """Measure at recorded steps of a solve at sample level, from its random start to the certified optimum."""
    seen: list[Separability] = []

    def observe(point: Any, labels: np.ndarray) -> dict[str, float]:
        seen.append(ufm.separability(point.features, labels, point.weight, weighting=weighting, pairs=pairs))
        return {"probability": seen[-1].probability}

    solution = ufm.solve(
        problem, level="sample", seed=seed, record_every=record_every, observe=observe, progress=True
    )
    return list(zip((record["step"] for record in solution.history), seen, strict=True))


def violations(course: list[tuple[int, Separability]]) -> int:
    """Count bounds above what they bound: the measured probability, or the upper end of its interval."""
    return sum(getattr(found, name) > found.interval[1] for _, found in course for name in BOUNDS)


def summary(name: str, course: list[tuple[int, Separability]]) -> str:
    """Return a few lines of the course: the start, where it gets halfway, and the end."""
    heads = ("time", "mean loss", "P", "bound (1)", "bound (2)", "bound (3)")
    lines = [name, "".join(f"{head:>11}" for head in heads)]
    for number in (0, halfway(course), len(course) - 1):
        time, found = course[number]
        values = (found.mean_loss, found.probability, *(getattr(found, bound) for bound in BOUNDS))
        lines.append(f"{time:11}" + "".join(f"{value:11.4f}" for value in values))
    return "\n".join([*lines, f"bounds above the probability: {violations(course)} of {3 * len(course)}"])


def halfway(course: list[tuple[int, Separability]]) -> int:
    """Return the first record at which the loss has fallen halfway, on a logarithmic scale."""
    logs = np.log([found.mean_loss for _, found in course])
    return int(np.argmax(logs <= (logs[0] + logs[-1]) / 2))


def figure(courses: dict[str, list[tuple[int, Separability]]]) -> Figure:
    """Return the figure: one column per course; probability and bounds above, distributions below."""
    with canvas(PAGE, 4.8) as drawing:
        rows: Any = drawing.subfigures(2, 1)
        grid = np.array([row.subplots(1, len(courses), squeeze=False)[0] for row in rows])
        for column, (name, course) in zip(grid.T, courses.items(), strict=True):
            _probability_panel(column[0], [found for _, found in course])
            _distribution_panel(column[1], course)
            column[0].set_title(name, loc="left")
        for row, axes in zip(rows, grid[:, 0], strict=True):
            row.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        for letter, axes in zip("abcd", grid.ravel(), strict=False):
            axes.set_title(f"({letter}) {axes.get_title(loc='left')}", loc="left")
    return drawing


def _probability_panel(axes: Axes, found: list[Separability]) -> None:
    """Against the loss, which falls to the right: training goes from left to right."""
    order = np.argsort([-point.mean_loss for point in found], kind="stable")
    losses = np.array([found[k].mean_loss for k in order])
    low, high = np.array([found[k].interval for k in order]).T
    axes.fill_between(losses, low, high, color=BLACK, alpha=0.2, lw=0)
    measured = [found[k].probability for k in order]
    axes.plot(losses, measured, color=BLACK, marker=".", ms=4, label="measured")
    for name, (label, colour, style) in BOUNDS.items():
        values = [getattr(found[k], name) for k in order]
        axes.plot(losses, values, color=colour, ls=style, label=label, lw=3.0 if colour == ORANGE else 1.2)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlabel("mean cross-entropy (nats)")
    axes.set_ylabel("P(inter > intra)")


def _distribution_panel(axes: Axes, course: list[tuple[int, Separability]]) -> None:
    """Distribution functions of the squared norms, halfway (thin) and at the end (thick), with gamma laws."""
    for number, width in ((halfway(course), 0.8), (len(course) - 1, 1.8)):
        for name, colour in (("intra", VERMILLION), ("inter", BLUE)):
            law: SquaredNorms = getattr(course[number][1], name)
            label = f"{name}-class pairs" if width > 1 else None
            values = np.maximum(law.percentiles, 1e-12)  # rounding errors of zero
            axes.plot(values, np.linspace(0, 1, 101), color=colour, lw=width, label=label)
            if law.gamma is not None:
                shape, scale = law.gamma
                grid = np.geomspace(values[1], 3 * values[-1], 300)
                fit = np.asarray(gammainc(shape, grid / scale))
                axes.plot(grid, fit, color=colour, lw=0.8 * width, ls=":")
    axes.plot([], [], color=BLACK, lw=1.0, ls=":", label="gamma, equal moments")
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.03)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("thin: halfway, thick: at the end", loc="left")
    axes.set_xlabel(r"$|C W (x_i - x_j)|^2$ (nats$^2$)")
    axes.set_ylabel("fraction of pairs below")


def main(
    training: tyro.conf.OmitArgPrefixes[Training] = Training(epochs=3000),
    counts: str = "150x5,30x5",
    level: float = 0.02,
    weighting: Weighting = "pairs",
    pairs: int = 1_000_000,
    record_every: int = 2,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Measure along both courses, save and draw; return 1 if a bound is ever above the probability.

    Args:
        training: architecture and optimisation of the network.
        counts: training samples of every class of the digits.
        level: sqrt(lambda_W lambda_H) over the value at which the smallest class collapses.
        weighting: whether all pairs, or all classes, count alike.
        pairs: compare all pairs if they are at most this many; else draw so many and give an interval.
        record_every: steps of the solver between two measurements.
        outputs: where results and the picture go.
        quick: a small network, fewer samples and sampled pairs.
    """
    if quick:
        training, counts, pairs, record_every = QUICK, "40x5,10x5", 10_000, 20
        training = dataclasses.replace(training, epochs=300)
    results = outputs.of("separability", quick)
    problem = problem_at(parse_counts(counts), training.dim or training.width, level)
    courses = {
        "training of a network on digits": along_training(problem, training, weighting, pairs),
        "solve at sample level": along_solve(problem, record_every, weighting, pairs, training.seed),
    }
    saved = {
        name: [{"time": time} | found.to_dict() for time, found in course] for name, course in courses.items()
    }
    results.save(saved)
    for name, course in courses.items():
        print(summary(name, course))
    results.draw(figure(courses))
    return int(any(violations(course) for course in courses.values()))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
