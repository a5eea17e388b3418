"""What one epoch leaves behind: sums over its samples, on the host, which can be sent and merged."""

from typing import NamedTuple

from ufm.metrics.batches import Classifier, Sums


class Record(NamedTuple):
    """Sums over the samples of an epoch, or of one process's share of it.

    Attributes:
        sums: moments of the features, and what the classifier said about them.
        smallest: the smallest entry of a feature, if below 0.
        agreeing: samples on which the classifier and the nearest of last epoch's class means agree.
        compared: samples for which that was asked.
        dropped: rows left out, because their label is negative or something in them is not finite.
        classifier: weight and bias of the latest batch; None before the first, and where a layer is asked instead.
    """

    sums: Sums
    smallest: float = 0.0
    agreeing: float = 0.0
    compared: float = 0.0
    dropped: float = 0.0
    classifier: Classifier = None

    @staticmethod
    def empty(num_classes: int, dim: int, scatter: bool) -> "Record":
        """Return the record of no samples."""
        return Record(Sums.empty(num_classes, dim, scatter, logits=True))

    def merged(self, other: "Record") -> "Record":
        """Return the record of the samples of both; neither is changed."""
        sums = self.sums.copy()
        sums.merge(other.sums)
        return Record(
            sums,
            min(self.smallest, other.smallest),
            self.agreeing + other.agreeing,
            self.compared + other.compared,
            self.dropped + other.dropped,
            self.classifier or other.classifier,
        )
