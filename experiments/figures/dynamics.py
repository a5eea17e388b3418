"""Neural collapse along training: its metrics and the duality gap against the step, at sample level.

Free features of 300 samples in ten classes of 10 to 50 and a classifier, trained by what the field uses (gradient
descent, with momentum, Adam; on W and H themselves) and by the default solver, each from several random starts.
Within-class variability (NC1) vanishes first; the directions of class means, classifier and logits (NC2, NC3 of Dang
et al., ICML 2024, arXiv:2401.02058) follow at the pace of the duality gap, which says how far training still has to
go. A run whose gap stays open is stuck, however small its gradient. Runs end in a dot where they are certified, in a
cross where they are not.

    python -m experiments.figures.dynamics [--seeds 3] [--quick] [--suffix pdf]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, canvas
from ufm.profiles import parse_counts
from ufm.solvers.rule import StepRule
from ufm.text import track
from ufm.verification.observer import collapse_observer

PROBLEM = ufm.Problem(parse_counts("10x2,20x2,30x2,40x2,50x2"), 32, weight_decay=5e-3, feature_decay=5e-4)
TITLES = {
    "nc1": "NC1: variability in classes",
    "nc2_h": "NC2_H: class means",
    "nc2_w": "NC2_W: rows from means",
    "nc2_wwt": "NC2_WWT: classifier",
    "nc3_wh": "NC3_WH: logits",
    "relative_gap": "relative duality gap",
}
#: Values below rounding are drawn here.
FLOOR = 1e-16


@dataclasses.dataclass(frozen=True)
class Method:
    """A step rule, how often it is watched, whether it may escape, and how it is drawn."""

    rule: StepRule
    record_every: int
    escapes: bool
    colour: str
    style: str


METHODS = {
    "gradient descent": Method(ufm.ProjectedGradient(optax.sgd(2.0)), 20, False, BLUE, ":"),
    "momentum 0.9": Method(ufm.ProjectedGradient(optax.sgd(0.5, momentum=0.9)), 20, False, ORANGE, "--"),
    "Adam": Method(ufm.ProjectedGradient(optax.adam(1e-2)), 20, False, GREEN, "-."),
    "default solver": Method(ufm.Accelerated(), 2, True, BLACK, "-"),
}


def run(method: Method, seed: int, max_steps: int) -> dict[str, Any]:
    """Train once and return the course of every metric, the status included."""
    solution = ufm.solve(
        PROBLEM,
        "sample",
        method.rule,
        seed,
        tol=1e-12,
        max_steps=max_steps,
        residual_tol=1e-9,
        escapes=method.escapes,
        record_every=method.record_every,
        observe=collapse_observer(PROBLEM),
    )
    course = {name: [record[name] for record in solution.history] for name in ("step", *TITLES)}
    return course | {"status": str(solution.status), "seed": seed}


def figure(courses: dict[str, list[dict[str, Any]]]) -> Figure:
    """Return the figure: one panel per metric, one line per run, steps and metrics on logarithmic axes."""
    with canvas(PAGE, 4.3) as drawn:
        panels: Any = drawn.subplots(2, 3, sharex=True)
        for axes, (name, title) in zip(panels.flat, TITLES.items(), strict=True):
            for who, runs in courses.items():
                method = METHODS[who]
                for number, course in enumerate(runs):
                    axes.plot(
                        np.maximum(course["step"], 1),
                        np.maximum(np.abs(course[name]), FLOOR),
                        method.style,
                        color=method.colour,
                        linewidth=1.0,
                        alpha=0.85,
                        label=who if number == 0 else None,
                    )
                    _mark_end(axes, course, name, method.colour)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(title, loc="left")
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.minorticks_off()
        for axes in panels[1]:
            axes.set_xlabel("step")
        for axes in panels.flat:
            axes.set_ylabel("residual" if axes is not panels[1, 2] else "$(P - D) / P$")
        panels[0, 0].set_ylabel("variability ratio")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=len(METHODS))
    return drawn


def _mark_end(axes: Axes, course: dict[str, Any], name: str, colour: str) -> None:
    """Put a dot where a certified run ends, a cross where another one does."""
    marker, size = ("o", 3.0) if course["status"] == "certified" else ("X", 4.5)
    last = max(abs(course[name][-1]), FLOOR)
    axes.plot(course["step"][-1], last, marker, color=colour, markersize=size, markeredgewidth=0, zorder=3)


def table(courses: dict[str, list[dict[str, Any]]]) -> str:
    """Return what became of every method: statuses and the median steps."""
    lines = []
    for who, runs in courses.items():
        statuses = ", ".join(sorted({course["status"] for course in runs}))
        steps = np.median([course["step"][-1] for course in runs])
        gaps = ", ".join(f"{course['relative_gap'][-1]:.1e}" for course in runs)
        lines.append(f"{who:18s} {statuses:24s} median steps {steps:7.0f}   final gaps {gaps}")
    return "\n".join(lines)


def main(
    seeds: int = 3,
    max_steps: int = 20_000,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Train, save the courses, draw; return 1 if the default solver is not certified from every start.

    Args:
        seeds: random starts per method.
        max_steps: limit on the steps of a run.
        outputs: where results and the picture go.
        quick: one start and 300 steps.
    """
    if quick:
        seeds, max_steps = 1, 300
    results = outputs.of("dynamics", quick)
    plan = [(who, seed) for who in METHODS for seed in range(seeds)]
    courses: dict[str, list[dict[str, Any]]] = {who: [] for who in METHODS}
    for who, seed in track(plan, "training"):
        courses[who].append(run(METHODS[who], seed, max_steps))
    results.save(courses)
    results.draw(figure(courses))
    print(table(courses))
    return int(any(course["status"] != "certified" for course in courses["default solver"]))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
