"""Cross-entropy and its relatives: class weights, logit scales and offsets, label smoothing."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError, finite_vector, nonnegative_float
from ufm.losses import softmax as sm
from ufm.losses.base import Loss
from ufm.losses.tilt import tilted_residual


class SoftmaxLoss(Loss):
    """The softmax family: ``c_y [ -sum_k t_k log softmax(a z + o)_k ]``, target ``t = (1-e) onehot_y + e/K``.

    Subclasses set what they need of class weights ``c``, logit scales ``a``, logit offsets ``o`` and
    smoothing ``e``; everything else (value, gradient, conjugate, bounds) is shared.
    Conjugate: with ``R = Q / (c a)`` and ``r = R + t`` a distribution, ``loss*(Q) = -c H(r) - <Q, o/a>``.
    """

    @property
    def weights(self) -> Any:
        """Class weights ``c_k``, a scalar or one per class."""
        return 1.0

    @property
    def scales(self) -> Any:
        """Logit scales ``a_k``, a scalar or one per class."""
        return 1.0

    @property
    def offsets(self) -> Any:
        """Logit offsets ``o_k``, a scalar or one per class."""
        return 0.0

    @property
    def label_smoothing(self) -> Any:
        """Smoothing ``e`` in [0, 1)."""
        return 0.0

    def _row_weights(self, labels: Any, dtype: Any = None) -> Any:
        xp = labels.__array_namespace__()
        weights = xp.asarray(self.weights, dtype=dtype)
        return weights[labels] if weights.ndim else xp.broadcast_to(weights, labels.shape)

    def _scores(self, logits: Any) -> Any:
        return _like(logits, self.scales) * logits + _like(logits, self.offsets)

    def value(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return the loss of every row, in nats."""
        xp = logits.__array_namespace__()
        scores = self._scores(logits)
        hard = sm.cross_entropy_from_logits(scores, labels)
        target = xp.sum(xp.where(sm.label_mask(labels, scores.shape[-1]), scores, 0.0), axis=-1)
        smooth = self.label_smoothing * (target - xp.mean(scores, axis=-1))
        return self._row_weights(labels, logits.dtype) * (hard + smooth)

    def gradient(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, "rows K"]:
        """Return ``c_y a (p - t)`` for every row."""
        xp = logits.__array_namespace__()
        num_classes = logits.shape[-1]
        residual = sm.softmax_residual(self._scores(logits), labels)
        uniform = xp.where(sm.label_mask(labels, num_classes), 1.0 - 1.0 / num_classes, -1.0 / num_classes)
        residual = residual + _like(logits, self.label_smoothing * uniform)
        return self._row_weights(labels, logits.dtype)[:, None] * _like(logits, self.scales) * residual

    def curvature(self, labels: Int[Any, " rows"], num_classes: int) -> Float[Any, " rows"]:
        """Return ``c_y max_k a_k^2 / 2``."""
        xp = labels.__array_namespace__()
        return self._row_weights(labels) * (xp.max(xp.asarray(self.scales)) ** 2 * sm.HESSIAN_BOUNDS[1])

    def _off_target(self, dual: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Entries of ``r = Q / (c a) + t`` off the target, zero on it: all that the conjugate depends on."""
        num_classes = dual.shape[-1]
        residual = dual / (self._row_weights(labels)[:, None] * self.scales)
        rest = residual + self.label_smoothing / num_classes
        return np.where(sm.label_mask(labels, num_classes), 0.0, rest)

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, " rows"]:
        """Return ``-c H(r) - <Q, o / a>``, accurate relative to the entropy."""
        negative_entropy = -sm.entropy_of_rest(self._off_target(dual, labels))
        linear = np.sum(dual * np.broadcast_to(self.offsets / self.scales, dual.shape), axis=-1)
        return self._row_weights(labels) * negative_entropy - linear

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows for which ``r`` is exactly a distribution: clipped at zero, mass at most one."""
        mask = sm.label_mask(labels, dual.shape[-1])
        rest = np.clip(self._off_target(dual, labels), 0.0, None)
        rest = rest / np.maximum(np.sum(rest, axis=-1, keepdims=True), 1.0)
        others = np.where(mask, 0.0, rest - self.label_smoothing / dual.shape[-1])
        residual = np.where(mask, -np.sum(others, axis=-1, keepdims=True), others)
        return self._row_weights(labels)[:, None] * self.scales * residual

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
    ) -> Float[np.ndarray, "rows K"]:
        """Tilt the distributions ``r`` by one common bias until the mean is zero (see `ufm.losses.tilt`)."""
        row_weights = self._row_weights(labels)
        rest = self._off_target(self.into_domain(dual, labels), labels)
        residual = tilted_residual(rest, labels, priors * row_weights, self.label_smoothing)
        return row_weights[:, None] * self.scales * residual


