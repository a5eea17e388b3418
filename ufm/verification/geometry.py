"""Rows that compare measured with predicted geometry, or describe it where nothing is predicted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm import metrics
from ufm.metrics.collapse import gram_cosines, row_margins, tiles
from ufm.theory.prediction import Prediction
from ufm.verification.checks import WIDEST, info_row, listed, scalar_row, worst_row
from ufm.verification.measured import MatrixName, Measured
from ufm.verification.propagation import FLOOR
from ufm.verification.report import Row, Verdict
from ufm.verification.representatives import Representatives
from ufm.verification.tolerances import RESIDUALS, Tolerances, dual_directions


def seen_collapsed(measured: Measured, zero_margins: Any) -> Bool[np.ndarray, " K"]:
    """Return the classes that are as good as collapsed: by margins, or where these say nothing by features."""
    if zero_margins is None:  # classes that share a direction may have no margin and live
        return metrics.still(measured.norms, measured.weight_norms)
    return metrics.collapsed(measured.margins, zero_margins)


def collapse_row(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> Row:
    """Compare which classes have a margin that cannot be told from zero."""
    predicted = prediction.collapsed
    seen = seen_collapsed(measured, tolerances.zero_margins)
    differ = (seen != predicted) & tolerances.resolved
    open_classes = np.flatnonzero(~tolerances.resolved)
    verdict: Verdict = "fail" if np.any(differ) else "pass" if np.any(tolerances.resolved) else "unresolved"
    note = f"too close to the threshold to decide: {listed(open_classes)}" if len(open_classes) else ""
    place = f"{listed(np.flatnonzero(differ))}" if np.any(differ) else ""
    meaning = (
        "number of classes that cannot be told from others: margin zero, feature zero, classifier row shared"
    )
    counts = (int(predicted.sum()), int(seen.sum()), int(differ.sum()))
    return Row("collapsed classes", meaning, *counts, 0, verdict, place, note)


def direction_residuals(prediction: Prediction, measured: Measured) -> dict[str, float]:
    """Return the residuals of directions of the ICML 2024 paper, by their names in `RESIDUALS`."""
    problem = prediction.problem
    costs = problem.counts * problem.feature_decays / problem.feature_decays.max()
    classes = measured.classes
    names: tuple[MatrixName, ...] = ("gram_features", "gram_weights", "logits")
    found = []
    for name in names:
        pair = (classes.times(side.rows(name, classes.first)) for side in (measured, prediction))
        found.append(metrics.direction_residual(*pair))
    found.insert(1, measured.classifier_residual(costs, dual_directions(prediction, classes)))
    return dict(zip(RESIDUALS, found, strict=True))


def residual_rows(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> list[Row]:
    """Residuals of directions of the ICML 2024 paper: predicted 0, insensitive to scale.

    A fixed classifier does not follow from the means, so NC2_W says nothing there.
    """
    residuals = direction_residuals(prediction, measured)
    fixed = prediction.problem.classifier is not None
    return [
        scalar_row(name, RESIDUALS[name], 0.0, residual, tolerances.residuals[name])
        for name, residual in residuals.items()
        if not (fixed and name == "NC2_W")
    ]


def scale_rows(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> list[Row]:
    """Norms and margins, class by class: scale is not normalised away."""
    return [
        worst_row(
            "feature norms", "norm of the class mean", prediction.norms, measured.norms, tolerances.norms
        ),
        worst_row(
            "classifier norms",
            "norm of the classifier row",
            prediction.weight_norms,
            measured.weight_norms,
            tolerances.weight_norms,
        ),
        _margin_row(prediction, measured, tolerances),
    ]


def _margin_row(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> Row:
    above = measured.margins >= prediction.margins
    upper, lower = tolerances.margins_high - prediction.margins, prediction.margins - tolerances.margins_low
    tolerance = np.where(above, upper, lower) + FLOOR * np.maximum(prediction.margins, 1.0)
    meaning = "logit margin of the class, as log-odds against the average other class"
    return worst_row("margins", meaning, prediction.margins, measured.margins, tolerance)


def logit_margin_row(measured: Measured) -> Row:
    """The other margin, which decides: for information, since the log-odds are judged."""
    rows = measured.classes.first[measured.present[measured.classes.first]]
    parts = [row_margins(measured.rows("logits", part), part, log_odds=False) for part in tiles(rows)]
    values = np.concatenate([np.zeros(0), *parts])
    meaning = "smallest z_y - max of the others at a class mean; 'margins' are log-odds against their mean"
    return info_row("smallest logit margin", meaning, float(values.min(initial=np.inf)))


def predicted_agreement(prediction: Prediction, measured: Measured) -> float:
    """Return the fraction of samples whose own logit is the largest, ties allowed, at the predicted optimum."""
    if prediction.relative_gap is None:
        return 1.0
    first = measured.classes.first
    logits = prediction.rows("logits", first)
    wrong = row_margins(logits, first, log_odds=False) < -FLOOR * np.abs(logits).max()
    return 1.0 - float(prediction.problem.priors @ measured.classes.of_classes(wrong))


def ratio_rows(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> list[Row]:
    """Norms as fractions of the largest one: what remains of them when the overall scale is unknown."""
    rows = []
    for name, predicted, seen, tolerance in (
        ("feature norm ratios", prediction.norms, measured.norms, tolerances.norms),
        ("classifier norm ratios", prediction.weight_norms, measured.weight_norms, tolerances.weight_norms),
    ):
        ratios = metrics.norm_ratios(predicted)
        top = int(np.argmax(predicted))
        room = predicted[top] - np.max(tolerance)
        allowed = np.full(len(ratios), math.inf)
        if room > 0:
            allowed = (tolerance + np.maximum(ratios, 1.0) * np.max(tolerance)) / room
        if tolerances.flat is not None and predicted[top] > 0:
            allowed = np.full(len(ratios), tolerances.flat)
        meaning = "norm as a fraction of the largest one"
        rows.append(worst_row(name, meaning, ratios, metrics.norm_ratios(seen), allowed, WIDEST))
    return rows


def angle_rows(prediction: Prediction, measured: Measured, tolerances: Tolerances) -> list[Row]:
    """Angles between class means, between classifier rows, and between the two."""
    classes = measured.classes
    first, apart = classes.first, classes.apart
    frame = _cosines(prediction.rows("gram_features", first), classes)
    lengths, inner = prediction.norms * prediction.weight_norms, prediction.inner_products(first)
    aligned = np.divide(classes.of_classes(inner), lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    orthogonal = not np.any(np.abs(frame[apart]) > FLOOR)
    return [
        worst_row(
            "orthogonality" if orthogonal else "feature angles",
            "cosine between the means of two living classes"
            + (": a general orthogonal frame has 0" if orthogonal else ""),
            frame,
            measured.cosines("features"),
            np.where(apart, tolerances.feature_cosines, math.inf),
            WIDEST,
            first,
        ),
        worst_row(
            "classifier angles",
            "cosine between two classifier rows",
            _cosines(prediction.rows("gram_weights", first), classes),
            measured.cosines("weights"),
            np.where(apart, tolerances.weight_cosines, math.inf),
            WIDEST,
            first,
        ),
        worst_row(
            "alignment",
            "cosine between the mean and the classifier row of a living class",
            aligned,
            measured.alignment,
            tolerances.alignment,
            WIDEST,
        ),
    ]


def _cosines(gram: Float[np.ndarray, "G K"], classes: Representatives) -> Float[np.ndarray, "G K"]:
    lengths = np.sqrt(np.maximum(classes.own(gram), 0.0))
    return gram_cosines(gram, lengths, classes.of_classes(lengths))


def open_rows(measured: Measured, zero_margins: Any) -> list[Row]:
    """What can be said of the geometry without a prediction; nothing is judged."""
    present = measured.present
    ratio = metrics.norm_ratios(measured.norms)[present]
    rows = [_collapse_info(measured, present, zero_margins)]
    for name, meaning, value in (
        (
            "largest feature cosine",
            "largest |cosine| between two class means",
            _largest_cosine(measured),
        ),
        (
            "feature norm ratio",
            "smallest norm of a class mean over the largest",
            float(ratio.min(initial=1.0)),
        ),
        (
            "classifier norm ratio",
            "smallest norm of a classifier row over the largest",
            float(metrics.norm_ratios(measured.weight_norms).min()),
        ),
        (
            "smallest alignment",
            "smallest cosine between a class mean and its classifier row",
            float(measured.alignment[present].min(initial=1.0)),
        ),
        (
            "smallest margin",
            "smallest margin of a class, in nats",
            float(measured.margins[present].min(initial=np.inf)),
        ),
    ):
        rows.append(info_row(name, meaning, value))
    return [*rows, logit_margin_row(measured)]


def _largest_cosine(measured: Measured) -> float:
    present, norms, largest = measured.present, measured.norms, 0.0
    for part in tiles(measured.classes.first):
        cosines = np.abs(gram_cosines(measured.rows("gram_features", part), norms[part], norms))
        apart = np.outer(present[part], present) & (np.arange(len(present)) != part[:, None])
        largest = max(largest, float(cosines.max(initial=0.0, where=apart)))
    return largest


def _collapse_info(measured: Measured, present: Bool[np.ndarray, " K"], zero_margins: Any) -> Row:
    seen = np.flatnonzero(seen_collapsed(measured, zero_margins) & present)
    meaning = "number of classes whose margin cannot be told from zero"
    if zero_margins is None:
        meaning = f"number of classes whose feature moves no logit by more than {metrics.STILL:g}"
    return info_row("collapsed classes", meaning, len(seen), listed(seen) if len(seen) else "")
