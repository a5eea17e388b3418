"""Does the theory predict a network trained the usual way, and what remedies make of it?

Networks of `usual.py` with a bias in the classifier and no feature decay. One is trained as it is; its margins and
norms give effective decays and the exponent g (`ufm.verification.effective`). At these decays every remedy is
predicted (`ufm.prediction.remedies`; solved where there is no closed form, the bias ignored) and trained: class
weights, logit adjustment, LDAM, samplers, and a classifier that is a fixed simplex ETF. Margins are averaged by rank
over cyclic shifts of which class is large, in the log-odds of the loss that was trained. Figure: the plain network
over epochs against the decays fitted at each look, and the smallest and largest class under each remedy.

    python -m experiments.network.remedies [--quick]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

from experiments.common import Outputs
from experiments.network.charge import COUNTS
from experiments.network.training import subset
from experiments.network.usual import Data, Setting, Task, classifier_of, features_of, samples_of, trained
from ufm import metrics
from ufm.losses.by_name import parse_loss
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.prediction.remedies import FIXED, REMEDIES, predicted_remedies
from ufm.theory.prototypes import predict_fixed_simplex
from ufm.verification.effective import Fit, fit_decays
from ufm.verification.measured import MeasuredLayer, measured_geometry

USUAL = Setting(bias=True, length=8.0)
LOOKS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
PLAIN = "as it is"
#: What is trained, of `ufm.prediction.remedies.REMEDIES`.
NAMES = (
    PLAIN,
    "weights n^-1/2",
    "weights 1/n",
    "logit adjustment",
    "LDAM, largest margin 0.5",
    "balanced sampler",
    FIXED,
)
#: A class is lost if its margin is below this many nats.
LOST = 0.3


class Layer(NamedTuple):
    """The last layer at a look: what was measured, and what explains it."""

    epoch: int
    measured: MeasuredLayer
    fit: Fit
    counts: np.ndarray


def looked(setting: Setting, task: Task, seed: int, looks: tuple[float, ...] = (1.0,)) -> Iterator[Layer]:
    """Train and measure the last layer after these fractions of the training."""
    counts = np.bincount(task.labels)
    for epoch, network in trained(setting, task, len(counts), seed, looks):
        features = np.asarray(features_of(network, jnp.asarray(task.inputs)), np.float64)
        layer = [np.asarray(part, np.float64) for part in classifier_of(network, task.classifier)]
        statistics = metrics.measure(features, task.labels, *layer)
        measured = measured_geometry(statistics, task.loss)
        without = MeasuredLayer(statistics, measured.weight, None, measured.margins)  # the bias is ignored
        yield Layer(epoch, measured, fit_decays(statistics, without, task.loss), counts)


def task_of(name: str, data: tuple[np.ndarray, np.ndarray], counts: np.ndarray, classifier: Any) -> Task:
    """Return what is learned under a remedy."""
    inputs, labels = data
    if name == FIXED:
        return Task(inputs, labels, classifier=jnp.asarray(classifier, jnp.float32))
    loss, power = REMEDIES[name]
    drawn = counts[labels] ** (power - 1.0)
    return Task(
        inputs, labels, parse_loss(loss, counts), None if power == 1 else jnp.asarray(drawn / drawn.sum())
    )


def frame(plain: MeasuredLayer, width: int) -> Float[np.ndarray, "K d"]:
    """Return a simplex ETF whose rows are as long as those of the plain network on average."""
    K = len(plain.margins)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((width, K)))[0]
    length = np.linalg.norm(plain.weight) / math.sqrt(K)
    return length * math.sqrt(K / (K - 1)) * (np.eye(K) - 1 / K) @ basis.T


def compared(setting: Setting, shift: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Train the plain network and every remedy with class ``shift`` the largest; margins by falling count."""
    counts = np.roll(COUNTS, shift)
    data = subset(*samples_of(setting.data), counts, seed=shift)
    course = list(looked(setting, task_of(PLAIN, data, counts, None), shift, LOOKS))
    plain = course[-1]
    found, prediction = plain.fit.estimate, plain.fit.prediction
    if found is None or prediction is None:
        raise RuntimeError(plain.fit.notes[0])
    remedies = predicted_remedies(prediction.problem, found.feature_decay, found.charge, solve=True)
    predicted = {one.name: one.prediction.margins for one in remedies if one.prediction is not None}
    classifier = frame(plain.measured, setting.width)
    predicted[FIXED] = predict_fixed_simplex(prediction.problem, float(np.linalg.norm(classifier[0]))).margins
    margins = {PLAIN: plain.measured.margins}
    for name in names:
        if name != PLAIN:
            [layer] = looked(setting, task_of(name, data, counts, classifier), shift)
            margins[name] = layer.measured.margins
    nowhere = np.full(len(counts), np.nan)

    def fitted(layer: Layer) -> np.ndarray:
        return nowhere if layer.fit.prediction is None else layer.fit.prediction.margins

    return {
        "epochs": [layer.epoch for layer in course],
        "course": [np.roll(layer.measured.margins, -shift) for layer in course],
        "fitted": [np.roll(fitted(layer), -shift) for layer in course],
        "charge": found.charge,
        "measured": [np.roll(margins[name], -shift) for name in names],
        "predicted": [np.roll(predicted.get(name, nowhere), -shift) for name in names],
    }


