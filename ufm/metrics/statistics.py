"""Sufficient statistics of features, in one pass over batches of any size: what the metrics are made of.

What each metric needs:

* Sigma_W enters NC1 through its action on the row space of Sigma_B, which is known only at the end of the
  pass; hence the full ``d x d`` scatter, unless ``scatter=False`` says that d is too large and NC1 is not
  wanted.
* losses, accuracy and margins need the classifier *while* the samples pass; logits of class means do not.
* NC4 compares samples with the final class means, so it takes a second pass: `ufm.metrics.nearest_mean`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.inputs.arrays import classifier, float_array, label_array, multiplicity_array
from ufm.inputs.checks import InputError, positive_integer
from ufm.metrics.moments import LogitSums, Moments, block_logits, block_moments

#: Batches are worked on in blocks of about this many float64 entries (32 MB).
BLOCK_ENTRIES = 2**22


class FeatureStatistics:
    """Accumulates the statistics of a feature set batch by batch, for the metrics of `ufm.metrics`.

    Any split of the data into batches gives the same statistics up to rounding, and `merge` adds those of
    another process. Instances are picklable.

    Args:
        num_classes: ``K``; taken from ``weight`` if that is given.
        dim: feature dimension ``d``; likewise.
        weight: classifier ``W``, needed for losses, accuracy and margins.
        bias: its bias, if any.
        nonnegative: refuse features with negative entries.
        scatter: keep the ``d x d`` within-class scatter, which `ufm.metrics.nc1` needs.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Example:
        >>> statistics = FeatureStatistics(num_classes=2, dim=2)
        >>> statistics.update([[1.0, 0.0], [3.0, 0.0]], [0, 0])
        >>> statistics.update([[0.0, 2.0]], [1])
        >>> statistics.means.tolist(), statistics.within_trace
        ([[2.0, 0.0], [0.0, 2.0]], 0.6666666666666666)
    """

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        *,
        weight: Any = None,
        bias: Any = None,
        nonnegative: bool = False,
        scatter: bool = True,
    ) -> None:
        self._classifier = None if weight is None else classifier(weight, bias)
        rows, columns = (None, None) if self._classifier is None else self._classifier[0].shape
        self.num_classes = _same("num_classes", num_classes, rows)
        self.dim = _same("dim", dim, columns)
        self.nonnegative = nonnegative
        self.rows = 0
        self.smallest = 0.0
        self._moments = Moments.empty(self.num_classes, self.dim, scatter)
        self._logits = None if self._classifier is None else LogitSums.empty(self.num_classes)

    def update(self, features: Any, labels: Any, multiplicities: Any = None) -> None:
        """Add a batch: features (rows, d), labels (rows,), and how many samples each row stands for.

        Raises:
            InputError: for wrong shapes, labels out of range, or features that are not finite; nothing of the
                batch is added then.
        """
        moments, logits, rows, smallest = self._moments, self._logits, 0, self.smallest
        for block, kept, weights in blocks(
            features, labels, multiplicities, self.num_classes, self.dim, self.nonnegative
        ):
            order = np.argsort(kept, kind="stable")
            block, kept, weights = block[order], kept[order], weights[order]
            moments = moments.merged(block_moments(block, kept, weights, self._moments))
            if logits is not None:
                logits = logits.merged(block_logits(logits_of(block, *self.classifier), kept, weights))
            rows, smallest = rows + len(kept), min(smallest, float(block.min()))
        self._moments, self._logits, self.rows, self.smallest = moments, logits, self.rows + rows, smallest

    def merge(self, other: FeatureStatistics) -> None:
        """Add the statistics of other samples (of another process) under the same classifier.

        Raises:
            InputError: if shapes, classifier or options differ.
        """
        same = (self.num_classes, self.dim, self.has_scatter) == (
            other.num_classes,
            other.dim,
            other.has_scatter,
        )
        if not (same and _same_classifier(self._classifier, other._classifier)):
            raise InputError(
                "other must have been made with the same shapes, options and classifier to be merged"
            )
        self._moments, self.rows = self._moments.merged(other._moments), self.rows + other.rows
        self.smallest = min(self.smallest, other.smallest)
        if self._logits is not None and other._logits is not None:
            self._logits = self._logits.merged(other._logits)

    @property
    def has_classifier(self) -> bool:
        """Whether a classifier was given."""
        return self._classifier is not None

    @property
    def classifier(self) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, " K"] | None]:
        """Weight and bias.

        Raises:
            InputError: if there is none.
        """
        if self._classifier is None:
            raise InputError(
                "weight must be given to FeatureStatistics for metrics of the classifier, got None"
            )
        return self._classifier

    @property
    def has_scatter(self) -> bool:
        """Whether the ``d x d`` scatter is kept."""
        return self._moments.scatter is not None

    @property
    def counts(self) -> Float[np.ndarray, " K"]:
        """Samples per class; 0 for a class that has not been seen."""
        return self._moments.counts

    @property
    def present(self) -> Bool[np.ndarray, " K"]:
        """Classes with at least one sample: the others have no mean and take part in no feature metric."""
        return self._moments.counts > 0

    @property
    def num_samples(self) -> float:
        """``N``."""
        return float(self._moments.counts.sum())

    @property
    def means(self) -> Float[np.ndarray, "K d"]:
        """Class means ``mu_k``; zero for a class that has not been seen."""
        return self._moments.means

    @property
    def global_mean(self) -> Float[np.ndarray, " d"]:
        """``mu_G``, the mean over samples (so classes count by their size)."""
        return self.counts @ self.means / max(self.num_samples, 1.0)

    @property
    def variances(self) -> Float[np.ndarray, " K"]:
        """``Var_k = (1/n_k) sum_i |h_i - mu_k|^2``; zero for a class that has not been seen."""
        return self._moments.traces / np.where(self.present, self.counts, 1.0)

    @property
    def within_trace(self) -> float:
        """``tr Sigma_W`` with ``Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})'``."""
        return float(self._moments.traces.sum()) / max(self.num_samples, 1.0)

    @property
    def within(self) -> Float[np.ndarray, "d d"]:
        """``Sigma_W``.

        Raises:
            InputError: if the scatter was not kept.
        """
        if self._moments.scatter is None:
            raise InputError(
                "scatter must be True in FeatureStatistics for metrics that need Sigma_W, got False"
            )
        return self._moments.scatter / max(self.num_samples, 1.0)

    @property
    def logits(self) -> LogitSums:
        """Sums over the logits of the samples.

        Raises:
            InputError: if there is no classifier.
        """
        if self._logits is None:
            raise InputError(
                "weight must be given to FeatureStatistics for metrics of the classifier, got None"
            )
        return self._logits


