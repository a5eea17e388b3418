"""A stationary point that lost classes which the optimum keeps: one finding, not a dozen failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ufm.duality.certificate import Certificate
from ufm.theory.prediction import Prediction
from ufm.verification.checks import listed
from ufm.verification.geometry import seen_collapsed
from ufm.verification.measured import Measured
from ufm.verification.report import Row
from ufm.verification.tolerances import Tolerances

#: A point is stationary if the KKT residual is below this fraction of the tolerance.
STATIONARY = 0.1
#: Rows that do not follow from which classes live.
OWN = ("collapsed classes", "duality gap", "objective", "reported objective", "KKT residual")


def stuck_point(
    rows: Sequence[Row],
    certificate: Certificate | None,
    prediction: Prediction,
    measured: Measured,
    tolerances: Tolerances,
) -> tuple[list[Row], str]:
    """Return rows in which only the lost classes fail, and the sentence that says why; or the rows, and nothing.

    A feature that is zero behind a ReLU has no gradient: a network that has lost a class stays there. It is called
    stuck if it lost classes and kept none too many, while the KKT residual is a tenth of the tolerance at most.

    Args:
        rows: of the report.
        certificate: of the point.
        prediction: of the optimum.
        measured: the geometry seen.
        tolerances: one number for a network; otherwise nothing is changed.
    """
    unchanged = list(rows), ""
    residual = next((row.measured for row in rows if row.name == "KKT residual"), None)
    if tolerances.flat is None or certificate is None or residual is None:
        return unchanged
    seen = seen_collapsed(measured, tolerances.zero_margins)
    lost = np.flatnonzero(seen & ~prediction.collapsed & tolerances.resolved)
    kept = np.any(~seen & prediction.collapsed & tolerances.resolved)
    if not len(lost) or kept or not residual <= STATIONARY * tolerances.flat:
        return unchanged
    excess = certificate.objective / prediction.objective - 1
    text = (
        f"Stuck point: {listed(lost)} lost, which the optimum keeps. The last layer is stationary (KKT residual "
        f"{residual:.1e}) {excess:.2%} above the optimum, and a class whose features are zero behind a ReLU has no "
        f"gradient that brings it back: train again from another start, or with less decay at first. Rows that "
        f"differ for this reason are not judged."
    )
    judged = [
        row
        if row.verdict != "fail" or row.name in OWN or row.name.startswith("NC1")
        else dataclasses.replace(row, verdict="info")
        for row in rows
    ]
    return judged, text
