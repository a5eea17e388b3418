"""One set of counts, every model: what the frames of the literature predict, and what the solver finds.

Ten classes, five (A) of 500 samples and five (B) of 50. For every model the lengths of class means and classifier
rows and the margins of the minority over those of the majority, and the angles in and between the groups: in closed
form where there is one (else by a solve from another start), solved and certified in any case. The simplex ETF and
the orthogonal frame (OF) need equal counts, so the same samples are divided evenly; SELI is the limit of vanishing
decays, approached like one over their logarithm; LPM is the Layer-Peeled Model, UFM+ has non-negative features, GOF
is the general orthogonal frame. With a fixed frame for a classifier no class dies; the supervised contrastive loss
(SCL, a tenth of the samples, temperature 0.5) has no classifier, and its class means are orthogonal.

Then the collapse threshold: the sqrt(lambda_W lambda_H) from which on the minority classes are one, in units of
sqrt(n_B)/N, found by bisection on solutions, and predicted. The prediction for non-negative features: let B_k =
sqrt(n_k)/N times the gradient of the loss at zero logits, which is what a class feels whose feature is zero.

* If <B_k, B_l> <= 0 for minority classes k, l, no direction helps both. They are dead until |B_k| exceeds
  sqrt(lambda_W lambda_H), and come alive apart. Label smoothing e shrinks B_k by 1 - e, class weights stretch it.
* If <B_k, B_l> > 0 they come alive as one, on a direction that they share, and part where |B_k - B_l|/sqrt(2)
  exceeds sqrt(lambda_W lambda_H): then no class gains from leaving alone as long as they are together. Logit
  adjustment does this. Its classes collapse onto one another at sqrt(n_B)/N, like those of free features, but they
  are neither zero there nor orthogonal before.

    python -m experiments.figures.geometries [--decay 0.3] [--suffix pdf] [--quick]
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.conventions import from_nuclear
from ufm.losses.by_name import parse_loss
from ufm.metrics import gram, logit_margins
from ufm.models.layer_peeled import LayerPeeled, collapse_ratio
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.prediction.solved import best_known
from ufm.text import track
from ufm.theory import minority_collapse_weight, seli

GROUP = 5
K = 2 * GROUP
COUNTS = np.repeat([500, 50], GROUP)
#: sqrt(n_B)/N, the unit of decays.
UNIT = float(np.sqrt(COUNTS[-1]) / COUNTS.sum())
#: Decays, in this unit, at which free features have all but reached their limit.
VANISHING = 1e-24
#: Minority classes whose logits for themselves and for a sibling differ by less are one class.
MERGED = 1e-5
#: Length of the rows of fixed classifiers.
FIXED_LENGTH = 3.0

#: What is compared: key, heading, and whether it is an angle in degrees.
QUANTITIES = {
    "h": ("|h|B/A", False),
    "w": ("|w|B/A", False),
    "margin": ("M B/A", False),
    "w AA": ("w AA", True),
    "w AB": ("w AB", True),
    "w BB": ("w BB", True),
    "h BB": ("h BB", True),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A row of the table: features, loss (as on the command line), decays in units of sqrt(n_B)/N, counts."""

    name: str
    features: Literal["free", "nonnegative"] = "nonnegative"
    loss: str = "ce"
    decay: float | None = None
    balanced: bool = False
    fixed: bool = False

    @property
    def counts(self) -> np.ndarray:
        """The counts, or equal ones of the same sum."""
        return np.full(K, COUNTS.sum() // K) if self.balanced else COUNTS

    def problem(self, decay: float) -> ufm.Problem:
        """Return the problem at a decay in units; rows of W and of H are equally long on average."""
        weight_decay, feature_decay = from_nuclear(decay * UNIT, COUNTS.sum() / K)
        loss = parse_loss(self.loss, self.counts)
        problem = ufm.Problem(self.counts, K, weight_decay, feature_decay, loss=loss, features=self.features)
        frame = ufm.simplex_etf if self.features == "free" else ufm.orthogonal_frame
        return problem.replace(classifier=frame(K, K, FIXED_LENGTH)) if self.fixed else problem


MODELS = (
    Model("ETF, equal counts", "free", balanced=True),
    Model("OF, equal counts", balanced=True),
    Model("SELI, decays to 0", "free", decay=VANISHING),
    Model("free, CE", "free"),
    Model("GOF: free, MSE", "free", "mse"),
    Model("UFM+ MSE", loss="mse"),
    Model("UFM+ CE", loss="ce"),
    Model("UFM+ weights n^-1/2", loss="weighted:0.5"),
    Model("UFM+ weights 1/n", loss="weighted:1"),
    Model("UFM+ smoothing 0.1", loss="smoothing:0.1"),
    Model("UFM+ adjusted logits", loss="adjustment:1"),
    Model("UFM+ CDT 0.1", loss="cdt:0.1"),
    Model("UFM+ LDAM 0.5", loss="ldam:0.5"),
    Model("UFM+ Poly-1", loss="poly1:1"),
    Model("UFM+ BCE", loss="bce"),
    Model("UFM+ focal 2", loss="focal:2"),
    Model("fixed ETF, free", "free", fixed=True),
    Model("fixed frame, UFM+", fixed=True),
)
LPM, SCL = "LPM, E_H = 5, E_W = 1", "SCL, ReLU"
TYPESET = {"n^-1/2": "$n^{-1/2}$", "E_H": "$E_H$", "E_W": "$E_W$"}


def geometry(features: np.ndarray, weights: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the quantities from the Gram matrices of class means and classifier rows and from the logits."""
    a, b, other = 0, K - 1, K - 2
    margins = logit_margins(logits)

    def angle(matrix: np.ndarray, k: int, j: int) -> float:
        size = np.sqrt(matrix[k, k] * matrix[j, j])
        return float(np.degrees(np.arccos(np.clip(matrix[k, j] / size, -1, 1)))) if size > 0 else np.nan

    return {
        "h": float(np.sqrt(features[b, b] / features[a, a])),
        "w": float(np.sqrt(weights[b, b] / weights[a, a])),
        "margin": float(margins[b] / margins[a]),
        "w AA": angle(weights, a, a + 1),
        "w AB": angle(weights, a, b),
        "w BB": angle(weights, b, other),
        "h BB": angle(features, b, other),
    }


def predicted(model: Model, decay: float) -> dict[str, float] | None:
    """Return the closed form, or what a solve of its own says where there is none; None with an open gap."""
    if model.decay == VANISHING:
        limit = seli(model.counts)
        return geometry(limit.gram_features, limit.gram_weights, limit.logits)
    form, _ = best_known(model.problem(decay))
    if form is None:
        return None
    found = geometry(form.gram_features, form.gram_weights, form.logits)
    return found | ({} if form.relative_gap is None else {"gap": form.relative_gap})


def compare(model: Model, decay: float, accuracy: float) -> dict[str, Any]:
    """Return prediction, solution and threshold of one model; sound if all of a convex loss was certified."""
    decay = model.decay or decay
    problem = model.problem(decay)
    solution = ufm.solve(problem, seed=1)  # a prediction that is solved starts elsewhere
    sound = solution.certified or not problem.loss.convex
    record = _record(model.name, predicted(model, decay), solution, solution.certificate.relative_gap, sound)
    if model.decay is None and not model.fixed:
        found, also_sound = found_threshold(model, accuracy)
        record["threshold"] = {"predicted": predicted_threshold(model), "found": found}
        record["sound"] = sound and also_sound
    return record


def compare_layer_peeled() -> dict[str, Any]:
    """Return the solution of the Layer-Peeled Model, which has no closed form."""
    solution = LayerPeeled(COUNTS.astype(float), K).solve()
    return _record(LPM, None, solution, solution.relative_gap, solution.certified)


def compare_contrastive() -> dict[str, Any]:
    """Return the solution of the supervised contrastive loss: features alone."""
    solution = ufm.SupervisedContrastive(COUNTS // 10, K, temperature=0.5).solve(seed=1)
    means = np.stack([solution.features[solution.model.labels == k].mean(axis=0) for k in range(K)])
    frame = geometry(np.eye(K), np.eye(K), np.eye(K))
    gap = solution.objective / solution.lower_bound - 1
    seen = geometry(gram(means), np.eye(K), np.eye(K))
    for row in (frame, seen):
        row |= dict.fromkeys(("w", "margin", "w AA", "w AB", "w BB"), np.nan)
    return {
        "model": SCL,
        "predicted": frame,
        "solved": seen,
        "relative gap": gap,
        "sound": solution.certified,
    }


def _record(
    name: str, expected: dict[str, float] | None, point: Any, gap: float, sound: bool
) -> dict[str, Any]:
    solved = geometry(gram(point.features), gram(point.weight), point.features @ point.weight.T)
    return {"model": name, "predicted": expected, "solved": solved, "relative gap": gap, "sound": sound}


def predicted_threshold(model: Model) -> float:
    """Return the decay, in units, from which on the minority classes are one: see the top of this file."""
    problem = model.problem(1.0)
    if model.features == "free" and model.loss != "mse":
        return minority_collapse_weight(problem) / UNIT
    pull = problem.loss.gradient(np.zeros((K, K)), np.arange(K))
    first, second = (np.sqrt(problem.counts[:, None]) / problem.num_samples * pull)[-2:]
    shared = float(first @ second)
    return float(np.sqrt(first @ first - max(shared, 0.0))) / UNIT


def found_threshold(model: Model, accuracy: float) -> tuple[float, bool]:
    """Bisect for that decay by solving; say whether every solution of a convex loss was certified."""
    low, high, sound = 0.3, 6.0, True
    own = np.eye(GROUP, dtype=bool)
    while high / low > 1 + accuracy:
        middle = float(np.sqrt(low * high))
        solution = ufm.solve(model.problem(middle))
        logits = solution.features[GROUP:] @ solution.weight[GROUP:].T
        merged = abs(logits[own].mean() - logits[~own].mean()) <= MERGED
        low, high = (low, middle) if merged else (middle, high)
        sound = sound and (solution.certified or not solution.problem.loss.convex)
    return high, sound


def table(records: list[dict[str, Any]]) -> str:
    """Return two lines per model, predicted (by theory, or a solve of its own) above solved."""
    lines = ["minority (B) over majority (A): lengths, margins; then angles in degrees"]
    lines += [f"{'':21}" + "".join(f"{head:>7}" for head, _ in QUANTITIES.values()) + f"{'gap':>9}"]
    for record in records:
        gap = f"{record['relative gap']:.0e}" if np.isfinite(record["relative gap"]) else "none"
        source = "solve" if "gap" in (record["predicted"] or {}) else "theory"
        rows = [(record["model"], record["predicted"], source), ("", record["solved"], gap)]
        for name, row, last in rows if record["predicted"] else [(record["model"], *rows[1][1:])]:
            cells = (f"{row[key]:7.{1 if angle else 3}f}" for key, (_, angle) in QUANTITIES.items())
            lines.append(f"{name:21}" + "".join(cells) + f"{last:>9}")
    return "\n".join(lines)


def threshold_table(records: list[dict[str, Any]]) -> str:
    """Return one line per model that has a threshold."""
    lines = ["minority classes are one from this sqrt(lambda_W lambda_H) N/sqrt(n_B) on:"]
    lines.append(f"{'':21}{'predicted':>11}{'found':>11}")
    for record in records:
        if "threshold" in record:
            values = record["threshold"]
            lines.append(f"{record['model']:21}{values['predicted']:11.4f}{values['found']:11.4f}")
    return "\n".join(lines)


def figure(records: list[dict[str, Any]]) -> Figure:
    """Return the figure, one row per model: ratios, angles, thresholds; rings predicted, dots solved."""
    with canvas(PAGE, 0.9 + 0.24 * len(records)) as drawing:
        ratios, angles, thresholds = drawing.subplots(1, 3, sharey=True, width_ratios=(1.2, 1.2, 1))
        shown = {"h": ("$|h|$", BLUE, "o"), "w": ("$|w|$", GREEN, "s"), "margin": ("margin", BLACK, "D")}
        _panel(ratios, records, shown)
        ratios.axvline(1, color=BLACK, lw=0.5, ls=":")
        ratios.set_xlabel("minority / majority")
        shown = {"w AA": ("$w$, majority", BLUE, "o"), "w AB": ("$w$, between", BLACK, "s")}
        shown |= {"w BB": ("$w$, minority", VERMILLION, "^"), "h BB": ("$h$, minority", GREEN, "v")}
        _panel(angles, records, shown)
        angles.axvline(90, color=BLACK, lw=0.5, ls=":")
        angles.set_xlabel("angle (degrees)")
        _threshold_panel(thresholds, records)
        ratios.set_yticks(range(len(records)), [_typeset(record["model"]) for record in records])
        ratios.set_ylim(len(records) - 0.4, -0.6)
        titles = ("(a) lengths, margins", "(b) angles", "(c) collapse")
        for title, axes in zip(titles, drawing.axes, strict=True):
            axes.set_title(title, loc="left")
            axes.grid(axis="y", lw=0.3, color="#CCCCCC")
            axes.set_axisbelow(True)
            axes.legend(  # above the title
                loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=2.6, ncols=2, handletextpad=0.2
            )
    return drawing


def _typeset(name: str) -> str:
    """Write powers and subscripts as such."""
    return re.sub(r"\bn\^-1/2|\bE_[HW]\b", lambda found: TYPESET[found[0]], name)


def _panel(axes: Axes, records: list[dict[str, Any]], shown: dict[str, tuple[str, str, str]]) -> None:
    """Draw some quantities of every model, those of one model slightly above one another."""
    for place, (key, (label, colour, marker)) in enumerate(shown.items()):
        shift = 0.5 * ((place + 0.5) / len(shown) - 0.5)
        for kind, options in (("solved", {"ms": 2.8}), ("predicted", {"ms": 5.5, "mfc": "none", "mew": 0.7})):
            rows = [(record[kind][key], row + shift) for row, record in enumerate(records) if record[kind]]
            text = label if kind == "solved" else None
            axes.plot(*np.transpose(rows), marker, color=colour, label=text, **options)


def _threshold_panel(axes: Axes, records: list[dict[str, Any]]) -> None:
    rows = [(row, record["threshold"]) for row, record in enumerate(records) if "threshold" in record]
    at = [row for row, _ in rows]
    axes.plot([values["found"] for _, values in rows], at, "o", color=VERMILLION, ms=3, label="solved")
    expected = [values["predicted"] for _, values in rows]
    axes.plot(expected, at, "o", color=BLACK, ms=6, mfc="none", mew=0.7, label="predicted")
    axes.set_xscale("log")
    axes.set_xticks([0.7, 1, 2, 5], ["0.7", "1", "2", "5"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0.6, 7)
    axes.set_xlabel(r"$\sqrt{\lambda_W \lambda_H}\, N / \sqrt{n_B}$")


def main(
    decay: float = 0.3,
    accuracy: float = 1e-4,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Solve every model, find its threshold, print, save and draw; return 1 unless all that can be is certified.

    Args:
        decay: sqrt(lambda_W lambda_H) of the first table, in units of sqrt(n_B)/N.
        accuracy: relative accuracy of the thresholds.
        outputs: where results and the picture go.
        quick: every third model, thresholds to 1e-2.
    """
    models, accuracy = (MODELS[1::3], 1e-2) if quick else (MODELS, accuracy)
    results = outputs.of("geometries", quick)
    steps = track(models, "models")
    records = [compare(model, decay, accuracy) for model in steps]
    records.insert(min(3, len(records)), compare_layer_peeled())
    records.append(compare_contrastive())
    ratio = collapse_ratio(GROUP, GROUP)
    results.save({"models": records, "R_0": ratio})
    print(table(records), threshold_table(records), sep="\n\n")
    print(f"{LPM}: one from the imbalance ratio R_0 = {ratio:.2f} on")
    results.draw(figure(records))
    return int(not all(record["sound"] for record in records))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
