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


def block_moments(
    features: Float[np.ndarray, "rows d"],
    starts: Int[np.ndarray, " c"],
    weights: Float[np.ndarray, " rows"],
    scatter: bool,
) -> Moments:
    """Moments of a block sorted by class, each shifted by its first row: equal rows have zero scatter.

    Args:
        features: the rows.
        starts: where the rows of each class begin.
        weights: number of samples that every row stands for.
        scatter: whether the ``d x d`` scatter is wanted.
    """
    lengths = np.diff(starts, append=len(features))
    first = features[starts]
    shifted = features - np.repeat(first, lengths, axis=0)
    counts = np.add.reduceat(weights, starts)
    drift = np.add.reduceat(weights[:, None] * shifted, starts, axis=0) / counts[:, None]
    shifted -= np.repeat(drift, lengths, axis=0)
    traces = np.add.reduceat(weights * np.einsum("ij,ij->i", shifted, shifted), starts)
    if not scatter:
        return Moments(counts, first + drift, traces, None)
    shifted *= np.sqrt(weights)[:, None]
    return Moments(counts, first + drift, traces, shifted.T @ shifted)


def block_logits(
    logits: Float[np.ndarray, "rows K"],
    labels: Int[np.ndarray, " rows"],
    starts: Int[np.ndarray, " c"],
    weights: Float[np.ndarray, " rows"],
) -> LogitSums:
    """Sums over a block sorted by class, whose rows begin at ``starts``; the logits are used up."""
    rows = np.arange(len(labels))
    others = logits
    others -= logits[rows, labels][:, None]
    others[rows, labels] = -np.inf
    largest = others.max(axis=1)
    others -= largest[:, None]
    # log-odds against the label; finite for all finite logits
    odds = largest + np.log(np.sum(np.exp(others, out=others), axis=1))
    loss = np.logaddexp(0.0, odds)
    return LogitSums(
        loss=np.add.reduceat(weights * loss, starts),
        correct=np.add.reduceat(weights * (largest < 0), starts),
        log_hit=np.logaddexp.reduceat(np.log(weights) - loss, starts),
        log_miss=np.logaddexp.reduceat(np.log(weights) - np.logaddexp(0.0, -odds), starts),
        smallest_margin=np.minimum.reduceat(-largest, starts),
    )
