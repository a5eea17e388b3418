"""The measured geometry of a last layer, in the same terms as a prediction."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm import metrics
from ufm.losses import Loss
from ufm.metrics.collapse import gram_cosines, row_margins
from ufm.metrics.statistics import FeatureStatistics
from ufm.model.groups import GroupPoint
from ufm.verification.representatives import Representatives

#: What is shown of every class, and the vectors that hold it, here and in a prediction.
VECTORS = {"|h|": "norms", "|w|": "weight_norms", "margin": "margins"}
MatrixName = Literal["gram_features", "gram_weights", "logits"]


class Measured(abc.ABC):
    """What is seen of class means and classifier. Matrices have one row per group of classes that are alike.

    Attributes:
        counts: samples of every class.
        present: classes that have any.
        bias: ``b`` without its mean (a common shift of all logits means nothing to a softmax), or None.
        margins: effective margins: log-odds for shift-invariant losses (`ufm.metrics.margins`), else of logits.
        norms: ``|mu_k|``.
        weight_norms: ``|w_k|``.
        alignment: ``cos(w_k, mu_k)``.
        classes: which classes are alike; of a network nothing is known, and every class has its own row.
    """

    counts: Any
    present: Bool[np.ndarray, " K"]
    bias: Float[np.ndarray, " K"] | None
    margins: Float[np.ndarray, " K"]
    norms: Float[np.ndarray, " K"]
    weight_norms: Float[np.ndarray, " K"]
    alignment: Float[np.ndarray, " K"]
    classes: Representatives

    @abc.abstractmethod
    def rows(self, name: MatrixName, classes: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows K"]:
        """Return the rows of some classes of a matrix: ``<mu_k, mu_l>``, ``<w_k, w_l>`` or logits of class means."""

    @abc.abstractmethod
    def cosines(self, of: Literal["features", "weights"]) -> Float[np.ndarray, "G K"]:
        """Return cosines between class means, or between classifier rows."""

    @abc.abstractmethod
    def classifier_residual(
        self, costs: Float[np.ndarray, " K"], directions: Float[np.ndarray, "G K"]
    ) -> float:
        """Return the distance of the classifier from `ufm.metrics.classifier_from_means`, both of norm 1."""

    @cached_property
    def gram_features(self) -> Float[np.ndarray, "K K"]:
        """``<mu_k, mu_l>``."""
        return self.rows("gram_features", np.arange(len(self.norms)))

    @cached_property
    def gram_weights(self) -> Float[np.ndarray, "K K"]:
        """``<w_k, w_l>``."""
        return self.rows("gram_weights", np.arange(len(self.norms)))

    @cached_property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """Logits of the class means, class k in row k."""
        return self.rows("logits", np.arange(len(self.norms)))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What a table by count shows."""
        return {name: getattr(self, vector) for name, vector in VECTORS.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the per-class vectors as plain lists."""
        return {
            "counts": self.counts.tolist(),
            "norms": self.norms.tolist(),
            "weight_norms": self.weight_norms.tolist(),
            "margins": self.margins.tolist(),
        }


class MeasuredLayer(Measured):
    """The geometry of a layer, from statistics of its features made with its classifier; see `Measured`."""

    def __init__(
        self,
        statistics: FeatureStatistics,
        weight: Float[np.ndarray, "K d"],
        bias: Float[np.ndarray, " K"] | None,
        margins: Float[np.ndarray, " K"],
    ) -> None:
        self.statistics, self.weight, self.bias, self.margins = statistics, weight, bias, margins
        self.counts, self.present, self.means = statistics.counts, statistics.present, statistics.means
        self.classes = Representatives.of_all(len(weight))
        self.norms, self.weight_norms = metrics.norms(self.means), metrics.norms(weight)
        self.alignment = metrics.paired_cosines(weight, self.means)

    def rows(self, name: MatrixName, classes: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows K"]:
        """Return the rows of some classes of a matrix."""
        if name == "gram_weights":
            return self.weight[classes] @ self.weight.T
        if name == "gram_features":
            return self.means[classes] @ self.means.T
        logits = self.means[classes] @ self.weight.T
        return logits if self.bias is None else logits + self.bias

    def cosines(self, of: Literal["features", "weights"]) -> Float[np.ndarray, "G K"]:
        """Return cosines between class means, or between classifier rows."""
        return metrics.cosines(self.means if of == "features" else self.weight)

    def classifier_residual(
        self, costs: Float[np.ndarray, " K"], directions: Float[np.ndarray, "G K"]
    ) -> float:
        """Return the distance of the classifier from `ufm.metrics.classifier_from_means`, both of norm 1."""
        wanted = metrics.classifier_from_means(self.means, costs, directions)
        return metrics.direction_residual(self.weight, wanted)


class MeasuredGroups(Measured):
    """The geometry of a solution at group level; see `Measured`."""

    def __init__(self, point: GroupPoint, loss: Loss) -> None:
        self.point, problem = point, point.problem
        self.counts, self.present = problem.counts, np.ones(problem.num_classes, dtype=bool)
        self.classes = Representatives(point.groups)
        first, each = self.classes.first, self.classes.of_classes
        bias = None if point.bias is None else each(point.bias)
        self.shift = 0.0 if bias is None or not loss.shift_invariant else float(bias.mean())
        self.bias = None if bias is None else bias - self.shift
        squares = (self.classes.own(self.rows(name, first)) for name in ("gram_features", "gram_weights"))
        self.norms, self.weight_norms = (each(np.sqrt(np.maximum(square, 0.0))) for square in squares)
        logits = self.rows("logits", first)
        self.margins = each(row_margins(logits, first, log_odds=loss.shift_invariant))
        lengths = self.norms * self.weight_norms
        products = self.classes.own(logits) - (0.0 if self.bias is None else self.bias[first])
        self.alignment = np.divide(each(products), lengths, out=np.zeros_like(lengths), where=lengths > 0)

    def rows(self, name: MatrixName, classes: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows K"]:
        """Return the rows of some classes of a matrix."""
        rows = self.point.rows(name, classes)
        return rows - self.shift if name == "logits" else rows

    def cosines(self, of: Literal["features", "weights"]) -> Float[np.ndarray, "G K"]:
        """Return cosines between class means, or between classifier rows."""
        first = self.classes.first
        gram = self.rows("gram_features" if of == "features" else "gram_weights", first)
        norms = self.norms if of == "features" else self.weight_norms
        return gram_cosines(gram, norms[first], norms)

    def classifier_residual(
        self, costs: Float[np.ndarray, " K"], directions: Float[np.ndarray, "G K"]
    ) -> float:
        """Return the distance of the classifier from what class means call for, both of norm 1."""
        groups, first, problem = self.point.groups, self.classes.first, self.point.problem
        # a column is the coordinate that a class has of its own; balanced rows are sqrt(lambda_H n) times features
        balanced = np.sqrt(problem.feature_decays * problem.counts)
        scaled = (np.sqrt(costs) / balanced)[first, None] * groups.expand_rows(self.point.point.features)
        wanted = self.classes.product(self.classes.transpose(directions), scaled)
        seen = groups.expand_rows(self.point.point.weight)
        return metrics.direction_residual(self.classes.times(seen), self.classes.times(wanted))


def measured_geometry(statistics: FeatureStatistics, loss: Loss) -> MeasuredLayer:
    """Return the geometry that statistics made with a classifier contain.

    Args:
        statistics: made with a classifier.
        loss: decides what a margin is and whether a common shift of the logits matters.

    Raises:
        InputError: if the statistics were made without a classifier.
    """
    if loss.shift_invariant:
        margins = metrics.margins(statistics)
    else:
        margins = metrics.logit_margins(metrics.class_logits(statistics))
    weight, bias = statistics.classifier
    if bias is not None and loss.shift_invariant:
        bias = bias - bias.mean()
    return MeasuredLayer(statistics, weight, bias, np.where(statistics.present, margins, 0.0))
