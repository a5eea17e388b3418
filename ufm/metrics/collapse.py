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
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.inputs.arrays import feature_table, number_of_classes
from ufm.metrics.statistics import FeatureStatistics

#: Between-class eigenvalues (and squared distances of means) below this fraction of the largest count as
#: zero: the default of `nc1` and `cdnv`. It is the square root of the rounding unit of float64.
RANK_TOLERANCE = 1e-8


def measure(
    features: Any,
    labels: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    multiplicities: Any = None,
    num_classes: int | None = None,
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


def between_trace(statistics: FeatureStatistics) -> float:
    """Return ``tr Sigma_B``."""
    centred = _centred_means(statistics)
    return float(np.sum(centred**2)) / max(len(centred), 1)


def between_spectrum(statistics: FeatureStatistics) -> Float[np.ndarray, " K"]:
    """Return the eigenvalues of ``Sigma_B`` that can be non-zero, largest first."""
    centred = _centred_means(statistics)
    return np.linalg.svd(centred, compute_uv=False) ** 2 / max(len(centred), 1)


def nc1(statistics: FeatureStatistics, rtol: float = RANK_TOLERANCE) -> float:
    """Return NC1, ``tr(Sigma_W pinv(Sigma_B)) / K``; 0 if all class means coincide.

    Args:
        statistics: with the ``d x d`` scatter.
        rtol: eigenvalues of ``Sigma_B`` below ``rtol`` times the largest are not inverted.

    Source: Papyan, Han, Donoho, PNAS 2020; weighting as in the code of Dang et al., ICML 2024.
    """
    centred = _centred_means(statistics)
    if not len(centred):
        return 0.0
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    eigenvalues = singular**2 / len(centred)
    kept = eigenvalues > rtol * eigenvalues.max(initial=0.0)
    directions = directions[kept]
    within = np.einsum("ij,ij->i", directions @ statistics.within, directions)
    return float(np.sum(np.maximum(within, 0.0) / eigenvalues[kept])) / len(centred)


def variance_ratio(statistics: FeatureStatistics) -> float:
    """Return ``tr Sigma_W / tr Sigma_B``; 0 without any variability, infinite if only the means coincide.

    Source: Tirer, Huang, Niles-Weed, ICML 2023.
    """
    within, between = statistics.within_trace, between_trace(statistics)
    if between > 0:
        return within / between
    return math.inf if within > 0 else 0.0


def cdnv(statistics: FeatureStatistics, rtol: float = RANK_TOLERANCE) -> float:
    """Return the mean over pairs k != l of ``(Var_k + Var_l) / (2 |mu_k - mu_l|^2)``.

    Pairs whose squared distance is below ``rtol`` times the largest are one point and are left out; 0 if no
    pair is left. ``Var_k = (1/n_k) sum_i |h_i - mu_k|^2``.

    Source: class-distance normalised variance of Galanti, György, Hutter, ICLR 2022 (arXiv:2112.15121).
    """
    squares = squared_distances(statistics)
    kept = squares > rtol * squares.max(initial=0.0)
    variances = statistics.variances[statistics.present]
    pairs = variances[:, None] + variances[None, :]
    return float(np.mean(pairs[kept] / (2 * squares[kept]))) if np.any(kept) else 0.0


def squared_distances(statistics: FeatureStatistics) -> Float[np.ndarray, "P P"]:
    """Return ``|mu_k - mu_l|^2`` between the classes present."""
    centred = _centred_means(statistics)
    norms = np.sum(centred**2, axis=1)
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * centred @ centred.T, 0.0)
    np.fill_diagonal(squares, 0.0)
    return squares


