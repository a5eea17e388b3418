"""Networks trained the usual way: SGD with momentum, weight decay on all parameters, nothing asked of the features.

A ReLU network with or without a bias in the classifier, batch normalisation, a decay of the features and any loss of
the package, on ten classes of scikit-learn's digits, of MNIST-1D (Greydanus, arXiv:2011.14439; `pip install mnist1d`
generates it, nothing is downloaded), or of inputs drawn so that samples of a class share all, a tenth or nothing of
their variance. Used by `charge.py` and `remedies.py`.

Not a script: what the others here share.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.network.training import digits
from ufm.inputs.checks import InputError
from ufm.losses import CrossEntropy, Loss

RATE, MOMENTUM, EPSILON = 0.1, 0.9, 1e-5
PLAIN = CrossEntropy()
Data = Literal["digits", "mnist1d", "same", "mixed", "noise"]
#: What samples of a class have in common in data that are drawn: the fraction of their variance, in so many inputs.
SHARED, INPUTS = {"same": 1.0, "mixed": 0.1, "noise": 0.0}, 800
Network = dict[str, Any]


class Setting(NamedTuple):
    """How a network is built and trained.

    Attributes:
        data: "digits" (64 grey values), "mnist1d" (40 values of a curve), or one of `SHARED`: normal inputs.
        depth: hidden layers.
        width: units of each, which is the dimension of the features.
        weight_decay: of all parameters.
        power: a of class weights proportional to ``n^-a``, averaging 1 over samples.
        batch: samples per step; None: all.
        bias: whether the classifier has one.
        shifts: whether the hidden layers have one.
        normalised: batch normalisation before every ReLU.
        feature_decay: b of ``b/2`` times the mean of ``|h|^2`` in the objective.
        length: of training, in times ``1 / (mean rate x weight decay)`` in which decay alone divides weights by e.
        networks: how many are trained, each with another class the largest, at equal distances.
    """

    data: Data = "digits"
    depth: int = 3
    width: int = 64
    weight_decay: float = 2e-3
    power: float = 0.0
    batch: int | None = 128
    bias: bool = False
    shifts: bool = True
    normalised: bool = False
    feature_decay: float = 0.0
    length: float = 4.0
    networks: int = 10

    def epochs(self, samples: int) -> int:
        """Return the passes over the training set."""
        mean_rate = RATE / (1 - MOMENTUM) / 2
        steps = self.length / (mean_rate * self.weight_decay)
        return max(round(steps / (samples // (self.batch or samples))), 1)


class Task(NamedTuple):
    """What is learned: inputs, labels, the loss, class probabilities of a sampler, and a classifier that is fixed."""

    inputs: Any
    labels: Any
    loss: Loss = PLAIN
    sampler: Any = None
    classifier: Any = None


@functools.cache
def samples_of(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return all samples of a data set, at least 160 of each class.

    Raises:
        InputError: if the package that generates them is not installed.
    """
    if data == "digits":
        return digits()
    if data in SHARED:
        rng, labels = np.random.default_rng(1), np.repeat(np.arange(10), 160)
        own = rng.standard_normal((len(labels), INPUTS))
        shared = rng.standard_normal((10, INPUTS))[labels]
        return math.sqrt(SHARED[data]) * shared + math.sqrt(1 - SHARED[data]) * own, labels
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError:
        raise InputError("data mnist1d needs the package that generates it: pip install mnist1d") from None
    arguments = get_dataset_args()
    arguments.num_samples = 2500
    made = make_dataset(arguments)
    return np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])


def initial(setting: Setting, task: Task, num_classes: int, seed: int) -> Network:
    """Return He's initialisation."""
    rng = np.random.default_rng(seed)
    sizes = [task.inputs.shape[1], *[setting.width] * setting.depth]
    layers = []
    for m, n in itertools.pairwise(sizes):
        layer = {"matrix": rng.standard_normal((m, n)) * np.sqrt(2 / m)}
        layer |= {"shift": np.zeros(n)} if setting.shifts else {}
        layers.append(layer | ({"gain": np.ones(n)} if setting.normalised else {}))
    network: Network = {"layers": layers}
    if task.classifier is None:
        network["weight"] = rng.standard_normal((num_classes, setting.width)) / np.sqrt(setting.width)
    if setting.bias:
        network["bias"] = np.zeros(num_classes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network)


