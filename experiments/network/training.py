"""Training a ReLU network on exactly the package's objective, and watching its last layer.

Mean cross-entropy plus ``lambda_W/2 |W|^2`` for the classifier plus ``lambda_H/2 sum_i |h_i|^2`` for the last
features; the layers below are not decayed. In minibatches the penalty of the features is converted by
`ufm.conventions`, so that the objective stays the same on average. Used by `last_layer.py` and `separability.py`.

Not a script: a part of `python -m experiments.network`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ufm
from ufm import conventions
from ufm.theory.thresholds import largest_nuclear_weight


@dataclasses.dataclass(frozen=True)
class Training:
    """Architecture and optimisation.

    Args:
        depth: number of layers before the classifier, each with a ReLU.
        width: units of each.
        dim: units of the last one, the feature dimension d; None: ``width``.
        epochs: passes over the training set.
        batch_size: samples per step; None: all.
        learning_rate: of Adam, after a short linear warm-up; falls to zero on half a cosine.
        records: how often to look, at epochs that are almost evenly spaced on a logarithmic axis.
        seed: of the initial network, the choice of samples and the order of batches.
    """

    depth: int = 3
    width: int = 128
    dim: int | None = None
    epochs: int = 6000
    batch_size: int | None = None
    learning_rate: float = 2e-3
    records: int = 60
    seed: int = 0


QUICK = Training(width=64, epochs=1200, learning_rate=4e-3, records=12)
Network = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The last layer after ``epoch`` epochs, in float64."""

    epoch: int
    weight: np.ndarray
    features: np.ndarray


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's 1797 digits as rows of 64 grey values, and their labels."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays ``x`` (one sample per row, any shape) and ``y`` of an npz file."""
    with np.load(path, allow_pickle=False) as archive:
        if missing := [name for name in ("x", "y") if name not in archive]:
            raise ufm.InputError(f"dataset must hold arrays x and y, {path} lacks {' and '.join(missing)}")
        return archive["x"].reshape(len(archive["x"]), -1), archive["y"]


def subset(
    inputs: np.ndarray, labels: np.ndarray, counts: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``counts[k]`` samples of class k, standardised as a whole."""
    rng, rows = np.random.default_rng(seed), []
    for k, count in enumerate(counts):
        own = np.flatnonzero(labels == k)
        if len(own) < count:
            raise ufm.InputError(
                f"counts must be at most what the data hold: {len(own)} of class {k}, got {count}"
            )
        rows.append(rng.permutation(own)[:count])
    chosen = np.concatenate(rows)
    kept = inputs[chosen] - inputs[chosen].mean(axis=0)
    return (kept / kept.std()).astype(np.float32), labels[chosen].astype(np.int32)


def problem_at(counts: np.ndarray, dim: int, level: float) -> ufm.Problem:
    """Return the problem at a level; ``lambda_W/lambda_H = N/K`` makes rows of W and of H equally long on average."""
    unit = largest_nuclear_weight(ufm.Problem(counts, dim, 1.0, 1.0))
    return ufm.Problem(counts, dim, *conventions.from_nuclear(level * unit, counts.sum() / len(counts)))


def features_of(network: Network, inputs: jax.Array) -> jax.Array:
    """Return the last features: what the last ReLU lets through."""
    for matrix, shift in network["layers"]:
        inputs = jax.nn.relu(inputs @ matrix + shift)
    return inputs


def initial(problem: ufm.Problem, inputs: np.ndarray, training: Training) -> Network:
    """Return He's initialisation with W and H rescaled: equal penalties, and logits of order one."""
    rng = np.random.default_rng(training.seed)
    sizes = [inputs.shape[1], *[training.width] * (training.depth - 1), problem.dim]
    layers = [
        [rng.standard_normal((m, n)) * np.sqrt(2 / m), np.zeros(n)] for m, n in itertools.pairwise(sizes)
    ]
    weight = rng.standard_normal((problem.num_classes, problem.dim))
    network = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"layers": layers, "weight": weight})
    features = np.asarray(features_of(network, jnp.asarray(inputs)))
    ratio = np.sqrt(problem.feature_decay / problem.weight_decay * np.sum(features**2) / np.sum(weight**2))
    scale = 1 / np.sqrt(ratio * np.std(features @ weight.T))
    network["weight"] *= ratio * scale
    network["layers"][-1][0] *= scale
    return network


def train(
    problem: ufm.Problem, inputs: np.ndarray, labels: np.ndarray, training: Training
) -> Iterator[Snapshot]:
    """Train and yield the last layer at the recorded epochs, the first before any step and the last after all."""
    batch = problem.num_samples if training.batch_size is None else training.batch_size
    decays = conventions.Decays(problem.weight_decay, problem.feature_decay)
    penalties = conventions.to_training(decays, num_samples=problem.num_samples, batch_size=batch)
    steps = problem.num_samples // batch
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, min(100, training.epochs // 10) * steps, training.epochs * steps
    )
    optimiser = optax.adam(schedule)
    network = initial(problem, inputs, training)
    state = (network, optimiser.init(network), jax.random.key(training.seed))
    data = (jnp.asarray(inputs), jnp.asarray(labels))
    run = jax.jit(functools.partial(_epochs, optimiser, penalties, batch))
    done = 0
    for epoch in recorded(training.epochs, training.records):
        state = run(data, state, epoch - done)
        done = epoch
        last = (state[0]["weight"], features_of(state[0], data[0]))
        yield Snapshot(epoch, *(np.asarray(array, np.float64) for array in last))


def recorded(epochs: int, records: int) -> list[int]:
    """Return the epochs at which to look, from 0 to the last."""
    spaced = np.geomspace(1, epochs + 1, records) - 1
    return np.unique(np.rint(spaced).astype(int)).tolist()


def _epochs(
    optimiser: optax.GradientTransformation,
    penalties: tuple[float, float],
    batch: int,
    data: Any,
    state: Any,
    number: Any,
) -> Any:
    """Train for a number of epochs; samples left over when batches do not fit sit out, different ones each epoch."""
    size = len(data[1])

    def objective(network: Network, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        features = features_of(network, inputs)
        loss = optax.softmax_cross_entropy_with_integer_labels(features @ network["weight"].T, labels).mean()
        a, b = penalties
        return loss + a / 2 * jnp.sum(network["weight"] ** 2) + b / 2 * jnp.sum(features**2)

    def step(carry: Any, rows: jax.Array) -> Any:
        network, moments = carry
        gradient = jax.grad(objective)(network, data[0][rows], data[1][rows])
        updates, moments = optimiser.update(gradient, moments, network)
        return (optax.apply_updates(network, updates), moments), None

    def epoch(_: Any, carry: Any) -> Any:
        network, moments, key = carry
        key, own = jax.random.split(key)
        order = jax.random.permutation(own, size)[: size // batch * batch].reshape(-1, batch)
        (network, moments), _ = jax.lax.scan(step, (network, moments), order)
        return network, moments, key

    return jax.lax.fori_loop(0, number, epoch, state)
