"""All that a certificate needs to know of the feature rows, added up in one pass over blocks of them.

Sample-level problems have rows by the hundred thousand, and what is computed of each (logits, their gradients, the
gradient in the features) would need several times the memory of the features if it were kept. Leading axes are
members of a stack; without them everything is about one problem.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.inputs.arrays import rows_of
from ufm.metrics.moments import ByClass

#: Numbers in a block of features: few enough that its temporaries stay in cache.
BLOCK_SIZE = 2**17


class RowSums(NamedTuple):
    """Sums over rows, row i standing for ``m_i`` samples of its class.

    Attributes:
        loss: ``sum_i m_i loss_i``.
        charge: ``sum_i lambda_H,y m_i |h_i|^2``.
        energy: ``sum_i m_i |h_i|^2``.
        slopes: sum of the loss gradients in the logits, for every class.
        features: sum of the features, for every class.
        weight_slope: ``sum_i m_i gradient_i h_i'``.
        bias_slope: ``sum_i m_i gradient_i``.
        stationarity: squared norm of the projected gradient in balanced feature coordinates.
        feasible: whether all features have the signs that the problem asks for.
        step: ``sum_i L_i |h_i - h_i+|^2`` of a projected gradient step by ``1/L_i`` in every row; 0 if not asked for.
    """

    loss: Float[np.ndarray, "*members"]
    charge: Float[np.ndarray, "*members"]
    energy: Float[np.ndarray, "*members"]
    slopes: Float[np.ndarray, "*members C K"]
    features: Float[np.ndarray, "*members C d"]
    weight_slope: Float[np.ndarray, "*members K d"]
    bias_slope: Float[np.ndarray, "*members K"]
    stationarity: Float[np.ndarray, "*members"]
    feasible: Bool[np.ndarray, "*members"]
    step: Float[np.ndarray, "*members"] | float


def add_up(
    problem: Any,
    weight: Float[np.ndarray, "*members K d"],
    features: Float[np.ndarray, "*members rows d"],
    labels: Int[np.ndarray, " rows"],
    bias: Float[np.ndarray, "*members K"] | None,
    multiplicities: Float[np.ndarray, "*members rows"],
    curvature: float | None = None,
) -> RowSums:
    """Return the sums over all rows.

    Args:
        problem: a problem, or a stack of problems with the same loss.
        weight: ``W``.
        features: ``H``.
        labels: class of every row, the same for all members.
        bias: ``b``, for a problem that has one.
        multiplicities: ``m_i``.
        curvature: of the loss of a sample in its features, at most; with it ``step`` is added up, too, where
            ``L_i = m_i (lambda_H,y + curvature/N)``.
    """
    decays = np.take(problem.feature_decays, labels, axis=-1) * multiplicities
    samples = np.asarray(problem.num_samples)[..., None, None]
    parts = (
        _block(
            problem, weight, rows_of(features, part), labels[part], bias, times, charges, samples, curvature
        )
        for part, times, charges in (
            (part, multiplicities[..., part], decays[..., part])
            for part in blocks(features.shape[-2], features.shape[-1])
        )
    )
    return functools.reduce(_joined, parts)


def _block(
    problem: Any,
    weight: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    bias: np.ndarray | None,
    times: np.ndarray,
    charges: np.ndarray,
    samples: np.ndarray,
    curvature: float | None,
) -> RowSums:
    """Return the sums over a block of rows, the same rows of every member."""
    rows, C = np.asarray(features, np.float64), problem.num_classes
    logits = logits_of(weight, rows, bias)
    slopes = by_row(problem.loss.gradient, logits, labels)
    slope_sums, feature_sums = sum_by_class(slopes, labels, C), sum_by_class(rows, labels, C)
    loss = np.sum(times * by_row(problem.loss.value, logits, labels), axis=-1)
    squares = np.einsum("...ij,...ij->...i", rows, rows)
    slopes = slopes * times[..., None]
    gradient = slopes @ weight
    gradient /= samples
    gradient += charges[..., None] * rows
    step: Any = 0.0
    nonnegative = problem.features == "nonnegative"
    if curvature is not None:
        curvatures = charges + curvature * times / samples[..., 0]
        ahead = gradient / curvatures[..., None]
        if nonnegative:
            np.minimum(ahead, rows, out=ahead)
        step = np.sum(curvatures * np.einsum("...ij,...ij->...i", ahead, ahead), axis=-1)
    gradient /= np.sqrt(charges)[..., None]
    feasible = np.ones(loss.shape, dtype=bool)
    if nonnegative:
        np.minimum(gradient, 0, out=gradient, where=~(rows > 0))
        feasible = np.all(rows >= 0, axis=(-2, -1))
    return RowSums(
        loss,
        np.sum(charges * squares, axis=-1),
        np.sum(times * squares, axis=-1),
        slope_sums,
        feature_sums,
        slopes.mT @ rows,
        slopes.sum(axis=-2),
        np.einsum("...ij,...ij->...", gradient, gradient),
        feasible,
        step,
    )


def _joined(first: RowSums, second: RowSums) -> RowSums:
    """Return the sums over the rows of both."""
    feasible = first.feasible & second.feasible
    return RowSums._make(a + b for a, b in zip(first, second, strict=True))._replace(feasible=feasible)


def by_row(method: Any, rows: Float[np.ndarray, "*members rows K"], labels: Int[np.ndarray, " rows"]) -> Any:
    """Return what a method of a loss gives for all rows of all members."""
    if rows.ndim == 2:
        return method(rows, labels)
    members = rows.shape[:-2]
    found = method(rows.reshape(-1, rows.shape[-1]), np.tile(labels, int(np.prod(members))))
    return found.reshape(*members, len(labels), *found.shape[1:])


def blocks(rows: int, dim: int) -> Iterator[slice]:
    """Yield slices that cover ``rows`` rows of ``dim`` numbers, each a block that fits into cache."""
    height = max(1, BLOCK_SIZE // max(dim, 1))
    yield from (slice(first, min(first + height, rows)) for first in range(0, rows, height))


def logits_of(
    weight: Float[np.ndarray, "*members K d"],
    features: Float[np.ndarray, "*members rows d"],
    bias: Float[np.ndarray, "*members K"] | None,
) -> Float[np.ndarray, "*members rows K"]:
    """Return ``W h_i + b`` for every row."""
    return features @ weight.mT if bias is None else features @ weight.mT + bias[..., None, :]


def sum_by_class(
    rows: Float[np.ndarray, "*members rows any"], labels: Int[np.ndarray, " rows"], num_classes: int
) -> Float[np.ndarray, "*members C any"]:
    """Return the sum of the rows of every class."""
    if len(labels) == num_classes and np.array_equal(labels, np.arange(num_classes)):
        return rows
    by_class = ByClass.of(labels)
    sums = np.zeros((*rows.shape[:-2], num_classes, rows.shape[-1]))
    for member in np.ndindex(rows.shape[:-2]):
        sums[(*member, by_class.classes)] = by_class.sums(rows[member])
    return sums