def gram(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """Return the Gram matrix of rows."""
    return rows @ rows.T


def norms(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, " K"]:
    """Return the Euclidean norm of every row."""
    return np.linalg.norm(rows, axis=1)


def cosines(rows: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """Return the cosine of the angle between every pair of rows; 0 where a row is zero."""
    unit = _unit_rows(rows)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def paired_cosines(
    rows: Float[np.ndarray, "K d"], others: Float[np.ndarray, "K d"]
) -> Float[np.ndarray, " K"]:
    """Return the cosine between row k of both, as ``w_k`` and ``h_k`` (NC3 of Papyan et al.); 0 for zeros."""
    return np.clip(np.sum(_unit_rows(rows) * _unit_rows(others), axis=1), -1.0, 1.0)


def norm_ratios(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Return norms as fractions of the largest one; zeros if all are zero."""
    largest = values.max(initial=0.0)
    return values / largest if largest > 0 else np.zeros_like(values)


def direction_residual(measured: Float[np.ndarray, "m n"], predicted: Float[np.ndarray, "m n"]) -> float:
    """Return ``| A/|A| - A*/|A*| |`` in Frobenius norm, between 0 and 2: how far A is from A* up to scale.

    Source: the residuals NC2_H, NC2_W, NC2_WWT and NC3_WH of Dang et al., ICML 2024 (arXiv:2401.02058).
    """
    return float(np.linalg.norm(_unit_matrix(measured) - _unit_matrix(predicted)))


def classifier_from_means(
    means: Float[np.ndarray, "K d"],
    counts: Float[np.ndarray, " K"],
    directions: Float[np.ndarray, "K K"] | None = None,
) -> Float[np.ndarray, "K d"]:
    """Return the classifier that class means call for, up to scale.

    Its rows are ``K sqrt(n_k) mu_k - sum_j sqrt(n_j) mu_j``: stationarity in W for the cross-entropy family.
    Other losses have other ``directions`` A (rows of the loss gradients at the optimum); then it is ``A'
    diag(sqrt(n)) mu``.

    Source: Dang et al., ICML 2024 (arXiv:2401.02058), NC2_W.
    """
    scaled = np.sqrt(counts)[:, None] * means
    if directions is not None:
        return directions.T @ scaled
    return len(means) * scaled - scaled.sum(axis=0)


def class_logits(statistics: FeatureStatistics) -> Float[np.ndarray, "K K"]:
    """Return the logits ``W mu_k + b`` of the class means, class k in row k.

    Raises:
        InputError: if the statistics were made without a classifier.
    """
    weight, bias = statistics.classifier
    logits = statistics.means @ weight.T
    return logits if bias is None else logits + bias


def margins(statistics: FeatureStatistics) -> Float[np.ndarray, " K"]:
    """Return ``M_k = log((1 - s_k)(K - 1)/s_k)``, ``s_k`` the mean off-target probability in class k.

    These are the log-odds of the label against the *mean* other class. If the samples of a class share their
    logits and those off the target are equal, it is the logit margin; 0 means that the class cannot be told
    from the others; 0 also for a class without samples.
    """
    sums = statistics.logits
    hit = np.where(statistics.present, sums.log_hit, 0.0)
    miss = np.where(statistics.present, sums.log_miss, math.log(statistics.num_classes - 1))
    return hit - miss + math.log(statistics.num_classes - 1)


def logit_margins(logits: Float[np.ndarray, "K K"]) -> Float[np.ndarray, " K"]:
    """Return ``z_kk - max_{j != k} z_kj`` of logits with class k in row k."""
    others = logits.copy()
    np.fill_diagonal(others, -np.inf)
    return np.diagonal(logits) - others.max(axis=1)


def accuracy(statistics: FeatureStatistics) -> float:
    """Return the fraction of samples whose own logit is strictly the largest; 1 when there are none."""
    samples = statistics.num_samples
    return float(statistics.logits.correct.sum()) / samples if samples else 1.0


def mean_cross_entropy(statistics: FeatureStatistics) -> float:
    """Return the mean cross-entropy over samples, in nats; 0 when there are none."""
    samples = statistics.num_samples
    return float(statistics.logits.loss.sum()) / samples if samples else 0.0


def collapsed(values: Float[np.ndarray, " K"], threshold: Any = 0.05) -> Bool[np.ndarray, " K"]:
    """Return which classes have a margin of at most ``threshold`` (one number, or one per class)."""
    return values <= threshold


def _centred_means(statistics: FeatureStatistics) -> np.ndarray:
    return (statistics.means - statistics.global_mean)[statistics.present]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = norms(rows)
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None]


def _unit_matrix(matrix: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(matrix)
    return matrix / length if length > 0 else np.zeros_like(matrix)