def _like(logits: Any, values: Any) -> Any:
    """``values`` in the namespace and the floating-point type of ``logits``."""
    return logits.__array_namespace__().asarray(values, dtype=logits.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class CrossEntropy(SoftmaxLoss):
    """Softmax cross-entropy ``-log softmax(z)_y`` in nats, the loss of the main theorem.

    Source: Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), equation (3).

    Example:
        >>> CrossEntropy().value(np.array([[2.0, 0.0, 0.0]]), np.array([0])).round(4).tolist()
        [0.2395]
    """

    shares_directions: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSmoothing(SoftmaxLoss):
    """Cross-entropy against a softened target, ``-sum_k t_k log softmax(z)_k`` with ``t = (1-e) onehot_y + e/K``.

    Args:
        smoothing: ``e`` in [0, 1), without unit.

    Raises:
        InputError: if ``smoothing`` is out of range.

    Source: Szegedy et al., CVPR 2016.

    Example:
        >>> LabelSmoothing(0.3).value(np.array([[2.0, 0.0, 0.0]]), np.array([0])).round(4).tolist()
        [0.6395]
    """

    shares_directions: ClassVar[bool] = False
    smoothing: float | Any = 0.1

    def __post_init__(self) -> None:
        smoothing = nonnegative_float("smoothing", self.smoothing)
        if smoothing >= 1:
            raise InputError(f"smoothing must be in [0, 1), got {smoothing}")
        object.__setattr__(self, "smoothing", smoothing)

    @property
    def label_smoothing(self) -> Any:
        """Smoothing ``e``."""
        return self.smoothing


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedCrossEntropy(SoftmaxLoss):
    """Cross-entropy with class weights, ``-c_y log softmax(z)_y``.

    Weights proportional to ``n_k^{-1/2}`` give all classes the same margin (`ufm.advise`).

    Args:
        class_weights: (K,), ``c_k > 0`` for every class; not renormalised.

    Raises:
        InputError: if a weight is not finite and positive.

    Example:
        >>> WeightedCrossEntropy([1, 2, 3]).value(np.zeros((1, 3)), np.array([1])).round(4).tolist()
        [2.1972]
    """

    shares_directions: ClassVar[bool] = False
    class_weights: Float[Any, " K"] | Any

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "class_weights", finite_vector("class_weights", self.class_weights, positive=True)
        )

    @property
    def weights(self) -> Any:
        """Class weights ``c``."""
        return self.class_weights


@dataclasses.dataclass(frozen=True, eq=False)
class LogitAdjustment(SoftmaxLoss):
    """Cross-entropy of logits plus offsets, ``-log softmax(z + o)_y``.

    Args:
        adjustments: (K,), ``o_k`` in nats, usually ``tau log(n_k / N)``.

    Raises:
        InputError: if an offset is not finite.

    Source: Menon et al., ICLR 2021.

    Example:
        >>> loss = LogitAdjustment(np.log([0.75, 0.25]))
        >>> np.exp(-loss.value(np.zeros((1, 2)), np.array([1]))).round(4).tolist()
        [0.25]
    """

    adjustments: Float[Any, " K"] | Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "adjustments", finite_vector("adjustments", self.adjustments))

    @property
    def offsets(self) -> Any:
        """Logit offsets ``o``."""
        return self.adjustments


@dataclasses.dataclass(frozen=True, eq=False)
class VectorScaling(SoftmaxLoss):
    """Vector-scaling loss, ``-log softmax(a * z + o)_y``.

    Args:
        multipliers: (K,), ``a_k > 0``, the factor of logit k.
        adjustments: (K,), ``o_k`` in nats; zero if omitted.

    Raises:
        InputError: if a factor is not finite and positive, an offset not finite, or their numbers differ.

    Source: Kini et al., NeurIPS 2021; with ``o = 0`` the class-dependent temperatures (CDT) of Ye et al., 2020.

    Example:
        >>> loss = VectorScaling([1.0, 0.5])
        >>> loss.gradient(np.zeros((1, 2)), np.array([0])).tolist()
        [[-0.5, 0.25]]
    """

    multipliers: Float[Any, " K"] | Any
    adjustments: Float[Any, " K"] | Any | None = None

    def __post_init__(self) -> None:
        multipliers = finite_vector("multipliers", self.multipliers, positive=True)
        given = np.zeros(len(multipliers)) if self.adjustments is None else self.adjustments
        object.__setattr__(self, "multipliers", multipliers)
        object.__setattr__(self, "adjustments", finite_vector("adjustments", given))
        self.check_classes(len(multipliers))

    @property
    def scales(self) -> Any:
        """Logit scales ``a``."""
        return self.multipliers

    @property
    def offsets(self) -> Any:
        """Logit offsets ``o``."""
        return self.adjustments
