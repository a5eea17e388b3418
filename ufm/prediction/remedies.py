"""Remedies for minority collapse, side by side: what each would make of a training set, predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from ufm.conventions import charged, sampled_counts
from ufm.losses.by_name import parse_loss
from ufm.model.problem import Problem
from ufm.prediction.solved import best_known, predict
from ufm.theory import Prediction
from ufm.theory.prediction import or_none
from ufm.theory.prototypes import predict_fixed_simplex

#: Name -> loss as text, and the power of the counts that the sampler draws by.
REMEDIES = {
    "as it is": ("ce", 1.0),
    "weights n^-1/2": ("weighted:0.5", 1.0),
    "weights 1/n": ("weighted:1", 1.0),
    "weights by effective number, 0.9999": ("effective:0.9999", 1.0),
    "logit adjustment": ("adjustment:1", 1.0),
    "LDAM, largest margin 0.5": ("ldam:0.5", 1.0),
    "label smoothing 0.1": ("smoothing:0.1", 1.0),
    "balanced sampler": ("ce", 0.0),
    "square-root sampler": ("ce", 0.5),
}
#: A classifier that is never trained, its rows as long as those that training would give on average.
FIXED = "fixed ETF"
_LISTED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Remedy:
    """A remedy and its prediction; None where no theorem makes one and nothing is solved.

    Attributes:
        name: one of `REMEDIES`, or `FIXED`.
        prediction: of the problem with the remedy.
    """

    name: str
    prediction: Prediction | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON."""
        if self.prediction is None:
            return {"name": self.name, "collapsed": None, "smallest_margin": None, "largest_margin": None}
        return {
            "name": self.name,
            "collapsed": np.flatnonzero(self.prediction.collapsed).tolist(),
            "smallest_margin": float(self.prediction.margins.min()),
            "largest_margin": float(self.prediction.margins.max()),
        }


def predicted_remedies(
    problem: Problem, feature_decay: float, charge: float, solve: bool = True
) -> tuple[Remedy, ...]:
    """Return every remedy with its prediction.

    A sampler acts as counts proportional to its class probabilities, N in all; who pays for features stays the same.

    Args:
        problem: as it is.
        feature_decay: ``lambda_H`` of a class of average size.
        charge: the exponent g.
        solve: whether to solve those without a closed form if they are small (`best_known`), which loads JAX.
    """
    found = []
    for name, (loss, power) in REMEDIES.items():
        counts = problem.counts if power == 1 else sampled_counts(problem.counts, power)
        decay: Any = charged(feature_decay, counts, charge) if charge else feature_decay
        changed = problem.replace(counts=counts, feature_decay=decay, loss=parse_loss(loss, problem.counts))
        found.append(Remedy(name, _prediction(changed, solve)))
    return (*found, Remedy(FIXED, _fixed(found[0].prediction)))


def _prediction(problem: Problem, solve: bool) -> Prediction | None:
    return best_known(problem)[0] if solve else or_none(predict, problem)


def _fixed(plain: Prediction | None) -> Prediction | None:
    if plain is None or not np.any(plain.weight_norms > 0):  # nothing says how long the rows should be
        return None
    length = float(np.sqrt(np.mean(plain.weight_norms**2)))
    return or_none(predict_fixed_simplex, plain.problem, length)


def remedy_table(remedies: tuple[Remedy, ...]) -> str:
    """Return the remedies that are predicted as a table of at most 80 columns, and the others in a sentence."""
    lines = [f"{'remedy':36s}{'living':>8s}{'margins':>16s}  lost"]
    for remedy in remedies:
        if remedy.prediction is not None:
            lines.append(_line(remedy.name, remedy.prediction))
    open_ones = ", ".join(remedy.name for remedy in remedies if remedy.prediction is None)
    if open_ones:
        lines.append(f"No closed form and not solved, so not listed: {open_ones}.")
    return "\n".join(lines)


def _line(name: str, prediction: Prediction) -> str:
    living = len(prediction.margins) - prediction.num_collapsed
    margins = f"{prediction.margins.min():.2f} to {prediction.margins.max():.2f}"
    lost = class_ranges(np.flatnonzero(prediction.collapsed)) if prediction.num_collapsed else "-"
    lost = lost if len(lost) <= 18 else f"{prediction.num_collapsed} classes"
    return f"{name:36s}{living:8d}{margins:>16s}  {lost}"


def class_ranges(indices: Int[np.ndarray, " some"]) -> str:
    """Write ascending class indices as ranges, such as ``0-3, 7``, at most a few of them."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    runs = [(run[0], run[-1]) for run in np.split(indices, breaks)]
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_LISTED]]
    rest = len(runs) - _LISTED
    return ", ".join(texts) + (f" and {rest} more ranges" if rest > 0 else "")
