"""Metrics of neural collapse, from sufficient statistics of the features and from the classifier.

Notation: class means ``mu_k`` (d), global mean ``mu_G = sum_k (n_k/N) mu_k`` (weighted by samples),
``Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})'`` (weighted by samples) and
``Sigma_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)'`` (every class alike, as in the code of the ICML 2024
paper).

Nothing here is ever NaN. Classes without samples take part in no feature metric (K is then the number of
classes that have some). Where classes have collapsed onto each other a ratio has no denominator; then, like a
pseudo-inverse, a metric leaves out what has no spread between classes. Residuals of directions are 0 between
two zero matrices and 1 between a zero and a non-zero one.

Example:
    >>> statistics = measure([[2.0, 0.1], [2.0, -0.1], [0.0, 2.0]], [0, 0, 1])
    >>> round(variance_ratio(statistics), 6), round(cdnv(statistics), 6)
    (0.003, 0.000625)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.inputs.arrays import feature_table, float_array, number_of_classes
from ufm.inputs.checks import InputError, instance_of, nonnegative_float, to_numpy
from ufm.metrics.statistics import FeatureStatistics

#: Between-class eigenvalues (and squared distances of means) below this fraction of the largest count as
#: zero: the default of `nc1` and `cdnv`. It is the square root of the rounding unit of float64.
RANK_TOLERANCE = 1e-8
#: A feature that moves no logit by more than this is as good as zero, where margins say nothing of collapse.
STILL = 1e-3
#: Numbers up to this have squares that can be added up.
LARGE = 1e100
#: Entries of a K x K matrix that are formed at a time: 32 MB.
TILE_ENTRIES = 2**22


def tiles(rows: Float[np.ndarray, "K ..."] | Int[np.ndarray, " K"]) -> Iterator[Any]:
    """Yield a few rows at a time: what is K x K is never formed as a whole."""
    step = max(TILE_ENTRIES // max(len(rows), 1), 1)
    return (rows[start : start + step] for start in range(0, len(rows), step))


def upper_tiles(rows: Float[np.ndarray, "K d"]) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a few rows at a time and their products with these and all later ones: every pair of rows once."""
    for part in tiles(np.arange(len(rows))):
        own = slice(int(part[0]), int(part[-1]) + 1)
        yield own, rows[own] @ rows[own.start :].T


def measure(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    multiplicities: Any = None,
    num_classes: int | Any | None = None,
) -> FeatureStatistics:
    """Return the statistics of a feature set that is at hand in one piece: one `FeatureStatistics.update`.

    Args:
        features: (rows, d), any array.
        labels: (rows,), integers from 0.
        weight: classifier (K, d), if margins, losses and accuracy are wanted.
        bias: its bias, if any.
        multiplicities: samples that every row stands for; 1 if omitted.
        num_classes: ``K``, if there is no weight; by default the largest label plus one.

    Raises:
        InputError: naming the argument, its value and the requirement.
    """
    if weight is None and num_classes is None:
        num_classes = number_of_classes(labels)
    dim = feature_table(features).shape[1]
    statistics = FeatureStatistics(num_classes, dim, weight=weight, bias=bias)
    statistics.update(features, labels, multiplicities)
    return statistics


def between_trace(statistics: FeatureStatistics | Any) -> float:
    """Return ``tr Sigma_B``."""
    centred = _centred_means(statistics)
    return float(np.sum(centred**2)) / max(len(centred), 1)


def between_spectrum(statistics: FeatureStatistics | Any) -> Float[np.ndarray, " K"]:
    """Return the eigenvalues of ``Sigma_B`` that can be non-zero, largest first."""
    centred = _centred_means(statistics)
    return np.linalg.svd(_short_side(centred), compute_uv=False) ** 2 / max(len(centred), 1)


def _short_side(rows: Float[np.ndarray, "K d"]) -> np.ndarray:
    """Return rows with the same singular values and right singular vectors, no more of them than columns."""
    return np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > 2 * rows.shape[1] else rows


def nc1(statistics: FeatureStatistics | Any, rtol: float | Any = RANK_TOLERANCE) -> float:
    """Return NC1, ``tr(Sigma_W pinv(Sigma_B)) / K``; 0 if all class means coincide.

    Args:
        statistics: with the ``d x d`` scatter.
        rtol: eigenvalues of ``Sigma_B`` below ``rtol`` times the largest are not inverted.

    Source: Papyan, Han, Donoho, PNAS 2020; weighting as in the code of Dang et al., ICML 2024.
    """
    return nc1_sum(statistics, rtol) / max(int(statistics.present.sum()), 1)