def features_of(network: Network, inputs: Any) -> Any:
    """Return the last features; batch normalisation uses the moments of these inputs."""
    for layer in network["layers"]:
        inputs = inputs @ layer["matrix"]
        if "gain" in layer:
            inputs = layer["gain"] * (inputs - inputs.mean(axis=0)) / jnp.sqrt(inputs.var(axis=0) + EPSILON)
        inputs = jax.nn.relu(inputs + layer.get("shift", 0.0))
    return inputs


def classifier_of(network: Network, fixed: Any = None) -> tuple[Any, Any]:
    """Return weight, the fixed one if none is trained, and bias (None without one)."""
    return network.get("weight", fixed), network.get("bias")


def trained(
    setting: Setting, task: Task, num_classes: int, seed: int, looks: Iterable[float] = (1.0,)
) -> Iterator[tuple[int, Network]]:
    """Train and yield epoch and network after these fractions of the training."""
    size = len(task.labels)
    epochs = setting.epochs(size)
    network = initial(setting, task, num_classes, seed)
    state = (network, _optimiser(setting, size).init(network), jax.random.key(seed))
    arrays = (jnp.asarray(task.inputs), jnp.asarray(task.labels), task.sampler, task.classifier)
    done = 0
    for look in looks:
        epoch = round(look * epochs)
        state = _epochs(setting, task.loss, arrays, state, epoch - done)
        done = epoch
        yield epoch, state[0]


def _optimiser(setting: Setting, size: int) -> optax.GradientTransformation:
    """SGD, its rate rising for a twentieth of the training and falling on half a cosine."""
    steps = setting.epochs(size) * (size // (setting.batch or size))
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps)
    return optax.chain(
        optax.add_decayed_weights(setting.weight_decay), optax.sgd(schedule, momentum=MOMENTUM)
    )


def surrogate(network: Network, setting: Setting, loss: Loss, arrays: Any, rows: Any) -> Any:
    """Return a number with the gradient of mean loss and feature decay on a batch: the loss says its own."""
    inputs, labels, _, classifier = arrays
    features = features_of(network, inputs[rows])
    weight, bias = classifier_of(network, classifier)
    logits = features @ weight.T + (0.0 if bias is None else bias)
    slopes = jax.lax.stop_gradient(loss.gradient(logits, labels[rows]))
    return (jnp.sum(slopes * logits) + setting.feature_decay / 2 * jnp.sum(features**2)) / len(rows)


@functools.partial(jax.jit, static_argnames=("setting", "loss"))
def _epochs(setting: Setting, loss: Loss, arrays: Any, state: Any, number: Any) -> Any:
    """Train for a number of epochs; samples left over when batches do not fit sit out, different ones each epoch."""
    size, sampler = len(arrays[1]), arrays[2]
    batch = setting.batch or size
    optimiser = _optimiser(setting, size)

    def step(carry: Any, rows: Any) -> Any:
        network, moments = carry
        gradient = jax.grad(surrogate)(network, setting, loss, arrays, rows)
        updates, moments = optimiser.update(gradient, moments, network)
        return (optax.apply_updates(network, updates), moments), None

    def epoch(_: Any, carry: Any) -> Any:
        network, moments, key = carry
        key, own = jax.random.split(key)
        shape = (size // batch, batch)
        if sampler is None:
            order = jax.random.permutation(own, size)[: shape[0] * batch].reshape(shape)
        else:
            order = jax.random.choice(own, size, shape, p=sampler)
        (network, moments), _ = jax.lax.scan(step, (network, moments), order)
        return network, moments, key

    return jax.lax.fori_loop(0, number, epoch, state)
