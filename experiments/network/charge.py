"""Who pays for features in a network trained the usual way, samples or classes?

Networks with weight decay on all layers, no penalty on the features, no bias in the classifier: SGD with momentum and
batches of 128 on scikit-learn's digits, long-tailed counts. For every setting of a fixed grid (depth, weight decay,
class weights n^-a that the fit is told) the exponent g of ``lambda_H,k = lambda_H (N/(K n_k))^g`` is estimated from
margins and from norms (`ufm.verification.effective`), averaged over cyclic shifts of which class is large, with
standard errors: that removes the classes' own difficulty. Printed besides: how constant ``c_k n_k q_k |h_k|^2/M_k``
is, the mean cosine of class means (0 in the model), and the residual of the last layer given its features (0 where it
is stationary).

    python -m experiments.network.charge [--quick]
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from experiments.network.training import digits, features_of, subset
from ufm import metrics
from ufm.verification.effective import fit_decays
from ufm.verification.measured import measured_geometry

COUNTS = np.round(np.geomspace(160, 16, 10)).astype(int)
WIDTH, BATCH, RATE = 128, 128, 0.05


class Setting(NamedTuple):
    """Hidden layers, weight decay of all layers, and a of class weights proportional to ``n^-a``."""

    depth: int = 3
    weight_decay: float = 2e-3
    power: float = 0.0


#: Depth, weight decay and class weights, one at a time.
GRID = (
    *(Setting(depth=depth) for depth in (1, 2, 3, 5)),
    *(Setting(weight_decay=decay) for decay in (5e-4, 8e-3)),
    *(Setting(power=power) for power in (0.5, 1.0)),
)
QUICK = (Setting(depth=1), Setting())


def initial(depth: int, inputs: int, seed: int) -> dict[str, Any]:
    """Return He's initialisation."""
    rng = np.random.default_rng(seed)
    sizes = [inputs, *[WIDTH] * depth]
    layers = [
        [rng.standard_normal((m, n)) * np.sqrt(2 / m), np.zeros(n)] for m, n in itertools.pairwise(sizes)
    ]
    network = {"layers": layers, "weight": rng.standard_normal((10, WIDTH)) / np.sqrt(WIDTH)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network)


@functools.partial(jax.jit, static_argnames=("epochs", "weight_decay"))
def train(network: Any, data: Any, key: Any, *, epochs: int, weight_decay: float) -> Any:
    """Train by SGD with momentum, the rate falling on half a cosine; ``data`` is inputs, labels, class weights."""
    inputs, labels, class_weights = data
    steps = len(labels) // BATCH
    optimiser = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(optax.cosine_decay_schedule(RATE, epochs * steps), momentum=0.9),
    )

    def objective(network: Any, rows: Any) -> Any:
        logits = features_of(network, inputs[rows]) @ network["weight"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return (class_weights[labels[rows]] * losses).mean()

    def step(state: Any, rows: Any) -> Any:
        network, moments = state
        updates, moments = optimiser.update(jax.grad(objective)(network, rows), moments, network)
        return (optax.apply_updates(network, updates), moments), None

    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(labels))[: steps * BATCH].reshape(steps, BATCH)
        return jax.lax.scan(step, state, order)[0], None

    state = jax.lax.scan(epoch, (network, optimiser.init(network)), jax.random.split(key, epochs))[0]
    return state[0]


def measure(setting: Setting, shift: int, epochs: int) -> dict[str, float]:
    """Train one network, class ``shift`` being the largest; return what its last layer says."""
    counts = np.roll(COUNTS, shift)
    inputs, labels = subset(*digits(), counts, seed=shift)
    weights = counts**-setting.power
    weights *= counts.sum() / (counts @ weights)
    data = jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(weights, jnp.float32)
    network = initial(setting.depth, inputs.shape[1], shift)
    options = {"epochs": epochs, "weight_decay": setting.weight_decay}
    network = train(network, data, jax.random.key(shift), **options)
    features = np.asarray(features_of(network, data[0]), np.float64)
    weight = np.asarray(network["weight"], np.float64)
    loss = ufm.WeightedCrossEntropy(weights)
    statistics = metrics.measure(features, labels, weight)
    measured = measured_geometry(statistics, loss)
    found = fit_decays(statistics, measured, loss).estimate
    gradient = loss.gradient(features @ weight.T, labels).T @ features / len(labels)
    decay = setting.weight_decay * weight
    cosines = metrics.cosines(measured.means)
    nan = float("nan")
    return {
        "g_margins": nan if found is None or found.charge_from_margins is None else found.charge_from_margins,
        "g_norms": nan if found is None or found.charge_from_norms is None else found.charge_from_norms,
        "constancy": nan if found is None or found.constancy is None else found.constancy,
        "cosine": float((cosines.sum() - np.trace(cosines)) / 90),
        "residual": float(np.linalg.norm(gradient + decay) / np.linalg.norm(decay)),
        "accuracy": metrics.accuracy(statistics),
    }


def summary(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return mean and standard error over shifts."""
    table = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    root = max(len(runs) - 1, 1) ** 0.5
    return {name: [float(values.mean()), float(values.std() / root)] for name, values in table.items()}


def main(quick: bool = False, outputs: OmitArgPrefixes[Outputs] = Outputs()) -> int:
    """Print a line for every setting of the grid.

    Args:
        quick: two settings, two shifts, 30 epochs: to see that it runs.
        outputs: where results go.
    """
    results = outputs.of("charge", quick)
    grid, shifts, epochs = (QUICK, 2, 30) if quick else (GRID, 10, 500)
    print("depth decay weights   g margins       g norms   constancy cosine residual")
    rows = []
    for setting in grid:
        found = summary([measure(setting, shift, epochs) for shift in range(shifts)])
        rows.append(setting._asdict() | found)
        exponents = "  ".join(
            f"{found[name][0]:6.2f} ± {found[name][1]:.2f}" for name in ("g_margins", "g_norms")
        )
        rest = f"{found['constancy'][0]:9.2f} {found['cosine'][0]:6.2f} {found['residual'][0]:8.3f}"
        print(
            f"{setting.depth:5d} {setting.weight_decay:5g} n^-{setting.power:<3g} {exponents} {rest}",
            flush=True,
        )
        results.save(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
