"""How far a measured quantity may be from the predicted one, whatever that is derived from."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from ufm.duality.lower_bound import dual_scales
from ufm.theory.prediction import Prediction
from ufm.verification.representatives import Representatives

#: Relative deviation up to which rows count as having length 1.
UNIT = 1e-6


#: What each residual of directions compares; predicted 0, insensitive to scale.
RESIDUALS = {
    "NC2_H": "Gram matrix of class means against the predicted one, both of norm 1",
    "NC2_W": "classifier against the combination of class means that stationarity calls for, both of norm 1",
    "NC2_WWT": "Gram matrix of classifier rows against the predicted one, both of norm 1",
    "NC3_WH": "logits of class means against the predicted ones, both of norm 1",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tolerances:
    """How far measured quantities may be from the predicted ones. Absolute, in the units of the quantity.

    Attributes:
        margins_low: smallest margin allowed for every class.
        margins_high: largest margin allowed.
        zero_margins: largest margin that cannot be told from 0; None where classes without a margin may live, so
            that a class counts as collapsed whose feature moves no logit (`ufm.metrics.still`).
        resolved: classes for which collapse can be decided at all.
        norms: for ``|h_k|``.
        weight_norms: for ``|w_k|``.
        feature_cosines: for ``cos(h_k, h_l)``, one row per group of classes that are alike (`Representatives`);
            infinite where it is undetermined.
        weight_cosines: for ``cos(w_k, w_l)``.
        alignment: for ``cos(w_k, h_k)``.
        residuals: for the residuals of directions, by their names in `RESIDUALS`.
        within: for ``tr Sigma_W``; None if ratios are judged by ``flat`` instead.
        logits: for single logits.
        nc4: for the fraction of disagreeing samples, outliers of the within-class scatter not counted.
        flat: one number for whatever has no interval of its own; None if everything has.
    """

    margins_low: Float[np.ndarray, " K"]
    margins_high: Float[np.ndarray, " K"]
    zero_margins: Float[np.ndarray, " K"] | None
    resolved: Bool[np.ndarray, " K"]
    norms: Float[np.ndarray, " K"]
    weight_norms: Float[np.ndarray, " K"]
    feature_cosines: Float[np.ndarray, "G K"]
    weight_cosines: Float[np.ndarray, "G K"]
    alignment: Float[np.ndarray, " K"]
    residuals: dict[str, float]
    within: float | None
    logits: float
    nc4: float
    flat: float | None = None


def dual_matrix(prediction: Prediction, classes: Representatives | None = None) -> Float[np.ndarray, "G K"]:
    """Return ``A``, rows ``-sqrt(n_k)/(N l)`` times the dual optimum (the loss gradient) of class k."""
    problem = prediction.problem
    rows = np.arange(problem.num_classes) if classes is None else classes.first
    return -dual_scales(problem)[rows, None] * prediction.dual_rows(rows)


def flat_tolerances(
    prediction: Prediction, tolerance: float, classes: Representatives | None = None
) -> Tolerances:
    """Return one tolerance for everything: for points that are no certified optima, such as trained networks.

    Args:
        prediction: what is compared with.
        tolerance: absolute for residuals and cosines; times the largest predicted norm (margin) for norms
            (margins), or times its natural scale if everything is predicted to collapse.
        classes: which classes are alike, if that is known.
    """
    problem = prediction.problem
    K = problem.num_classes
    classes = Representatives.of_all(K) if classes is None else classes
    margin = np.full(K, tolerance * (prediction.margins.max() or 1.0))
    natural = math.sqrt(2 * prediction.objective)
    feature_scale = prediction.norms.max() or natural / math.sqrt(
        float(problem.counts @ problem.feature_decays)
    )
    weight_scale = prediction.weight_norms.max() or natural / math.sqrt(problem.weight_decay)
    living = ~prediction.collapsed
    zero_margins: np.ndarray | None = margin
    if problem.loss.zero_margins(np.ones(K)) is None:  # then margins say nothing of collapse
        resolved, zero_margins = (
            np.where(living, prediction.norms > 2 * tolerance * feature_scale, True),
            None,
        )
    else:
        lengths = classes.of_classes(np.linalg.norm(dual_matrix(prediction, classes), axis=1))
        resolved = np.where(living, prediction.margins > 2 * margin, lengths < 1 - tolerance)
    clear = resolved & living
    return Tolerances(
        margins_low=prediction.margins - margin,
        margins_high=prediction.margins + margin,
        zero_margins=zero_margins,
        resolved=resolved,
        norms=np.full(K, tolerance * feature_scale),
        weight_norms=np.full(K, tolerance * weight_scale),
        feature_cosines=np.where(np.logical_and.outer(clear[classes.first], clear), tolerance, np.inf),
        weight_cosines=np.full(
            (len(classes.first), K), tolerance if prediction.weight_norms.max() > 0 else np.inf
        ),
        alignment=np.where(clear, tolerance, np.inf),
        residuals=dict.fromkeys(RESIDUALS, tolerance),
        within=None,
        logits=float(margin.max()),
        nc4=tolerance,
        flat=tolerance,
    )


def dual_directions(
    prediction: Prediction, classes: Representatives | None = None
) -> Float[np.ndarray, "G K"]:
    """Return the rows of ``A`` for `ufm.metrics.classifier_from_means`; all at length 1 where the living have it.

    For the cross-entropy family with non-negative features row k is ``(K onehot_k - 1) / sqrt(K (K-1))``.
    """
    rows = dual_matrix(prediction, classes)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    first = slice(None) if classes is None else classes.first
    if np.any(np.abs(lengths[~prediction.collapsed[first]] - 1) > UNIT):
        return rows
    return rows / np.where(lengths > 0, lengths, 1.0)
