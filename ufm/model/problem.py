"""The unconstrained-feature model as an immutable, validated description of one optimisation problem."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import (
    InputError,
    finite_vector,
    instance_of,
    nonnegative_float,
    one_of,
    positive_float,
    positive_integer,
    target_rows,
    to_numpy,
)
from ufm.losses import CrossEntropy, Loss
from ufm.losses.by_name import as_loss
from ufm.losses.soft_targets import with_targets
from ufm.profiles import counts_from
from ufm.text import Readable, count_range, wrapped

#: Largest feature dimension: a guard against typing errors, and what arrays can be indexed with.
MAX_DIM = 2**31 - 1
FeatureSet = Literal["nonnegative", "free"]
Level = Literal["class", "group", "sample"]
FEATURE_SETS: tuple[FeatureSet, ...] = ("nonnegative", "free")
#: Other words for them.
SYNONYMS = {"relu": "nonnegative", "non-negative": "nonnegative"}
LEVELS: tuple[Level, ...] = ("class", "group", "sample")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(Readable):
    r"""Regularised loss over free features ``H`` and a linear classifier ``W`` (and optionally a bias ``b``).

    ``P(W, H, b) = (1/N) sum_i m_i loss_{y_i}(W h_i + b) + lambda_W/2 |W|^2 + lambda_H/2 sum_i m_i |h_i|^2
    + lambda_b/2 |b|^2``, where row ``i`` of ``H`` has label ``y_i`` and stands for ``m_i`` samples: at class
    level there is one row per class with ``m_k = n_k``, at sample level one row per sample with ``m_i = 1``.
    Both levels have the same optimal value (Jensen's inequality).

    Args:
        counts: samples per class ``n_k`` of at least two classes: positive numbers, usually integers (a sampler that
            draws class k with probability ``pi_k`` acts as counts proportional to ``pi_k``), or a mapping from labels
            to them, taken by sorted label; or text such as ``"5000x5,50x5"`` or ``"cifar10-lt-100"``
            (`ufm.profiles.parse_counts`).
        dim: feature dimension ``d``, at least 1.
        weight_decay: ``lambda_W > 0``. See `ufm.conventions` for other people's definitions.
        feature_decay: ``lambda_H > 0``, multiplying every *sample's* squared norm (no ``1/N`` in front); one number,
            or one for the samples of each class (`ufm.conventions.charged`).
        loss: one of `ufm.losses`, or its name as on the command line (``"smoothing:0.1"``); parameters given per
            class must match ``counts``.
        features: ``"nonnegative"`` (or ``"relu"``: features after a ReLU, the main case) or ``"free"``.
        bias: ``None`` for no bias, ``0`` for an unregularised one, else its decay ``lambda_b > 0``.
        targets: (C, K), dense or a SciPy sparse matrix: row c is the distribution over the K logits that the samples
            of *context* c share, in the place of a class label. ``counts``, ``feature_decay``, rows of features and
            their labels are then about the C contexts; rows of the classifier, biases and parameters of the loss
            about the K logits. Kept is what the loss makes of it: class weights tilt it, as in PyTorch.
        classifier: (K, d), fixed prototypes: W stays what it is, only features (and bias) are free, and the constant
            ``lambda_W |W|^2/2`` is left out of the objective. See `ufm.simplex_etf` and `ufm.orthogonal_frame`.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: Fang et al., PNAS 2021; Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), equation (3).

    Example:
        >>> problem = Problem([500, 50], dim=8, weight_decay=5e-3, feature_decay=1e-5)
        >>> problem.num_samples, problem.num_classes
        (550, 2)
    """

    # Anything may be passed; `__post_init__` checks it and stores the type on the left.
    counts: Int[np.ndarray, " K"] | Float[np.ndarray, " K"] | Any
    dim: int | Any
    weight_decay: float | Any
    feature_decay: float | Any
    loss: Loss | Any = dataclasses.field(default_factory=CrossEntropy)
    features: FeatureSet | Any = "nonnegative"
    bias: float | Any | None = None
    targets: Float[np.ndarray, "C K"] | Any | None = None
    classifier: Float[np.ndarray, "K d"] | Any | None = None

    def __post_init__(self) -> None:
        """Normalise and check every field."""
        counts = counts_from(self.counts)
        features = self.features
        if isinstance(features, str):
            features = SYNONYMS.get(features, features)
        loss, targets = as_loss(self.loss, counts), self.targets
        if targets is not None:
            rows = target_rows(targets, len(counts))
            loss = with_targets(loss, rows)
            targets = np.array(loss.targets(np.arange(len(counts)), rows.shape[1]))
            targets.flags.writeable = False
        loss.check_classes(len(counts))
        dim = positive_integer("dim", self.dim, most=MAX_DIM)
        fields = {
            "counts": counts,
            "targets": targets,
            "dim": dim,
            "weight_decay": positive_float("weight_decay", self.weight_decay),
            "feature_decay": _feature_decay(self.feature_decay, len(counts)),
            "loss": loss,
            "features": one_of("features", features, FEATURE_SETS),
            "bias": None if self.bias is None else nonnegative_float("bias", self.bias),
        }
        if self.classifier is not None:
            fields["classifier"] = self._prototypes(dim, counts if targets is None else targets[0])
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not math.isfinite(self.strength) or self.strength <= 0:
            raise InputError(
                "weight_decay times feature_decay must be representable as a positive number; "
                f"got {self.weight_decay} and {self.feature_decay}"
            )
        if self.feature_decays.min() * self.weight_decay <= 0:
            raise InputError(
                "weight_decay times every feature_decay must be representable as a positive number"
            )

    def _prototypes(self, dim: int, logits: Any) -> Float[np.ndarray, "K d"]:
        """Return the fixed classifier as a read-only matrix; ``logits`` has an entry for each of its rows."""
        shape = (len(logits), dim)
        matrix = to_numpy("classifier", self.classifier)
        real = matrix.dtype.kind in "iuf" and bool(np.all(np.isfinite(matrix)))
        if matrix.shape != shape or not real:
            raise InputError(
                f"classifier must be a finite matrix of shape {shape}, got {matrix.dtype} of shape {matrix.shape}"
            )
        matrix = matrix.astype(np.float64)
        matrix.flags.writeable = False
        return matrix

    @property
    def charged_decay(self) -> float:
        """``lambda_W`` as the objective has it: 0 where the classifier is fixed."""
        return self.weight_decay if self.classifier is None else 0.0

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``; with soft targets, of contexts ``C``."""
        return len(self.counts)

    @property
    def num_logits(self) -> int:
        """Number of logits: the classes ``K``, or with soft targets what these are over."""
        return len(self.counts) if self.targets is None else self.targets.shape[1]

    @property
    def num_samples(self) -> Any:
        """Number of samples ``N = sum_k n_k``, an int if all counts are whole."""
        return self.counts.sum().item()

    @property
    def priors(self) -> Float[np.ndarray, " K"]:
        """Class frequencies ``n_k / N``."""
        return self.counts / self.num_samples

    @property
    def feature_decays(self) -> Float[np.ndarray, " K"]:
        """``lambda_H,k``, what every sample of class k is charged."""
        return np.broadcast_to(np.asarray(self.feature_decay, np.float64), self.counts.shape)

    @property
    def nuclear_weights(self) -> Float[np.ndarray, " K"]:
        """``l_k = sqrt(lambda_W lambda_H,k)``."""
        return np.sqrt(self.weight_decay) * np.sqrt(self.feature_decays)

    @property
    def nuclear_weight(self) -> float:
        """``l = sqrt(lambda_W lambda_H)``, the weight of the equivalent nuclear-norm problem.

        Where classes have decays of their own ``lambda_H`` is their mean over samples, what an average sample is
        charged: the unit in which thresholds are given.
        """
        mean = self.feature_decay if np.ndim(self.feature_decay) == 0 else self.priors @ self.feature_decay
        return math.sqrt(self.weight_decay) * math.sqrt(mean)

    @property
    def strength(self) -> float:
        """``c = N^2 lambda_W lambda_H``, the only combination of N and the decays that decides collapse."""
        root = self.num_samples * self.nuclear_weight
        return root * root  # a power would raise OverflowError instead of returning inf

    @property
    def entropy(self) -> float:
        """The least that the loss can be, however well it is fitted: the entropy of soft targets, in nats.

        ``-sum_k (n_k/N) loss_k*(0)``; zero for class labels.
        """
        contexts = np.arange(self.num_classes)
        conjugate = self.loss.conjugate(np.zeros((len(contexts), self.num_logits)), contexts)
        return float(-self.priors @ conjugate) + 0.0

    def replace(self, **changes: Any) -> Problem:
        """Return a copy with the given fields changed (and checked again)."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        """The problem in two lines, or three if they would not fit 80 columns."""
        bias = "no bias" if self.bias is None else "unregularised bias"
        style = "d" if isinstance(self.num_samples, int) else ".6g"
        C, K = self.num_classes, self.num_logits
        kinds = f"K = {K} classes" if self.loss.labelled else f"C = {C} contexts, K = {K} logits"
        sizes = (
            f"{kinds}, N = {self.num_samples:{style}} samples "
            f"({count_range(self.counts)} per {'class' if self.loss.labelled else 'context'}), d = {self.dim}"
        )
        low, high = self.feature_decays.min(), self.feature_decays.max()
        decay = f"{low:g}" if low == high else f"{low:g} to {high:g} by class"
        fixed = "" if self.classifier is None else "fixed classifier, "
        terms = (
            f"lambda_W = {self.weight_decay:g}, lambda_H = {decay}, {type(self.loss).__name__}, "
            f"{self.features} features, {fixed}{f'bias decay {self.bias:g}' if self.bias else bias}"
        )
        return f"{wrapped(sizes)}\n{wrapped(terms)}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Problem):
            return NotImplemented
        return np.array_equal(self.counts, other.counts) and self._scalars() == other._scalars()

    def __hash__(self) -> int:
        return hash((self.counts.tobytes(), self._scalars()))

    def _scalars(self) -> tuple[Any, ...]:
        decays = self.feature_decays.tobytes()
        fixed = None if self.classifier is None else self.classifier.tobytes()
        return (self.dim, self.weight_decay, decays, self.loss, self.features, self.bias, fixed)


def a_problem(value: Any) -> Problem:
    """Return ``value`` if it is a problem, or raise `InputError` that says how to make one."""
    return instance_of("problem", value, Problem, "a ufm.Problem(counts, dim, weight_decay, feature_decay)")


def _feature_decay(value: Any, num_classes: int) -> float | Float[np.ndarray, " K"]:
    """Return one decay, or one per class if they differ."""
    if not getattr(value, "ndim", hasattr(value, "__len__") and not isinstance(value, str | bytes)):
        return positive_float("feature_decay", value)
    decays = finite_vector("feature_decay", value, positive=True)
    if len(decays) != num_classes:
        raise InputError(
            f"feature_decay must be one number or one per class ({num_classes}), got {len(decays)} numbers"
        )
    return decays if np.ptp(decays) > 0 else float(decays[0])


def row_labels(problem: Problem, level: Level) -> Int[np.ndarray, " rows"]:
    """Return the class of every feature row: one per sample in class order, at other levels one row per class."""
    one_of("level", level, LEVELS)
    classes = np.arange(problem.num_classes)
    if level != "sample":
        return classes
    if problem.counts.dtype.kind == "f":
        raise InputError("level sample needs whole counts; fractions of samples have only a class level")
    return np.repeat(classes, problem.counts)


def row_multiplicities(
    problem: Problem, level: Level
) -> Int[np.ndarray, " rows"] | Float[np.ndarray, " rows"]:
    """Return ``m_i``, the number of samples that every feature row stands for."""
    one_of("level", level, LEVELS)
    if level != "sample":
        return problem.counts
    return np.ones(len(row_labels(problem, level)), dtype=np.int64)


def bias_curvature(problem: Any) -> Any:
    """Return the typical curvature of the objective in the bias near the optimum, of a problem or of a stack of them.

    ``lambda_b + mean_k l_k sqrt(n_k)`` with ``l_k = sqrt(lambda_W lambda_H,k)``, the second term at most 1: at the
    optimum of cross-entropy the probabilities off the target are of order ``N l_k / (K sqrt(n_k))``. It only sets the
    units in which the solver moves the bias and in which the residual is measured.
    """
    spread = np.mean(problem.nuclear_weights * np.sqrt(problem.counts), axis=-1)
    return (0.0 if problem.bias is None else problem.bias) + np.minimum(spread, 1.0)
