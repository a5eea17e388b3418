"""Tilting a family of distributions by one common bias until their mean residual vanishes.

The optimality condition of an unregularised bias: with distributions ``r_k`` over classes, targets ``t_k``
and weights ``v_k`` find ``b`` such that ``r_kj exp(b_j)``, renormalised, satisfies ``sum_k v_k (r_k - t_k) =
0``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ufm.softmax import label_mask, softmax

NEWTON_STEPS = 60
#: The first step moves no bias by more; every one that did not go too far doubles that.
FIRST_STEP = 1.0
RIDGE = 1e-13


def tilted_residual(
    rest: Float[np.ndarray, "rows K"],
    labels: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    smoothing: float,
) -> Float[np.ndarray, "rows K"]:
    """Return ``r - t`` of the tilted distributions, its weighted sum zero to rounding.

    Newton's method for ``min_b sum_k v_k (log sum_j r_kj exp(b_j) - <t_k, b>)``, on logarithms, so that
    probabilities of 1e-12 keep their relative accuracy. Where zeros in ``rest`` leave no solution the result
    still has weighted sum zero, but is no difference of distributions any more.

    Args:
        rest: probabilities off the label, zero on it.
        labels: class of every row.
        weights: ``v``.
        smoothing: ``e`` of the target ``(1-e) onehot + e/K``.
    """
    num_classes = rest.shape[1]
    mask = label_mask(labels, num_classes)
    r = np.where(mask, np.maximum(1.0 - rest.sum(axis=1, keepdims=True), 0.0), rest)
    log_r = np.where(r > 0, np.log(np.where(r > 0, r, 1.0)), -np.inf)
    bias, move, radius = np.zeros(num_classes), np.zeros(num_classes), FIRST_STEP
    best = np.full(num_classes, np.inf)
    for _ in range(NEWTON_STEPS):
        tilted = softmax(log_r + bias + move)
        others = np.where(mask, 0.0, tilted - smoothing / num_classes)
        found = np.where(mask, -others.sum(axis=1, keepdims=True), others)
        slope = weights @ found
        if np.any(move) and not abs(slope @ move) <= abs(best @ move):  # convex: it went past the minimum
            move, radius = move / 4, radius / 4
            continue
        bias, best, residual = bias + move, slope, found
        scale = weights @ (np.abs(residual) + smoothing / num_classes)
        if np.all(np.abs(slope) <= 4 * np.finfo(float).eps * scale):
            break
        step = _newton_step(tilted, weights, slope)
        move, radius = -step * min(1.0, radius / float(np.abs(step).max())), 2 * radius
    return residual - best / weights.sum()


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
