"""The measured geometry of a last layer, in the same terms as a prediction."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm import metrics
from ufm.losses import Loss
from ufm.metrics.statistics import FeatureStatistics


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Class means, classifier and what follows from them.

    Attributes:
        statistics: statistics of the features, made with the classifier.
        weight: classifier ``W``.
        bias: ``b`` without its mean (a common shift of all logits means nothing to a softmax), or None.
        margins: effective margins: `ufm.metrics.margins` for shift-invariant losses (log-odds), logit margins of
            class means else.
    """

    statistics: FeatureStatistics
    weight: Float[np.ndarray, "K d"]
    bias: Float[np.ndarray, " K"] | None
    margins: Float[np.ndarray, " K"]

    @property
    def means(self) -> Float[np.ndarray, "K d"]:
        """Class means ``mu_k``."""
        return self.statistics.means

    @cached_property
    def norms(self) -> Float[np.ndarray, " K"]:
        """``|mu_k|``."""
        return metrics.norms(self.means)

    @cached_property
    def weight_norms(self) -> Float[np.ndarray, " K"]:
        """``|w_k|``."""
        return metrics.norms(self.weight)

    @cached_property
    def gram_features(self) -> Float[np.ndarray, "K K"]:
        """``<mu_k, mu_l>``."""
        return metrics.gram(self.means)

    @cached_property
    def gram_weights(self) -> Float[np.ndarray, "K K"]:
        """``<w_k, w_l>``."""
        return metrics.gram(self.weight)

    @cached_property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """Logits of the class means, class k in row k."""
        logits = self.means @ self.weight.T
        return logits if self.bias is None else logits + self.bias

    def to_dict(self) -> dict[str, Any]:
        """Return the per-class vectors as plain lists."""
        return {
            "counts": self.statistics.counts.tolist(),
            "norms": self.norms.tolist(),
            "weight_norms": self.weight_norms.tolist(),
            "margins": self.margins.tolist(),
        }


def measured_geometry(statistics: FeatureStatistics, loss: Loss) -> Measured:
    """Return the geometry that statistics made with a classifier contain.

    Args:
        statistics: made with a classifier.
        loss: decides what a margin is and whether a common shift of the logits matters.

    Raises:
        InputError: if the statistics were made without a classifier.
    """
    logits = metrics.class_logits(statistics)
    margins = metrics.margins(statistics) if loss.shift_invariant else metrics.logit_margins(logits)
    weight, bias = statistics.classifier
    if bias is not None and loss.shift_invariant:
        bias = bias - bias.mean()
    return Measured(statistics, weight, bias, np.where(statistics.present, margins, 0.0))
