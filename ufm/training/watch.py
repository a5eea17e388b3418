"""Watching a torch layer: sums on the model's device, fetched once an epoch. Nothing here imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError, to_numpy
from ufm.metrics.batches import Sums
from ufm.metrics.moments import LogitSums, Moments
from ufm.theory.prediction import Prediction
from ufm.training.monitor import Monitor
from ufm.training.record import Record

#: Per class, in this order: samples, |h - reference|^2, cross-entropy, hits, p_y, 1 - p_y.
_SUMS = 6


def watch(
    layer: Any,
    *,
    counts: Any = None,
    prediction: Prediction | None = None,
    every: int = 1,
    scatter: bool = True,
) -> Watch:
    """Watch a torch classifier layer: its input is the features, its output the logits.

    ``with watch(labels): model(x)`` adds the sums of a batch on the model's device (no host synchronisation, no
    gradients, no copy of the features); ``watch.epoch()`` returns a flat dict of floats and begins anew.
    `ufm.training.METRICS` says what they mean. Rows with a negative label, such as -100, are left out.

    Args:
        layer: the last linear layer, such as ``model.fc``: anything with ``weight`` (K, d), ``bias`` and
            ``register_forward_hook``. Compiled models may skip hooks, which is then said.
        counts: samples per class, which decide who is head, medium and tail; default: those of the first epoch.
        prediction: what `ufm.predict` says of the run; adds NC2_H, NC2_W, NC2_WWT and NC3_WH.
        every: look at every so manieth batch only.
        scatter: keep the ``d x d`` scatter, which NC1 needs; 2 B d^2 operations for a batch of B.

    Returns:
        A `Watch`.

    Raises:
        InputError: if it is no such layer.
    """
    return Watch(layer, counts=counts, prediction=prediction, every=every, scatter=scatter)


class Watch(Monitor):
    """What `watch` returns: a `Monitor` that is fed by a torch layer.

    With distributed data parallel every process watches its own batches; all call `gather`, then `epoch`.
    """

    def __init__(self, layer: Any, **options: Any) -> None:
        weight: Any = getattr(layer, "weight", None)
        if not (hasattr(layer, "register_forward_hook") and getattr(weight, "ndim", 0) == 2):
            raise InputError(
                f"layer must be a torch layer with a weight of two axes, such as model.fc, got {type(layer).__name__}"
            )
        super().__init__(*weight.shape, **options)
        self.layer = layer
        self._device: _DeviceSums | None = None

    @contextlib.contextmanager
    def __call__(self, labels: Any) -> Iterator[None]:
        """Watch the layer while the model runs on a batch with these labels (B,).

        Raises:
            InputError: if the layer was not called, or labels do not fit its input.
        """
        if not self.due():
            yield
            return
        calls = 0

        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal calls
            calls += 1
            self._add(inputs[0].detach(), output.detach(), labels)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not calls:
            raise InputError(
                "layer must be called within `with watch(labels)`, and was not (a compiled model skips hooks)"
            )

    def _add(self, features: Any, logits: Any, labels: Any) -> None:
        features, logits = features.reshape(-1, self.dim), logits.reshape(-1, self.num_classes)
        shape, kind = tuple(getattr(labels, "shape", ())), str(getattr(labels, "dtype", ""))
        if "int" not in kind or int(np.prod(shape)) != len(features) or not hasattr(labels, "detach"):
            raise InputError(
                f"labels must be a tensor of {len(features)} integers, one per row of the layer's input, got "
                f"{type(labels).__name__} of shape {shape} {kind}".rstrip()
            )
        if self._device is None:
            self._device = _DeviceSums(features, self.num_classes, self._means, self.scatter)
        self._device.add(features, logits, labels.detach().reshape(-1).to(features.device).long())

    def update(self, features: Any, labels: Any, weight: Any, bias: Any = None) -> None:
        """Refuse arrays: the layer is what feeds a watch."""
        raise InputError("a watch is fed by `with watch(labels)`; use ufm.training.Monitor for arrays")

    def record(self) -> Record:
        """Return the sums so far, on the host: what another process needs for `merge`. It can be pickled."""
        self._fetch()
        return self._record

    def gather(self, distributed: Any) -> None:
        """Add what all processes of a group have seen in this epoch: `merge` with every `record`.

        Args:
            distributed: ``torch.distributed``, its default group; every process must call this.
        """
        records: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(records, self.record())
        for rank, record in enumerate(records):
            if rank != distributed.get_rank():
                self.merge(record)

    def merge(self, other: Record | Monitor) -> None:
        """Add what another process has seen in this epoch; do it in every process, so that all know the means."""
        self._fetch()
        super().merge(other)

    def epoch(self) -> dict[str, float]:
        """Return the numbers of the epoch, a flat dict of floats, and begin anew; `METRICS` says what they mean.

        The classifier is that of this moment; losses, accuracy and margins are those of the batches as they passed.

        Raises:
            InputError: if no batch was watched.
        """
        self._fetch()
        bias = getattr(self.layer, "bias", None)
        met = (_host(self.layer.weight), None if bias is None else _host(bias))
        self._record = self._record._replace(classifier=met)
        return super().epoch()

    def _fetch(self) -> None:
        """Move the sums from the device into the record."""
        if self._device is not None:
            self._record = self._record.merged(self._device.record())
            self._device = None


class _DeviceSums:
    """Sums on the device. Features enter relative to last epoch's class means, so that single precision is enough.

    Products are formed in place (``addmm_``), which mixed precision leaves alone.
    """

    def __init__(self, features: Any, num_classes: int, means: np.ndarray | None, scatter: bool) -> None:
        rows, K, d = _single(features), num_classes, features.shape[1]
        self.known = means is not None
        self.reference = rows.new_zeros((K, d))
        if means is not None:
            self.reference += rows.new_tensor(means)
        elif len(rows):  # any point near the features will do
            self.reference += _finite(rows).mean(dim=0)
        self.shifts = rows.new_zeros((K, d))
        self.scatter = rows.new_zeros((d, d)) if scatter else None
        self.vectors = _wide(rows.new_zeros((K, _SUMS)))
        self.smallest_margin = _wide(rows.new_full((K,), np.inf))
        self.scalars = _wide(rows.new_zeros(3))  # agreeing, compared, dropped
        self.smallest = rows.new_zeros(())

    def add(self, features: Any, logits: Any, labels: Any) -> None:
        """Add a batch; bad rows get weight zero, since leaving them out would wait for the device."""
        rows, z = _single(features), _wide(logits)
        good = (labels >= 0) & rows.isfinite().all(dim=1) & z.isfinite().all(dim=1)
        weights, labels = _wide(good), labels.clamp(min=0)
        rows, z = _finite(rows) * good[:, None], _finite(z)
        shifted = (rows - self.reference[labels]) * good[:, None]
        own, others = z.gather(1, labels[:, None])[:, 0], z.scatter(1, labels[:, None], -np.inf)
        odds, margin = others.logsumexp(dim=1) - own, own - others.amax(dim=1)
        loss = odds.clamp(min=0) + (-odds.abs()).exp().log1p()
        parts = (
            weights,
            _wide(shifted * shifted).sum(dim=1),
            loss,
            margin > 0,
            (-odds).sigmoid(),
            odds.sigmoid(),
        )
        table = z.new_zeros((len(labels), _SUMS))
        for column, part in enumerate(parts):
            table[:, column] = part * weights
        self.vectors.index_add_(0, labels, table)
        self.shifts.index_add_(0, labels, shifted)
        if self.scatter is not None:
            self.scatter.addmm_(shifted.T, shifted)
        self.smallest_margin.scatter_reduce_(0, labels, margin.masked_fill(~good, np.inf), "amin")
        self.smallest = self.smallest.minimum(rows.amin()) if len(rows) else self.smallest
        if self.known:
            nearness = (-self.reference.square().sum(dim=1) / 2).repeat(len(rows), 1)
            nearness.addmm_(rows, self.reference.T)
            self.scalars[0] += ((nearness.argmax(dim=1) == z.argmax(dim=1)) * weights).sum()
            self.scalars[1] += weights.sum()
        self.scalars[2] += (~good).sum()

    def record(self) -> Record:
        """Fetch the sums: moments around the means of the samples themselves."""
        reference, shifts = _host(self.reference), _host(self.shifts)
        counts, squares, loss, correct, hit, miss = _host(self.vectors).T
        drift = shifts / np.where(counts > 0, counts, 1.0)[:, None]
        moved = drift * np.sqrt(counts)[:, None]
        scatter = None if self.scatter is None else _host(self.scatter) - moved.T @ moved
        means = np.where(counts[:, None] > 0, reference + drift, 0.0)
        traces = np.maximum(squares - np.sum(moved**2, axis=1), 0.0)
        with np.errstate(divide="ignore"):
            logits = LogitSums(loss, correct, np.log(hit), np.log(miss), _host(self.smallest_margin))
        agreeing, compared, dropped = _host(self.scalars).tolist()
        sums = Sums(Moments(counts.copy(), means, traces, scatter), logits)
        return Record(sums, float(_host(self.smallest)), agreeing, compared, dropped)


def _single(tensor: Any) -> Any:
    """At least single precision."""
    return tensor if "64" in str(tensor.dtype) else tensor.float()


def _wide(tensor: Any) -> Any:
    """Double precision where the device has it."""
    return tensor.float() if "mps" in str(tensor.device) else tensor.double()


def _finite(tensor: Any) -> Any:
    return tensor.nan_to_num(0.0, 0.0, 0.0)


def _host(tensor: Any) -> np.ndarray:
    return np.array(to_numpy("layer", tensor), dtype=np.float64)
