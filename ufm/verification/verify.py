r"""Verification: does a point, solved or trained, have the geometry that the theory predicts?

For a point that claims to be optimal every tolerance is what its duality gap ``eps`` implies. With the dual
optimum inserted, Fenchel-Young on every sample gives ``eps >= P - P* >= sum_k (n_k/N) KL(p*_k || p_k)``
(another Bregman divergence for other losses), hence ``KL(p*_k || p_k) <= eps N/n_k`` for every class and, by
Jensen, for its average off-target probability: an interval of margins around the predicted one. Whether a
class is collapsed is resolved only if that interval does not meet the one around zero. Norms, angles and
Gram matrices follow from the same inequality and the terms left out above (`ufm.verification.resolution` has
the proof). ``eps`` is the gap of the point, at most the gap that was asked for, at least 1e-13 of the
objective: what rounding leaves of a gap. So a point that meets its gap fails only if the theory or the code
is wrong, and a wrong point fails where it is wrong. A claim that has no lower bound at all (its gap is infinite)
is a claim that misses its gap by far: the gap fails, and the rest is held to the gap that was claimed.

For a trained network there is no such claim: everything is held against one stated ``tolerance``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ufm import metrics
from ufm.duality.certificate import Certificate
from ufm.inputs.arrays import real_array
from ufm.inputs.checks import InputError, fraction, gap_tolerance, instance_of, nonnegative_float
from ufm.losses import CrossEntropy, Loss
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.metrics.statistics import FeatureStatistics
from ufm.model.problem import Problem
from ufm.prediction.solved import best_known
from ufm.theory.prediction import Prediction
from ufm.verification import checks, geometry
from ufm.verification.contexts import context_rows
from ufm.verification.effective import EffectiveDecays, fit_decays
from ufm.verification.measured import Measured, MeasuredGroups, measured_geometry
from ufm.verification.optimality import Optimality, optimality_of, optimality_rows
from ufm.verification.propagation import FLOOR
from ufm.verification.report import Report, Row
from ufm.verification.resolution import gap_tolerances, zero_margin_bounds
from ufm.verification.stuck import stuck_point
from ufm.verification.subject import Subject, subject_of_arrays, subject_of_solution, subject_of_statistics
from ufm.verification.tolerances import Tolerances, flat_tolerances
from ufm.verification.variability import agreement_rows, variability_rows

#: Relative gap that a point is held to if it does not say what it was solved for.
DEFAULT_TOL = 1e-8
#: Tolerance for trained networks.
NETWORK_TOLERANCE = 0.1
#: Tolerances are never derived from a smaller relative gap: below it rounding of P and D decides.
SMALLEST_GAP = 1e-13
#: Rows that a fit of the decays makes circular.
FITTED = ("feature norms", "classifier norms", "margins")


def verify(
    solution: Any = None,
    *,
    features: Any = None,
    labels: Any = None,
    weight: Any = None,
    bias: Any = None,
    statistics: FeatureStatistics | Any | None = None,
    second_pass: NearestMeanAgreement | Any | None = None,
    problem: Problem | Any | None = None,
    loss: Loss | Any | None = None,
    charge: float | Any | None = None,
    tol: float | Any | None = None,
    tolerance: float | Any | None = None,
) -> Report:
    """Compare a solution, or the last layer of any network, with the closed form of its problem.

    Call it as ``verify(solution)``, as ``verify(features=..., labels=..., weight=..., problem=...)`` with
    NumPy, JAX or torch arrays, or as ``verify(statistics=..., problem=...)`` with features that were
    streamed.

    Args:
        solution: what `ufm.solve` returned.
        features: (rows, d), one row per sample, or one row per class if ``problem`` is given.
        labels: class of every row; names are numbered in alphabetical order, and worst classes reported by name.
        weight: classifier (K, d).
        bias: its bias, if any.
        statistics: `FeatureStatistics` of the features, made with the classifier.
        second_pass: NC4 of streamed features, which takes a second pass over them; left out if omitted.
        problem: counts, decays and loss. If omitted for arrays, counts come from the labels, and the
            decays and who pays for features are estimated (`ufm.verification.effective`): the rest is a test.
        loss: without a problem: what the network was trained with, class weights included; else cross-entropy.
        charge: without a problem: the exponent g of who pays for features (`ufm.conventions.charged`), if known.
        tol: relative duality gap that the point claims, default ``solution.tol``; below 1, as larger ones prove
            nothing. With arrays: hold them to this gap like a solution. Without it they are if they happen to be
            certified to 1e-8.
        tolerance: judge everything by this one number instead of by the gap, as for a trained network. This
            is the default (0.1) for arrays that claim nothing and are not certified to 1e-8. Below 1, where
            nothing could fail.

    Returns:
        A `Report`: rows of predicted, measured, error, tolerance and verdict.

    Raises:
        InputError: one sentence that names the argument, its value and what is required.

    Source: the module docstring; the metrics' own are in `ufm.metrics`.

    Example:
        >>> import ufm
        >>> solution = ufm.solve(Problem([30, 20], dim=4, weight_decay=1e-2, feature_decay=1e-3))
        >>> report = verify(solution)
        >>> report.passed, report["collapsed classes"].measured
        (True, 0)
        >>> twice = verify(
        ...     features=2 * solution.features,
        ...     labels=solution.labels,
        ...     weight=solution.weight,
        ...     problem=solution.problem,
        ... )
        >>> twice.passed, twice["feature norms"].verdict
        (False, 'fail')
    """
    tol = None if tol is None else gap_tolerance("tol", tol)
    tolerance = None if tolerance is None else fraction("tolerance", tolerance)
    for name, value, kind in (
        ("problem", problem, Problem),
        ("statistics", statistics, FeatureStatistics),
        ("second_pass", second_pass, NearestMeanAgreement),
    ):
        if value is not None:
            instance_of(name, value, kind)
    arrays = (features, labels, weight)
    given = [solution is not None, any(array is not None for array in arrays), statistics is not None]
    if (loss is not None or charge is not None) and (problem is not None or solution is not None):
        raise InputError("loss and charge must be omitted with a problem, which has its own loss and decays")
    if loss is not None:
        instance_of("loss", loss, Loss)
    charge = None if charge is None else nonnegative_float("charge", charge)
    if sum(given) != 1:
        raise InputError(
            "verify needs exactly one of a solution, arrays (features, labels, weight), or statistics"
        )
    if solution is not None:
        if problem is not None or bias is not None:
            raise InputError("problem and bias must be omitted with a solution, which has its own")
        subject = subject_of_solution(solution)
        claimed = gap_tolerance("solution.tol", solution.tol) if tol is None else tol
        with np.errstate(
            all="ignore"
        ):  # decays of 1e-160: what cannot be resolved is not finite, and judged so
            return _verify_point(subject, solution.problem, claimed, tolerance)
    if statistics is not None:
        if bias is not None:
            raise InputError("bias must be omitted with statistics, which were made with their own")
        subject = subject_of_statistics(statistics, second_pass, problem)
    else:
        subject = subject_of_arrays(features, labels, weight, bias, problem)
    if problem is None:
        told = (loss or CrossEntropy(), charge)
        report = _verify_unknown(subject, NETWORK_TOLERANCE if tolerance is None else tolerance, *told)
    else:
        subject = dataclasses.replace(subject, claims_optimum=tol is not None)
        report = _verify_point(subject, problem, tol or DEFAULT_TOL, tolerance)
    return report.by_name(subject.names)


def _verify_point(subject: Subject, problem: Problem, tol: float, tolerance: float | None) -> Report:
    """Verify against a known problem."""
    optimality = optimality_of(subject, problem)
    certificate = None if optimality is None else optimality.certificate
    eps = _judging_gap(subject, certificate, tol, problem.loss.convex) if tolerance is None else None
    if eps is None and tolerance is None and problem.loss.convex:
        tolerance = NETWORK_TOLERANCE
    if subject.contexts is not None:
        return _verify_contexts(subject, problem, optimality, tol, eps)
    measured = _measured(subject, problem.loss)
    prediction, notes = best_known(problem)
    rows = optimality_rows(subject, problem, optimality, prediction, tol, eps)
    tolerances: Tolerances | None = None
    if prediction is not None and eps is not None:
        tolerances = gap_tolerances(prediction, eps, measured.classes)
    elif prediction is not None and tolerance is not None:
        tolerances = flat_tolerances(prediction, tolerance, measured.classes)
    if prediction is not None and tolerances is not None:
        rows += _geometry_rows(subject, prediction, measured, tolerances)
        rows, stuck = stuck_point(rows, certificate, prediction, measured, tolerances)
        notes += (stuck,) if stuck else ()
    else:
        rows += _open_rows(subject, problem, measured, eps, tolerance)
    basis = _basis(certificate, eps, tol, tolerance)
    return _report(subject, rows, basis, notes, measured, prediction, tolerances, problem=problem)


def _verify_contexts(
    subject: Subject, problem: Problem, optimality: Optimality | None, tol: float, eps: float | None
) -> Report:
    """Verify against soft targets, about which a gap says what `ufm.verification.contexts` lists."""
    if optimality is None or subject.rows is None:
        raise InputError("features must be few enough for their logits to fit into memory")
    certificate = optimality.certificate
    (weight, bias), (rows, labels, _) = subject.classifier, subject.rows
    point = (weight, real_array("features", rows.rows, 2), labels, bias)
    more, measured = context_rows(problem, point, certificate, eps)
    found = optimality_rows(subject, problem, optimality, None, tol, eps) + more
    basis, notes = _basis(certificate, eps, tol, NETWORK_TOLERANCE), ("Soft targets: no closed form.",)
    return _report(subject, found, basis, notes, measured, None, None, problem=problem)


def _measured(subject: Subject, loss: Loss) -> Measured:
    if subject.group is not None:
        return MeasuredGroups(subject.group, loss)
    assert subject.statistics is not None
    return measured_geometry(subject.statistics, loss)


def _judging_gap(subject: Subject, certificate: Certificate | None, tol: float, convex: bool) -> float | None:
    """Return the absolute gap that tolerances are derived from, or None if the point is no certified optimum.

    A point that claims to be optimal is held to the gap that it claims even if its own is larger, or infinite.
    """
    if certificate is None or not math.isfinite(certificate.objective):
        return None
    if not ((convex and subject.claims_optimum) or certificate.certifies(tol)):
        return None
    own = max(certificate.relative_gap, 0.0) + SMALLEST_GAP
    return min(own, max(tol, SMALLEST_GAP)) * certificate.objective


def _basis(certificate: Certificate | None, eps: float | None, tol: float, tolerance: float | None) -> str:
    if eps is not None and certificate is not None:
        used = eps / certificate.objective
        text = f"Tolerances: the largest deviation that a relative gap of {used:.1e} allows (asked: {tol:g})."
        if math.isfinite(certificate.lower_bound):
            return text
        return f"{text} The point has no lower bound, so its own gap is infinite: it is held to the gap it claims."
    if tolerance is None:
        return "The loss is not convex: a closed gap is judged, the geometry is not."
    gap = "" if certificate is None else f" The relative duality gap is {certificate.relative_gap:.1e}."
    return (
        f"Tolerance {tolerance:g} for every residual, cosine and fraction; for norms and margins times the "
        f"largest predicted one.{gap} Such rows show the class with the largest error now, another one at another "
        f"time: no time series (`ufm.training` has those)."
    )


def _geometry_rows(
    subject: Subject, prediction: Prediction, measured: Measured, tolerances: Tolerances
) -> list[Row]:
    """Every row that compares with a closed form."""
    clear = tolerances.resolved & ~prediction.collapsed
    noise = float(np.max(tolerances.norms[~clear] ** 2, initial=0.0))
    spread = noise
    # what is seen, or a flat tolerance could hide the living among many classes
    if tolerances.flat is not None:
        seen = np.minimum(measured.norms, tolerances.norms)[~clear]
        spread = 4 * float(np.sum(seen**2)) / len(measured.norms)  # Weyl; 2 for the shift of the global mean
    return [
        geometry.collapse_row(prediction, measured, tolerances),
        *variability_rows(subject.statistics, tolerances.within, tolerances.flat, spread),
        *geometry.residual_rows(prediction, measured, tolerances),
        *geometry.scale_rows(prediction, measured, tolerances),
        *geometry.ratio_rows(prediction, measured, tolerances),
        geometry.logit_margin_row(measured),
        *geometry.angle_rows(prediction, measured, tolerances),
        *agreement_rows(subject, tolerances, noise, geometry.predicted_agreement(prediction, measured)),
    ]


def _open_rows(
    subject: Subject, problem: Problem | None, measured: Measured, eps: float | None, tolerance: float | None
) -> list[Row]:
    """What still makes sense without a closed form."""
    fraction = NETWORK_TOLERANCE if tolerance is None else tolerance
    zero_margins: Any = max(fraction * float(measured.margins.max()), FLOOR)
    within = None
    if problem is not None and (eps is not None or zero_margin_bounds(problem, 0.0) is None):
        zero_margins = zero_margin_bounds(problem, eps or 0.0)
    if eps is not None and problem is not None:
        within = 2 * eps / (problem.num_samples * float(problem.feature_decays.min()))
    return [
        *variability_rows(subject.statistics, within, tolerance),
        *agreement_rows(subject, None, 0.0),
        *geometry.open_rows(measured, zero_margins),
    ]


def _verify_unknown(subject: Subject, tolerance: float, loss: Loss, charge: float | None) -> Report:
    """Verify without a problem: fit the decays and the charge, then judge what does not follow from the fit."""
    statistics = subject.statistics
    assert statistics is not None
    loss.check_classes(statistics.num_classes)
    measured = measured_geometry(statistics, loss)
    fit = fit_decays(statistics, measured, loss, charge)
    accuracy, nats = metrics.accuracy(statistics), metrics.mean_cross_entropy(statistics)
    rows = [
        checks.info_row("accuracy", "fraction of samples classified correctly", accuracy),
        checks.info_row("cross-entropy", "mean cross-entropy, in nats", nats),
    ]
    tolerances, notes = None, fit.notes
    if fit.prediction is None:
        rows += _open_rows(subject, None, measured, None, tolerance)
        notes += ("Without a prediction only the variability within classes (NC1) is judged.",)
    else:
        tolerances = flat_tolerances(fit.prediction, tolerance)
        for row in _geometry_rows(subject, fit.prediction, measured, tolerances):
            rows.append(dataclasses.replace(row, verdict="info") if row.name in FITTED else row)
    basis = _basis(None, None, 0.0, tolerance)
    return _report(subject, rows, basis, notes, measured, fit.prediction, tolerances, estimate=fit.estimate)


def _report(
    subject: Subject,
    rows: list[Row],
    basis: str,
    notes: tuple[str, ...],
    measured: Any,
    prediction: Prediction | None,
    tolerances: Tolerances | None,
    problem: Problem | None = None,
    estimate: EffectiveDecays | None = None,
) -> Report:
    undecided = np.flatnonzero(~tolerances.resolved) if tolerances is not None else np.zeros(0, dtype=int)
    return Report(
        rows=tuple(rows),
        title=subject.title,
        basis=basis,
        notes=notes,
        measured=measured,
        prediction=prediction,
        problem=prediction.problem if problem is None and prediction is not None else problem,
        unresolved_classes=tuple(undecided.tolist()),
        history=subject.history,
        estimate=None if estimate is None else estimate.to_dict(),
    )
