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
from ufm.losses.base import Loss, SoftmaxParameters
from ufm.losses.pinned import Pinned
from ufm.losses.scalar import ScalarForm
from ufm.losses.softmax_family import CrossEntropy, LabelSmoothing, SoftmaxLoss


@dataclasses.dataclass(frozen=True, eq=False)
class SoftTargets(SoftmaxLoss):
    """``-c_i sum_k t_ik log softmax(a z + o)_k`` where row i of the table is the target of context i.

    Labels are contexts. `with_targets` makes it of the loss that a user names; it knows no closed form.

    Args:
        table: (C, K), ``t``.
        context_weights: (C,), ``c``. multipliers: (K,), ``a``. adjustments: (K,), ``o``.
        peaks: (C,), where every row is largest; found from the table.

    Example:
        >>> loss = SoftTargets(np.array([[0.5, 0.5, 0.0]]), 1.0, 1.0, 0.0)
        >>> loss.value(np.log([[0.25, 0.5, 0.25]]), np.array([0])).round(4).tolist()
        [1.0397]
    """

    grouped: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    table: Float[Any, "C K"] | Any
    context_weights: Float[Any, " C"] | float | Any
    multipliers: Float[Any, " K"] | float | Any
    adjustments: Float[Any, " K"] | float | Any
    peaks: Float[Any, " C"] | Any = None

    def __post_init__(self) -> None:
        """Find the largest entry of every row once: a step would take longer to find it than to use it."""
        object.__setattr__(self, "peaks", np.argmax(self.table, axis=1).astype(np.float64))

    @property
    def weights(self) -> Any:
        """Weights of contexts."""
        return self.context_weights

    @property
    def scales(self) -> Any:
        """Logit scales ``a``."""
        return self.multipliers

    @property
    def offsets(self) -> Any:
        """Logit offsets ``o``."""
        return self.adjustments

    def _columns(self, labels: Any) -> Any:
        xp = labels.__array_namespace__()
        return xp.asarray(self.peaks)[labels].astype(xp.int32)

    def _softening(self, rows: Any, labels: Any, times: Any) -> Any:
        mask = sm.label_mask(self._columns(labels), rows.shape[-1])
        return sm.like(mask, rows) - sm.like(self.table, rows)[labels]

    def targets(self, labels: Int[np.ndarray, " rows"], num_classes: int) -> Float[np.ndarray, "rows K"]:
        """Return the rows of the table."""
        return self.table[labels]

    def check_classes(self, num_classes: int) -> None:
        """Raise `InputError` if there is not one target per context."""
        if len(self.table) != num_classes:
            raise InputError(
                f"targets must have one row per context ({num_classes}), got {len(self.table)}; "
                "give targets, counts and loss together"
            )

    def softmax_parameters(self, num_classes: int) -> SoftmaxParameters | None:
        """None: there are no labels."""
        return None

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """None: the gradient has no ray to stay on."""
        return None

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """None: margins are not what a context is about."""
        return None

    def zero_margins(self, divergence: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"] | None:
        """None, for the same reason."""
        return None

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self._digest)

    @functools.cached_property
    def _digest(self) -> str:
        """Of all parameters: tables may be large, and are compared often."""
        hashed = hashlib.sha256(str(np.shape(self.table)).encode())
        for _, value in self._parameters():
            hashed.update(np.ascontiguousarray(value, np.float64).tobytes() + b"|")
        return hashed.hexdigest()


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
    own = loss.table if isinstance(loss, SoftTargets) else loss.targets(np.arange(C), K)
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
    by_class = any(np.ndim(part) for part in (weights, scales, offsets))
    if smoothing is not None and not by_class and (weights, scales, offsets) == (1.0, 1.0, 0.0):
        return LabelSmoothing(smoothing) if smoothing else CrossEntropy()
    if np.ndim(weights):
        rows = targets @ weights
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
