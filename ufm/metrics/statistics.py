"""Sufficient statistics of features, in one pass over batches of any size: what the metrics are made of.

What each metric needs:

* Sigma_W enters NC1 through its action on the row space of Sigma_B, which is known only at the end of the
  pass; hence the full ``d x d`` scatter, unless ``scatter=False`` says that d is too large and NC1 is not
  wanted.
* losses, accuracy and margins need the classifier *while* the samples pass; logits of class means do not.
* NC4 compares samples with the final class means, so it takes a second pass: `ufm.metrics.nearest_mean`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.inputs.arrays import classifier
from ufm.inputs.checks import InputError, instance_of, positive_integer
from ufm.metrics import batches
from ufm.metrics.batches import Batch, Block, Classifier, Sums, block_rows, checked_batch
from ufm.metrics.moments import LogitSums


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

    Source: Chan, Golub, LeVeque, 1979, for sums of squares that are merged.

    Example:
        >>> statistics = FeatureStatistics(num_classes=2, dim=2)
        >>> statistics.update([[1.0, 0.0], [3.0, 0.0]], [0, 0])
        >>> statistics.update([[0.0, 2.0]], [1])
        >>> statistics.means.tolist(), statistics.within_trace
        ([[2.0, 0.0], [0.0, 2.0]], 0.6666666666666666)
    """

    def __init__(
        self,
        num_classes: int | Any | None = None,
        dim: int | Any | None = None,
        *,
        weight: Any = None,
        bias: Any = None,
        nonnegative: bool | Any = False,
        scatter: bool | Any = True,
    ) -> None:
        if weight is None and bias is not None:
            raise InputError("bias must be left out if there is no weight")
        self._classifier = None if weight is None else classifier(weight, bias)
        rows, columns = (None, None) if self._classifier is None else self._classifier[0].shape
        self.num_classes = _same("num_classes", num_classes, rows)
        self.dim = _same("dim", dim, columns)
        self.nonnegative = bool(nonnegative)
        self.rows = 0
        self.smallest = 0.0
        self._sums = Sums.empty(self.num_classes, self.dim, bool(scatter), self._classifier is not None)
        self._waiting: list[Block] = []

    @classmethod
    def of_sums(cls, sums: Sums, weight: Any, bias: Any = None, smallest: float = 0.0) -> FeatureStatistics:
        """Return statistics that were added up elsewhere, for instance while a network trained.

        Args:
            sums: with those of the logits, which may come from a classifier that moved.
            weight: classifier ``W`` to hold the means against.
            bias: its bias, if any.
            smallest: the smallest entry of a feature, or 0.
        """
        statistics = cls(weight=weight, bias=bias, scatter=sums.moments.scatter is not None)
        statistics._sums, statistics.smallest = sums, smallest
        statistics.rows = int(sums.moments.counts.sum())
        return statistics

    def update(self, features: Any, labels: Any, multiplicities: Any = None) -> None:
        """Add a batch: features (rows, d), labels (rows,), and how many samples each row stands for.

        Small batches are kept (at most 16 MB of them) until they are worth an addition to all the sums, or until
        these are asked for.

        Raises:
            InputError: for wrong shapes, labels out of range, or features that are not finite; nothing of the
                batch is added then.
        """
        batch = checked_batch(features, labels, multiplicities, self.num_classes, self.dim)
        self.add(batch, check=True)

    def add(self, batch: Batch, check: bool) -> None:
        """Add a batch whose shapes and labels have been checked; ``check`` what is in the features, too."""
        blocks = batch.blocks(self._logits, check=check, nonnegative=self.nonnegative)
        if batch.entries < batches.BLOCK_ENTRIES:
            new = list(blocks)
            smallest = min((float(block.features.min()) for block in new), default=0.0)
            self._waiting += [block.owned() for block in new]
            if sum(block.features.size for block in self._waiting) >= batches.BLOCK_ENTRIES:
                self._settle()
        else:
            self._settle()
            sums, smallest = self._sums.copy(), 0.0
            for block in blocks:
                smallest = min(smallest, float(block.features.min()))
                sums.add(block, self._classifier)
            self._sums = sums
        self.rows, self.smallest = self.rows + len(batch.labels), min(self.smallest, smallest)

    def _settle(self) -> Sums:
        """Add the batches that wait to the sums; return these."""
        if self._waiting:
            joined = Block(*(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
            size = block_rows(self.dim, self._logits)
            for start in range(0, len(joined.labels), size):
                self._sums.add(Block(*(part[start : start + size] for part in joined)), self._classifier)
            self._waiting = []
        return self._sums

    def merge(self, other: FeatureStatistics | Any) -> None:
        """Add the statistics of other samples (of another process) under the same classifier.

        Raises:
            InputError: if shapes, classifier or options differ.
        """
        instance_of("other", other, FeatureStatistics)
        same = (self.num_classes, self.dim, self.has_scatter) == (
            other.num_classes,
            other.dim,
            other.has_scatter,
        )
        if not (same and _same_classifier(self._classifier, other._classifier)):
            raise InputError(
                "other must have been made with the same shapes, options and classifier to be merged"
            )
        self._settle().merge(other._settle())
        self.rows, self.smallest = self.rows + other.rows, min(self.smallest, other.smallest)

    @property
    def _logits(self) -> int:
        """How many logits a row has."""
        return self.num_classes if self.has_classifier else 0

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
        return self._sums.moments.scatter is not None

    @property
    def counts(self) -> Float[np.ndarray, " K"]:
        """Samples per class; 0 for a class that has not been seen."""
        return self._settle().moments.counts

    @property
    def present(self) -> Bool[np.ndarray, " K"]:
        """Classes with at least one sample: the others have no mean and take part in no feature metric."""
        return self._settle().moments.counts > 0

    @property
    def num_samples(self) -> float:
        """``N``."""
        return float(self._settle().moments.counts.sum())

    @property
    def means(self) -> Float[np.ndarray, "K d"]:
        """Class means ``mu_k``; zero for a class that has not been seen."""
        return self._settle().moments.means

    @property
    def global_mean(self) -> Float[np.ndarray, " d"]:
        """``mu_G``, the mean over samples (so classes count by their size)."""
        return self.counts @ self.means / max(self.num_samples, 1.0)

    @property
    def variances(self) -> Float[np.ndarray, " K"]:
        """``Var_k = (1/n_k) sum_i |h_i - mu_k|^2``; zero for a class that has not been seen."""
        return self._settle().moments.traces / np.where(self.present, self.counts, 1.0)

    @property
    def within_trace(self) -> float:
        """``tr Sigma_W`` with ``Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})'``."""
        return float(self._settle().moments.traces.sum()) / max(self.num_samples, 1.0)

    @property
    def within(self) -> Float[np.ndarray, "d d"]:
        """``Sigma_W``.

        Raises:
            InputError: if the scatter was not kept.
        """
        scatter = self._settle().moments.scatter
        if scatter is None:
            raise InputError(
                "scatter must be True in FeatureStatistics for metrics that need Sigma_W, got False"
            )
        return scatter / max(self.num_samples, 1.0)

    @property
    def logits(self) -> LogitSums:
        """Sums over the logits of the samples.

        Raises:
            InputError: if there is no classifier.
        """
        logits = self._settle().logits
        if logits is None:
            raise InputError(
                "weight must be given to FeatureStatistics for metrics of the classifier, got None"
            )
        return logits


def _same(name: str, given: Any, from_weight: int | None) -> int:
    if given is None and from_weight is None:
        raise InputError(f"{name} must be given if weight is not")
    number = positive_integer(name, from_weight if given is None else given)
    if from_weight is not None and number != from_weight:
        raise InputError(f"{name} must agree with weight ({from_weight}), got {number}")
    return number


def _same_classifier(first: Classifier, second: Classifier) -> bool:
    if first is None or second is None:
        return first is second
    mine, theirs = (np.zeros(0) if bias is None else bias for _, bias in (first, second))
    return np.array_equal(first[0], second[0]) and np.array_equal(mine, theirs)
