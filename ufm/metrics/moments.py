"""Sums over samples that can be merged: moments of features, and what a classifier says about them.

Class means and scatters are merged as in Chan, Golub, LeVeque (1983), in float64, around the data and never
as differences of raw moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together."""
        counts = self.counts + other.counts
        share = other.counts / np.where(counts > 0, counts, 1.0)
        shift = other.means - self.means
        spread = self.counts * share
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter + (shift * spread[:, None]).T @ shift
        return Moments(
            counts,
            self.means + share[:, None] * shift,
            self.traces + other.traces + spread * np.sum(shift**2, axis=1),
            scatter,
        )


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

    def merged(self, other: LogitSums) -> LogitSums:
        """Return the sums over both sets of samples together."""
        return LogitSums(
            self.loss + other.loss,
            self.correct + other.correct,
            np.logaddexp(self.log_hit, other.log_hit),
            np.logaddexp(self.log_miss, other.log_miss),
            np.minimum(self.smallest_margin, other.smallest_margin),
        )


def block_moments(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, like: Moments) -> Moments:
    """Moments of a block sorted by class, each shifted by its first row: equal rows have zero scatter."""
    classes, starts = np.unique(labels, return_index=True)
    lengths = np.diff(starts, append=len(labels))
    moments = Moments.empty(len(like.counts), features.shape[1], like.scatter is not None)
    first = features[starts]
    shifted = features - np.repeat(first, lengths, axis=0)
    counts = np.add.reduceat(weights, starts)
    drift = np.add.reduceat(weights[:, None] * shifted, starts, axis=0) / counts[:, None]
    shifted -= np.repeat(drift, lengths, axis=0)
    moments.counts[classes] = counts
    moments.means[classes] = first + drift
    moments.traces[classes] = np.add.reduceat(weights * np.einsum("ij,ij->i", shifted, shifted), starts)
    if moments.scatter is not None:
        shifted *= np.sqrt(weights)[:, None]
        np.matmul(shifted.T, shifted, out=moments.scatter)
    return moments


def block_logits(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> LogitSums:
    """Sums over a block sorted by class."""
    classes, starts = np.unique(labels, return_index=True)
    rows = np.arange(len(labels))
    others = logits - logits[rows, labels][:, None]
    others[rows, labels] = -np.inf
    largest = others.max(axis=1)
    # log-odds against the label; finite for all finite logits
    odds = largest + np.log(np.sum(np.exp(others - largest[:, None]), axis=1))
    loss = np.logaddexp(0.0, odds)
    sums = LogitSums.empty(logits.shape[1])
    for total, reduce, values in (
        (sums.loss, np.add, weights * loss),
        (sums.correct, np.add, weights * (largest < 0)),
        (sums.log_hit, np.logaddexp, np.log(weights) - loss),
        (sums.log_miss, np.logaddexp, np.log(weights) - np.logaddexp(0.0, -odds)),
        (sums.smallest_margin, np.minimum, -largest),
    ):
        total[classes] = reduce.reduceat(values, starts)
    return sums
