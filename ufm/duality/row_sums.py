"""All that a certificate needs to know of the feature rows, added up in one pass over blocks of them.

Sample-level problems have rows by the hundred thousand, and what is computed of each (logits, their gradients, the
gradient in the features) would need several times the memory of the features if it were kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.model.problem import Problem

#: Numbers in a block of features: few enough that its temporaries stay in cache.
BLOCK_SIZE = 2**17


class RowSums(NamedTuple):
    """Sums over rows, row i standing for ``m_i`` samples of its class.

    Attributes:
        loss: ``sum_i m_i loss_i``.
        squares: ``sum_i m_i |h_i|^2``.
        slopes: sum of the loss gradients in the logits, for every class.
        features: sum of the features, for every class.
        weight_slope: ``sum_i m_i gradient_i h_i'``.
        bias_slope: ``sum_i m_i gradient_i``.
        stationarity: squared norm of the projected gradient in balanced feature coordinates.
        feasible: whether all features have the signs that the problem asks for.
    """

    loss: float
    squares: float
    slopes: Float[np.ndarray, "K K"]
    features: Float[np.ndarray, "K d"]
    weight_slope: Float[np.ndarray, "K d"]
    bias_slope: Float[np.ndarray, " K"]
    stationarity: float
    feasible: bool


def add_up(
    problem: Problem,
    weight: Float[np.ndarray, "K d"],
    features: Float[np.ndarray, "rows d"],
    labels: Int[np.ndarray, " rows"],
    bias: Float[np.ndarray, " K"] | None,
    multiplicities: Float[np.ndarray, " rows"],
) -> RowSums:
    """Return the sums over all rows.

    Args:
        problem: the problem.
        weight: ``W``.
        features: ``H``.
        labels: class of every row.
        bias: ``b``, for a problem that has one.
        multiplicities: ``m_i``.
    """
    K, dim = weight.shape
    slope_sums, feature_sums, weight_slope = np.zeros((K, K)), np.zeros((K, dim)), np.zeros((K, dim))
    bias_slope = np.zeros(K)
    loss = squares = stationarity = 0.0
    feasible = True
    for part in blocks(len(features), dim):
        rows, classes, times = np.asarray(features[part], np.float64), labels[part], multiplicities[part]
        logits = logits_of(weight, rows, bias)
        slopes = problem.loss.gradient(logits, classes)
        loss += float(times @ problem.loss.value(logits, classes))
        squares += float(times @ np.einsum("ij,ij->i", rows, rows))
        add_by_class(slope_sums, slopes, classes)
        add_by_class(feature_sums, rows, classes)
        slopes *= times[:, None]
        weight_slope += slopes.T @ rows
        bias_slope += slopes.sum(axis=0)
        stationarity += _stationarity(problem, weight, rows, slopes, times)
        feasible = feasible and (problem.features == "free" or bool(np.all(rows >= 0)))
    return RowSums(loss, squares, slope_sums, feature_sums, weight_slope, bias_slope, stationarity, feasible)


def blocks(rows: int, dim: int) -> Iterator[slice]:
    """Yield slices that cover ``rows`` rows of ``dim`` numbers, each a block that fits into cache."""
    height = max(1, BLOCK_SIZE // max(dim, 1))
    yield from (slice(first, min(first + height, rows)) for first in range(0, rows, height))


def logits_of(
    weight: Float[np.ndarray, "K d"],
    features: Float[np.ndarray, "rows d"],
    bias: Float[np.ndarray, " K"] | None,
) -> Float[np.ndarray, "rows K"]:
    """Return ``W h_i + b`` for every row."""
    return features @ weight.T if bias is None else features @ weight.T + bias


def add_by_class(
    sums: Float[np.ndarray, "K any"], rows: Float[np.ndarray, "rows any"], labels: Int[np.ndarray, " rows"]
) -> None:
    """Add every row to the sum of its class, in place; fastest where rows of a class follow one another."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    np.add.at(sums, labels[starts], np.add.reduceat(rows, starts, axis=0))


def _stationarity(
    problem: Problem, weight: np.ndarray, rows: np.ndarray, slopes: np.ndarray, times: np.ndarray
) -> float:
    """Return the squared norm of these rows' projected gradient in balanced coordinates."""
    decays = (problem.feature_decay * times)[:, None]
    gradient = slopes @ weight
    gradient /= problem.num_samples
    gradient += decays * rows
    gradient /= np.sqrt(decays)
    if problem.features == "nonnegative":
        np.minimum(gradient, 0, out=gradient, where=~(rows > 0))
    return float(np.vdot(gradient, gradient))
