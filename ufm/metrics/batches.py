"""Batches of feature rows: checked once when they come, read in blocks, and added to all that is summed up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.arrays import Table, feature_table, label_array, multiplicity_array
from ufm.inputs.checks import InputError
from ufm.metrics.moments import ByClass, LogitSums, Moments, block_logits, block_moments

#: Batches are worked on in blocks of at most about this many float64 entries (16 MB).
BLOCK_ENTRIES = 2**21
#: So many entries stay in the cache of a core; so many rows are worth an addition to the d x d scatter.
CACHED_ENTRIES, WORTH_ADDING = 2**18, 512
#: Weight and bias, or None where nothing is asked about a classifier.
Classifier = tuple[np.ndarray, np.ndarray | None] | None


class Block(NamedTuple):
    """Feature rows that have been checked, the class of each, and how many samples it stands for."""

    features: Float[np.ndarray, "rows d"]
    labels: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]

    def owned(self) -> Block:
        """Return the block with features that no caller can change."""
        return self._replace(features=np.array(self.features))


class Batch(NamedTuple):
    """A batch whose shapes, labels and multiplicities have been checked; its features are still to be read."""

    features: Table
    labels: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]

    @property
    def entries(self) -> int:
        """How many numbers its features are."""
        return self.features.shape[0] * self.features.shape[1]

    def blocks(self, num_logits: int, *, check: bool, nonnegative: bool = False) -> Iterator[Block]:
        """Yield its rows as float64; ``check`` what they hold unless that has been done."""
        for part in self.features.blocks(block_rows(self.features.shape[1], num_logits)):
            rows = self.features.block(part.start, part.stop, check=check, nonnegative=nonnegative)
            yield Block(rows, self.labels[part], self.weights[part])


def checked_batch(features: Any, labels: Any, multiplicities: Any, num_classes: int, dim: int) -> Batch:
    """Return a batch that fits, or raise `InputError`; its features are not read yet."""
    table = feature_table(features, dim, num_classes)
    rows = table.shape[0]
    return Batch(table, label_array(labels, num_classes, rows), multiplicity_array(multiplicities, rows))


def block_rows(dim: int, num_logits: int) -> int:
    """Return how many rows are worked on at once: few enough for a cache, but worth an addition to a scatter."""
    width = max(dim, num_logits)
    return max(1, min(BLOCK_ENTRIES // width, max(WORTH_ADDING, CACHED_ENTRIES // width)))


def logits_of(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return ``W h_i + b`` for every row."""
    return features @ weight.T if bias is None else features @ weight.T + bias


class Sums(NamedTuple):
    """All that is added up over samples; nothing about logits without a classifier."""

    moments: Moments
    logits: LogitSums | None

    @staticmethod
    def empty(num_classes: int, dim: int, scatter: bool, logits: bool) -> Sums:
        """Return the sums over no data.

        Raises:
            InputError: if they would not fit into memory.
        """
        try:
            moments = Moments.empty(num_classes, dim, scatter)
        except (MemoryError, ValueError):
            size = 8e-9 * float(dim) * (num_classes + scatter * dim)
            hint = "; scatter=False does without the d x d scatter" if scatter else ""
            raise InputError(
                f"num_classes {num_classes} and dim {dim} would need {size:,.0f} GB of statistics{hint}"
            ) from None
        return Sums(moments, LogitSums.empty(num_classes) if logits else None)

    def copy(self) -> Sums:
        """Return the same sums in arrays of their own, to add to."""
        return Sums(self.moments.copy(), None if self.logits is None else self.logits.copy())

    def merge(self, other: Sums) -> None:
        """Add the sums over other samples, in place."""
        classes = np.arange(len(self.moments.counts))
        self.moments.add(classes, other.moments)
        if self.logits is not None and other.logits is not None:
            self.logits.add(classes, other.logits)

    def add(self, block: Block, classifier: Classifier) -> None:
        """Add a block, in place."""
        features, labels, weights = block
        by_class, scatter = ByClass.of(labels), self.moments.scatter is not None
        self.moments.add(by_class.classes, block_moments(features, by_class, weights, scatter))
        if self.logits is not None and classifier is not None:
            logits = logits_of(features, *classifier)
            self.logits.add(by_class.classes, block_logits(logits, labels, by_class, weights))
