"""The learned geometry beside the predicted one: Gram matrices, logits and angles for published class counts.

The counts and decays of Dang, Tran, Nguyen, Ho (ICML 2024, arXiv:2401.02058) for CIFAR-10: two classes each of 1,000,
2,000, ..., 5,000 samples. Their training code minimises CE/2 + a/2 |W|^2 + b/2 sum over a batch of |h|^2 with
a = 1e-4, b = 1e-5 and batches of B = 256, that is lambda_W = 2a and lambda_H = 2bB/N. Solved from a random start;
nothing of the closed form is used.

    python -m experiments.figures.geometry [--profile icml2024-mnist] [--quick] [--suffix pdf]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.conventions import from_icml2024_code
from ufm.plots.style import PAGE, canvas, round_below
from ufm.profiles import parse_counts

WEIGHT_PARAMETER, FEATURE_PARAMETER, BATCH = 1e-4, 1e-5, 256


def problem_of(profile: str, dim: int) -> ufm.Problem:
    """Return the problem of the training code with these counts."""
    counts = parse_counts(profile)
    return ufm.Problem(
        counts, dim, *from_icml2024_code(WEIGHT_PARAMETER, FEATURE_PARAMETER, counts.sum(), BATCH)
    )


def angles(gram: np.ndarray) -> np.ndarray:
    """Return the angles in degrees between different vectors with this Gram matrix; NaN where one is zero."""
    lengths = np.sqrt(np.diagonal(gram))
    unit = np.where(lengths > 0, lengths, np.nan)
    found = np.degrees(np.arccos(np.clip(gram / np.outer(unit, unit), -1, 1)))
    np.fill_diagonal(found, np.nan)
    return found


def matrices_of(features: np.ndarray, weight: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the four pictures of a geometry from Gram matrices and logits."""
    return {
        r"$\langle h_k, h_l \rangle$": features,
        r"$\langle w_k, w_l \rangle$": weight,
        r"logits $W h_k$": logits,
        r"angles of $w_k$ (degrees)": angles(weight),
    }


def figure(problem: ufm.Problem, learned: dict[str, np.ndarray], predicted: dict[str, np.ndarray]) -> Figure:
    """Return the figure: learned above, predicted below, one colour scale per column and the largest difference."""
    with canvas(PAGE, 4.4) as drawn:
        drawn.set_layout_engine("constrained", rect=(0, 0, 1, 0.98))  # square panels would cut their titles
        panels: Any = drawn.subplots(2, 4, sharex=True, sharey=True)
        for column, (title, expected) in enumerate(predicted.items()):
            found = learned[title]
            largest = max(float(np.nanmax(np.abs(matrix))) for matrix in (found, expected))
            smallest = min(float(np.nanmin(matrix)) for matrix in (found, expected))
            colours, scale = _colours(smallest, largest)
            for axes, matrix in zip(panels[:, column], (found, expected), strict=True):
                shown = axes.imshow(matrix, cmap=colours, norm=scale, interpolation="none")
                _frame(axes, problem.counts)
            panels[0, column].set_title(title)
            difference = float(np.nanmax(np.abs(found - expected))) / largest
            panels[1, column].set_xlabel(f"samples in the class\n(differ by at most {_power(difference)})")
            bar = drawn.colorbar(shown, ax=panels[:, column], location="bottom", shrink=0.9, aspect=26)
            if isinstance(scale, TwoSlopeNorm):
                bar.set_ticks([-round_below(-smallest), 0.0, round_below(largest)])
        for axes, who in zip(panels[:, 0], ("learned", "predicted"), strict=True):
            axes.set_ylabel(f"{who}\nsamples in the class")
    return drawn


def _colours(smallest: float, largest: float) -> tuple[str, Normalize]:
    """Return palette and scale; negative entries get half of it however small they are, for zero is the white."""
    if smallest < -1e-6 * largest:
        return "RdBu_r", TwoSlopeNorm(0.0, smallest, largest)
    return "viridis", Normalize(max(smallest, 0.0), largest)


def _frame(axes: Axes, counts: np.ndarray) -> None:
    """Label runs of equally large classes, or a few ranks where there are many runs; draw a frame."""
    starts = np.flatnonzero(np.diff(counts, prepend=-1))
    if len(starts) <= 6:
        middles = (starts + np.append(starts[1:], len(counts)) - 1) / 2
        names = [str(count) for count in counts[starts]]
    else:
        middles = np.unique(np.linspace(0, len(counts) - 1, 4).round())
        names = [str(count) for count in counts[middles.astype(int)]]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)


def _power(value: float) -> str:
    """Write a small number as a power of ten times a digit."""
    digit, exponent = f"{value:.0e}".split("e")
    return rf"${digit} \cdot 10^{{{int(exponent)}}}$" if value else "0"


def main(
    profile: str = "icml2024-cifar10",
    dim: int = 64,
    seed: int = 0,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> int:
    """Solve, compare, draw; return 1 if not certified or if the verification fails.

    Args:
        profile: class counts, by name or as a list.
        dim: feature dimension.
        seed: of the random start.
        outputs: where results and the picture go.
        quick: the MNIST counts in 16 dimensions.
    """
    if quick:
        profile, dim = "icml2024-mnist", 16
    problem = problem_of(profile, dim)
    solution = ufm.solve(problem, seed=seed, tol=1e-12, progress=True)
    report, prediction = ufm.verify(solution), ufm.predict(problem)
    features, weight = solution.features, solution.weight
    learned = matrices_of(features @ features.T, weight @ weight.T, features @ weight.T)
    predicted = matrices_of(prediction.gram_features, prediction.gram_weights, prediction.logits)
    results = outputs.of("geometry", quick)
    solution.save(results.folder / "solution.npz")
    results.save(report.to_dict(), "report")
    results.draw(figure(problem, learned, predicted))
    print(report.table())
    return int(not (solution.certified and report.passed))


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
