"""What to do about minority collapse: advice in sentences, each of them backed by `ufm.predict`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import class_counts
from ufm.losses import WeightedCrossEntropy
from ufm.model.problem import Problem
from ufm.text import wrapped
from ufm.theory import (
    Prediction,
    collapse_counts,
    equalising_weights,
    extra_samples_to_live,
    largest_decay_product,
    predict,
)

_LISTED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What the closed form for ReLU features and cross-entropy says about a training set.

    Attributes:
        prediction: of the problem as it is.
        collapse_count: classes of at most this many samples collapse (at the present total N).
        collapsed: classes that collapse.
        endangered: living classes of at most ``2 * collapse_count`` samples.
        largest_product: every class lives if and only if ``lambda_W lambda_H`` is below this.
        class_weights: weights proportional to ``n_k^{-1/2}``, averaging 1 over samples, which equalise
        margins.
        weighted: prediction with these weights.
        extra_samples: for every collapsed class, the fewest samples that it alone must gain in order to live,
            everything else unchanged; None if no number is enough, because the threshold grows with N.
    """

    prediction: Prediction
    collapse_count: float
    collapsed: Int[np.ndarray, " collapsed"]
    endangered: Int[np.ndarray, " endangered"]
    largest_product: float
    class_weights: Float[np.ndarray, " K"]
    weighted: Prediction
    extra_samples: dict[int, int | None]

    @property
    def reduction(self) -> float:
        """``lambda_W lambda_H / largest_product``: divide the product by more than this to keep all alive."""
        problem = self.prediction.problem
        return problem.weight_decay / self.largest_product * problem.feature_decay

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON."""
        problem = self.prediction.problem
        return {
            "counts": problem.counts.tolist(),
            "weight_decay": problem.weight_decay,
            "feature_decay": problem.feature_decay,
            "collapse_count": self.collapse_count,
            "collapsed": self.collapsed.tolist(),
            "endangered": self.endangered.tolist(),
            "margins": self.prediction.margins.tolist(),
            "largest_product": self.largest_product,
            "reduction": self.reduction,
            "class_weights": self.class_weights.tolist(),
            "weighted_margin": float(self.weighted.margins[0]),
            "weighted_num_collapsed": self.weighted.num_collapsed,
            "extra_samples": {str(k): extra for k, extra in self.extra_samples.items()},
        }

    def lines(self) -> list[str]:
        """Return the advice as lines of at most 80 columns."""
        paragraphs = [self._collapse(), *self._danger(), self._decay(), self._weights(), *self._samples()]
        return [line for text in paragraphs for line in wrapped(text).splitlines()]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _collapse(self) -> str:
        K = self.prediction.problem.num_classes
        limit = f"those of at most {self.collapse_count:.4g} samples"
        if len(self.collapsed) == 0:
            return f"No class collapses; {limit} would."
        who = "All" if len(self.collapsed) == K else f"{len(self.collapsed)} of"
        return f"{who} {K} classes collapse ({_classes(self.collapsed)}): {limit} do."

    def _danger(self) -> list[str]:
        if np.all(self.prediction.collapsed):
            return []
        if len(self.endangered) == 0:
            return ["No living class is within a factor of two of that."]
        return [f"Living, but within a factor of two of that: {_classes(self.endangered)}."]

    def _decay(self) -> str:
        text = f"All classes live if weight_decay * feature_decay is below {self.largest_product:.4g}"
        if len(self.collapsed):
            return f"{text}: divide it by more than {self.reduction:.4g}."
        return f"{text}: it may still grow by any factor below {1 / self.reduction:.4g}."

    def _weights(self) -> str:
        margin = float(self.weighted.margins[0])
        if self.weighted.num_collapsed:
            result = "would not help: with equal margins all classes collapse"
        else:
            gain = "rescue every class and " if len(self.collapsed) else ""
            result = f"{gain}give every class the same margin, {margin:.4g}"
        low, high = np.min(self.class_weights), np.max(self.class_weights)
        return f"Class weights proportional to n_k^(-1/2), here {low:.4g} to {high:.4g}, {result}."

    def _samples(self) -> list[str]:
        if not self.extra_samples:
            return []
        needs: dict[int | None, list[int]] = {}
        for index, extra in self.extra_samples.items():
            needs.setdefault(extra, []).append(index)
        listed = sorted(needs, key=lambda extra: (extra is None, extra or 0))
        lines = ["More samples for one collapsed class alone (as N grows, others may collapse):"]
        for extra in listed[:_LISTED]:
            need = "no number is enough, the limit grows with N" if extra is None else f"{extra} more to live"
            lines.append(f"- {_classes(np.array(needs[extra]))}: {need}")
        if len(listed) > _LISTED:
            lines.append(f"- and {len(listed) - _LISTED} more groups of classes")
        return lines


def advise(counts: Any, weight_decay: float | Any, feature_decay: float | Any) -> Advice:
    r"""Say which classes collapse under ReLU features and cross-entropy, and what would prevent it.

    A class collapses if and only if ``n_k <= N^2 lambda_W lambda_H K/(K-1)``: all statements solve this for
    one of its quantities.

    Args:
        counts: samples per class.
        weight_decay: ``lambda_W``, as in `ufm.Problem`.
        feature_decay: ``lambda_H``, as in `ufm.Problem`.

    Raises:
        InputError: if an argument is invalid.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058), and `ufm.theory.thresholds`.

    Example:
        >>> print(advise([500] * 5 + [50] * 5, weight_decay=5e-3, feature_decay=2e-3))
        5 of 10 classes collapse (5-9): those of at most 84.03 samples do.
        No living class is within a factor of two of that.
        All classes live if weight_decay * feature_decay is below 5.95e-06: divide it by
          more than 1.681.
        Class weights proportional to n_k^(-1/2), here 0.8357 to 2.643, rescue every
          class and give every class the same margin, 2.432.
        More samples for one collapsed class alone (as N grows, others may collapse):
        - 5-9: 37 more to live
    """
    counts = class_counts(counts)
    problem = Problem(counts, len(counts), weight_decay, feature_decay)
    prediction = predict(problem)
    limit = float(collapse_counts(problem)[0])
    weights = equalising_weights(counts)
    return Advice(
        prediction=prediction,
        collapse_count=limit,
        collapsed=np.flatnonzero(prediction.collapsed),
        endangered=np.flatnonzero(~prediction.collapsed & (counts <= 2 * limit)),
        largest_product=largest_decay_product(problem),
        class_weights=weights,
        weighted=predict(problem.replace(loss=WeightedCrossEntropy(weights))),
        extra_samples=_extra_samples(problem, np.flatnonzero(prediction.collapsed)),
    )


def _extra_samples(problem: Problem, collapsed: Int[np.ndarray, " collapsed"]) -> dict[int, int | None]:
    """Every collapsed class's need, computed once per distinct count."""
    _, first, inverse = np.unique(problem.counts[collapsed], return_index=True, return_inverse=True)
    needs = [extra_samples_to_live(problem, int(collapsed[k])) for k in first]
    return {int(k): needs[group] for k, group in zip(collapsed, inverse, strict=True)}


def _classes(indices: Int[np.ndarray, " some"]) -> str:
    """Write ascending class indices as ranges, such as ``0-3, 7``, at most a few of them."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    runs = [(run[0], run[-1]) for run in np.split(indices, breaks)]
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_LISTED]]
    rest = len(runs) - _LISTED
    return ", ".join(texts) + (f" and {rest} more ranges" if rest > 0 else "")
