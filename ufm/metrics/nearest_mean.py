"""NC4: does the classifier decide like the nearest class mean?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ufm.inputs.checks import instance_of, nonnegative_float
from ufm.metrics.batches import Batch, checked_batch, logits_of
from ufm.metrics.statistics import FeatureStatistics


class NearestMeanAgreement:
    """Second pass: how often the classifier and the nearest class mean agree (NC4).

    A tie on either side agrees if *some* class is best on both, so that classes whose means (or classifier
    rows) coincide do not count as disagreement.

    Args:
        statistics: the first pass, made with a classifier.
        logit_ties: logits this close to the largest one are tied with it.
        distance_ties: squared distances this close to the smallest one, relative to the largest squared
            distance of a class mean from the global mean, are tied with it.
    """

    def __init__(
        self,
        statistics: FeatureStatistics | Any,
        *,
        logit_ties: float | Any = 1e-9,
        distance_ties: float | Any = 1e-9,
    ) -> None:
        self._statistics = instance_of("statistics", statistics, FeatureStatistics)
        logit_ties = nonnegative_float("logit_ties", logit_ties)
        distance_ties = nonnegative_float("distance_ties", distance_ties)
        self._classifier = statistics.classifier
        self._centre = statistics.global_mean
        self._directions = statistics.means - self._centre
        self._offsets = np.sum(self._directions**2, axis=1) / 2
        self._ties = (logit_ties, distance_ties * float(np.max(self._offsets, initial=0.0)))
        self.agreeing = 0.0
        self.seen = 0.0

    def update(self, features: Any, labels: Any, multiplicities: Any = None) -> None:
        """Add a batch, as in `FeatureStatistics.update`."""
        first = self._statistics
        self.add(checked_batch(features, labels, multiplicities, first.num_classes, first.dim), check=True)

    def add(self, batch: Batch, check: bool) -> None:
        """Add a batch, as in `FeatureStatistics.add`."""
        present = self._statistics.present
        for rows, _, weights in batch.blocks(self._statistics.num_classes, check=check):
            logits = logits_of(rows, *self._classifier)
            # |h - mu|^2 / 2 up to a term without mu; centred, or it would cancel for features far from zero
            nearness = (rows - self._centre) @ self._directions.T - self._offsets
            nearness[:, ~present] = -np.inf
            best = logits >= logits.max(axis=1, keepdims=True) - self._ties[0]
            nearest = nearness >= nearness.max(axis=1, keepdims=True) - self._ties[1]
            self.agreeing += float(weights @ np.any(best & nearest, axis=1))
            self.seen += float(weights.sum())

    def merge(self, other: NearestMeanAgreement | Any) -> None:
        """Add the counts of another process."""
        instance_of("other", other, NearestMeanAgreement)
        self.agreeing, self.seen = self.agreeing + other.agreeing, self.seen + other.seen

    @property
    def agreement(self) -> float:
        """Fraction of samples on which both agree; 1 when there are none."""
        return self.agreeing / self.seen if self.seen else 1.0
