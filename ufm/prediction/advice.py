"""What to do about minority collapse: advice in sentences, each of them backed by `ufm.predict`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.conventions import charged
from ufm.inputs.checks import nonnegative_float, positive_float
from ufm.losses import WeightedCrossEntropy
from ufm.model.problem import Problem
from ufm.prediction.remedies import Remedy, class_ranges, predicted_remedies, remedy_table
from ufm.profiles import counts_from
from ufm.text import Readable, wrapped
from ufm.theory import (
    Prediction,
    collapse_counts,
    equalising_weights,
    extra_samples_to_live,
    largest_decay_product,
    predict,
)

_LISTED = 8


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Advice(Readable):
    """What the closed form for ReLU features and cross-entropy says about a training set.

    Attributes:
        prediction: of the problem as it is.
        collapse_count: classes of at most this many samples collapse (at the present total N).
        collapsed: classes that collapse.
        endangered: living classes of at most ``2 * collapse_count`` samples.
        largest_product: every class lives if and only if ``lambda_W lambda_H`` is below this.
        class_weights: weights proportional to ``n_k^{-(1+g)/2}``, averaging 1 over samples, which equalise margins.
        weighted: prediction with these weights.
        extra_samples: for every collapsed class, the fewest samples that it alone must gain in order to live,
            everything else unchanged; None if no number is enough, because the threshold grows with N.
        feature_decay: ``lambda_H`` of a class of average size.
        charge: the exponent g: samples (0) or classes (1) pay for features.
        remedies: what else may be done, each predicted.
    """

    prediction: Prediction
    collapse_count: float
    collapsed: Int[np.ndarray, " collapsed"]
    endangered: Int[np.ndarray, " endangered"]
    largest_product: float
    class_weights: Float[np.ndarray, " K"]
    weighted: Prediction
    extra_samples: dict[int, int | None]
    feature_decay: float
    charge: float = 0.0
    remedies: tuple[Remedy, ...] = ()

    @property
    def largest_weight_decay(self) -> float:
        """Every class lives if and only if ``lambda_W`` alone is below this."""
        return self.largest_product / self.feature_decay

    @property
    def reduction(self) -> float:
        """``lambda_W lambda_H / largest_product``: divide the product by more than this to keep all alive."""
        return self.prediction.problem.weight_decay / self.largest_product * self.feature_decay

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON."""
        problem = self.prediction.problem
        return {
            "counts": problem.counts.tolist(),
            "weight_decay": problem.weight_decay,
            "feature_decay": self.feature_decay,
            "charge": self.charge,
            "collapse_count": self.collapse_count,
            "collapsed": self.collapsed.tolist(),
            "endangered": self.endangered.tolist(),
            "margins": self.prediction.margins.tolist(),
            "largest_product": self.largest_product,
            "largest_weight_decay": self.largest_weight_decay,
            "reduction": self.reduction,
            "class_weights": self.class_weights.tolist(),
            "weighted_margin": float(self.weighted.margins[0]),
            "weighted_num_collapsed": self.weighted.num_collapsed,
            "extra_samples": {str(k): extra for k, extra in self.extra_samples.items()},
            "remedies": [remedy.to_dict() for remedy in self.remedies],
        }

    def lines(self) -> list[str]:
        """Return the advice as lines of at most 80 columns."""
        paragraphs = [
            *self._basis(),
            self._collapse(),
            *self._danger(),
            self._decay(),
            self._weights(),
            *self._samples(),
        ]
        return [line for text in paragraphs for line in wrapped(text).splitlines()]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def table(self) -> str:
        """Return the remedies as a table: who lives, and between which margins."""
        return remedy_table(self.remedies)

    def _basis(self) -> list[str]:
        payer = {0.0: "Samples", 1.0: "Classes"}.get(self.charge)
        who = f"{payer} pay for features." if payer else f"Charge exponent of features: {self.charge:.3g}."
        weight_decay = self.prediction.problem.weight_decay
        return [f"At lambda_W = {weight_decay:.4g} and lambda_H = {self.feature_decay:.4g}.", who]

    def _collapse(self) -> str:
        K = self.prediction.problem.num_classes
        limit = f"those of at most {self.collapse_count:.4g} samples"
        if len(self.collapsed) == 0:
            return f"No class collapses; {limit} would."
        who = "All" if len(self.collapsed) == K else f"{len(self.collapsed)} of"
        return f"{who} {K} classes collapse ({class_ranges(self.collapsed)}): {limit} do."

    def _danger(self) -> list[str]:
        if np.all(self.prediction.collapsed):
            return []
        if len(self.endangered) == 0:
            return ["No living class is within a factor of two of that."]
        return [f"Living, but within a factor of two of that: {class_ranges(self.endangered)}."]

    def _decay(self) -> str:
        text = f"All classes live if weight_decay * feature_decay is below {self.largest_product:.4g}"
        if len(self.collapsed):
            text = f"{text}: divide it by more than {self.reduction:.4g}."
        else:
            text = f"{text}: it may still grow by any factor below {1 / self.reduction:.4g}."
        return f"{text} With this lambda_H: if lambda_W alone is below {self.largest_weight_decay:.4g}."

    def _weights(self) -> str:
        margin = float(self.weighted.margins[0])
        if self.weighted.num_collapsed:
            result = "would not help: with equal margins all classes collapse"
        else:
            gain = "rescue every class and " if len(self.collapsed) else ""
            result = f"{gain}give every class the same margin, {margin:.4g}"
        low, high = np.min(self.class_weights), np.max(self.class_weights)
        power = "-1/2" if self.charge == 0 else f"{-(1 + self.charge) / 2:.3g}"
        return f"Class weights proportional to n_k^({power}), here {low:.4g} to {high:.4g}, {result}."

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
            lines.append(f"- {class_ranges(np.array(needs[extra]))}: {need}")
        if len(listed) > _LISTED:
            lines.append(f"- and {len(listed) - _LISTED} more groups of classes")
        return lines


