"""Focal loss collapses discontinuously: margin and duality gap through the threshold, by number of classes.

K classes of 100 samples, non-negative features, gamma = 2. Without a theorem (the loss is not convex) the scalar
problem of every class is still what an orthogonal frame can do: min over M >= 0 of phi(M) + x p M, with phi the loss
along the ray of margins, p = -phi'(0) what a class without a margin gains by one, and x the decay in units of the one
at which a convex loss collapses. While phi is concave at first the best margin jumps from M* > 0 to 0 at some x* > 1.
Lines are that scalar problem; dots the best of several starts of the solver, full where the gap certifies it, empty
where it stays open.

    python -m experiments.figures.focal [--gamma 2] [--suffix pdf] [--quick]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy.optimize import brentq
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.metrics import logit_margins
from ufm.plots.style import BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.text import track

SIZES = (5, 20, 100)
SAMPLES = 100
COLOURS = (BLUE, GREEN, VERMILLION)
GRID = np.linspace(0.0, 12.0, 24_001)


def along_the_ray(gamma: float, K: int) -> tuple[np.ndarray, float]:
    """Return phi on the grid of margins, and p."""
    form = ufm.Focal(gamma).scalar_form(K)
    assert form is not None
    loss, own = form.loss, np.zeros(len(GRID), dtype=int)
    logits = np.outer(GRID, [1 - 1 / K, -1 / K])
    return np.asarray(loss.value(logits, own, np.array([1.0, K - 1.0]))), float(form.pull[0])


def best_margin(gamma: float, K: int, x: float) -> float:
    """Return the margin of the scalar problem's global minimum, to the step of the grid."""
    values, pull = along_the_ray(gamma, K)
    return float(GRID[np.argmin(values + x * pull * GRID)])


def jump(gamma: float, K: int) -> tuple[float, float]:
    """Return ``x*`` and the margin from which the best one falls to zero there."""
    values, pull = along_the_ray(gamma, K)

    def gain(x: float) -> float:
        """What the best margin of the upper branch gains over none."""
        return float(values[0] - np.min((values + x * pull * GRID)[1:]))

    low, high = 0.5, 1.0
    while gain(high) > 0:
        high *= 1.5
    at = float(brentq(lambda x: gain(x) - 1e-15, low, high, xtol=1e-14))
    return at, best_margin(gamma, K, at * (1 - 1e-9))


def solved(gamma: float, K: int, x: float, starts: int) -> dict[str, Any]:
    """Return margin and gap of the best of some starts."""
    pull = along_the_ray(gamma, K)[1]
    decay = x * pull / (K * np.sqrt(SAMPLES * (K - 1) / K))
    problem = ufm.Problem([SAMPLES] * K, K, decay, decay, loss=ufm.Focal(gamma))
    ends = [ufm.solve(problem, level="class", seed=seed, max_steps=3000) for seed in range(starts)]
    best = min(ends, key=lambda end: end.objective)
    margin = float(logit_margins(best.features @ best.weight.T).mean())
    gap, low = best.certificate.relative_gap, max(end.objective for end in ends) / best.objective - 1
    return {"K": K, "x": x, "margin": margin, "gap": gap, "certified": best.certified, "spread": low}


def figure(gamma: float, records: list[dict[str, Any]], jumps: dict[int, tuple[float, float]]) -> Figure:
    """Return the figure: margins, and the gaps that stay open."""
    with canvas(PAGE, 2.6) as drawn:
        margins, gaps = drawn.subplots(1, 2)
        for (K, (at, top)), colour in zip(jumps.items(), COLOURS, strict=False):
            below = np.linspace(0.4, at * (1 - 1e-9), 60)
            margins.plot(below, [best_margin(gamma, K, x) for x in below], color=colour, lw=0.9)
            margins.plot([at, at], [0, top], color=colour, lw=0.7, ls=":")
            mine = [record for record in records if record["K"] == K]
            for certified in (True, False):
                rows = [(r["x"], r["margin"]) for r in mine if r["certified"] is certified]
                label = f"$K = {K}$" if certified else None
                options: dict[str, Any] = {} if certified else {"mfc": "none", "mew": 0.7}
                margins.plot(
                    *np.transpose(rows or [(np.nan, np.nan)]), "o", color=colour, ms=3, label=label, **options
                )
            rows = [(r["x"], max(r["gap"], 1e-15)) for r in mine]
            gaps.semilogy(*np.transpose(rows), "o-", color=colour, ms=3, lw=0.5, mfc="none", mew=0.7)
        for axes, name in ((margins, "margin (nats)"), (gaps, "relative duality gap")):
            axes.set_xlabel(r"decay, in units of $-\varphi'(0)$")
            axes.set_ylabel(name)
        drawn.legend(*margins.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def main(gamma: float = 2.0, outputs: OmitArgPrefixes[Outputs] = Outputs(), quick: bool = False) -> int:
    """Solve through the threshold, compare with the scalar problem, draw; return 1 where the solver found less.

    Args:
        gamma: of the focal loss.
        outputs: where results and the picture go.
        quick: K = 100 alone, four decays and one start.
    """
    results = outputs.of("focal", quick)
    sizes, number, starts = (SIZES[-1:], 4, 1) if quick else (SIZES, 11, 3)
    jumps = {K: jump(gamma, K) for K in sizes}
    tasks = [(K, float(x)) for K in sizes for x in jumps[K][0] * np.linspace(0.5, 1.15, number)]
    records = [solved(gamma, K, x, starts) for K, x in track(tasks, "decays")]
    results.save({"records": records, "jumps": {str(K): found for K, found in jumps.items()}})
    for K, (at, top) in jumps.items():
        mine = [record for record in records if record["K"] == K]
        open_ones = [r["gap"] for r in mine if not r["certified"]]
        print(f"K = {K}: the margin jumps from {top:.3f} to 0 at x* = {at:.4f}")
        print(
            f"  certified {len(mine) - len(open_ones)} of {len(mine)}; gaps up to {max(open_ones, default=0):.2g}"
        )
    results.draw(figure(gamma, records, jumps))
    wrong = [r for r in records if abs(r["margin"] - best_margin(gamma, r["K"], r["x"])) > 2e-3]
    for record in wrong:
        print(
            f"K = {record['K']}, x = {record['x']:.3f}: margin {record['margin']:.3f}, another one predicted"
        )
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
