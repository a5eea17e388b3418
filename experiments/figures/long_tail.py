"""Long-tailed data sets: norms, margins and collapse against class rank, solved where it fits, predicted always.

CIFAR-10-LT and CIFAR-100-LT (imbalance factor 100), ImageNet-LT, Places-LT and iNaturalist reconstructed (see
`ufm.profiles.NAMED` for which are reconstructions). The regularisation of every data set is chosen so that a fifth of
its classes has collapsed: sqrt(lambda_W lambda_H) halfway between the thresholds of two neighbouring counts. Dots are
solved to a certified global optimum from a random start, for profiles of at most ``largest`` classes; curves are
closed forms.

    python -m experiments.figures.long_tail [--largest 1000] [--quick] [--suffix pdf]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
import ufm.metrics
from experiments.common import Outputs
from ufm.plots.style import BLACK, BLUE, PAGE, SHADE, canvas
from ufm.profiles import parse_counts
from ufm.text import track
from ufm.theory import collapse_nuclear_weights

PROFILES = {
    "CIFAR-10-LT": "cifar10-lt-100",
    "CIFAR-100-LT": "cifar100-lt-100",
    "Places-LT, reconstructed": "places-lt",
    "ImageNet-LT, reconstructed": "imagenet-lt",
    "iNaturalist, reconstructed": "inaturalist",
}
#: Share of the classes that has collapsed.
COLLAPSED = 0.2
QUANTITIES = {
    "norms": r"$|h_k|$",
    "weight_norms": r"$|w_k|$",
    "margins": "margin (nats)",
}


def problem_of(profile: str) -> ufm.Problem:
    """Return the problem whose smallest classes have collapsed, d = K + 6."""
    counts = np.sort(parse_counts(profile))[::-1]
    problem = ufm.Problem(counts, len(counts) + 6, 1e-3, 1e-3)
    thresholds = collapse_nuclear_weights(problem)
    levels = np.unique(thresholds)
    last = np.searchsorted(levels, thresholds[len(counts) - 1 - round(COLLAPSED * len(counts))])
    weight = float(np.sqrt(levels[last] * levels[last - 1]))
    return problem.replace(weight_decay=weight, feature_decay=weight)


def measure(problem: ufm.Problem, seed: int) -> dict[str, Any]:
    """Solve and return the geometry by class, with status and gap."""
    solution = ufm.solve(problem, seed=seed, residual_tol=1e-6)
    logits = solution.features @ solution.weight.T
    report = ufm.verify(solution)
    return {
        "norms": np.linalg.norm(solution.features, axis=1),
        "weight_norms": np.linalg.norm(solution.weight, axis=1),
        "margins": ufm.metrics.logit_margins(logits),
        "certified": solution.certified,
        "verified": report.passed,
        "relative_gap": solution.certificate.relative_gap,
        "steps": solution.steps,
    }


def figure(predictions: dict[str, ufm.Prediction], solved: dict[str, dict[str, Any]]) -> Figure:
    """Return the figure: a row per quantity, a column per data set, collapsed classes shaded."""
    with canvas(PAGE, 4.4) as drawn:
        panels: Any = drawn.subplots(len(QUANTITIES), len(predictions), sharex="col")
        for column, (name, prediction) in enumerate(predictions.items()):
            _column(panels[:, column], prediction, solved.get(name))
            K, N = prediction.problem.num_classes, prediction.problem.num_samples
            panels[0, column].set_title(f"{name.replace(', ', chr(10))}\n$K$ = {K:,}\n$N$ = {N:,}")
            panels[-1, column].set_xlabel("class rank")
        for axes, label in zip(panels[:, 0], QUANTITIES.values(), strict=True):
            axes.set_ylabel(label)
        drawn.align_ylabels(panels[:, 0])
        handles, labels = panels[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=3)
    return drawn


def _column(panels: Any, prediction: ufm.Prediction, measured: dict[str, Any] | None) -> None:
    """Draw one data set: curves, dots if it was solved, and the collapsed classes."""
    K = prediction.problem.num_classes
    rank = np.arange(1, K + 1)
    shown = np.unique(np.linspace(0, K - 1, 41).round().astype(int))
    for axes, name in zip(panels, QUANTITIES, strict=True):
        first = K - prediction.num_collapsed
        axes.axvspan(first + 0.5, K + 0.5, color=SHADE, linewidth=0, zorder=0, label="collapsed")
        if measured is not None:
            axes.plot(rank[shown], measured[name][shown], "o", color=BLUE, markersize=3.4, label="solved")
        axes.plot(rank, getattr(prediction, name), color=BLACK, linewidth=1.0, label="predicted")
        axes.set_xlim(0.5 - 0.03 * K, K + 0.5)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def main(
    largest: int = 1000,
    seed: int = 0,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Predict all, solve what is small enough, save, draw; return 1 if an answer is uncertified or does not verify.

    Args:
        largest: solve profiles of at most this many classes; 1,000 take minutes on two cores.
        seed: of the random starts.
        outputs: where results and the picture go.
        quick: solve CIFAR-10-LT only.
    """
    largest = 10 if quick else largest
    results = outputs.of("long_tail", quick)
    predictions = {name: ufm.predict(problem_of(profile)) for name, profile in PROFILES.items()}
    small = [name for name, found in predictions.items() if found.problem.num_classes <= largest]
    solved = {}
    for name in track(small, "solving"):
        solved[name] = measure(predictions[name].problem, seed)
    data = {name: {"predicted": predictions[name].to_dict()} for name in predictions}
    for name, found in solved.items():
        data[name]["solved"] = {key: np.asarray(value).tolist() for key, value in found.items()}
    results.save(data)
    results.draw(figure(predictions, solved))
    for name, prediction in predictions.items():
        line = f"{name:16s} {prediction.num_collapsed:5d} of {prediction.problem.num_classes:5d} classes collapse"
        if name in solved:
            certified = "certified" if solved[name]["certified"] else "NOT certified"
            line += f"; {certified}, gap {solved[name]['relative_gap']:.1e}, {solved[name]['steps']} steps"
        print(line)
    return int(not all(found["certified"] and found["verified"] for found in solved.values()))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
