"""Other people's regularisation strengths in this package's convention, and back.

Everywhere else in the package ``weight_decay`` (lambda_W) and ``feature_decay`` (lambda_H) multiply

    mean over samples of the loss  +  lambda_W/2 |W|^2  +  lambda_H/2 sum over all samples of |h_i|^2,

with the features' squared norms *summed* over samples. Both are in units of the loss (nats) per squared
weight or squared feature. The theorems of Dang et al. (ICML 2023; ICML 2024, equation (3)) use this very
convention; their training code does not.

Weight decay that is decoupled from the loss (AdamW) is no penalty: it has no such optimum, and nothing converts it.

Example:
    >>> decays = from_icml2024_code(1e-4, 1e-5, num_samples=30_000, batch_size=256)
    >>> [f"{decay:.4g}" for decay in decays]
    ['0.0002', '1.707e-07']
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.arrays import classifier, float_array, label_array
from ufm.inputs.checks import (
    MAX_SAMPLES,
    InputError,
    class_counts,
    finite_vector,
    instance_of,
    nonnegative_float,
    one_of,
    positive_float,
    positive_integer,
)

#: How a training step adds up the squared norms of the features of its batch.
Reduction = Literal["sum", "mean"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")


@dataclasses.dataclass(frozen=True)
class Decays:
    """The two strengths of a `ufm.Problem`; unpacks, as in ``Problem(counts, dim, *decays)``.

    Args:
        weight_decay: ``lambda_W > 0``.
        feature_decay: ``lambda_H > 0``.

    Raises:
        InputError: if one of them is not a finite number above 0.

    Example:
        >>> weight_decay, feature_decay = Decays(5e-3, 1e-6)
    """

    weight_decay: float | Any
    feature_decay: float | Any

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, positive_float(field.name, getattr(self, field.name)))

    def __iter__(self) -> Iterator[float]:
        return iter((self.weight_decay, self.feature_decay))


def from_training(
    weight_penalty: float | Any,
    feature_penalty: float | Any,
    *,
    num_samples: int | Any,
    batch_size: int | Any | None = None,
    reduction: Reduction | Any = "sum",
    loss_scale: float | Any = 1.0,
) -> Decays:
    """Convert what a training step minimises: ``s mean_B loss + a/2 |W|^2 + b/2 reduce_B |h|^2``.

    ``lambda_W = a / s``. A batch holds a random B of the N samples, hence ``lambda_H = b B / (s N)`` if the
    penalty is summed over the batch and ``b / (s N)`` if it is averaged. The two objectives agree on average
    over an epoch, exactly if B divides N.

    Args:
        weight_penalty: a. ``weight_decay`` of ``torch.optim.SGD`` or ``Adam`` is just this, adding ``a W`` to
            the gradient. ``AdamW`` decouples the decay from the loss: no penalty corresponds to it.
        feature_penalty: b. Double a penalty that is coded without the factor 1/2.
        num_samples: N, the size of the training set.
        batch_size: B; None for full batches, B = N. Features that are free parameters under ``weight_decay``
            are decayed whole in every step: that is ``"sum"`` with full batches.
        reduction: ``"sum"`` or ``"mean"`` over the samples of the batch.
        loss_scale: s, the factor of the mean loss.

    Returns:
        the two strengths, for `ufm.Problem`.

    Raises:
        InputError: if a number is not above 0, or the batch is larger than the training set.

    Example:
        >>> from_training(0.5, 0.125, num_samples=1024, batch_size=256)
        Decays(weight_decay=0.5, feature_decay=0.03125)
    """
    feature_scale = _feature_scale(num_samples, batch_size, reduction)
    scale = positive_float("loss_scale", loss_scale)
    weight_penalty = positive_float("weight_penalty", weight_penalty)
    feature_penalty = positive_float("feature_penalty", feature_penalty)
    return Decays(weight_penalty / scale, feature_penalty * feature_scale / scale)


def to_training(
    decays: Decays | Any,
    *,
    num_samples: int | Any,
    batch_size: int | Any | None = None,
    reduction: Reduction | Any = "sum",
    loss_scale: float | Any = 1.0,
) -> tuple[float, float]:
    """Return the penalties ``(a, b)`` with which training minimises this problem: see `from_training`.

    Example:
        >>> to_training(Decays(0.5, 0.03125), num_samples=1024, batch_size=256)
        (0.5, 0.125)
    """
    feature_scale = _feature_scale(num_samples, batch_size, reduction)
    scale = positive_float("loss_scale", loss_scale)
    weight_decay, feature_decay = _decays(decays)
    return weight_decay * scale, feature_decay * scale / feature_scale


def _feature_scale(num_samples: Any, batch_size: Any, reduction: Any) -> float:
    """Return lambda_H / b for unit loss scale: the share of one sample's norm that a step is charged for."""
    num_samples = positive_integer("num_samples", num_samples, most=MAX_SAMPLES)
    batch_size = num_samples if batch_size is None else positive_integer("batch_size", batch_size)
    if batch_size > num_samples:
        raise InputError(f"batch_size must be at most num_samples = {num_samples}, got {batch_size}")
    one_of("reduction", reduction, REDUCTIONS)
    return batch_size / num_samples if reduction == "sum" else 1 / num_samples


