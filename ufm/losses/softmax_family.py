"""Cross-entropy and its relatives: class weights, logit scales and offsets, label smoothing."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError, class_counts, finite_vector, nonnegative_float, positive_float
from ufm.losses import softmax as sm
from ufm.losses.base import Loss, SoftmaxParameters, Times, of_label
from ufm.losses.divergence import binary_shift
from ufm.losses.pinned import Pinned, pinned_by_kl
from ufm.losses.scalar import ScalarForm
from ufm.losses.tilt import Biases, tilted_residual


class SoftmaxLoss(Loss):
    """The softmax family: ``c_y [ -sum_k t_k log softmax(s)_k ]`` with ``s = a z + o - a_y m_y onehot_y``.

    The target is ``t = (1-e) onehot_y + e/K``. Subclasses set what they need of class weights ``c``, logit scales
    ``a``, logit offsets ``o``, label margins ``m`` and smoothing ``e``; everything else is shared.
    Conjugate: with ``R = Q / (c a)`` and ``r = R + t`` a distribution, ``loss*(Q) = -c H(r) - <Q, o/a> + Q_y m_y``.
    """

    grouped: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = True  # with scales in another direction, which nobody asks for

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
    def label_margins(self) -> Any:
        """What is subtracted from the label's logit, a scalar or one per class."""
        return 0.0

    @property
    def label_smoothing(self) -> Any:
        """Smoothing ``e`` in [0, 1)."""
        return 0.0

    def _columns(self, labels: Any) -> Any:
        """Return the column of every row whose target is largest: the label."""
        return labels

    def _softening(self, rows: Any, labels: Any, times: Any) -> Any:
        """Return ``onehot - t`` for every row, with the one where the target is largest; 0 if it is all there is."""
        if isinstance(self.label_smoothing, float) and not self.label_smoothing:
            return 0.0
        xp, share = rows.__array_namespace__(), 1.0 / sm.number_of_logits(rows, times)
        uniform = xp.where(sm.label_mask(labels, rows.shape[-1]), 1.0 - share, -share)
        return sm.like(self.label_smoothing * uniform, rows)

    def _row_weights(self, labels: Any, dtype: Any = None) -> Any:
        xp = labels.__array_namespace__()
        return of_label(xp.asarray(self.weights, dtype=dtype), labels)

    def _label_shift(self, logits: Any, labels: Any) -> Any:
        """``m_y`` in the column of the label, zero elsewhere."""
        xp = logits.__array_namespace__()
        shift = of_label(sm.like(self.label_margins, logits), labels)[:, None]
        return xp.where(sm.label_mask(labels, logits.shape[-1]), shift, xp.zeros_like(shift))

    def _scores(self, logits: Any, labels: Any) -> Any:
        if np.ndim(self.label_margins):
            logits = logits - self._label_shift(logits, labels)
        return sm.like(self.scales, logits) * logits + sm.like(self.offsets, logits)

    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return the loss of every row, in nats."""
        scores = self._scores(logits, labels)
        found = sm.cross_entropy_from_logits(scores, self._columns(labels), times)
        softening = self._softening(scores, labels, times)
        if np.ndim(softening):  # zero times an infinite logit is none
            found = found + sm.total(softening * scores, times)
        return self._row_weights(labels, logits.dtype) * found

    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return ``c_y a (p - t)`` for every row."""
        residual = sm.softmax_residual(self._scores(logits, labels), self._columns(labels), times)
        residual = residual + self._softening(logits, labels, times)
        return self._row_weights(labels, logits.dtype)[:, None] * sm.like(self.scales, logits) * residual

    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return ``c_y max_k a_k^2 / 2``."""
        xp = labels.__array_namespace__()
        scales = xp.asarray(self.scales)
        largest = xp.max(scales, axis=-1) if scales.ndim else scales
        return self._row_weights(labels) * (largest**2 * sm.HESSIAN_BOUNDS[1])

    def _off_target(self, dual: np.ndarray, labels: np.ndarray, times: Any = None) -> np.ndarray:
        """Entries of ``r = Q / (c a) + t`` off the target, zero on it: all that the conjugate depends on."""
        residual = dual / (self._row_weights(labels)[:, None] * self.scales)
        rest = residual - self._softening(dual, labels, times)
        return np.where(sm.label_mask(self._columns(labels), dual.shape[-1]), 0.0, rest)

    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return ``-c H(r) - <Q, o / a> + Q_y m_y``, accurate relative to the entropy."""
        negative_entropy = -sm.entropy_of_rest(self._off_target(dual, labels, times), times=times)
        shift = np.broadcast_to(self.offsets / self.scales, dual.shape) - self._label_shift(dual, labels)
        return self._row_weights(labels) * negative_entropy - sm.total(dual * shift, times)

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows for which ``r`` is exactly a distribution: clipped at zero, mass at most one."""
        mask = sm.label_mask(self._columns(labels), dual.shape[-1])
        rest = np.clip(self._off_target(dual, labels, times), 0.0, None)
        rest = rest / np.maximum(sm.total(rest, times, keepdims=True), 1.0)
        others = np.where(mask, 0.0, rest + self._softening(dual, labels, times))
        residual = np.where(mask, -sm.total(others, times, keepdims=True), others)
        return self._row_weights(labels)[:, None] * self.scales * residual

    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Tilt the distributions ``r`` by one common bias until the mean is zero (see `ufm.losses.tilt`)."""
        row_weights, biases = self._row_weights(labels), Biases.of_columns(times, columns)
        rest = self._off_target(self.into_domain(dual, labels, times), labels, times)
        softening = self._softening(dual, labels, times)
        residual = tilted_residual(rest, self._columns(labels), priors * row_weights, -softening, biases)
        return row_weights[:, None] * self.scales * residual

    def targets(
        self, labels: Int[np.ndarray, " rows"], num_classes: int
    ) -> Float[np.ndarray, "rows K"] | None:
        """Return ``(1-e) onehot_y + e/K``."""
        onehot = sm.label_mask(labels, num_classes)
        return (1 - self.label_smoothing) * onehot + self.label_smoothing / num_classes

    def softmax_parameters(self, num_classes: int) -> SoftmaxParameters | None:
        """Return ``c, a, o, e``, unless there are label margins, or no labels."""
        if np.any(self.label_margins) or not self.labelled:
            return None
        given = (np.asarray(x, np.float64) for x in (self.weights, self.scales, self.offsets))
        weights, scales, offsets = (np.broadcast_to(x, (num_classes,)) for x in given)
        return SoftmaxParameters(weights, scales, offsets, float(self.label_smoothing))

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """Return ``phi_k``, unless logits are scaled or offset differently, or there are no labels.

        With relative slope x, scale a and ``E = exp(-a m)``: ``a M = log1p((1-e)(K-1+E)(1-x) / (E (e + (1-e) x)))``
        where m or e is zero: no loss of this package has both.
        """
        if np.ptp(self.scales) > 0 or np.ptp(self.offsets) > 0 or not self.labelled:
            return None
        if self.label_smoothing and np.any(self.label_margins):
            return None
        K = num_classes
        exact = None if np.any(self.label_margins) else partial(self._exact_pull, K)
        return ScalarForm(self, K, partial(self._closed_margin, K), exact=exact)

    def _closed_margin(self, num_classes: int, share: Any, room: Any) -> Any:
        scale, e = float(np.ravel(self.scales)[0]), float(self.label_smoothing)
        own = np.exp(-scale * np.asarray(self.label_margins))
        return np.log1p((1 - e) * (num_classes - 1 + own) * room / (own * (e + (1 - e) * share))) / scale

    def _exact_pull(self, num_classes: int, k: int) -> Fraction:
        weight = Fraction(float(np.broadcast_to(self.weights, (num_classes,))[k]))
        scale, e = Fraction(float(np.ravel(self.scales)[0])), Fraction(self.label_smoothing)
        return weight * scale * (1 - e) * Fraction(num_classes - 1, num_classes)

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """The divergence is ``c_k KL(p*_k || p_k)``, p of the scores; with scales nothing is pinned along ``1/a``."""
        weights, scales = self._row_weights(labels), np.broadcast_to(self.scales, logits.shape[1:])
        columns = self._columns(labels)
        found = pinned_by_kl(sm.softmax(self._scores(logits, labels)), columns, divergence / weights)
        found = dataclasses.replace(
            found,
            radius=found.radius / scales.min(),
            variances=found.variances / scales**2,
            margin_fall=found.margin_fall / scales[0],
            margin_rise=found.margin_rise / scales[0],
            confusion=weights * found.confusion,
            free=1 / scales / np.linalg.norm(1 / scales),
        )
        if np.ptp(self.scales) == 0 and np.ptp(self.offsets) == 0:
            return found
        return self._uneven(logits, labels, found)

    def _uneven(
        self, logits: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], found: Pinned
    ) -> Pinned:
        """Others count differently in scores and logits: the margin moves along ``e_y - softmax(others)``."""
        own = sm.label_mask(self._columns(labels), logits.shape[1])
        slopes = own - sm.softmax(np.where(own, -np.inf, logits))
        slopes = slopes - (slopes @ found.free)[:, None] * found.free
        width = found.spread * np.sqrt(np.sum(slopes**2 * found.variances, axis=1))
        width = width * np.exp(np.minimum(2 * found.radius, 100.0))  # shares among others move by so much
        margin = np.where(own, logits, -np.inf).max(axis=1) - np.where(own, -np.inf, logits).max(axis=1)
        scales = np.broadcast_to(self.scales, logits.shape[1:])
        t = scales.min() * np.maximum(margin, 0.0)  # |u| of scores that close it is at least t / sqrt(2)
        least = np.min(1 / (found.variances * scales**2), axis=1)
        confusion = self._row_weights(labels) * least * (np.exp(-t) + t - 1) / 2
        return dataclasses.replace(found, margin_fall=width, margin_rise=width, confusion=confusion)

    def zero_margins(
        self, divergence: Float[np.ndarray, "*members K"]
    ) -> Float[np.ndarray, "*members K"] | None:
        """How far the log-odds of the label may rise from what equal logits give; None if there are no labels."""
        if not self.labelled:
            return None
        K, scale = divergence.shape[-1], float(np.min(self.scales))
        if np.ptp(self.scales) > 0 or np.ptp(self.offsets) > 0:
            classes = np.broadcast_to(np.arange(K), divergence.shape).ravel()
            pinned = self.pinned(np.zeros((len(classes), K)), classes, divergence.ravel())
            return None if pinned is None else pinned.margin_rise.reshape(divergence.shape)
        own = np.broadcast_to(np.exp(-scale * np.asarray(self.label_margins)), (K,))
        kappa = divergence / self._row_weights(np.arange(K))
        return binary_shift((K - 1) / (K - 1 + own), kappa, -1.0) / scale


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

    Source: King and Zeng, Political Analysis 2001 (weighting by class); its closed form, `ufm.theory.symmetric`.

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


