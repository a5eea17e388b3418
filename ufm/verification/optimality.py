"""Rows about optimality itself: duality gap, objective, KKT residual, all recomputed from the arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

from ufm.duality.certificate import Certificate, certify_rows
from ufm.duality.groups import GroupDual
from ufm.inputs.arrays import real_array
from ufm.model.objective import Variables
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction
from ufm.verification.checks import info_row, judged, scalar_row
from ufm.verification.propagation import FLOOR
from ufm.verification.report import Row, Verdict
from ufm.verification.stationarity import block_step_residual, feature_curvature
from ufm.verification.subject import Subject

#: Largest relative error of the objective that a solution reports.
REPORTED = 1e-9
#: Largest number of logits for which the certificate is evaluated (some GB of memory).
LARGEST_LOGITS = 2**28


class Optimality(NamedTuple):
    """What is known of how optimal a point is: its certificate and, but for groups, the step that it has left."""

    certificate: Certificate
    step: float | None


def optimality_of(subject: Subject, problem: Problem) -> Optimality | None:
    """Recompute them in one pass; None without the features, or if their logits would fill the memory."""
    if subject.group is not None:
        found = GroupDual.of(problem, subject.group.groups).certify(subject.group.point)
        return Optimality(found, None)
    if subject.rows is None or len(subject.rows.labels) * problem.num_logits > LARGEST_LOGITS:
        return None
    weight, bias = subject.classifier
    features = real_array("features", subject.rows.features.rows, 2)
    point, curvature = Variables(weight, features, bias), feature_curvature(problem, weight)
    certificate, sums = certify_rows(problem, point, subject.rows.labels, curvature)
    step = block_step_residual(problem, weight, bias, sums, certificate.objective)
    return Optimality(certificate, step)


def optimality_rows(
    subject: Subject,
    problem: Problem,
    found: Optimality | None,
    prediction: Prediction | None,
    tol: float,
    eps: float | None,
) -> list[Row]:
    """Gap, objective, KKT residual: judged if ``eps`` is given, otherwise for information.

    The gap of a point that claims to be optimal is judged whenever there must be one, and one that is closed always.
    """
    if found is None:
        return []
    certificate, residual = found
    claimed = subject.claims_optimum and (problem.loss.convex or certificate.certifies(tol))
    rows = [_gap_row(certificate, tol, judge=claimed or eps is not None)]
    if prediction is not None:
        rows.append(_objective_row(certificate, prediction, eps))
    if subject.reported is not None:
        rows.append(_reported_row(certificate, subject.reported, eps is not None))
    if residual is None:
        meaning = "norm of the projected gradient in balanced coordinates over the square root of 2 P"
        return [*rows, info_row("projected gradient", meaning, certificate.residual)]
    meaning = "what a projected gradient step on one block could still gain over the objective, square root"
    if eps is None:
        return [*rows, info_row("KKT residual", meaning, residual)]
    return [*rows, scalar_row("KKT residual", meaning, 0.0, residual, math.sqrt(eps / certificate.objective))]


def _gap_row(certificate: Certificate, tol: float, judge: bool) -> Row:
    meaning = "objective minus a lower bound that holds for every point, over the objective"
    gap = certificate.relative_gap if math.isfinite(certificate.lower_bound) else None
    note = "" if gap is not None else "infinite: no lower bound follows from this point"
    if not judge:
        return info_row("duality gap", meaning, gap, note)
    verdict: Verdict = "pass" if certificate.certifies(tol) else "fail"
    return Row("duality gap", meaning, 0.0, gap, None if gap is None else abs(gap), tol, verdict, "", note)


def _objective_row(certificate: Certificate, prediction: Prediction, eps: float | None) -> Row:
    meaning = "the regularised objective against the predicted optimal value, error relative to it"
    excess = 1 - prediction.objective / certificate.objective
    values = (prediction.objective, certificate.objective)
    if eps is None:
        return Row("objective", meaning, *values, abs(excess), None, "info")
    # no point can be below the optimum, which a solved prediction is above by no more than its gap
    least = max(prediction.relative_gap or 0.0, FLOOR)
    limit = least if excess < 0 else max(eps / certificate.objective, least)
    return Row("objective", meaning, *values, abs(excess), limit, judged(abs(excess), limit))


def _reported_row(certificate: Certificate, reported: float, judge: bool) -> Row:
    """A wrong report fails; a right one is no merit of a point about which nothing else is known."""
    meaning = "the objective that was reported against the one recomputed in float64, relative error"
    error = abs(reported / certificate.objective - 1)
    values = (reported, certificate.objective)
    verdict = judged(error, REPORTED)
    if verdict == "pass" and not judge:
        verdict = "info"
    return Row("reported objective", meaning, *values, error, REPORTED, verdict)