def nc1_sum(statistics: FeatureStatistics | Any, rtol: float | Any = RANK_TOLERANCE) -> float:
    """Return ``tr(Sigma_W pinv(Sigma_B))``, NC1 without the division by K that some codes leave out."""
    return _inverse_trace(statistics, _centred_means(statistics), rtol)


def nc1_unweighted(statistics: FeatureStatistics | Any, rtol: float | Any = RANK_TOLERANCE) -> float:
    """Return NC1 with ``Sigma_B`` around the unweighted mean of the class means, as in codes for equal counts."""
    means = _checked(statistics).means[statistics.present]
    return _inverse_trace(statistics, means - means.mean(axis=0), rtol) / len(means) if len(means) else 0.0


def _inverse_trace(statistics: FeatureStatistics, centred: np.ndarray, rtol: Any) -> float:
    rtol = nonnegative_float("rtol", rtol)
    if not len(centred):
        return 0.0
    _, singular, directions = np.linalg.svd(_short_side(centred), full_matrices=False)
    eigenvalues = singular**2 / len(centred)
    kept = eigenvalues > rtol * eigenvalues.max(initial=0.0)
    directions = directions[kept]
    within = np.einsum("ij,ij->i", directions @ statistics.within, directions)
    return float(np.sum(np.maximum(within, 0.0) / eigenvalues[kept]))


def variance_ratio(statistics: FeatureStatistics | Any) -> float:
    """Return ``tr Sigma_W / tr Sigma_B``; 0 without any variability, infinite if only the means coincide.

    Source: Tirer, Huang, Niles-Weed, ICML 2023.
    """
    between, within = between_trace(statistics), statistics.within_trace
    if between > 0:
        return within / between
    return math.inf if within > 0 else 0.0


def cdnv(statistics: FeatureStatistics | Any, rtol: float | Any = RANK_TOLERANCE) -> float:
    """Return the mean over pairs k != l of ``(Var_k + Var_l) / (2 |mu_k - mu_l|^2)``.

    Pairs whose squared distance is below ``rtol`` times the largest are one point and are left out; 0 if no
    pair is left. ``Var_k = (1/n_k) sum_i |h_i - mu_k|^2``.

    Source: class-distance normalised variance of Galanti, György, Hutter, ICLR 2022 (arXiv:2112.15121).
    """
    rtol = nonnegative_float("rtol", rtol)
    norms = np.sum(_centred_means(statistics) ** 2, axis=1)
    variances = statistics.variances[statistics.present]
    surely = 4 * rtol * norms.max(initial=0.0)  # the largest squared distance is norms.max() to 4 norms.max()
    largest, total, number, close = 0.0, 0.0, 0, [np.zeros((2, 0))]
    for own, squares in distance_tiles(statistics):
        largest = max(largest, float(squares.max()))
        sums, kept = variances[own, None] + variances[own.start :], squares > surely
        total, number = total + float(np.sum(sums[kept] / squares[kept])), number + int(np.sum(kept))
        near = ~kept & (squares > surely / 4)
        close.append(np.stack([sums[near], squares[near]]))
    sums, squares = np.concatenate(close, axis=1)
    kept = squares > rtol * largest
    number += int(np.sum(kept))
    return (total + float(np.sum(sums[kept] / squares[kept]))) / (2 * number) if number else 0.0


