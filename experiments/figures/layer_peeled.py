"""Minority collapse in the Layer-Peeled Model: angles between classifiers against the imbalance ratio.

The published experiment (Fang, He, Long, Su, PNAS 2021, arXiv:2101.12699): ten classes, half of them with R times
the samples of the others, free features, cross-entropy, caps E_W = 1 and E_H = 5; R = 10^(0.1 i), i = 0, ..., 40.
The mean cosine between minority classifiers starts at -1/9 and reaches one, minority collapse, at R_0 = 12.19.
Every point is certified to a relative gap of 1e-8 within the caps. What decides is the price l of the caps (their
Lagrange multiplier sqrt(lambda_W lambda_H)): the minority is merged exactly where l >= n_B/N. A table adds R_0
for other caps and numbers of majority classes.

    python -m experiments.figures.layer_peeled [--majority 5] [--feature-cap 5] [--suffix pdf] [--quick]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

from experiments.common import Outputs
from ufm.metrics import cosines, logit_margins, norms
from ufm.models.layer_peeled import LayerPeeled, LayerPeeledSolution, collapse_ratio
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.text import track

K = 10
CAPS, MAJORITIES = (1.0, 5.0, 10.0), (3, 5, 7)


def observe(solution: LayerPeeledSolution, majority: int) -> dict[str, float]:
    """Return what the figure shows of one solution."""
    angles, lengths = cosines(solution.weight), norms(solution.weight)
    margins = logit_margins(solution.features @ solution.weight.T)
    pairs = np.triu(np.ones((K, K), dtype=bool), 1)
    major = np.arange(K) < majority
    groups = {"majority": np.outer(major, major), "minority": np.outer(~major, ~major)}
    groups["between"] = ~(groups["majority"] | groups["minority"])
    return {
        **{f"cosine {name}": float(angles[pairs & group].mean()) for name, group in groups.items()},
        "norm ratio": float(lengths[major].mean() / lengths[~major].mean()),
        "margin majority": float(margins[major].mean()),
        "margin minority": float(margins[~major].mean()),
        "price": solution.nuclear_weight,
        "threshold": float(solution.model.counts.min() / solution.model.counts.sum()),
        "loss": solution.objective,
        "relative gap": solution.relative_gap,
        "solves": solution.solves,
    }


def curve(ratios: np.ndarray, majority: int, weight_cap: float, feature_cap: float) -> list[dict[str, float]]:
    """Solve for every ratio, each time from the solution before."""
    records: list[dict[str, float]] = []
    previous: LayerPeeledSolution | None = None
    for ratio in track(ratios, "imbalance ratios"):
        counts = np.repeat([ratio, 1.0], [majority, K - majority])
        previous = LayerPeeled(counts, K, weight_cap, feature_cap).solve(start=previous)
        records.append({"R": float(ratio), "certified": previous.certified} | observe(previous, majority))
    return records


def figure(records: list[dict[str, float]], critical: float) -> Figure:
    """Return the figure: angles, the price of the caps against the threshold, margins."""
    ratios = np.array([record["R"] for record in records])

    def of(name: str) -> np.ndarray:
        return np.array([record[name] for record in records])

    with canvas(PAGE, 2.6) as drawing:
        angles, price, margins = drawing.subplots(1, 3)
        for name, colour, marker in (
            ("minority", VERMILLION, "o"),
            ("between", BLACK, "s"),
            ("majority", BLUE, "^"),
        ):
            angles.plot(ratios, of(f"cosine {name}"), color=colour, marker=marker, ms=2.5, lw=0.9, label=name)
        angles.axhline(-1 / (K - 1), color=BLACK, lw=0.6, ls=":")
        angles.text(ratios[-1], -1 / (K - 1) + 0.02, "-1/9, simplex", ha="right", va="bottom", fontsize=7.0)
        angles.set_ylabel("mean cosine between classifiers")
        price.plot(ratios, of("price"), color=GREEN, marker="o", ms=2.5, lw=0.9, label="price $l$")
        price.plot(ratios, of("threshold"), color=BLACK, ls="--", label="threshold $n_B/N$")
        price.set_yscale("log")
        price.set_ylabel(r"$\sqrt{\lambda_W \lambda_H}$ (nats)")
        for name, colour, marker in (("majority", BLUE, "^"), ("minority", VERMILLION, "o")):
            margins.plot(
                ratios, of(f"margin {name}"), color=colour, marker=marker, ms=2.5, lw=0.9, label=name
            )
        margins.set_ylabel("logit margin (nats)")
        angles.text(critical, 0.75, f" $R_0$ = {critical:.2f}", fontsize=7.0)
        titles = ("(a) angles", "(b) price of the caps", "(c) margins")
        for title, axes in zip(titles, (angles, price, margins), strict=True):
            axes.axvline(critical, color=BLACK, lw=0.6)
            axes.set_xscale("log")
            axes.set_xlabel("imbalance ratio $R$")
            axes.set_title(title, loc="left")
        handles = [handle for axes in (angles, price) for handle in axes.get_legend_handles_labels()[0]]
        drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return drawing


def critical_table() -> list[dict[str, float]]:
    """Return R_0 for several caps and numbers of majority classes."""
    cells = [(cap, majority) for cap in CAPS for majority in MAJORITIES]
    return [
        {
            "feature cap": cap,
            "majority": majority,
            "R_0": collapse_ratio(majority, K - majority, feature_cap=cap),
        }
        for cap, majority in track(cells, "critical ratios")
    ]


def main(
    majority: int = 5,
    weight_cap: float = 1.0,
    feature_cap: float = 5.0,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Compute, save, print and draw; return 1 unless every point is certified.

    Args:
        majority: number of majority classes of ten.
        weight_cap: E_W.
        feature_cap: E_H.
        outputs: where results and the picture go.
        quick: nine ratios instead of 41 and no table.
    """
    ratios = 10.0 ** (0.1 * np.arange(0, 41, 5 if quick else 1))
    results = outputs.of("layer_peeled", quick)
    records = curve(ratios, majority, weight_cap, feature_cap)
    critical = collapse_ratio(majority, K - majority, weight_cap=weight_cap, feature_cap=feature_cap)
    saved: dict[str, Any] = {"curve": records, "R_0": critical, "others": [] if quick else critical_table()}
    results.save(saved)
    print("       R  cosine minority  price/threshold  relative gap")
    for record in records:
        share = record["price"] / record["threshold"]
        print(
            f"{record['R']:8.1f}  {record['cosine minority']:15.4f}  {share:15.4f}  {record['relative gap']:12.1e}"
        )
    print(f"minority collapse at R_0 = {critical:.7g}")
    for row in saved["others"]:
        print(f"E_H = {row['feature cap']:4g}, {row['majority']} majority classes: R_0 = {row['R_0']:.7g}")
    results.draw(figure(records, critical))
    return int(not all(record["certified"] for record in records))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
