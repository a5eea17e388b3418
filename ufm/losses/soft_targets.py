"""Cross-entropy against a distribution of every context's own: several labels, noise, mixtures, next tokens."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError
from ufm.losses import softmax as sm
from ufm.losses.base import Loss
from ufm.losses.softmax_family import CrossEntropy, LabelSmoothing, SoftmaxLoss

#: Entries of a table this close are the same but for rounding.
SAME = 1e-14


@dataclasses.dataclass(frozen=True, eq=False)
class SoftTargets(SoftmaxLoss):
    """``-c_i sum_k t_ik log softmax(a z + o)_k`` where row i of the table is the target of context i.

    Labels are contexts. `with_targets` makes it of the loss that a user names; it knows no closed form.

    Args:
        table: (C, K), ``t``.
        weights: one number or (C,), ``c``. scales: or (K,), ``a``. offsets: or (K,), ``o``.
        peaks: (C,), where every row is largest; found from the table. None: the table has a row for every row of
            logits, and labels are columns.

    Example:
        >>> loss = SoftTargets(np.array([[0.5, 0.5, 0.0]]))
        >>> loss.value(np.log([[0.25, 0.5, 0.25]]), np.array([0])).round(4).tolist()
        [1.0397]
    """

    labelled: ClassVar[bool] = False
    table: Float[Any, "C K"] | Any
    weights: Float[Any, " C"] | float | Any = 1.0
    scales: Float[Any, " K"] | float | Any = 1.0
    offsets: Float[Any, " K"] | float | Any = 0.0
    peaks: Float[Any, " C"] | Any = None

    def __post_init__(self) -> None:
        """Find the largest entry of every row once: a step would take longer to find it than to use it."""
        object.__setattr__(self, "peaks", np.argmax(self.table, axis=1).astype(np.float64))

    def _columns(self, labels: Any) -> Any:
        xp = labels.__array_namespace__()
        return labels if self.peaks is None else xp.asarray(self.peaks)[labels].astype(xp.int32)

    def _softening(self, rows: Any, labels: Any, times: Any) -> Any:
        mask = sm.label_mask(self._columns(labels), rows.shape[-1])
        table = self.table if self.peaks is None else self.table[labels]
        return sm.like(mask, rows) - sm.like(table, rows)

    def targets(self, labels: Int[np.ndarray, " rows"], num_classes: int) -> Float[np.ndarray, "rows K"]:
        """Return the rows of the table."""
        return self.table[labels]

    def of_columns(self, columns: Int[Any, "rows columns"]) -> Loss:
        """Return the loss of rows whose last column is that of their own context, which is also a logit."""
        made = super().of_columns(columns)
        object.__setattr__(made, "table", self.table[columns[:, -1:], columns])
        object.__setattr__(made, "peaks", None)
        return made

    def of_contexts(self, contexts: Int[np.ndarray, " some"]) -> SoftTargets:
        """Return the loss of some of the contexts."""
        weights: Any = self.weights
        weights = weights[contexts] if np.ndim(weights) else weights
        return SoftTargets(self.table[contexts], weights, self.scales, self.offsets)

    def alike(self) -> list[np.ndarray]:
        """Return what classes that can change places have in common: their parameters, and a number of `twins`."""
        parameters = [np.asarray(value) for value in (self.weights, self.scales, self.offsets)]
        return [twins(self.table), *(value for value in parameters if value.ndim)]

    def check_classes(self, num_classes: int) -> None:
        """Raise `InputError` if there is not one target per context."""
        if len(self.table) != num_classes:
            raise InputError(
                f"targets must have one row per context ({num_classes}), got {len(self.table)}; "
                "give targets, counts and loss together"
            )

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self._digest)

    @functools.cached_property
    def _digest(self) -> str:
        """Of all parameters: tables may be large, and are compared often."""
        hashed = hashlib.sha256(str(np.shape(self.table)).encode())
        for _, value in self._parameters():
            hashed.update(np.ascontiguousarray(value, np.float64).tobytes() + b"|")
        return hashed.hexdigest()


def twins(table: Float[np.ndarray, "C K"]) -> Int[np.ndarray, " C"]:
    """Return for every context the first one that it can change places with, context and logit, to rounding.

    Example:
        >>> twins(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])).tolist()
        [0, 0, 2]
    """
    found = np.arange(len(table))
    if table.shape[0] != table.shape[1]:
        return found
    own, weights = np.diagonal(table), np.random.default_rng(0).standard_normal(len(table))
    sums = np.stack([table @ weights, weights @ table])
    firsts = np.zeros(0, np.int64)
    for k in range(len(table)):
        # random sums sort out nearly all that are not alike
        swapped = (weights[firsts] - weights[k]) * (own[k] - table[k, firsts])
        near = np.all(np.abs(sums[:, firsts] - sums[:, k, None] - swapped) <= len(table) * SAME, axis=0)
        for j in firsts[near]:
            apart = np.abs(table[[j, k]] - table[[k, j]]) + np.abs(table[:, [j, k]] - table[:, [k, j]]).T
            apart[0, [j, k]] = abs(own[j] - own[k]), abs(table[j, k] - table[k, j])
            if np.all(apart[0] <= SAME):
                found[k] = j
                break
        else:
            firsts = np.append(firsts, k)
    return found


def with_targets(loss: Loss, targets: Float[np.ndarray, "C K"]) -> Loss:
    """Return a softmax cross-entropy against given distributions, one per context, in the place of labels.

    Class weights w tilt them, as in PyTorch: context c has weight ``sum_k w_k t_ck`` and target ``w_k t_ck`` over it.
    What the loss is against already changes nothing, and ``(1-e) I + e/K`` is `LabelSmoothing`: with all that is
    known of it.

    Raises:
        InputError: for a loss that needs labels.

    Example:
        >>> with_targets(CrossEntropy(), np.array([[0.9, 0.1], [0.1, 0.9]])).smoothing
        0.2
    """
    C, K = targets.shape
    own = loss.targets(np.arange(C), K)
    if own is not None and np.array_equal(own, targets):
        return loss
    parameters = loss.softmax_parameters(K)
    if parameters is None or parameters.smoothing:
        raise InputError(
            "targets go with cross-entropy, its class weights, scales and offsets; "
            f"{type(loss).__name__} needs labels"
        )
    weights, scales, offsets = (_plain(part) for part in parameters[:3])
    smoothing = _smoothing(targets)
    plain = not any(map(np.ndim, (weights, scales, offsets))) and (weights, scales, offsets) == (
        1.0,
        1.0,
        0.0,
    )
    if smoothing is not None and plain:
        return LabelSmoothing(smoothing) if smoothing else CrossEntropy()
    if np.ndim(weights):
        rows = np.sort(targets * weights, axis=1).sum(
            axis=1
        )  # sorted, for classes that are alike to have the same
        return SoftTargets(targets * weights / rows[:, None], rows, scales, offsets)
    return SoftTargets(targets, weights, scales, offsets)


def _plain(values: Float[np.ndarray, " K"]) -> Any:
    """Return one number for equal ones."""
    return values if np.ptp(values) > 0 else float(values[0])


def _smoothing(targets: Float[np.ndarray, "C K"]) -> float | None:
    """Return e if the targets are ``(1-e) I + e/K``, to rounding."""
    C, K = targets.shape
    if C != K:
        return None
    e = K * float(targets[0, 1])
    near = np.allclose(targets, (1 - e) * np.eye(K) + e / K, rtol=0, atol=8 * np.finfo(np.float64).eps)
    return round(e, 14) if near and e < 1 else None
