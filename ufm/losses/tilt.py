"""Tilting a family of distributions by one common bias until their mean residual vanishes.

The optimality condition of an unregularised bias: with distributions ``r_k`` over classes, targets ``t_k``
and weights ``v_k`` find ``b`` such that ``r_kj exp(b_j)``, renormalised, satisfies ``sum_k v_k (r_k - t_k) =
0``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.losses.softmax import label_mask, softmax, total

NEWTON_STEPS = 200  # of at most 1 each: probabilities of 1e-46 need biases of 100
RIDGE = 1e-13


class Biases(NamedTuple):
    """Which logits share a bias: column j of row i stands for ``times[i, j]`` logits of bias ``names[i, j]``.

    With neither, column j has bias j.
    """

    times: Any = None
    names: Int[np.ndarray, "rows C"] | None = None

    @classmethod
    def of_columns(cls, times: Any, columns: Int[np.ndarray, "rows C"] | None) -> Biases:
        """Return the biases of columns named by any numbers, equal ones sharing a bias."""
        if columns is None:
            return cls(times)
        return cls(times, np.unique(columns, return_inverse=True)[1].reshape(columns.shape))

    def pooled(self, values: Float[np.ndarray, "rows C"]) -> Float[np.ndarray, "rows biases"]:
        """Return, per row and bias, the sum of the values of all logits."""
        values = values if self.times is None else values * self.times
        if self.names is None:
            return values
        sums = np.zeros((len(values), self.names.max() + 1))
        np.add.at(sums, (np.arange(len(values))[:, None], self.names), values)
        return sums

    def spread(self, biases: Float[np.ndarray, " biases"]) -> Float[np.ndarray, "*rows C"]:
        """Return the bias of every column."""
        return biases if self.names is None else biases[self.names]

    def without_mean(
        self, dual: Float[np.ndarray, "rows C"], weights: Float[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows C"]:
        """Subtract the weighted mean of every bias."""
        share = weights @ self.pooled(np.ones_like(dual))
        return dual - self.spread((weights @ self.pooled(dual)) / np.where(share > 0, share, 1.0))


def tilted_residual(
    rest: Float[np.ndarray, "rows K"],
    labels: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    target: Float[np.ndarray, "rows K"] | float,
    biases: Biases | None = None,
) -> Float[np.ndarray, "rows K"]:
    """Return ``r - t`` of the tilted distributions, its weighted sum zero to rounding.

    Newton's method for ``min_b sum_k v_k (log sum_j r_kj exp(b_j) - <t_k, b>)``, on logarithms, so that
    probabilities of 1e-12 keep their relative accuracy. Where zeros in ``rest`` leave no solution the result
    still has weighted sum zero, but is no difference of distributions any more.

    Args:
        rest: probabilities off the label, zero on it.
        labels: the column of every row whose probability is one minus the others.
        weights: ``v``.
        target: ``t``; off the label it is looked at.
        biases: which columns share a bias, and how many logits each stands for.
    """
    biases = biases or Biases()
    mask, times = label_mask(labels, rest.shape[1]), biases.times
    own = np.maximum(1.0 - total(rest, times, keepdims=True), np.finfo(float).eps)  # what rounding may hide
    r = np.where(mask, own, rest)
    log_r = np.where(r > 0, np.log(np.where(r > 0, r, 1.0)), -np.inf)
    bias = np.zeros(biases.pooled(rest).shape[1])
    for _ in range(NEWTON_STEPS):
        tilted = softmax(log_r + biases.spread(bias), times)
        others = np.where(mask, 0.0, tilted - target)
        residual = np.where(mask, -total(others, times, keepdims=True), others)
        slope = weights @ biases.pooled(residual)
        scale = weights @ biases.pooled(np.abs(residual) + np.maximum(target, 0.0))
        if np.all(np.abs(slope) <= 4 * np.finfo(float).eps * scale):
            break
        step = _newton_step(biases.pooled(tilted), weights, slope)
        bias = bias - step / max(1.0, float(np.abs(step).max()))
    return biases.without_mean(residual, weights)


def _newton_step(
    p: Float[np.ndarray, "rows K"], weights: Float[np.ndarray, " rows"], slope: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Solve ``[sum_i v_i (diag p_i - p_i p_i')] step = slope``, a Laplacian, scaled to unit diagonal.

    The ridge is negligible unless zeros in ``p`` disconnect some classes, whose biases it leaves alone.
    """
    laplacian = -(p * weights[:, None]).T @ p
    np.fill_diagonal(laplacian, 0.0)
    diagonal = -laplacian.sum(axis=1)
    roots = np.sqrt(np.maximum(diagonal, np.finfo(float).tiny))
    scaled = laplacian / np.outer(roots, roots)
    np.fill_diagonal(scaled, 1.0 + RIDGE)
    scaled += np.outer(roots, roots) / (roots @ roots)  # the direction that shifts all biases alike
    return np.linalg.solve(scaled, slope / roots) / roots
