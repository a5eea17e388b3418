"""Descent on the supervised contrastive loss: projected gradients, and whole classes moved to an axis.

A step that does not lower the loss is taken back and halved, one that does lets the next be longer. Non-negative
vectors are orthogonal iff their supports are disjoint, so descent can end where a class holds two axes and two others
share one. Then every class in turn is tried on every axis; the loss never rises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from ufm.models.contrastive import SupervisedContrastive

#: Steps between looks, and how much longer a step may be than the last one that lowered the loss.
CHUNK, GROWTH = 1000, 1.2


class Descent:
    """The loss of a model, compiled, and moves that lower it."""

    def __init__(self, model: SupervisedContrastive) -> None:
        self.model = model
        self._run, self._value = jax.jit(self._descend), jax.jit(self._loss)
        batches, labels = model.batch_rows, model.labels
        rows = np.zeros((len(batches), max(map(len, batches))), dtype=np.int32)
        inside = np.zeros(rows.shape, dtype=bool)
        for place, batch in enumerate(batches):
            rows[place, : len(batch)], inside[place, : len(batch)] = batch, True
        together = inside[:, :, None] & inside[:, None, :] & ~np.eye(rows.shape[1], dtype=bool)
        same = labels[rows][:, :, None] == labels[rows][:, None, :]
        #: Of every batch, filled up to the size of the largest: samples, positive pairs, and pairs of two classes.
        self.parts = (rows, together & same, together & ~same)

    def value(self, features: Float[Any, "rows d"]) -> Float[Any, ""]:
        """Return the loss."""
        return self._loss(features, self.parts)

    def _loss(self, features: Float[Any, "rows d"], parts: tuple[Any, Any, Any]) -> Float[Any, ""]:
        """Exact also where it is tiny: ``log(n-1)`` plus what exceeds it, summed over batches."""

        def of_batch(rows: Any, pairs: Any, apart: Any) -> Any:
            mine = features[rows]
            similar = mine @ mine.T / self.model.temperature
            number = pairs.sum(axis=1)
            others = jnp.maximum(number, 1)
            mean = jnp.sum(similar * pairs, axis=1, keepdims=True) / others[:, None]
            excess = jnp.sum(jnp.where(pairs, jnp.expm1(similar - mean), 0.0), axis=1)
            excess += jnp.sum(jnp.where(apart, jnp.exp(similar - mean), 0.0), axis=1)
            return jnp.sum(jnp.where(number > 0, jnp.log(others) + jnp.log1p(excess / others), 0.0))

        return jnp.sum(jax.vmap(of_batch)(*parts))

    def project(self, features: Float[Any, "rows d"]) -> Float[Any, "rows d"]:
        """Return the nearest point: clipped at zero, then shortened to the radius."""
        features = jnp.maximum(features, 0)
        length = jnp.linalg.norm(features, axis=1, keepdims=True)
        return features * (self.model.radius / jnp.maximum(length, self.model.radius))

    def start(self, seed: int) -> Float[np.ndarray, "rows d"]:
        """Return random directions of full length."""
        drawn = np.abs(np.random.default_rng(seed).normal(size=(len(self.model.labels), self.model.dim)))
        return self.model.radius * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def run(self, features: Float[np.ndarray, "rows d"]) -> tuple[np.ndarray, float, int]:
        """Return the point after a chunk of steps, its loss, and the number of steps."""
        with jax.enable_x64(True):
            found, value = self._run(jnp.asarray(features), self.parts)
            return np.asarray(found), float(value), CHUNK

    def moved(self, features: Float[np.ndarray, "rows d"], value: float) -> Float[np.ndarray, "rows d"]:
        """Return the point with every class in turn on the axis that is best for it, if the loss does not rise."""
        labels = self.model.labels
        with jax.enable_x64(True):
            for k in range(len(self.model.counts)):
                for axis in np.argsort(-features[labels == k].sum(axis=0)):
                    trial = features.copy()
                    trial[labels == k] = self.model.radius * (np.arange(self.model.dim) == axis)
                    new = float(self._value(jnp.asarray(trial), self.parts))
                    if new < value or (new == value and features[labels == k][:, axis].sum() > 0):
                        features, value = trial, new
        return features

    def _descend(self, features: Float[Any, "rows d"], parts: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        slope = jax.value_and_grad(lambda features: self._loss(features, parts))

        def step(state: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
            point, value, gradient, length = state
            trial = self.project(point - length * gradient)
            new, bend = slope(trial)
            kept = (trial, new, bend, length * GROWTH)
            back = (point, value, gradient, length / 2)
            return jax.tree.map(lambda a, b: jnp.where(new <= value, a, b), kept, back), None

        value, gradient = slope(features)
        first = (features, value, gradient, jnp.asarray(self.model.temperature))
        return jax.lax.scan(step, first, None, length=CHUNK)[0][:2]
