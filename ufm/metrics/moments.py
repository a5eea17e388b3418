"""Sums over samples that can be merged: moments of features, and what a classifier says about them.

Class means and scatters are merged as in Chan, Golub, LeVeque (1983), in float64, around the data and never
as differences of raw moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Moments(NamedTuple):
    """Per class: number of samples, mean, trace of the scatter; for all together: the within-class scatter.

    Scatters are sums over samples of ``(h - mu)(h - mu)'``, not divided by anything.
    """

    counts: Float[np.ndarray, " K"]
    means: Float[np.ndarray, "K d"]
    traces: Float[np.ndarray, " K"]
    scatter: Float[np.ndarray, "d d"] | None

    @staticmethod
    def empty(num_classes: int, dim: int, scatter: bool) -> Moments:
        """Return the moments of no data."""
        zero = np.zeros((dim, dim)) if scatter else None
        return Moments(np.zeros(num_classes), np.zeros((num_classes, dim)), np.zeros(num_classes), zero)

    def copy(self) -> Moments:
        """Return the same moments in arrays of their own, to add to."""
        return Moments._make(None if part is None else part.copy() for part in self)

    def add(self, classes: Int[np.ndarray, " c"], other: Moments) -> None:
        """Add other samples of some ``classes``, in place; ``other`` has one entry for each of these.

        What the means of these classes move by is all that enters the scatter: classes without new samples cost
        nothing.
        """
        before = self.counts[classes]
        counts = before + other.counts
        share = other.counts / np.where(counts > 0, counts, 1.0)
        shift = other.means - self.means[classes]
        spread = before * share
        if self.scatter is not None and other.scatter is not None:
            moved = (shift * np.sqrt(spread)[:, None])[spread > 0]
            np.add(self.scatter, other.scatter, out=self.scatter)
            if len(moved):
                np.add(self.scatter, moved.T @ moved, out=self.scatter)
        self.counts[classes] = counts
        self.means[classes] += share[:, None] * shift
        self.traces[classes] += other.traces + spread * np.einsum("ij,ij->i", shift, shift)


class LogitSums(NamedTuple):
    """What the classifier says about the samples of every class.

    Attributes:
        loss: sum of cross-entropies.
        correct: number of samples whose own logit is strictly the largest.
        log_hit: ``log sum p_y``, p being the softmax and y the label.
        log_miss: ``log sum (1 - p_y)``.
        smallest_margin: minimum of ``z_y - max_{j != y} z_j``.
    """

    loss: Float[np.ndarray, " K"]
    correct: Float[np.ndarray, " K"]
    log_hit: Float[np.ndarray, " K"]
    log_miss: Float[np.ndarray, " K"]
    smallest_margin: Float[np.ndarray, " K"]

    @staticmethod
    def empty(num_classes: int) -> LogitSums:
        """Return the sums over no data."""
        starts = (0.0, 0.0, -np.inf, -np.inf, np.inf)
        return LogitSums._make(np.full(num_classes, start) for start in starts)

    def copy(self) -> LogitSums:
        """Return the same sums in arrays of their own, to add to."""
        return LogitSums._make(part.copy() for part in self)

    def add(self, classes: Int[np.ndarray, " c"], other: LogitSums) -> None:
        """Add the sums over other samples of some ``classes``, in place."""
        joined = (np.add, np.add, np.logaddexp, np.logaddexp, np.minimum)
        for total, new, join in zip(self, other, joined, strict=True):
            total[classes] = join(total[classes], new)


class ByClass(NamedTuple):
    """The rows of a block by class, without moving them: what is sorted are their numbers.

    Attributes:
        classes: those that have rows, ascending.
        order: numbers of the rows, class by class.
        starts: where each class begins in ``order``.
        place: of every row: which of ``classes``.
    """

    classes: Int[np.ndarray, " c"]
    order: Int[np.ndarray, " rows"]
    starts: Int[np.ndarray, " c"]
    place: Int[np.ndarray, " rows"]

    @staticmethod
    def of(labels: Int[np.ndarray, " rows"]) -> ByClass:
        """Sort labels."""
        order = np.argsort(labels, kind="stable")
        classes, starts, lengths = np.unique(labels[order], return_index=True, return_counts=True)
        place = np.empty(len(labels), dtype=np.int64)
        place[order] = np.repeat(np.arange(len(classes)), lengths)
        return ByClass(classes, order, starts, place)

    def sums(
        self, rows: Float[np.ndarray, "rows any"], weights: Float[np.ndarray, " rows"] | None = None
    ) -> Float[np.ndarray, "c any"]:
        """Return the (weighted) sum of the rows of every class, in one pass over them as they lie."""
        from scipy.sparse import csr_array  # what only reads names of metrics does not wait for it

        size = len(self.order)
        values = np.ones(size) if weights is None else weights[self.order]
        shape = (len(self.classes), size)
        return csr_array((values, self.order, np.append(self.starts, size)), shape=shape) @ rows


def block_moments(
    features: Float[np.ndarray, "rows d"],
    by_class: ByClass,
    weights: Float[np.ndarray, " rows"],
    scatter: bool,
) -> Moments:
    """Moments of a block, each class shifted by its first row: equal rows have zero scatter.

    Args:
        features: the rows.
        by_class: their classes.
        weights: number of samples that every row stands for.
        scatter: whether the ``d x d`` scatter is wanted.
    """
    first = features[by_class.order[by_class.starts]]
    shifted = features - first[by_class.place]
    counts = np.bincount(by_class.place, weights)
    drift = by_class.sums(shifted, weights) / counts[:, None]
    shifted -= drift[by_class.place]
    traces = np.bincount(by_class.place, weights * np.einsum("ij,ij->i", shifted, shifted))
    if not scatter:
        return Moments(counts, first + drift, traces, None)
    if np.any(weights != 1):
        shifted *= np.sqrt(weights)[:, None]
    return Moments(counts, first + drift, traces, shifted.T @ shifted)


def block_logits(
    logits: Float[np.ndarray, "rows K"],
    labels: Int[np.ndarray, " rows"],
    by_class: ByClass,
    weights: Float[np.ndarray, " rows"],
) -> LogitSums:
    """Sums over a block; the logits are used up."""
    rows, order, starts = np.arange(len(labels)), by_class.order, by_class.starts
    others = logits
    others -= logits[rows, labels][:, None]
    others[rows, labels] = -np.inf
    largest = others.max(axis=1)
    others -= largest[:, None]
    # log-odds against the label; finite for all finite logits
    odds = (largest + np.log(np.sum(np.exp(others, out=others), axis=1)))[order]
    largest, weights = largest[order], weights[order]
    loss = np.logaddexp(0.0, odds)
    return LogitSums(
        loss=np.add.reduceat(weights * loss, starts),
        correct=np.add.reduceat(weights * (largest < 0), starts),
        log_hit=np.logaddexp.reduceat(np.log(weights) - loss, starts),
        log_miss=np.logaddexp.reduceat(np.log(weights) - np.logaddexp(0.0, -odds), starts),
        smallest_margin=np.minimum.reduceat(-largest, starts),
    )