def from_icml2024_code(
    weight_penalty: float | Any,
    feature_penalty: float | Any,
    num_samples: int | Any,
    batch_size: int | Any = 256,
) -> Decays:
    """Convert the settings of the training code of Dang et al. (ICML 2024).

    It minimises ``CE/2 + a/2 |W|^2 + b/2 sum_batch |h|^2``: ``lambda_W = 2 a``, ``lambda_H = 2 b B / N``.

    Example:
        >>> from_icml2024_code(0.25, 0.125, num_samples=1024)
        Decays(weight_decay=0.5, feature_decay=0.0625)
    """
    settings: Any = {"num_samples": num_samples, "batch_size": batch_size, "loss_scale": 0.5}
    return from_training(weight_penalty, feature_penalty, **settings)


def to_icml2024_code(
    decays: Decays | Any, num_samples: int | Any, batch_size: int | Any = 256
) -> tuple[float, float]:
    """Return the settings ``(a, b)`` of the ICML 2024 code: ``a = lambda_W/2``, ``b = lambda_H N/(2 B)``.

    Example:
        >>> to_icml2024_code(Decays(0.5, 0.0625), num_samples=1024)
        (0.25, 0.125)
    """
    return to_training(decays, num_samples=num_samples, batch_size=batch_size, loss_scale=0.5)


def from_nuclear(weight: float | Any, ratio: float | Any = 1.0) -> Decays:
    """Split the weight of a nuclear norm: ``lambda_W = l sqrt(ratio)`` and ``lambda_H = l / sqrt(ratio)``.

    The least penalty of free features and a classifier with ``Z = W [sqrt(n_1) h_1, ...]`` is ``l |Z|_*``,
    ``l = sqrt(lambda_W lambda_H)``. Logits, margins and collapse depend on l alone, for non-negative features
    too; the ratio ``lambda_W / lambda_H`` only sets the scale of H against W.

    Source: Srebro, Rennie, Jaakkola, NIPS 2004; Hong and Ling, 2023 (arXiv:2309.09725).

    Example:
        >>> from_nuclear(0.01, ratio=100)
        Decays(weight_decay=0.1, feature_decay=0.001)
    """
    weight, root = positive_float("weight", weight), math.sqrt(positive_float("ratio", ratio))
    return Decays(weight * root, weight / root)


def to_nuclear(decays: Decays | Any) -> tuple[float, float]:
    """Return the nuclear-norm weight ``sqrt(lambda_W lambda_H)`` and the ratio ``lambda_W / lambda_H``.

    Example:
        >>> [round(number, 12) for number in to_nuclear(Decays(0.1, 0.001))]
        [0.01, 100.0]
    """
    weight_decay, feature_decay = _decays(decays)
    return math.sqrt(weight_decay) * math.sqrt(feature_decay), weight_decay / feature_decay


