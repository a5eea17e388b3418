"""Tilting a family of distributions by one common bias until their mean residual vanishes.

The optimality condition of an unregularised bias: with distributions ``r_k`` over classes, targets ``t_k`` and
weights ``v_k`` find ``b`` such that ``r_kj exp(b_j)``, renormalised, satisfies ``sum_k v_k (r_k - t_k) = 0``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ufm.softmax import label_mask

NEWTON_STEPS = 60


def tilted_residual(
    rest: Float[np.ndarray, "rows K"],
    labels: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    smoothing: float,
) -> Float[np.ndarray, "rows K"]:
    """Return ``r - t`` of the tilted distributions, its weighted sum zero to rounding.

    Newton's method on the convex dual in ``b``, in odds against the target, so that probabilities of 1e-12 keep
    their relative accuracy.

    Args:
        rest: probabilities off the label, zero on it.
        labels: class of every row.
        weights: ``v``.
        smoothing: ``e`` of the target ``(1-e) onehot + e/K``.
    """
    num_classes = rest.shape[1]
    mask = label_mask(labels, num_classes)
    odds = rest / np.maximum(1.0 - rest.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    bias = np.zeros(num_classes)
    for _ in range(NEWTON_STEPS):
        tilted = odds * np.exp(bias - bias[labels][:, None])
        total = 1.0 + tilted.sum(axis=1, keepdims=True)
        others = np.where(mask, 0.0, tilted / total - smoothing / num_classes)
        residual = np.where(mask, -others.sum(axis=1, keepdims=True), others)
        slope = weights @ residual
        if np.all(np.abs(slope) <= 4 * np.finfo(float).eps * (weights @ np.abs(residual))):
            break
        step = _newton_step(np.where(mask, 1.0, tilted) / total, weights, slope)
        bias = bias - step / max(1.0, float(np.abs(step).max()))
    return residual - slope / weights.sum()


def _newton_step(
    p: Float[np.ndarray, "rows K"], weights: Float[np.ndarray, " rows"], slope: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Solve ``[sum_i v_i (diag p_i - p_i p_i')] step = slope``, a Laplacian: off-diagonals fix its diagonal."""
    laplacian = -(p * weights[:, None]).T @ p
    np.fill_diagonal(laplacian, 0.0)
    np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
    return np.linalg.solve(laplacian + np.trace(laplacian) / len(slope) ** 2, slope)