def blocks(
    features: Any, labels: Any, multiplicities: Any, num_classes: int, dim: int, nonnegative: bool
) -> Iterator[tuple[Float[np.ndarray, "rows d"], Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]]:
    """Yield checked float64 blocks of a batch: features, labels, multiplicities."""
    shape = tuple(np.shape(features))
    if len(shape) != 2 or shape[1] != dim:
        raise InputError(
            f"features must be a matrix with {dim} columns (the feature dimension), got shape {shape}"
        )
    kept = label_array(labels, num_classes, shape[0])
    weights = multiplicity_array(multiplicities, shape[0])
    size = max(1, BLOCK_ENTRIES // max(dim, num_classes))
    table = features if hasattr(features, "shape") else np.asarray(features)
    for start in range(0, shape[0], size):
        part = slice(start, start + size)
        block = float_array("features", table[part], 2, nonnegative=nonnegative, offset=start)
        yield block, kept[part], weights[part]


def logits_of(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return ``W h_i + b`` for every row."""
    return features @ weight.T if bias is None else features @ weight.T + bias


def _same(name: str, given: int | None, from_weight: int | None) -> int:
    if given is None and from_weight is None:
        raise InputError(f"{name} must be given if weight is not")
    number = positive_integer(name, from_weight if given is None else given)
    if from_weight is not None and number != from_weight:
        raise InputError(f"{name} must agree with weight ({from_weight}), got {number}")
    return number


_Classifier = tuple[np.ndarray, np.ndarray | None] | None


def _same_classifier(first: _Classifier, second: _Classifier) -> bool:
    if first is None or second is None:
        return first is second
    mine, theirs = (np.zeros(0) if bias is None else bias for _, bias in (first, second))
    return np.array_equal(first[0], second[0]) and np.array_equal(mine, theirs)
