"""How often does a random start reach the global optimum, and what are the points where it gets stuck?

Success (certified to 1e-8) of four methods against d/K: projected gradient descent, Adam, accelerated projected
gradient, and the default solver, which is the same with escape moves. Ten classes, non-negative features,
cross-entropy, four profiles of counts; in two of them the decays collapse some classes.

At a stuck point classes that live at the optimum have no coordinate in which they are the only active class: they sit
at zero, or share. No small step helps: the classifier column of a coordinate is tuned to the classes that are there,
and pushes the missing class to zero. `stuck_point` lists who is where; the figure shows one such point.

    python -m experiments.figures.landscape [--seeds 20] [--quick]
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import textwrap
from typing import Any

import numpy as np
import optax
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binomtest
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.plots.style import BLUE, GREEN, ORANGE, PAGE, VERMILLION, canvas
from ufm.profiles import exponential
from ufm.text import track, wrapped

TOL = 1e-8
DIMS = (10, 12, 14, 17, 20, 40, 80)
QUICK_DIMS = (10, 20, 40)
#: Steps enough for all methods to come to rest.
MAX_STEPS = 50_000
#: Residual below which a point is at rest; an uncertified one is then stuck, not merely unfinished.
AT_REST = 1e-6
#: A class is absent from a coordinate, or at zero, below this share of the largest feature (in balanced units).
ABSENT = 1e-3

PROFILES = {
    "equal counts": ufm.Problem([300] * 10, 10, 1e-3, 1e-4),
    "100, ..., 500": ufm.Problem(np.repeat([100, 200, 300, 400, 500], 2), 10, 1e-4, 1e-5),
    "5 x 500, 5 x 100, five collapsed": ufm.Problem([500] * 5 + [100] * 5, 10, 4e-3, 4e-3),
    "long tail 100, four collapsed": ufm.Problem(exponential(10, 5000, 100), 10, 1.4e-3, 1.4e-3),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A step rule, whether it may escape, and how it is drawn."""

    rule: ufm.ProjectedGradient | ufm.Accelerated
    escapes: bool
    colour: str
    marker: str


METHODS = {
    "projected gradient": Method(
        ufm.ProjectedGradient(optax.sgd(0.005), coordinates="balanced"), False, ORANGE, "^"
    ),
    "Adam": Method(
        ufm.ProjectedGradient(optax.adam(optax.exponential_decay(1e-2, 2000, 0.5)), coordinates="balanced"),
        False,
        GREEN,
        "v",
    ),
    "accelerated, no escapes": Method(ufm.Accelerated(), False, BLUE, "s"),
    "default (with escapes)": Method(ufm.Accelerated(), True, VERMILLION, "o"),
}


def run(problem: ufm.Problem, method: Method, seed: int) -> ufm.Solution:
    """Solve from one random start; only the gap is asked for, since slow methods never get small residuals."""
    return ufm.solve(
        problem,
        solver=method.rule,
        seed=seed,
        tol=TOL,
        residual_tol=1.0,
        max_steps=MAX_STEPS,
        escapes=method.escapes,
    )


def stuck_point(solution: ufm.Solution) -> dict[str, Any]:
    """Return the living classes at zero, those without a coordinate of their own, and the shared coordinates."""
    balanced = solution.features * np.sqrt(solution.problem.counts)[:, None]
    present = balanced > ABSENT * balanced.max()
    living = ~ufm.predict(solution.problem).collapsed
    alone = present & (present.sum(axis=0) == 1)
    return {
        "relative_gap": solution.certificate.relative_gap,
        "residual": solution.certificate.residual,
        "at_zero": np.flatnonzero(living & ~present.any(axis=1)).tolist(),
        "without_own": np.flatnonzero(living & ~alone.any(axis=1)).tolist(),
        "shared": {
            int(j): np.flatnonzero(present[:, j]).tolist() for j in np.flatnonzero(present.sum(axis=0) > 1)
        },
        "living": int(living.sum()),
    }


