"""Softmax, entropy, Kullback-Leibler divergence and cross-entropy, with their derivatives and convexity.

Every function takes NumPy or JAX arrays and stays in the namespace it was given, so that the solver (JAX, any
precision) and the certificate (NumPy, float64) share one definition. Nothing here subtracts large numbers:
losses come from ``log1p`` and residuals from the small probabilities, because at weak regularisation the loss
is ~1e-10 and its relative error still has to mean something.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

#: Bounds on the eigenvalues of the Hessian of cross-entropy in the logits, ``diag(p) - p p'``.
HESSIAN_BOUNDS = (0.0, 0.5)


def label_mask(labels: Int[Any, " rows"], num_classes: int) -> Bool[Any, "rows K"]:
    """Return the one-hot encoding of ``labels`` as booleans.

    Example:
        >>> label_mask(np.array([1, 0]), 2).tolist()
        [[False, True], [True, False]]
    """
    xp = labels.__array_namespace__()
    return xp.arange(num_classes, dtype=xp.int32) == labels[:, None]  # on a device 64 bits would be slow


def like(values: Any, array: Any) -> Any:
    """Return ``values`` in the namespace and the type of ``array``; None stays None."""
    return None if values is None else array.__array_namespace__().asarray(values, dtype=array.dtype)


def total(values: Any, times: Any = None, axis: int = -1, keepdims: bool = False) -> Any:
    """Return the sum of entries of which each stands for ``times`` equal ones (None: for itself).

    Example:
        >>> float(total(np.array([1.0, 2.0]), np.array([1.0, 3.0])))
        7.0
    """
    xp = values.__array_namespace__()
    return xp.sum(values if times is None else like(times, values) * values, axis=axis, keepdims=keepdims)


def number_of_logits(logits: Float[Any, "rows C"], times: Any = None) -> Any:
    """Return ``K``, how many logits a row has: its columns, or the sum of ``times`` with shape (rows, 1)."""
    if times is None:
        return logits.shape[-1]
    xp = logits.__array_namespace__()
    return xp.sum(xp.broadcast_to(like(times, logits), logits.shape), axis=-1, keepdims=True)


def _standing(logits: Any, times: Any) -> Any:
    """The logits, minus infinity where they stand for none."""
    xp = logits.__array_namespace__()
    return logits if times is None else xp.where(like(times, logits) > 0, logits, -xp.inf)


def softmax(logits: Float[Any, "*rows K"], times: Any = None) -> Float[Any, "*rows K"]:
    """Return ``p_k = exp(z_k) / sum_j exp(z_j)`` along the last axis; 0 where a column stands for no logit.

    Example:
        >>> softmax(np.array([0.0, np.log(3.0)])).round(4).tolist()
        [0.25, 0.75]
    """
    xp = logits.__array_namespace__()
    logits = _standing(logits, times)
    with np.errstate(over="ignore"):  # a distance that overflows is a probability of zero
        weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return weights / total(weights, times, keepdims=True)


def log_softmax(logits: Float[Any, "*rows K"]) -> Float[Any, "*rows K"]:
    """Return ``log p`` along the last axis, to the last digit however close to 1 a probability is.

    Example:
        >>> log_softmax(np.array([0.0, 2000.0])).tolist(), f"{log_softmax(np.array([60.0, 0.0]))[0]:.4g}"
        ([-2000.0, 0.0], '-8.757e-27')
    """
    xp = logits.__array_namespace__()
    largest = xp.arange(logits.shape[-1]) == xp.argmax(logits, axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # a distance that overflows is a probability of zero
        shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    rest = xp.sum(xp.where(largest, 0.0, xp.exp(shifted)), axis=-1, keepdims=True)
    return shifted - xp.log1p(rest)


def times_log(p: Any, q: Any) -> Any:
    """``p log q`` with ``0 log 0 = 0`` and ``p log 0 = -inf`` for p > 0, without warnings."""
    xp = p.__array_namespace__()
    log_q = xp.where(q > 0, xp.log(xp.where(q > 0, q, 1.0)), -xp.inf)
    return xp.where(p == 0, 0.0, xp.where(p == 0, 1.0, p) * log_q)


def entropy(p: Float[Any, "*rows K"]) -> Float[Any, "*rows"]:
    """Return ``H(P) = -sum_k p_k log p_k`` in nats, with ``0 log 0 = 0``.

    Example:
        >>> entropy(np.array([[0.5, 0.5], [0.25, 0.75]])).round(4).tolist()
        [0.6931, 0.5623]
    """
    xp = p.__array_namespace__()
    return -xp.sum(times_log(p, p), axis=-1)


def entropy_of_rest(rest: Float[Any, "*rows K"], axis: int = -1, times: Any = None) -> Float[Any, "*rows"]:
    """Return the entropy of the distribution whose one missing entry is ``1 - sum(rest)``.

    Exact to rounding *relative to the entropy* when ``rest`` is tiny, where forming ``1 - sum(rest)`` first
    and taking its logarithm would lose every digit.

    Example:
        >>> f"{entropy_of_rest(np.array([1e-20, 0.0])):.4g}"
        '4.705e-19'
    """
    xp = rest.__array_namespace__()
    mass = total(rest, times, axis)
    inside = xp.where(mass < 1.0, mass, 0.0)
    target = xp.where(mass < 1.0, (1.0 - inside) * xp.log1p(-inside), 0.0)
    return -total(times_log(rest, rest), times, axis) - target


def kl_divergence(p: Float[Any, "*rows K"], q: Float[Any, "*rows K"]) -> Float[Any, "*rows"]:
    """Return ``KL(P|Q) = sum_k p_k log(p_k / q_k) >= 0`` in nats; infinite where q = 0 < p.

    Example:
        >>> float(kl_divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])).round(4))
        0.6931
    """
    xp = p.__array_namespace__()
    near = (p > 0) & (abs(q - p) < p / 2)
    change = xp.where(near, (q - p) / xp.where(near, p, 1.0), 0.0)
    # both distributions sum to 1; p log(p/q) - p + q is negative for no class, and rounding must not make it so
    series = change**2 * (0.5 - change / 3 + change**2 / 4)
    close = p * xp.where(abs(change) < 1e-4, series, change - xp.log1p(change))
    apart = times_log(p, p) - times_log(p, q) - p + q
    return xp.sum(xp.maximum(xp.where(near, close, apart), 0.0), axis=-1)


def cross_entropy(p: Float[Any, "*rows K"], q: Float[Any, "*rows K"]) -> Float[Any, "*rows"]:
    """Return ``H(P, Q) = -sum_k p_k log q_k = H(P) + KL(P|Q)`` in nats; infinite where q = 0 < p.

    Example:
        >>> p, q = np.array([0.5, 0.5]), np.array([0.1, 0.9])
        >>> bool(np.isclose(cross_entropy(p, q), entropy(p) + kl_divergence(p, q)))
        True
    """
    xp = p.__array_namespace__()
    return -xp.sum(times_log(p, q), axis=-1)


def cross_entropy_from_logits(
    logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Any = None
) -> Float[Any, " rows"]:
    """Return ``-log p_y = log1p(sum_{j != y} exp(z_j - z_y))``, accurate from 1e-300 to 1e4 and beyond.

    Example:
        >>> f"{cross_entropy_from_logits(np.array([[50.0, 0.0]]), np.array([0]))[0]:.4g}"
        '1.929e-22'
    """
    xp = logits.__array_namespace__()
    mask = label_mask(labels, logits.shape[-1])
    target = xp.sum(xp.where(mask, logits, 0.0), axis=-1, keepdims=True)
    with np.errstate(all="ignore"):  # infinite odds, and none at all, are log-odds too
        margins = xp.where(mask, -xp.inf, _standing(logits, times) - target)
        largest = xp.max(margins, axis=-1, keepdims=True)
        largest = xp.where(xp.isfinite(largest), largest, 0.0)
        log_odds = largest[:, 0] + xp.log(total(xp.exp(margins - largest), times))
    return xp.logaddexp(xp.zeros_like(log_odds), log_odds)


def softmax_residual(
    logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Any = None
) -> Float[Any, "rows K"]:
    """Return ``p - onehot(y)``, the gradient of cross-entropy in the logits.

    The entry of the label is minus the sum of the others, hence small and exact when the row is well fitted.

    Example:
        >>> softmax_residual(np.zeros((1, 4)), np.array([0])).tolist()
        [[-0.75, 0.25, 0.25, 0.25]]
    """
    xp = logits.__array_namespace__()
    mask = label_mask(labels, logits.shape[-1])
    others = xp.where(mask, 0.0, softmax(logits, times))
    return xp.where(mask, -total(others, times, keepdims=True), others)


def softmax_jacobian(p: Float[Any, "*rows K"]) -> Float[Any, "*rows K K"]:
    """Return ``dp/dz = diag(p) - p p'``, which is also the Hessian of cross-entropy in the logits.

    It is symmetric with eigenvalues in `HESSIAN_BOUNDS` (Gershgorin: ``2 p_k (1 - p_k) <= 1/2``) and null
    vector ``1``, so cross-entropy is convex in the logits.

    Example:
        >>> softmax_jacobian(np.array([0.5, 0.5])).tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
    """
    xp = p.__array_namespace__()
    return p[..., :, None] * (xp.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :])


def weight_gradient(
    residual: Float[Any, "rows K"], features: Float[Any, "rows d"], weight: Float[Any, "K d"], decay: Any
) -> Float[Any, "K d"]:
    """Return ``sum_i (p_mi - target_mi) x_ni + lambda W_mn``: the gradient of the loss in the classifier.

    ``residual`` holds one row of ``weighting_i (p_i - target_i)`` per feature row. For fixed features the
    loss is convex in W, being a convex function of a linear map.

    Example:
        >>> residual = softmax_residual(np.zeros((1, 2)), np.array([0]))
        >>> weight_gradient(residual, np.array([[2.0]]), np.array([[1.0], [0.0]]), decay=0.5).tolist()
        [[-0.5], [1.0]]
    """
    return residual.mT @ features + decay * weight


def feature_gradient(
    residual: Float[Any, "rows K"],
    weight: Float[Any, "K d"],
    features: Float[Any, "rows d"],
    decay: Any,
) -> Float[Any, "rows d"]:
    """Return ``sum_m (p_mi - target_mi) w_mn + lambda_i x_ni``: the gradient of the loss in the features.

    Example:
        >>> residual = softmax_residual(np.zeros((1, 2)), np.array([0]))
        >>> feature_gradient(residual, np.array([[1.0], [0.0]]), np.array([[2.0]]), decay=0.5).tolist()
        [[0.5]]
    """
    return residual @ weight + decay * features


class JointConvexityWitness(NamedTuple):
    """Two points, and ``P`` at them and at their midpoint, with ``midpoint > (first + second) / 2``."""

    points: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    first: float
    second: float
    midpoint: float


def joint_convexity_witness(decay: float = 1e-2, scale: float = 4.0) -> JointConvexityWitness:
    """Return a witness that ``P(W, H)``, convex in W and in H, is *not* jointly convex, even for ``H >= 0``.

    Two classes, two coordinates: the second point is the first with its coordinates swapped, so both values
    agree, while at the midpoint both classes have the same feature and the data term rises to ``log 2``.

    Example:
        >>> found = joint_convexity_witness()
        >>> found.midpoint > (found.first + found.second) / 2
        True
    """
    labels = np.arange(2)
    swap = np.eye(2)[::-1]
    weight, features = scale * (np.eye(2) - swap), scale * np.eye(2)

    def value(w: np.ndarray, h: np.ndarray) -> float:
        loss = cross_entropy_from_logits(h @ w.T, labels).mean()
        return float(loss + decay / 2 * (np.sum(w**2) + np.sum(h**2)))

    other = (weight @ swap, features @ swap)
    middle = ((weight + other[0]) / 2, (features + other[1]) / 2)
    return JointConvexityWitness(
        ((weight, features), other), value(weight, features), value(*other), value(*middle)
    )