def distance_tiles(statistics: FeatureStatistics | Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a few classes present and ``|mu_k - mu_l|^2`` to these and all later ones, 0 except for l > k."""
    centred = _centred_means(statistics)
    norms = np.sum(centred**2, axis=1)
    for own, products in upper_tiles(centred):
        squares = np.maximum(norms[own, None] + norms[own.start :] - 2 * products, 0.0)
        squares[:, : len(squares)][np.tri(len(squares), dtype=bool)] = 0.0
        yield own, squares


def squared_distances(statistics: FeatureStatistics | Any) -> Float[np.ndarray, "P P"]:
    """Return ``|mu_k - mu_l|^2`` between the classes present."""
    number = int(np.sum(_checked(statistics).present))
    squares = np.zeros((number, number))
    for own, upper in distance_tiles(statistics):
        squares[own, own.start :] = upper
    return squares + squares.T


def gram(rows: Float[np.ndarray, "K d"] | Any) -> Float[np.ndarray, "K K"]:
    """Return the Gram matrix of rows."""
    rows = _numbers("rows", rows, 2)
    return rows @ rows.T


def norms(rows: Float[np.ndarray, "K d"] | Any) -> Float[np.ndarray, " K"]:
    """Return the Euclidean norm of every row."""
    rows = _numbers("rows", rows, 2)
    unit = max(
        float(np.abs(rows).max(initial=0.0)) / LARGE, 1.0
    )  # or squares could leave the range of float64
    return np.linalg.norm(rows / unit, axis=1) * unit if unit > 1 else np.linalg.norm(rows, axis=1)


def cosines(rows: Float[np.ndarray, "K d"] | Any) -> Float[np.ndarray, "K K"]:
    """Return the cosine of the angle between every pair of rows; 0 where a row is zero."""
    unit = _unit_rows("rows", rows)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def gram_cosines(
    rows: Float[np.ndarray, "rows K"], own: Float[np.ndarray, " rows"], norms: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "rows K"]:
    """Return cosines from rows of a Gram matrix, the norms of these rows, and all norms; 0 where one is zero."""
    products = np.outer(own, norms)
    cosines = np.divide(rows, products, out=np.zeros_like(rows), where=products > 0)
    return np.clip(cosines, -1.0, 1.0, out=cosines)


def paired_cosines(
    rows: Float[np.ndarray, "K d"] | Any, others: Float[np.ndarray, "K d"] | Any
) -> Float[np.ndarray, " K"]:
    """Return the cosine between row k of both, as ``w_k`` and ``h_k`` (NC3 of Papyan et al.); 0 for zeros."""
    unit, other = _unit_rows("rows", rows), _unit_rows("others", others)
    _same_shape("others", other, unit)
    return np.clip(np.sum(unit * other, axis=1), -1.0, 1.0)


def norm_ratios(values: Float[np.ndarray, " K"] | Any) -> Float[np.ndarray, " K"]:
    """Return norms as fractions of the largest one; zeros if all are zero."""
    values = _numbers("values", values, 1)
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.zeros_like(values)


def direction_residual(
    measured: Float[np.ndarray, "m n"] | Any, predicted: Float[np.ndarray, "m n"] | Any
) -> float:
    """Return ``| A/|A| - A*/|A*| |`` in Frobenius norm, between 0 and 2: how far A is from A* up to scale.

    Source: the residuals NC2_H, NC2_W, NC2_WWT and NC3_WH of Dang et al., ICML 2024 (arXiv:2401.02058).
    """
    first, second = _numbers("measured", measured, 2), _numbers("predicted", predicted, 2)
    _same_shape("predicted", second, first)
    return float(np.linalg.norm(_unit_matrix(first) - _unit_matrix(second)))


def classifier_from_means(
    means: Float[np.ndarray, "K d"] | Any,
    counts: Float[np.ndarray, " K"] | Any,
    directions: Float[np.ndarray, "K K"] | Any | None = None,
) -> Float[np.ndarray, "K d"]:
    """Return the classifier that class means call for, up to scale.

    Its rows are ``K sqrt(n_k) mu_k - sum_j sqrt(n_j) mu_j``: stationarity in W for the cross-entropy family.
    Other losses have other ``directions`` A (rows of the loss gradients at the optimum); then it is ``A'
    diag(sqrt(n)) mu``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058), NC2_W.
    """
    means = _numbers("means", means, 2)
    counts = float_array("counts", counts, 1, nonnegative=True)
    _same_shape("counts", counts, np.empty(len(means)))
    scaled = np.sqrt(counts)[:, None] * means
    if directions is not None:
        directions = _numbers("directions", directions, 2)
        _same_shape("directions", directions, np.empty((len(means), len(means))))
        return directions.T @ scaled
    return len(means) * scaled - scaled.sum(axis=0)


def class_logits(statistics: FeatureStatistics | Any) -> Float[np.ndarray, "K K"]:
    """Return the logits ``W mu_k + b`` of the class means, class k in row k.

    Raises:
        InputError: if the statistics were made without a classifier.
    """
    weight, bias = _checked(statistics).classifier
    logits = statistics.means @ weight.T
    return logits if bias is None else logits + bias


def margins(statistics: FeatureStatistics | Any) -> Float[np.ndarray, " K"]:
    """Return ``M_k = log((1 - s_k)(K - 1)/s_k)``, ``s_k`` the mean off-target probability in class k.

    These are the log-odds of the label against the *mean* other class. If the samples of a class share their
    logits and those off the target are equal, it is the logit margin; 0 means that the class cannot be told
    from the others; 0 also for a class without samples.
    """
    sums = _checked(statistics).logits
    hit = np.where(statistics.present, sums.log_hit, 0.0)
    miss = np.where(statistics.present, sums.log_miss, math.log(statistics.num_classes - 1))
    return hit - miss + math.log(statistics.num_classes - 1)


def logit_margins(logits: Float[np.ndarray, "K K"] | Any) -> Float[np.ndarray, " K"]:
    """Return ``z_kk - max_{j != k} z_kj`` of logits with class k in row k.

    This is what decides; `margins` are log-odds against the mean of the others.
    """
    logits = _numbers("logits", logits, 2)
    if len(logits) < 2 or len(logits) != logits.shape[1]:
        raise InputError(f"logits must have class k of two or more in row and column k, got {logits.shape}")
    return row_margins(logits, np.arange(len(logits)), log_odds=False)


def row_margins(
    logits: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], log_odds: bool
) -> Float[np.ndarray, " rows"]:
    """Return the margin of every row of logits: against the mean other class as log-odds, or against the largest."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    if not log_odds:
        return own[:, 0] - others.max(axis=1)
    return own[:, 0] - np.logaddexp.reduce(others, axis=1) + math.log(logits.shape[1] - 1)


