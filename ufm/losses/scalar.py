r"""The scalar form of a symmetric loss: its value along a ray of logits, all that theorem (T) needs of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num

if TYPE_CHECKING:
    from ufm.losses.base import Loss


@dataclasses.dataclass(frozen=True, eq=False)
class ScalarForm:
    """``phi_k(M) = loss_k(M u_k)`` with ``u_k = own e_k - rest 1``, where the gradient stays parallel to ``u_k``.

    For a loss that is shift-invariant and symmetric in its off-target logits ``u_k = e_k - 1/K``. Value and slope
    come from the loss itself: one label's logit, and one that stands for the K - 1 others.

    Attributes:
        loss: the loss; takes ``times``.
        num_classes: ``K``.
        closed: takes ``x`` and ``1 - x`` in (0, 1), one per class, to the M > 0 with ``phi_k'(M) = x phi_k'(0)``.
        own: see above; the margin ``z_k - z_j`` is ``own M``.
        rest: see above; None for 1/K.
        exact: the number ``-phi_k'(0)`` of a class as a fraction, where it is rational in the parameters.

    Example:
        >>> from ufm.losses import CrossEntropy
        >>> form = CrossEntropy().scalar_form(4)
        >>> form.value(np.zeros(4)).round(4).tolist(), form.pull.tolist()
        ([1.3863, 1.3863, 1.3863, 1.3863], [0.75, 0.75, 0.75, 0.75])
    """

    loss: Loss
    num_classes: int
    closed: Callable[[Any, Any], Any]
    own: int = 1
    rest: int | None = None
    exact: Callable[[int], Fraction] | None = None

    @cached_property
    def off(self) -> Fraction:
        """``rest`` as a number."""
        return Fraction(1, self.num_classes) if self.rest is None else Fraction(self.rest)

    @cached_property
    def squared_length(self) -> Fraction:
        """``|u_k|^2``."""
        return (self.own - self.off) ** 2 + (self.num_classes - 1) * self.off**2

    @cached_property
    def overlap(self) -> Fraction:
        """``<u_k, u_l>`` of two classes; (T) needs it to be at most 0."""
        return -2 * (self.own - self.off) * self.off + (self.num_classes - 2) * self.off**2

    def value(self, margins: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "... K"]:
        """Return ``phi_k(M_k)``."""
        return self._by_kind(margins, lambda loss, *rows: loss.value(*rows))

    def slope(self, margins: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "... K"]:
        """Return ``phi_k'(M_k)``."""
        along = self._times * self._direction
        return self._by_kind(margins, lambda loss, *rows: loss.gradient(*rows) @ along)

    @cached_property
    def pull(self) -> Float[np.ndarray, " K"]:
        """``-phi_k'(0) > 0``: what class k gains per unit of margin where it has none."""
        return -self.slope(np.zeros(self.num_classes))

    def margins(
        self, share: Float[np.ndarray, "... K"], room: Float[np.ndarray, "... K"]
    ) -> Float[np.ndarray, "... K"]:
        """Return the M at which the slope is ``share`` times that at 0; 0 where ``room = 1 - share`` is 0."""
        living = room > 0
        found = self.closed(np.where(living, share, 0.5), np.where(living, room, 0.5))
        return np.where(living, found, 0.0)

    @cached_property
    def _times(self) -> np.ndarray:
        return np.array([1.0, self.num_classes - 1.0])

    @cached_property
    def _direction(self) -> np.ndarray:
        return np.array([float(self.own - self.off), -float(self.off)])

    def _by_kind(self, margins: np.ndarray, of_rows: Callable[..., np.ndarray]) -> Float[np.ndarray, "... K"]:
        """Evaluate the loss once for all classes of the same margin and parameters: a million are of few kinds."""
        margins = np.asarray(margins, np.float64)
        alike = (np.broadcast_to(each, margins.shape).ravel() for each in self.loss.alike())
        first, kind = kinds(margins.ravel(), *alike)
        own = first % self.num_classes
        two = self.loss.of_columns(np.stack([own, (own + 1) % self.num_classes], axis=1))
        logits = margins.ravel()[first, None] * self._direction
        values = of_rows(two, logits, np.zeros(len(first), dtype=np.int64), self._times)
        return values[kind].reshape(margins.shape)


def kinds(*columns: Num[np.ndarray, " K"]) -> tuple[Int[np.ndarray, " G"], Int[np.ndarray, " K"]]:
    """Return the first entry of every kind, equal in all columns, and the kind of every entry.

    Example:
        >>> first, kind = kinds(np.array([5, 3, 5]), np.array([0.5, 0.5, 0.5]))
        >>> first.tolist(), kind.tolist()
        ([1, 0], [1, 0, 1])
    """
    order = np.lexsort(columns)  # stable: the first of every kind comes first
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    kind = np.empty(len(order), dtype=np.int64)
    kind[order] = np.cumsum(new) - 1
    return order[new], kind
