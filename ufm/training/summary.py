"""An epoch in numbers: a flat dict of floats that mean the same every epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from ufm import metrics
from ufm.losses import CrossEntropy
from ufm.metrics.collapse import upper_tiles
from ufm.metrics.statistics import FeatureStatistics
from ufm.theory.prediction import Prediction
from ufm.training.record import Record
from ufm.verification.geometry import direction_residuals
from ufm.verification.measured import MeasuredLayer, measured_geometry
from ufm.verification.tolerances import RESIDUALS

#: What every key of an epoch means. Keys with ``/group`` are the same for one group of classes.
METRICS = {
    "samples": "rows that were watched",
    "dropped": "rows left out: a negative label (ignored by the loss), or entries that are not finite",
    "loss": "mean cross-entropy of the logits, in nats (without weights, smoothing or adjustments of the loss)",
    "accuracy": "fraction of samples whose own logit is strictly the largest",
    "margin_min": "smallest margin of a class, as log-odds against the mean other class, in nats",
    "margin_median": "median of these over classes",
    "logit_margin_min": "smallest z_y - max of the others over all samples",
    "collapsed_classes": "classes whose margin is at most a tenth of the largest one",
    "NC1": "trace of Sigma_W pinv(Sigma_B) over K, as in `ufm.metrics.nc1`",
    "NC1_ratio": "trace of Sigma_W over trace of Sigma_B",
    "NC1_CDNV": "class-distance normalised variance, averaged over pairs of classes",
    "Sw_invSb": "others' NC1: without 1/K, and around the unweighted mean of the class means",
    "feature_norm": "mean over classes of the norm of the class mean",
    "feature_norm_spread": "standard deviation of these norms over their mean; not 0 under imbalance",
    "classifier_norm_spread": "the same for the classifier's rows",
    "norm_M_CoV": "the same for class means minus their unweighted mean, with K - 1 under the root",
    "norm_W_CoV": "the same for the classifier's rows, with K - 1 under the root",
    "cos_M": "mean of |cosine + 1/(K-1)| over pairs of class means minus their unweighted mean: 0 for a simplex ETF",
    "cos_W": "the same for the classifier's rows",
    "W_M_dist": "squared distance of the classifier and the centred class means, both of norm 1",
    "NCC_mismatch": "fraction of samples for which the classifier does not choose the nearest of last epoch's class "
    "means; NaN in the first epoch",
    **RESIDUALS,
}
#: A class is called collapsed if its margin is at most this fraction of the largest one.
COLLAPSED = 0.1

Groups = Mapping[str, Int[np.ndarray, " members"]]


def thirds(counts: Float[np.ndarray, " K"]) -> Groups:
    """Return the classes in three groups of almost equal number, by descending count: head, medium, tail."""
    order = np.argsort(-counts, kind="stable")
    parts = np.array_split(order, 3)
    return {name: part for name, part in zip(("head", "medium", "tail"), parts, strict=True) if len(part)}


def summary(
    record: Record,
    weight: Float[np.ndarray, "K d"],
    bias: Float[np.ndarray, " K"] | None,
    groups: Groups,
    prediction: Prediction | None = None,
) -> dict[str, float]:
    """Return the numbers of an epoch; `METRICS` says what they mean.

    Args:
        record: sums over its samples.
        weight: the classifier at its end.
        bias: its bias, if any.
        groups: names and members of groups of classes.
        prediction: what the last layer should become, if that is known.
    """
    statistics = FeatureStatistics.of_sums(record.sums, weight, bias, record.smallest)
    measured = measured_geometry(statistics, CrossEntropy())
    values = {
        "samples": statistics.num_samples,
        "dropped": record.dropped,
        "logit_margin_min": float(statistics.logits.smallest_margin[statistics.present].min()),
        **_of_classes(measured, np.arange(statistics.num_classes)),
        **_variability(statistics),
        **_others_names(measured),
        "NCC_mismatch": 1 - record.agreeing / record.compared if record.compared else float("nan"),
    }
    if prediction is not None:
        values |= direction_residuals(prediction, measured)
    for group, members in groups.items():
        values |= {f"{name}/{group}": value for name, value in _of_classes(measured, members).items()}
    return {name: float(value) for name, value in values.items()}


def _of_classes(measured: MeasuredLayer, members: Int[np.ndarray, " members"]) -> dict[str, float]:
    """What can be said of any set of classes; those without samples take no part, NaN if that leaves none."""
    statistics = measured.statistics
    members = members[statistics.present[members]]
    if not len(members):
        return dict.fromkeys(
            ("loss", "accuracy", "margin_min", "margin_median", "feature_norm", "collapsed_classes"),
            float("nan"),
        )
    samples = statistics.counts[members].sum()
    margins = measured.margins[members]
    return {
        "loss": statistics.logits.loss[members].sum() / samples,
        "accuracy": statistics.logits.correct[members].sum() / samples,
        "margin_min": margins.min(),
        "margin_median": float(np.median(margins)),
        "feature_norm": measured.norms[members].mean(),
        "collapsed_classes": float(np.sum(margins <= COLLAPSED * max(measured.margins.max(), 0.0))),
    }


def _variability(statistics: FeatureStatistics) -> dict[str, float]:
    values = {"NC1_ratio": metrics.variance_ratio(statistics), "NC1_CDNV": metrics.cdnv(statistics)}
    if statistics.has_scatter:
        values["NC1"] = metrics.nc1(statistics)
        values["Sw_invSb"] = metrics.nc1_unweighted(statistics) * int(statistics.present.sum())
    return values


def _others_names(measured: MeasuredLayer) -> dict[str, float]:
    """What is logged under these names since Papyan, Han, Donoho (PNAS 2020); classes without samples left out."""
    present = measured.statistics.present
    means, weight = measured.means[present], measured.weight[present]
    centred = means - means.mean(axis=0)
    lengths = [np.linalg.norm(matrix) for matrix in (centred, weight)]
    units = [
        matrix / length if length > 0 else matrix
        for matrix, length in zip((centred, weight), lengths, strict=True)
    ]
    return {
        "feature_norm_spread": _variation(measured.norms[present], ddof=0),
        "classifier_norm_spread": _variation(measured.weight_norms[present], ddof=0),
        "norm_M_CoV": _variation(metrics.norms(centred), ddof=1),
        "norm_W_CoV": _variation(measured.weight_norms[present], ddof=1),
        "cos_M": simplex_distance(centred),
        "cos_W": simplex_distance(weight),
        "W_M_dist": float(np.sum((units[0] - units[1]) ** 2)),
    }


def _variation(values: np.ndarray, ddof: int) -> float:
    mean = values.mean()
    return float(values.std(ddof=ddof) / mean) if mean > 0 and len(values) > ddof else 0.0


def simplex_distance(rows: Float[np.ndarray, "P d"]) -> float:
    """Return the mean of ``|cos(r_k, r_l) + 1/(P-1)|`` over pairs of rows, in tiles; 0 for fewer than two.

    Example:
        >>> round(simplex_distance(np.eye(3) - 1 / 3), 12), simplex_distance(np.eye(3))
        (0.0, 0.5)
    """
    number = len(rows)
    if number < 2:
        return 0.0
    lengths = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    total = 0.0
    for _, products in upper_tiles(unit):
        distances = np.abs(products + 1 / (number - 1))
        distances[:, : len(distances)][np.tri(len(distances), dtype=bool)] = 0.0
        total += float(distances.sum())
    return 2 * total / (number * (number - 1))
