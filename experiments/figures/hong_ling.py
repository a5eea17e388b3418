"""Two groups of classes with free features and a penalised bias: thresholds and block structure.

The setting of Hong and Ling 2023 (arXiv:2309.09725): nuclear weight l = sqrt(lambda_W lambda_H), bias penalty
0.01, five majority classes of n_A samples and five minority classes of n_B = 100. Two series: l from 0.0027 to
0.0075 at n_A = 500, and n_A from 100 to 1400 at l = 0.005. As long as a group is not collapsed, the probability
that a class gives itself exceeds the one it gives a sibling by exactly 1 - l N/sqrt(n), so minority classes merge
at l = sqrt(n_B)/N, and everything collapses at l = sqrt(n_A)/N. That needs a sibling in the majority: a single
majority class is lost earlier (`ufm.theory.total_collapse_weight`). All thresholds are found again by bisection on
certified solutions that know none, and every Gram matrix is constant on the blocks of the two groups. Last, the time
to certify larger problems of this kind, where interior-point solvers need minutes (K = 40) or fail (K = 60).

    python -m experiments.figures.hong_ling [--sizes 20 40 60] [--suffix pdf] [--quick]
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.losses.softmax import softmax
from ufm.metrics import gram
from ufm.plots.style import BLACK, BLUE, PAGE, VERMILLION, canvas
from ufm.text import track
from ufm.theory import total_collapse_weight

GROUP, MINORITY, BIAS_DECAY = 5, 100, 0.01
WEIGHTS = (0.0027, 0.0030, 0.0033, 0.0039, 0.0045, 0.0051, 0.0057, 0.0063, 0.0069, 0.0075)
MAJORITIES = tuple(range(100, 1401, 100))
FIXED_MAJORITY, FIXED_WEIGHT = 500, 0.005
#: Classes whose probabilities of themselves and of a sibling differ by less count as merged.
MERGED = 1e-5
#: Nuclear weights whose classifier Gram matrices are drawn, and what is collapsed there.
SHOWN = {0.0027: "nothing", 0.0051: "minority", 0.0075: "everything"}


def problem_of(majority: int, weight: float, group: int = GROUP) -> ufm.Problem:
    """Return the problem with ``group`` classes of either kind."""
    counts = np.repeat([majority, MINORITY], group)
    return ufm.Problem(counts, 2 * group, weight, weight, features="free", bias=BIAS_DECAY)


def contrasts(solution: ufm.Solution) -> dict[str, float]:
    """Return how much more probability the classes of a group give themselves than a sibling, on average."""
    p = softmax(solution.features @ solution.weight.T + solution.bias)
    group = len(p) // 2
    blocks = {"majority": p[:group, :group], "minority": p[group:, group:]}
    return {
        name: float(np.mean(np.diag(block)) - np.mean(block[~np.eye(group, dtype=bool)]))
        for name, block in blocks.items()
    }


def block_error(matrix: np.ndarray) -> float:
    """Return how far a matrix is from constant on the blocks of two groups, relative to its largest entry or 1."""
    group = len(matrix) // 2
    spreads = []
    for rows in (slice(0, group), slice(group, None)):
        for columns in (slice(0, group), slice(group, None)):
            block = matrix[rows, columns]
            inside = np.eye(group, dtype=bool) & (rows == columns)
            spreads += [np.ptp(block[inside])] if inside.any() else []
            spreads.append(np.ptp(block[~inside]))
    return float(max(spreads) / np.abs(matrix).max(initial=1.0))


def observe(problem: ufm.Problem) -> dict[str, Any]:
    """Solve one problem and return what the series show."""
    solution = ufm.solve(problem)
    weights = gram(solution.weight)
    return {
        "n_A": int(problem.counts[0]),
        "l": problem.nuclear_weight,
        "N": problem.num_samples,
        "contrasts": contrasts(solution),
        "gram": weights.tolist(),
        "block error": max(block_error(weights), block_error(solution.features @ solution.weight.T)),
        "status": str(solution.status),
        "relative gap": solution.certificate.relative_gap,
    }


def optimum(problem: ufm.Problem) -> ufm.Solution:
    """Solve, and refuse to draw conclusions from what is not certified."""
    solution = ufm.solve(problem)
    if not solution.certified:
        raise RuntimeError(f"{solution.status} with relative gap {solution.certificate.relative_gap:.1e}")
    return solution


def first_merged(merged: Callable[[float], bool], low: float, high: float, until: float) -> float:
    """Bisect for the parameter from which on a group is merged; it is not at ``low``, and is at ``high``."""
    while high - low > until:
        middle = (low + high) / 2 if until < 1 else (low + high) // 2
        low, high = (low, middle) if merged(middle) else (middle, high)
    return high


def thresholds(digits: float) -> list[dict[str, Any]]:
    """Return every threshold: predicted in closed form, and found by bisection."""

    def merged(group: str, majority: float, weight: float) -> bool:
        return contrasts(optimum(problem_of(int(majority), weight)))[group] <= MERGED

    total, found = problem_of(FIXED_MAJORITY, 1.0).num_samples, []
    for group, count in (("minority", MINORITY), ("majority", FIXED_MAJORITY)):
        exact = float(np.sqrt(count)) / total
        at_weight = functools.partial(merged, group, FIXED_MAJORITY)
        measured = first_merged(at_weight, 0.5 * exact, 1.5 * exact, digits * exact)
        found.append({"group": group, "parameter": "l", "predicted": exact, "found": measured})
    for group in ("minority", "majority"):
        sizes = np.arange(MINORITY, 3000)
        own = np.full_like(sizes, MINORITY) if group == "minority" else sizes
        lost = np.sqrt(own) <= FIXED_WEIGHT * GROUP * (sizes + MINORITY) * (1 + 1e-12)
        first = int(sizes[np.flatnonzero(~lost)[-1] + 1])
        at_size = functools.partial(merged, group, weight=FIXED_WEIGHT)
        measured = first_merged(at_size, first // 2, 2 * first, 1)
        found.append({"group": group, "parameter": "n_A", "predicted": first, "found": int(measured)})
    return [*found, lone_majority(digits)]


def lone_majority(digits: float) -> dict[str, Any]:
    """Return the threshold of total collapse with a single majority class, which has no sibling."""
    counts = [FIXED_MAJORITY] + [MINORITY] * GROUP

    def problem_at(weight: float) -> ufm.Problem:
        return ufm.Problem(counts, len(counts), weight, weight, features="free", bias=BIAS_DECAY)

    def merged(weight: float) -> bool:
        solution = optimum(problem_at(weight))
        return float(np.abs(solution.features @ solution.weight.T).max()) <= MERGED

    exact = total_collapse_weight(problem_at(1.0))
    measured = first_merged(merged, 0.5 * exact, 1.5 * exact, digits * exact)
    return {"group": "a lone majority", "parameter": "l", "predicted": exact, "found": measured}


def speed(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time the certification of problems of K classes, with and after compilation, around the minority threshold."""
    records = []
    for K in track(sizes, "larger problems"):
        total = K // 2 * (FIXED_MAJORITY + MINORITY)
        for share in (0.5, 1.1):
            problem = problem_of(FIXED_MAJORITY, share * np.sqrt(MINORITY) / total, K // 2)
            seconds = []
            for _ in range(2):
                started = time.perf_counter()
                solution = ufm.solve(problem)
                seconds.append(time.perf_counter() - started)
            records.append(
                {
                    "K": K,
                    "share": share,
                    "seconds": seconds,
                    "steps": solution.steps,
                    "status": str(solution.status),
                    "relative gap": solution.certificate.relative_gap,
                }
            )
    return records


def figure(by_weight: list[dict[str, Any]], by_majority: list[dict[str, Any]]) -> Figure:
    """Return the figure: contrasts along both series above, classifier Gram matrices below."""
    with canvas(PAGE, 4.2) as drawing:
        rows: Any = drawing.subfigures(2, 1, height_ratios=[1.1, 1])
        left, right = rows[0].subplots(1, 2)
        fine = np.linspace(WEIGHTS[0], WEIGHTS[-1], 200)
        total = GROUP * (FIXED_MAJORITY + MINORITY)
        _series(left, [r["l"] for r in by_weight], by_weight, fine, fine * total, FIXED_MAJORITY)
        left.set_xlabel(r"$l = \sqrt{\lambda_W \lambda_H}$ (nats), $n_A$ = 500, $n_B$ = 100")
        sizes = np.linspace(MAJORITIES[0], MAJORITIES[-1], 200)
        scale = FIXED_WEIGHT * GROUP * (sizes + MINORITY)
        _series(right, [r["n_A"] for r in by_majority], by_majority, sizes, scale, sizes)
        right.set_xlabel(r"$n_A$ (samples of a majority class), $l$ = 0.005")
        left.set_ylabel("own minus sibling\nprobability")
        rows[0].legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        for letter, axes in zip("ab", (left, right), strict=True):
            axes.set_title(f"({letter})", loc="left")
        _matrices(rows[1], by_weight)
    return drawing


def _series(
    axes: Axes,
    at: list[float],
    records: list[dict[str, Any]],
    x: np.ndarray,
    scale: np.ndarray,
    majority: Any,
) -> None:
    """Measured contrasts on the lines ``1 - l N / sqrt(n)``, clipped at zero."""
    for name, count, colour, marker in (
        ("majority", majority, BLUE, "^"),
        ("minority", MINORITY, VERMILLION, "o"),
    ):
        line = np.maximum(1 - scale / np.sqrt(count), 0)
        axes.plot(x, line, color=colour, lw=0.9, label=f"{name}, predicted")
        dots = [record["contrasts"][name] for record in records]
        axes.plot(at, dots, color=colour, marker=marker, ms=4, ls="", label=f"{name}, solved")
        axes.axvline(x[np.argmax(line <= 0)], color=BLACK, lw=0.5, ls=":")


def _matrices(drawing: SubFigure, by_weight: list[dict[str, Any]]) -> None:
    """Gram matrices of the classifier at the nuclear weights nearest to those of interest."""
    grid = drawing.subplots(1, len(SHOWN), squeeze=False)[0]
    records = [min(by_weight, key=lambda record: abs(record["l"] - weight)) for weight in SHOWN]
    scale = max(float(np.abs(record["gram"]).max()) for record in records)
    for letter, axes, record, (_, name) in zip("cde", grid, records, SHOWN.items(), strict=True):
        shown = axes.imshow(record["gram"], cmap="RdBu_r", vmin=-scale, vmax=scale)
        axes.set_title(f"({letter}) $l$ = {record['l']:.4f}:\n{name} collapsed", loc="left")
        axes.set_xticks([2, 7], ["majority", "minority"])
        axes.set_yticks([2, 7], ["majority", "minority"], rotation=90, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
    bar = drawing.colorbar(shown, ax=list(grid), shrink=0.9)
    bar.set_label(r"$\langle w_k, w_l \rangle$")


def main(
    sizes: tuple[int, ...] = (20, 40, 60),
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Solve both series, find the thresholds, time larger problems; return 1 unless all is certified.

    Args:
        sizes: numbers of classes to time.
        outputs: where results and the picture go.
        quick: every third member of the series, thresholds to 1e-2, one size.
    """
    stride, digits, sizes = (3, 1e-2, sizes[:1]) if quick else (1, 1e-5, sizes)
    results = outputs.of("hong_ling", quick)
    by_weight = [observe(problem_of(FIXED_MAJORITY, weight)) for weight in WEIGHTS[::stride]]
    by_majority = [observe(problem_of(n, FIXED_WEIGHT)) for n in MAJORITIES[::stride]]
    found, timed = thresholds(digits), speed(sizes)
    saved = {"by weight": by_weight, "by majority": by_majority, "thresholds": found, "speed": timed}
    results.save(saved)
    print(f"{'n_A':>5}{'l':>9}{'majority':>12}{'minority':>12}{'off blocks':>12}{'gap':>10}  status")
    for record in by_weight + by_majority:
        print(
            f"{record['n_A']:5}{record['l']:9.4f}{record['contrasts']['majority']:z12.6f}"
            f"{record['contrasts']['minority']:z12.6f}{record['block error']:12.1e}"
            f"{record['relative gap']:10.1e}  {record['status']}"
        )
    for row in found:
        place = f"{row['parameter']} = {row['found']:.6g} (predicted {row['predicted']:.6g})"
        print(f"{row['group']} merges at {place}")
    for row in timed:
        first, again = row["seconds"]
        took = f"{row['status']} in {first:.2f} s, again {again:.2f} s, {row['steps']} steps"
        print(f"K = {row['K']:4}, l = {row['share']} l*: {took}")
    results.draw(figure(by_weight, by_majority))
    return int(any(record["status"] != "certified" for record in by_weight + by_majority + timed))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
