"""Objectives on one vector of balanced coordinates, on the host: value, gradient, Hessian, bounds.

`Vector` takes any objective on points, that of groups too, and differences of gradients for its Hessian;
`RowVector` has the Hessian of features in rows from that of the loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.losses import Loss
from ufm.model.objective import Objective, Point

#: Step of the central differences that give the Hessian of a loss in its logits, which are in nats.
STEP = 1e-4
#: Step of the differences of gradients, in units of the root mean square of the vector.
DIFFERENCE = 1e-5


class Vector:
    """An objective on one vector, classifier first.

    Args:
        objective: in float64 NumPy, in balanced coordinates.
        point: a point, whose vector is `start`.
    """

    def __init__(self, objective: Objective, point: Point) -> None:
        self.objective, self.start = objective, self._flat(point)
        self.shapes = point.weight.shape, point.features.shape
        self.split, self.bias_from = point.weight.size, point.weight.size + point.features.size
        self.lowest = np.full(len(self.start), -np.inf)
        if objective.nonnegative:
            self.lowest[self.split : self.bias_from] = 0.0

    @staticmethod
    def _flat(point: Point) -> Float[np.ndarray, " all"]:
        return np.concatenate([part.ravel() for part in point if part is not None])

    def point(self, x: Float[np.ndarray, " all"]) -> Point:
        """Return a vector as a point."""
        weight, features, bias = np.split(x, [self.split, self.bias_from])
        return Point(
            weight.reshape(self.shapes[0]), features.reshape(self.shapes[1]), bias if len(bias) else None
        )

    def __call__(self, x: Float[np.ndarray, " all"]) -> tuple[float, Float[np.ndarray, " all"]]:
        """Return the objective and its gradient."""
        point = self.point(x)
        return float(self.objective.value(point)), self._flat(self.objective.gradient(point))

    def movable(self, x: np.ndarray, gradient: np.ndarray) -> Bool[np.ndarray, " all"]:
        """Return which coordinates are not held at their bound."""
        return (x > self.lowest) | (gradient < 0)

    def residual(self, x: np.ndarray, value: float, gradient: np.ndarray) -> float:
        """Return the norm of the projected gradient over ``sqrt(2 P)``."""
        return float(np.linalg.norm(gradient[self.movable(x, gradient)]) / math.sqrt(2 * value))

    def hessian(self, x: Float[np.ndarray, " all"]) -> Float[np.ndarray, "all all"]:
        """Return the Hessian."""
        step = DIFFERENCE * math.sqrt(np.mean(x**2)) or DIFFERENCE
        found = np.stack([(self(x + move)[1] - self(x - move)[1]) for move in step * np.eye(len(x))])
        return (found + found.T) / (4 * step)


class RowVector(Vector):
    """An objective whose features are rows of their own."""

    def hessian(self, x: Float[np.ndarray, " all"]) -> Float[np.ndarray, "all all"]:
        """Return the Hessian, from that of the loss in the logits of every row."""
        of, point = self.objective, self.point(x)
        (weight, features, _), split, end = point, self.split, self.bias_from
        rows, (K, d) = np.arange(len(features)), weight.shape
        bends = of.loss_weights[:, None, None] * loss_hessian(of.loss, of.logits(point), of.labels)
        slopes = of.residual(point) * of.logit_scales[:, None]
        scaled = bends * of.logit_scales[:, None, None]
        twice = scaled * of.logit_scales[:, None, None]
        by_row = twice @ weight
        matrix = np.zeros((len(x), len(x)))
        in_weight = np.einsum("rkl,rf,rg->kflg", twice, features, features, optimize=True)
        matrix[:split, :split] = in_weight.reshape(split, split)
        mixed = np.einsum("rke,rf->kfre", by_row, features) + np.einsum("rk,fe->kfre", slopes, np.eye(d))
        matrix[:split, split:end] = mixed.reshape(split, -1)
        own = np.zeros((len(rows), d, len(rows), d))
        own[rows, :, rows] = weight.T @ by_row
        matrix[split:end, split:end] = own.reshape(end - split, -1)
        decays = [np.full(split, of.weight_decay), np.repeat(of.row_decays, d)]
        if point.bias is not None:
            shift = np.einsum("rkl,rf->kfl", scaled, features).reshape(split, K)
            matrix[:split, end:] = of.bias_scale * shift
            matrix[split:end, end:] = of.bias_scale * (weight.T @ scaled).reshape(-1, K)
            matrix[end:, end:] = of.bias_scale**2 * bends.sum(axis=0)
            decays.append(np.full(K, of.bias_decay))
        matrix[split:, :split] = matrix[:split, split:].T
        matrix[end:, split:end] = matrix[split:end, end:].T
        matrix[np.diag_indices_from(matrix)] += np.concatenate(decays)
        return matrix


def loss_hessian(
    loss: Loss, logits: Float[np.ndarray, "rows K"], labels: Any
) -> Float[np.ndarray, "rows K K"]:
    """Return the Hessian of the loss in the logits of every row, by central differences of its gradient."""
    moves = STEP * np.eye(logits.shape[1])
    ahead, behind = (
        np.stack([loss.gradient(logits + sign * move, labels) for move in moves], axis=1) for sign in (1, -1)
    )
    found = (ahead - behind) / (2 * STEP)
    return (found + found.mT) / 2
