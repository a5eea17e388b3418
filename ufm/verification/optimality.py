"""Rows about optimality itself: duality gap, objective, KKT residual, all recomputed from the arrays."""

from __future__ import annotations

import math

from ufm.duality.certificate import Certificate, certify
from ufm.duality.groups import GroupDual
from ufm.inputs.arrays import real_array
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction
from ufm.verification.checks import info_row, judged, scalar_row
from ufm.verification.propagation import FLOOR
from ufm.verification.report import Row, Verdict
from ufm.verification.stationarity import block_step_residual
from ufm.verification.subject import Subject

#: Largest relative error of the objective that a solution reports.
REPORTED = 1e-9
#: Largest number of logits for which the certificate is evaluated (some GB of memory).
LARGEST_LOGITS = 2**28


def certificate_of(subject: Subject, problem: Problem) -> Certificate | None:
    """Recompute the certificate; None without the features, or if their logits would fill the memory."""
    if subject.group is not None:
        return GroupDual.of(problem, subject.group.groups).certify(subject.group.point)
    if subject.rows is None or len(subject.rows.labels) * problem.num_logits > LARGEST_LOGITS:
        return None
    weight, bias = subject.classifier
    return certify(problem, weight, subject.rows.features.rows, subject.rows.labels, bias)


def optimality_rows(
    subject: Subject,
    problem: Problem,
    certificate: Certificate | None,
    prediction: Prediction | None,
    tol: float,
    eps: float | None,
) -> list[Row]:
    """Gap, objective, KKT residual: judged if ``eps`` is given, otherwise for information.

    The gap of a point that claims to be optimal is judged whenever there must be one, and one that is closed always.
    """
    if certificate is None:
        return []
    claimed = subject.claims_optimum and (problem.loss.convex or certificate.certifies(tol))
    rows = [_gap_row(certificate, tol, judge=claimed or eps is not None)]
    if prediction is not None:
        rows.append(_objective_row(certificate, prediction, eps))
    if subject.reported is not None:
        rows.append(_reported_row(certificate, subject.reported, eps is not None))
    if subject.group is not None:
        meaning = "norm of the projected gradient in balanced coordinates over the square root of 2 P"
        return [*rows, info_row("projected gradient", meaning, certificate.residual)]
    meaning = "what a projected gradient step on one block could still gain over the objective, square root"
    residual = _residual(subject, problem, certificate.objective)
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


def _residual(subject: Subject, problem: Problem, objective: float) -> float:
    assert subject.rows is not None
    weight, bias = subject.classifier
    rows, labels, multiplicities = subject.rows
    features = real_array("features", rows.rows, 2)
    return block_step_residual(problem, weight, features, labels, bias, multiplicities, objective)