def measure(dims: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """Run every method from every seed on every profile in every dimension."""
    plan = itertools.product(dims, PROFILES.items(), METHODS.items(), range(seeds))
    total = len(dims) * len(PROFILES) * len(METHODS) * seeds
    records = []
    for dim, (profile, problem), (name, method), seed in track(plan, "solving", total):
        solution = run(problem.replace(dim=dim), method, seed)
        record = {"profile": profile, "dim": dim, "method": name, "seed": seed, "steps": solution.steps}
        record["certified"] = solution.certified
        records.append(record | ({} if solution.certified else {"stuck": stuck_point(solution)}))
    return records


def rates(records: list[dict[str, Any]], profile: str, method: str) -> list[tuple[int, int, int]]:
    """Return dimension, successes and runs of one method on one profile."""
    chosen = [record for record in records if record["profile"] == profile and record["method"] == method]
    runs = collections.Counter(record["dim"] for record in chosen)
    won = collections.Counter(record["dim"] for record in chosen if record["certified"])
    return [(dim, won[dim], runs[dim]) for dim in sorted(runs)]


def table(records: list[dict[str, Any]]) -> str:
    """Return the success rates in per cent."""
    dims = sorted({record["dim"] for record in records})
    lines = []
    for profile, problem in PROFILES.items():
        heads = "".join(f"{dim / problem.num_classes:7.1f}" for dim in dims)
        lines.append(f"{profile:42}{'d/K':>4}{heads}")
        for method in METHODS:
            cells = "".join(f"{100 * won / runs:6.0f}%" for _, won, runs in rates(records, profile, method))
            lines.append(f"  {method:44}{cells}")
    return "\n".join(lines)


def explanation(records: list[dict[str, Any]]) -> str:
    """Return what the stuck points have in common, counted, and one example of every profile."""
    stuck = [record for record in records if "stuck" in record]
    rest = sum(record["stuck"]["residual"] <= AT_REST for record in stuck)
    zero = sum(bool(record["stuck"]["at_zero"]) for record in stuck)
    without = sum(bool(record["stuck"]["without_own"]) for record in stuck)
    lines = [
        f"{len(stuck)} runs end uncertified, {rest} of them at rest: living classes at zero in {zero}, "
        f"without a coordinate of their own in {without}"
    ]
    for profile in PROFILES:
        example = next((record for record in stuck if record["profile"] == profile), None)
        if example is not None:
            found = example["stuck"]
            lines.append(
                f"{profile}, {example['method']}, d = {example['dim']}, seed {example['seed']}: relative gap "
                f"{found['relative_gap']:.1e}; classes at zero {found['at_zero']}; without a coordinate of their own "
                f"{found['without_own']}; shared coordinates "
                + (", ".join(f"{j}: {classes}" for j, classes in found["shared"].items()) or "none")
            )
    return "\n".join(wrapped(line) for line in lines)


def figure(records: list[dict[str, Any]]) -> Figure:
    """Return the figure: success rates above; below a stuck point, the optimum beyond it, and all stuck points."""
    with canvas(PAGE, 4.5) as drawing:
        halves: Any = drawing.subfigures(2, 1, hspace=0.04)
        above = halves[0].subplots(1, len(PROFILES), sharey=True)
        for axes, profile in zip(above, PROFILES, strict=True):
            _success_panel(axes, records, profile)
        above[0].set_ylabel("certified starts (%),\n95 % Wilson intervals")
        halves[0].legend(
            *above[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS)
        )
        below = halves[1].subplots(1, 3, width_ratios=(1.0, 1.0, 1.4))
        _feature_panels(halves[1], below[:2])
        _gap_panel(below[2], records)
        for letter, axes in zip("abcdefg", [*above, *below], strict=True):
            axes.set_title(f"({letter}) {axes.get_title(loc='left')}", loc="left")
    return drawing


def _success_panel(axes: Axes, records: list[dict[str, Any]], profile: str) -> None:
    """Success against d/K, one method a little beside the other; the bars are 95 % Wilson intervals."""
    K = PROFILES[profile].num_classes
    for aside, (name, method) in zip((0.94, 0.98, 1.02, 1.06), METHODS.items(), strict=True):
        points = rates(records, profile, name)
        share = np.array([100 * won / runs for _, won, runs in points])
        ends = 100 * np.array([binomtest(won, runs).proportion_ci(0.95, "wilson") for _, won, runs in points])
        bars = np.maximum([share - ends[:, 0], ends[:, 1] - share], 0)
        ratio = [dim / K * aside for dim, _, _ in points]
        axes.errorbar(
            ratio,
            share,
            bars,
            color=method.colour,
            marker=method.marker,
            ms=3,
            lw=1.0,
            elinewidth=0.6,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_ylim(-4, 104)
    axes.set_xlabel("d / K")
    axes.set_title(textwrap.fill(profile, 20), loc="left")


def _feature_panels(parent: Any, panels: Any) -> None:
    """Features of the first start that gets stuck at d = K, and of the optimum that escape moves reach from there."""
    problem = PROFILES["100, ..., 500"]
    plain, escaping = METHODS["accelerated, no escapes"], METHODS["default (with escapes)"]
    stuck = next(solution for seed in range(100) if not (solution := run(problem, plain, seed)).certified)
    free = ufm.solve(problem, start=stuck, tol=TOL, escapes=escaping.escapes)
    moves = sum(record["event"] is not None for record in free.history)
    titles = (
        f"stuck:\ngap {stuck.certificate.relative_gap:.2f}",
        f"{moves} escape move{'s' if moves > 1 else ''} later:\ngap {max(free.certificate.relative_gap, 0):.0e}",
    )
    for axes, solution, title in zip(panels, (stuck, free), titles, strict=True):
        balanced = solution.features * np.sqrt(problem.counts)[:, None]
        order = np.argsort(-np.argmax(balanced, axis=0), kind="stable")[::-1]
        shown = axes.imshow(balanced[:, order] / balanced.max(), cmap="cividis", vmin=0, vmax=1)
        axes.set_title(title, loc="left")
        axes.set_xlabel("coordinate")
        axes.set_xticks([])
        axes.set_yticks(range(problem.num_classes), [str(count) for count in problem.counts])
        axes.set_ylabel("samples of the class")
    bar = parent.colorbar(shown, ax=list(panels), shrink=0.8, pad=0.02)
    bar.set_label(r"$\sqrt{n_k}\,h_k$ / largest")


def _gap_panel(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Duality gap of all stuck points against the number of living classes without a coordinate of their own."""
    rng = np.random.default_rng(0)
    for name, method in METHODS.items():
        found = [record["stuck"] for record in records if record["method"] == name and "stuck" in record]
        missing = np.array([len(point["without_own"]) for point in found], dtype=float)
        gaps = [point["relative_gap"] for point in found]
        spread = rng.uniform(-0.3, 0.3, len(missing))
        axes.scatter(missing + spread, gaps, s=9, color=method.colour, marker=method.marker, lw=0, alpha=0.6)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("living classes without\na coordinate of their own")
    axes.set_ylabel("relative duality gap")
    axes.set_title("all stuck points", loc="left")


def main(
    seeds: int = 20,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Measure, print the table and the explanation, draw the figure; return 1 if the default solver ever failed.

    Args:
        seeds: random starts per profile, dimension and method.
        outputs: where results and the picture go.
        quick: 3 seeds and 3 dimensions.
    """
    results = outputs.of("landscape", quick)
    records = measure(QUICK_DIMS if quick else DIMS, 3 if quick else seeds)
    results.save(records)
    print(table(records))
    print(explanation(records))
    results.draw(figure(records))
    default = [record for record in records if record["method"] == "default (with escapes)"]
    return int(not all(record["certified"] for record in default))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