def averaged(runs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return means over shifts, and the number of classes lost in a network on average."""
    means = {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}
    return means | {
        f"lost, {side}": np.mean([np.sum(np.array(run[side]) < LOST, axis=1) for run in runs], axis=0)
        for side in ("measured", "predicted")
    }


def table(names: tuple[str, ...], found: dict[str, np.ndarray]) -> str:
    """Return a line for every remedy: margins of the largest and smallest class, lost classes, mean error."""
    lines = [f"{'':36s}{'measured':>13s}{'lost':>6s}{'predicted':>13s}{'lost':>6s}{'rms':>6s}"]
    for i, name in enumerate(names):
        sides = [found[side][i] for side in ("measured", "predicted")]
        texts = [
            f"{side[0]:6.2f}..{side[-1]:5.2f}{lost[i]:6.1f}"
            for side, lost in zip(sides, (found["lost, measured"], found["lost, predicted"]), strict=True)
        ]
        rms = math.sqrt(float(np.mean((sides[0] - sides[1]) ** 2)))
        lines.append(f"{name:36s}{texts[0]}{texts[1]}{rms:6.2f}")
    return "\n".join(lines)


def figure(names: tuple[str, ...], results: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw one row per data set: margins over epochs, and of the outermost classes under each remedy."""
    with canvas(PAGE, 0.5 + 2.5 * len(results)) as drawing:
        axes = drawing.subplots(len(results), 2, squeeze=False, width_ratios=(1, 1.25))
        for (left, right), (data, found) in zip(axes, results.items(), strict=True):
            _course_panel(left, found)
            left.set_title(data, loc="left")
            _remedy_panel(right, names, found)
        drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
        axes[0, 1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return drawing


def _course_panel(axes: Axes, found: dict[str, np.ndarray]) -> None:
    for rank, colour in ((0, BLUE), (4, GREEN), (9, VERMILLION)):
        label = f"{COUNTS[rank]} samples"
        axes.plot(found["epochs"], found["course"][:, rank], "o-", ms=3, color=colour, label=label)
        axes.plot(found["epochs"], found["fitted"][:, rank], "--", lw=0.9, color=colour)
    axes.set(xlabel="epoch (dashed: decays fitted there)", ylabel=r"margin $M_k$ (nats)", xscale="log")


def _remedy_panel(axes: Axes, names: tuple[str, ...], found: dict[str, np.ndarray]) -> None:
    places = np.arange(len(names))
    for rank, colour in ((0, BLUE), (-1, VERMILLION)):
        size = f"{COUNTS[rank]} samples"
        axes.plot(found["measured"][:, rank], places, "o", ms=4, color=colour, label=f"network, {size}")
        axes.plot(found["predicted"][:, rank], places, "|", ms=10, mew=1.6, color=colour, label="predicted")
    axes.hlines(places, 0, 1, transform=axes.get_yaxis_transform(), color=BLACK, lw=0.2, zorder=0)
    axes.set(yticks=places, yticklabels=names, xlabel=r"margin $M_k$ (nats)")
    axes.invert_yaxis()


def main(quick: bool = False, outputs: OmitArgPrefixes[Outputs] = Outputs()) -> int:
    """Print a table for every data set, and draw both.

    Args:
        quick: digits only, one shift, three remedies, short training: to see that it runs.
        outputs: where results go.
    """
    results = outputs.of("remedies", quick)
    names = (PLAIN, "weights n^-1/2", FIXED) if quick else NAMES
    setting = USUAL._replace(length=1.0) if quick else USUAL
    shifts = (0,) if quick else tuple(range(0, len(COUNTS), 2))
    found: dict[str, dict[str, np.ndarray]] = {}
    sets: tuple[Data, ...] = ("digits",) if quick else ("digits", "mnist1d")
    for data in sets:
        own = setting._replace(data=data)
        found[data] = averaged([compared(own, shift, names) for shift in shifts])
        print(
            f"{data}, g = {float(found[data]['charge']):.2f}", table(names, found[data]), sep="\n", flush=True
        )
        results.save({key: {k: v.tolist() for k, v in one.items()} for key, one in found.items()})
    results.draw(figure(names, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