@dataclasses.dataclass(frozen=True, eq=False)
class LDAM(SoftmaxLoss):
    """Label-distribution-aware margins: cross-entropy of ``s z`` with ``s Delta_y`` taken from the label's logit.

    Args:
        margins: (K,), ``Delta_k`` in the unit of the logits.
        scale: ``s > 0``, the factor of all logits, without unit.

    Raises:
        InputError: if a margin is not finite or the scale not positive.

    Source: Cao et al., NeurIPS 2019 (arXiv:1906.07413).

    Example:
        >>> LDAM([0.5, 0.0]).value(np.zeros((1, 2)), np.array([0])).round(4).tolist()
        [0.9741]
        >>> LDAM.of_counts([16, 1]).margins.tolist()
        [0.25, 0.5]
    """

    shares_directions: ClassVar[bool] = False
    margins: Float[Any, " K"] | Any
    scale: float | Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "margins", finite_vector("margins", self.margins))
        object.__setattr__(self, "scale", positive_float("scale", self.scale))

    @classmethod
    def of_counts(cls, counts: Any, largest: float | int = 0.5, scale: float | int = 1.0) -> LDAM:
        """Return the loss with ``Delta_k = largest (n_min/n_k)^(1/4)``."""
        n = class_counts(counts)
        return cls(nonnegative_float("largest", largest) * (n.min() / n) ** 0.25, scale)

    @property
    def scales(self) -> Any:
        """Logit scale ``s``."""
        return self.scale

    @property
    def label_margins(self) -> Any:
        """Label margins ``Delta``."""
        return self.margins