def advise(
    counts: Any,
    weight_decay: float | Any,
    feature_decay: float | Any,
    charge: float | Any = 0,
    solve: bool = True,
) -> Advice:
    r"""Say which classes collapse under ReLU features and cross-entropy, and what would prevent it.

    A class collapses if and only if ``n_k <= N^2 lambda_W lambda_H,k K/(K-1)``: all statements solve this for
    one of its quantities.

    Args:
        counts: samples per class, as in `ufm.Problem`.
        weight_decay: ``lambda_W``, as in `ufm.Problem`.
        feature_decay: ``lambda_H``, as in `ufm.Problem`; with a charge, that of a class of average size.
        charge: the exponent g of who pays for features, ``lambda_H,k = lambda_H (N/(K n_k))^g``: 0 for samples (a
            penalty on the features), near 1 for classes (weight decay on all layers).
        solve: whether to solve for remedies without a closed form, such as logit adjustment, where classes are of at
            most 150 kinds; this loads JAX and takes seconds.

    Raises:
        InputError: if an argument is invalid.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058), and `ufm.theory.thresholds`.

    Example:
        >>> print(advise([500] * 5 + [50] * 5, weight_decay=5e-3, feature_decay=2e-3))
        At lambda_W = 0.005 and lambda_H = 0.002.
        Samples pay for features.
        5 of 10 classes collapse (5-9): those of at most 84.03 samples do.
        No living class is within a factor of two of that.
        All classes live if weight_decay * feature_decay is below 5.95e-06: divide it by
          more than 1.681. With this lambda_H: if lambda_W alone is below 0.002975.
        Class weights proportional to n_k^(-1/2), here 0.8357 to 2.643, rescue every
          class and give every class the same margin, 2.432.
        More samples for one collapsed class alone (as N grows, others may collapse):
        - 5-9: 37 more to live
    """
    counts = counts_from(counts)
    decay, g = positive_float("feature_decay", feature_decay), nonnegative_float("charge", charge)
    problem = Problem(counts, len(counts), weight_decay, charged(decay, counts, g) if g else decay)
    prediction = predict(problem)
    limit = _collapse_count(problem, decay, g)
    weights = equalising_weights(counts, g)
    collapsed = np.flatnonzero(prediction.collapsed)
    return Advice(
        prediction=prediction,
        collapse_count=limit,
        collapsed=collapsed,
        endangered=np.flatnonzero(~prediction.collapsed & (counts <= 2 * limit)),
        largest_product=largest_decay_product(problem)
        * (problem.weight_decay * decay / problem.nuclear_weight**2 if g else 1.0),
        class_weights=weights,
        weighted=predict(problem.replace(loss=WeightedCrossEntropy(weights))),
        extra_samples=_extra_samples(problem, collapsed, g),
        feature_decay=decay,
        charge=g,
        remedies=predicted_remedies(problem, decay, g, solve),
    )


def _collapse_count(problem: Problem, feature_decay: float, charge: float) -> float:
    """Solve ``n <= f N^2 (N/(K n))^g`` for n."""
    plain = float(collapse_counts(problem.replace(feature_decay=feature_decay))[0])
    return (plain * (problem.num_samples / problem.num_classes) ** charge) ** (1 / (1 + charge))


def _extra_samples(
    problem: Problem, collapsed: Int[np.ndarray, " collapsed"], charge: float
) -> dict[int, int | None]:
    """Every collapsed class's need, computed once per distinct count."""
    _, first, inverse = np.unique(problem.counts[collapsed], return_index=True, return_inverse=True)
    needs = [extra_samples_to_live(problem, int(collapsed[k]), charge) for k in first]
    return {int(k): needs[group] for k, group in zip(collapsed, inverse, strict=True)}
