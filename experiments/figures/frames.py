"""Frames at any imbalance: a fixed classifier keeps every class alive, and the contrastive loss finds one by itself.

Ten classes, five of 500 samples and five of 500/R. (a) The smallest margin with a learned classifier, which falls to
zero at the critical ratio, and with orthogonal rows fixed, as long together as the learned ones: it never does. (b)
What that costs: the whole objective, the fixed classifier's own charge included, over the learned optimum. (c) The
smallest angle between class means of the supervised contrastive loss (temperature 0.5, 40 and 40/R samples), all at
once and in batches that tie all classes. Lines are predicted, dots solved and certified.

    python -m experiments.figures.frames [--suffix pdf] [--quick]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.metrics import logit_margins
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.text import track

DECAYS = (5e-3, 2e-4)
BATCH = 24


def counts_of(ratio: float, majority: int = 500) -> np.ndarray:
    """Return the counts."""
    return np.repeat([majority, max(round(majority / ratio), 1)], 5)


def classifiers(ratio: float) -> dict[str, Any]:
    """Return margins, cost and gaps of both classifiers."""
    learned = ufm.Problem(counts_of(ratio), 10, *DECAYS)
    free = ufm.predict(learned)
    energy = float(np.sum(free.weight_norms**2)) or 1.0
    fixed = learned.replace(classifier=ufm.orthogonal_frame(10, 10, np.sqrt(energy / 10)))
    frame, charge = ufm.predict(fixed), DECAYS[0] * energy / 2
    ends = [ufm.solve(problem, seed=1) for problem in (learned, fixed)]
    margins = [float(logit_margins(end.features @ end.weight.T).min()) for end in ends]
    return {
        "R": ratio,
        "predicted": [float(free.margins.min()), float(frame.margins.min())],
        "solved": margins,
        "cost": (frame.objective + charge) / free.objective - 1,
        "solved cost": (ends[1].objective + charge) / ends[0].objective - 1,
        "gaps": [end.certificate.relative_gap for end in ends],
        "certified": all(end.certified for end in ends),
    }


def contrastive(ratio: float, batched: bool) -> dict[str, Any]:
    """Return cosine, NC1 and gap of the contrastive loss: as a whole, or in batches that tie every two classes."""
    counts, rng = counts_of(ratio, 40), np.random.default_rng(0)
    batches = None
    if batched:
        first = np.cumsum(counts) - counts
        drawn = [rng.permutation(counts.sum())[:BATCH] for _ in range(2 * counts.sum() // BATCH)]
        # one more batch ties every two classes, and every sample to another of its class that all batches share
        batches = [*drawn, *(np.union1d([*first, *(first + 1)], part) for part in _parts(counts.sum()))]
    model = ufm.SupervisedContrastive(counts, 10, 0.5, batches=batches)
    end = model.solve(seed=1)
    found = {"R": ratio, "batched": batched, "cosine": end.largest_cosine, "nc1": end.nc1}
    return found | {"gap": end.relative_gap, "certified": end.certified, "tied": model.predict().determined}


def _parts(num_samples: int) -> list[np.ndarray]:
    """Return all samples in parts of at most a batch."""
    return np.array_split(np.arange(num_samples), -(-num_samples // BATCH))


def figure(learned: list[dict[str, Any]], own: list[dict[str, Any]]) -> Figure:
    """Return the figure."""
    with canvas(PAGE, 2.6) as drawn:
        margins, cost, angles = drawn.subplots(1, 3)
        ratios = [row["R"] for row in learned]
        for i, (name, colour) in enumerate((("learned", BLUE), ("fixed frame", VERMILLION))):
            margins.plot(ratios, [row["predicted"][i] for row in learned], color=colour, lw=0.9)
            margins.plot(ratios, [row["solved"][i] for row in learned], "o", color=colour, ms=3, label=name)
        cost.plot(ratios, [100 * row["cost"] for row in learned], color=BLACK, lw=0.9)
        cost.plot(ratios, [100 * row["solved cost"] for row in learned], "o", color=VERMILLION, ms=3)
        for batched, colour, marker in ((False, GREEN, "o"), (True, BLACK, "s")):
            mine = [row for row in own if row["batched"] is batched]
            name = "in batches" if batched else "all at once"
            values = [np.degrees(np.arccos(row["cosine"])) for row in mine]
            angles.plot(
                [row["R"] for row in mine], values, marker, color=colour, ms=3.5, mfc="none", label=name
            )
        angles.set_ylim(0, 100)
        titles = ("(a) smallest margin", "(b) cost in objective (%)", "(c) smallest angle (degrees), SCL")
        for axes, title in zip((margins, cost, angles), titles, strict=True):
            axes.set_xscale("log")
            axes.set_xlabel("imbalance ratio $R$")
            axes.set_title(title, loc="left")
        handles = [*margins.get_legend_handles_labels()[0], *angles.get_legend_handles_labels()[0]]
        drawn.legend(handles=handles, loc="outside lower center", ncols=4)
    return drawn


def main(outputs: OmitArgPrefixes[Outputs] = Outputs(), quick: bool = False) -> int:
    """Solve, compare with what is predicted, draw; return 1 if anything is uncertified or off.

    Args:
        outputs: where results and the picture go.
        quick: three ratios.
    """
    results = outputs.of("frames", quick)
    ratios = np.geomspace(1, 500, 3 if quick else 14).round(3).tolist()
    learned = [classifiers(ratio) for ratio in track(ratios, "ratios")]
    own = [
        contrastive(ratio, batched)
        for ratio in (1, 2, 4, 20)[:: 3 if quick else 1]
        for batched in (False, True)
    ]
    results.save({"classifiers": learned, "contrastive": own})
    print(f"{'R':>8}{'learned':>10}{'fixed':>10}{'cost %':>10}   gaps")
    for row in learned:
        gaps = " ".join(f"{gap:.0e}" for gap in row["gaps"])
        print(
            f"{row['R']:8.3g}{row['solved'][0]:10.4f}{row['solved'][1]:10.4f}{100 * row['cost']:10.3f}   {gaps}"
        )
    for row in own:
        kind = "batches" if row["batched"] else "all"
        print(
            f"SCL, R = {row['R']}, {kind}: cosine {row['cosine']:.1e}, NC1 {row['nc1']:.1e}, gap {row['gap']:.0e}"
        )
    results.draw(figure(learned, own))
    off = max(abs(a - b) for row in learned for a, b in zip(row["solved"], row["predicted"], strict=True))
    return int(off > 1e-4 or not all(row["certified"] for row in learned + own))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
