"""Watching a run whose features come as arrays: JAX, NumPy, or anything that NumPy can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ufm.inputs.arrays import classifier, float_array
from ufm.inputs.checks import InputError, instance_of, positive_integer, to_numpy
from ufm.metrics.batches import checked_batch, logits_of
from ufm.theory.prediction import Prediction
from ufm.training.record import Record
from ufm.training.summary import Groups, summary, thirds


class Monitor:
    """Metrics of neural collapse, epoch by epoch, from features and the classifier of every batch.

    Sums are added up in float64; the features are not kept. `METRICS` says what the numbers mean.

    Args:
        num_classes: K.
        dim: feature dimension d.
        counts: samples per class, which decide who is head, medium and tail (thirds of the classes). By default
            those of the first epoch do, for all epochs.
        prediction: what `ufm.predict` says of the run; adds NC2_H, NC2_W, NC2_WWT and NC3_WH.
        every: look at every so manieth batch only.
        scatter: keep the ``d x d`` scatter, which NC1 needs; 2 B d^2 operations for a batch of B.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Example:
        >>> monitor = Monitor(num_classes=2, dim=2)
        >>> weight = np.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> monitor.update(np.array([[2.0, 0.1], [2.0, -0.1], [0.0, 2.0]]), [0, 0, 1], weight)
        >>> epoch = monitor.epoch()
        >>> epoch["accuracy"], round(epoch["margin_min"], 3), epoch["samples"]
        (1.0, 3.981, 3.0)
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        counts: Any = None,
        prediction: Prediction | None = None,
        every: int = 1,
        scatter: bool = True,
    ) -> None:
        self.num_classes, self.dim = (
            positive_integer("num_classes", num_classes),
            positive_integer("dim", dim),
        )
        self.every, self.scatter = positive_integer("every", every), bool(scatter)
        self.prediction = prediction
        self._groups: Groups | None = None if counts is None else self._grouped(counts)
        if prediction is not None:
            instance_of("prediction", prediction, Prediction)
            if len(prediction.norms) != self.num_classes:
                raise InputError(
                    f"prediction must be for {self.num_classes} classes, got one for {len(prediction.norms)}"
                )
        self._batches = 0
        self._means: np.ndarray | None = None  # last epoch's
        self._record = self._empty()

    def _grouped(self, counts: Any) -> Groups:
        sizes = float_array("counts", counts, 1, nonnegative=True)
        if sizes.shape != (self.num_classes,):
            raise InputError(
                f"counts must have one entry per class, {self.num_classes}, got shape {sizes.shape}"
            )
        return thirds(sizes)

    def _empty(self) -> Record:
        return Record.empty(self.num_classes, self.dim, self.scatter)

    def due(self) -> bool:
        """Count a batch; say whether it is one to look at."""
        self._batches += 1
        return (self._batches - 1) % self.every == 0

    def update(self, features: Any, labels: Any, weight: Any, bias: Any = None) -> None:
        """Add a batch: features (B, d), labels (B,), and the classifier (K, d), (K,) that they met.

        Rows with a negative label or an entry that is not finite are left out and counted as dropped.

        Raises:
            InputError: for wrong shapes or labels out of range.
        """
        if not self.due():
            return
        met = classifier(weight, bias)
        if met[0].shape != (self.num_classes, self.dim):
            raise InputError(f"weight must have shape {(self.num_classes, self.dim)}, got {met[0].shape}")
        self._record = self._record._replace(classifier=met)
        rows, kept = to_numpy("features", features), to_numpy("labels", labels)
        if rows.ndim == 2 and kept.shape == rows.shape[:1] and kept.dtype.kind in "iu":
            good = (kept >= 0) & np.isfinite(rows).all(axis=1)
            self._record = self._record._replace(dropped=self._record.dropped + float(np.sum(~good)))
            rows, kept = rows[good], kept[good]
        batch = checked_batch(rows, kept, None, self.num_classes, self.dim)
        for block in batch.blocks(self.num_classes, check=False):
            self._record.sums.add(block, met)
            self._look(block.features)

    def _look(self, rows: np.ndarray) -> None:
        record = self._record
        record = record._replace(smallest=min(record.smallest, float(rows.min(initial=0.0))))
        if self._means is not None and record.classifier is not None:
            chosen = logits_of(rows, *record.classifier).argmax(axis=1)
            nearness = rows @ self._means.T - np.sum(self._means**2, axis=1) / 2
            agreeing = float(np.sum(chosen == nearness.argmax(axis=1)))
            record = record._replace(
                agreeing=record.agreeing + agreeing, compared=record.compared + float(len(rows))
            )
        self._record = record

    def record(self) -> Record:
        """Return the sums so far: what another process needs for `merge`. It can be pickled."""
        return self._record

    def merge(self, other: Record | Monitor) -> None:
        """Add what another process has seen in this epoch; do it in every process, so that all know the means.

        Raises:
            InputError: if its shapes or options differ.
        """
        theirs = other.record() if isinstance(other, Monitor) else instance_of("other", other, Record)
        mine, new = (record.sums.moments for record in (self._record, theirs))
        if mine.means.shape != new.means.shape or (mine.scatter is None) != (new.scatter is None):
            raise InputError("other must have been made with the same shapes and options to be merged")
        self._record = self._record.merged(theirs)

    def epoch(self) -> dict[str, float]:
        """Return the numbers of the epoch, a flat dict of floats, and begin anew; `METRICS` says what they mean.

        Raises:
            InputError: if no batch was seen.
        """
        record, moments = self._record, self._record.sums.moments
        if record.classifier is None or not moments.counts.sum() > 0:
            raise InputError("epoch needs at least one batch that was watched, got none")
        if self._groups is None:
            self._groups = thirds(moments.counts)
        values = summary(record, *record.classifier, self._groups, self.prediction)
        self._begin(moments.means)
        return values

    def _begin(self, means: np.ndarray) -> None:
        """Start the next epoch, whose samples are compared with these class means."""
        self._means, self._record, self._batches = means, self._empty(), 0