def accuracy(statistics: FeatureStatistics | Any) -> float:
    """Return the fraction of samples whose own logit is strictly the largest; 1 when there are none."""
    samples = _checked(statistics).num_samples
    return float(statistics.logits.correct.sum()) / samples if samples else 1.0


def mean_cross_entropy(statistics: FeatureStatistics | Any) -> float:
    """Return the mean cross-entropy over samples, in nats; 0 when there are none."""
    samples = _checked(statistics).num_samples
    return float(statistics.logits.loss.sum()) / samples if samples else 0.0


def collapsed(values: Float[np.ndarray, " K"] | Any, threshold: Any = 0.05) -> Bool[np.ndarray, " K"]:
    """Return which classes have a margin of at most ``threshold`` (one number, or one per class)."""
    values = to_numpy("values", values)
    limit = to_numpy("threshold", threshold)
    if (
        values.ndim != 1
        or limit.shape not in ((), values.shape)
        or {values.dtype.kind, limit.dtype.kind} - set("iuf")
    ):
        raise InputError(
            f"values must be a vector of numbers and threshold one number or as many, "
            f"got shapes {values.shape} and {limit.shape}"
        )
    return values <= limit


def still(
    norms: Float[np.ndarray, "*members K"], weight_norms: Float[np.ndarray, "*members K"]
) -> Bool[np.ndarray, "*members K"]:
    """Return which classes have a feature that moves no logit by more than `STILL`: as good as zero."""
    return norms * weight_norms.max(axis=-1, keepdims=True) <= STILL


def _checked(statistics: Any) -> FeatureStatistics:
    return instance_of("statistics", statistics, FeatureStatistics)


def _centred_means(statistics: Any) -> np.ndarray:
    means = _checked(statistics).means
    return (means - statistics.global_mean)[statistics.present]


def _numbers(name: str, value: Any, ndim: int) -> np.ndarray:
    """Return a user's array as float64; what follows from features of any size may be large."""
    return float_array(name, value, ndim, largest=np.finfo(np.float64).max)


def _same_shape(name: str, array: np.ndarray, wanted: np.ndarray) -> None:
    if array.shape != wanted.shape:
        raise InputError(f"{name} must have shape {wanted.shape}, got {array.shape}")


def _unit_rows(name: str, rows: Any) -> np.ndarray:
    rows = _numbers(name, rows, 2)
    lengths = norms(rows)
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None]


def _unit_matrix(matrix: np.ndarray) -> np.ndarray:
    largest = np.abs(matrix).max(initial=0.0)
    if not largest > 0:
        return np.zeros_like(matrix)
    matrix = matrix / largest  # or its square could leave the range of float64
    return matrix / np.linalg.norm(matrix)