def _decays(value: Any) -> Decays:
    """Return a pair of strengths as `Decays`."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return Decays(*value)
    return instance_of("decays", value, Decays, "a ufm.conventions.Decays or a pair of numbers")


@dataclasses.dataclass(frozen=True)
class TraceCaps:
    """The caps of the Layer-Peeled Model that a point meets with equality.

    Attributes:
        weight: ``E_W = (1/K) sum_k |w_k|^2``.
        features: ``E_H = (1/K) sum_k |h_k|^2`` over class means.
    """

    weight: float
    features: float


def trace_caps(
    weight: Float[np.ndarray, "K d"] | Any,
    features: Float[np.ndarray, "rows d"] | Any,
    labels: Int[np.ndarray, " rows"] | Any,
) -> TraceCaps:
    """Return the caps of the Layer-Peeled Model that this classifier and these features attain.

    With equal counts a global optimum of `ufm.Problem` is also one of the Layer-Peeled Model with these caps,
    since a penalty may be replaced by a constraint at the level that it attains. With unequal counts the two
    models differ: that one charges every *class* alike, this package every sample, and the caps then only
    compare scales. Fang et al. average squared norms within a class: the same, once NC1 holds.

    Source: Fang, He, Long, Su, PNAS 2021.

    Raises:
        InputError: if a class has no row, or the arrays do not fit each other.

    Example:
        >>> trace_caps(np.eye(2), 2 * np.eye(2), np.array([0, 1]))
        TraceCaps(weight=1.0, features=4.0)
    """
    matrix, _ = classifier(weight)
    rows = float_array("features", features, 2)
    kept = label_array(labels, len(matrix), len(rows))
    sizes = np.bincount(kept, minlength=len(matrix))
    if np.any(sizes == 0):
        raise InputError(f"labels must name every class from 0 to {len(matrix) - 1}, got {np.unique(kept)}")
    means = np.zeros((len(matrix), rows.shape[1]))
    np.add.at(means, kept, rows)
    means /= sizes[:, None]
    return TraceCaps(float(np.sum(matrix**2)) / len(matrix), float(np.sum(means**2)) / len(matrix))


def charged(feature_decay: float | int, counts: Any, exponent: float | int) -> Float[np.ndarray, " K"]:
    """Return ``lambda_H,k = lambda_H (N/(K n_k))^g``: who pays for a feature, samples (g = 0) or classes (g = 1).

    A network's weight decay sits in earlier layers, which serve all samples of a class at once; the Layer-Peeled
    Model charges classes. An average sample is charged ``lambda_H`` for both.

    Args:
        feature_decay: ``lambda_H``.
        counts: samples per class.
        exponent: ``g >= 0``.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: Fang et al., PNAS 2021 (arXiv:2101.12699) for g = 1.

    Example:
        >>> charged(1e-3, [300, 100], 1).round(6).tolist()
        [0.000667, 0.002]
    """
    n = class_counts(counts).astype(np.float64)
    return positive_float("feature_decay", feature_decay) * (n.mean() / n) ** nonnegative_float(
        "exponent", exponent
    )


def from_torch_weights(class_weights: Any, counts: Any) -> Float[np.ndarray, " K"]:
    """Return the class weights ``w_k N / sum_j n_j w_j`` that torch's weighted cross-entropy amounts to here.

    ``torch.nn.CrossEntropyLoss(weight=w)`` divides the sum over a batch by the sum of the *weights* in it, which is
    ``B sum_j n_j w_j / N`` on average (exactly so for the whole training set): only ratios of weights matter.

    Args:
        class_weights: ``w_k > 0``.
        counts: samples per class.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Example:
        >>> from_torch_weights([1.0, 3.0], [300, 100]).round(4).tolist()
        [0.6667, 2.0]
    """
    n, weights = (
        class_counts(counts).astype(np.float64),
        finite_vector("class_weights", class_weights, positive=True),
    )
    if weights.shape != n.shape:
        raise InputError(f"class_weights must have one entry per class, {len(n)}, got {len(weights)}")
    return weights * (n.sum() / (n @ weights))


def sampled_counts(counts: Any, power: float | int) -> Float[np.ndarray, " K"]:
    """Return the counts, N in all, as which a sampler with class probabilities proportional to ``n_k^power`` acts.

    1 is plain sampling, 0.5 the square-root sampler, 0 class-balanced batches.

    Args:
        counts: samples per class.
        power: at least 0.

    Source: Kang et al., ICLR 2020 (arXiv:1910.09217) for the samplers.

    Example:
        >>> sampled_counts([300, 100], 0).tolist()
        [200.0, 200.0]
    """
    n = class_counts(counts).astype(np.float64)
    shares = n ** nonnegative_float("power", power)
    return n.sum() * shares / shares.sum()


def from_hong_ling(bias_penalty: float | int = 0.01) -> float:
    """Return ``lambda_b`` for the code of Hong and Ling, which adds ``bias_penalty |b|^2`` without the factor 1/2.

    Their other two decays are those of this package.

    Source: Hong and Ling, 2023 (arXiv:2309.09725).

    Example:
        >>> from_hong_ling()
        0.02
    """
    return 2 * positive_float("bias_penalty", bias_penalty)
