"""Rows about single samples: variability within classes (NC1) and the nearest class mean (NC4)."""

from __future__ import annotations

import math

import numpy as np

from ufm import metrics
from ufm.metrics.collapse import distance_tiles
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.metrics.statistics import FeatureStatistics
from ufm.verification.checks import info_row, scalar_row
from ufm.verification.propagation import FLOOR
from ufm.verification.report import Row
from ufm.verification.subject import Subject
from ufm.verification.tolerances import Tolerances


def variability_rows(
    statistics: FeatureStatistics | None, within: float | None, flat: float | None, noise: float = 0.0
) -> list[Row]:
    """Rows of the NC1 family: predicted 0 at every global optimum, by strict convexity of the regulariser.

    A row called as in `ufm.metrics` has the value that this has. Where classes are predicted to collapse, or the gap
    leaves room for it, means that should coincide differ by noise, and what is divided by that says nothing: then
    rows called "living" leave such directions (pairs) out, and are judged in the place of the others.

    Args:
        statistics: of the features.
        within: bound on ``tr Sigma_W``; the tolerance of each ratio is the largest value that it allows.
        flat: the tolerance if there is no such bound; no verdict if that is None too.
        noise: what class means that are as good as zero may add to an eigenvalue of ``Sigma_B``.
    """
    if statistics is None:
        return [
            info_row("NC1", "variability within classes: none, as every class has one row of features", 0.0)
        ]
    spectrum = metrics.between_spectrum(statistics)
    largest = float(spectrum.max(initial=0.0))
    rtol = max(metrics.RANK_TOLERANCE, max(noise, within or 0.0) / largest if largest > 0 else 0.0)
    names = ("NC1", "NC1 variance ratio", "NC1 CDNV")
    meanings = (
        "trace of Sigma_W pinv(Sigma_B) over K: variability within classes against that between them",
        "trace of Sigma_W over trace of Sigma_B",
        "class-distance normalised variance, averaged over pairs",
    )
    directions, pairs = 0, 0
    if rtol > metrics.RANK_TOLERANCE:
        directions = _left_out(spectrum, rtol, largest)
        farthest = _farthest(statistics)
        tiles = (squares for _, squares in distance_tiles(statistics))
        pairs = sum(_left_out(squares, rtol, farthest) for squares in tiles)
    left_out = (f"{directions} directions" if directions else "", "", f"{pairs} pairs" if pairs else "")
    tolerances = [flat] * 3 if within is None else _variability_tolerances(statistics, within, spectrum, rtol)
    if not largest > 0:  # no two classes differ: nothing can be small in comparison
        tolerances = [None if tolerance is None else math.inf for tolerance in tolerances]
    rows = []
    values = _values(statistics, metrics.RANK_TOLERANCE)
    columns = (names, meanings, values, _values(statistics, rtol) if any(left_out) else values)
    for name, meaning, value, living, missing, tolerance in zip(*columns, left_out, tolerances, strict=True):
        if not missing:
            rows.append(_row(name, meaning, value, tolerance))
            continue
        note = f"not judged: {missing} in which classes hardly differ decide it; see {name} living"
        rows.append(info_row(name, meaning, value, note))
        rows.append(
            _row(
                f"{name} living",
                f"{meaning}, without {missing} in which they hardly differ",
                living,
                tolerance,
            )
        )
    if statistics.has_scatter:
        sums, unweighted = metrics.nc1_sum(statistics), metrics.nc1_unweighted(statistics)
        rows.append(
            info_row("NC1 without 1/K", "trace of Sigma_W pinv(Sigma_B), as some codes have it", sums)
        )
        meaning = "NC1 with Sigma_B around the unweighted mean of class means, as some codes have it"
        rows.append(info_row("NC1 unweighted mean", meaning, unweighted))
    return rows


def _values(statistics: FeatureStatistics, rtol: float) -> tuple[float | None, float, float]:
    nc1 = metrics.nc1(statistics, rtol) if statistics.has_scatter else None
    return nc1, metrics.variance_ratio(statistics), metrics.cdnv(statistics, rtol)


def _farthest(statistics: FeatureStatistics) -> float:
    """Return the largest squared distance between class means."""
    return max((float(squares.max()) for _, squares in distance_tiles(statistics)), default=0.0)


def _left_out(values: np.ndarray, rtol: float, largest: float) -> int:
    """Return how many values count at `RANK_TOLERANCE` but not at ``rtol``."""
    return int(np.sum((values > metrics.RANK_TOLERANCE * largest) & ~(values > rtol * largest)))


def _row(name: str, meaning: str, value: float | None, tolerance: float | None) -> Row:
    if value is None or tolerance is None:
        return info_row(name, meaning, value)
    return scalar_row(name, meaning, 0.0, value, tolerance + FLOOR)


def _variability_tolerances(
    statistics: FeatureStatistics, within: float, spectrum: np.ndarray, rtol: float
) -> list[float | None]:
    """Return the largest metrics that ``tr Sigma_W <= within`` allows at the class means seen."""
    kept = spectrum[spectrum > rtol * spectrum.max(initial=0.0)]
    if not len(kept):
        return [math.inf] * 3
    counts, limit = statistics.counts[statistics.present], rtol * _farthest(statistics)
    inverse, number = np.zeros(len(counts)), 0
    for own, squares in distance_tiles(statistics):
        near = squares > limit
        inverses = np.divide(1.0, squares, out=np.zeros_like(squares), where=near)
        inverse[own] += inverses.sum(axis=1)
        inverse[own.start :] += inverses.sum(axis=0)
        number += 2 * int(near.sum())
    return [
        within / (len(counts) * float(kept.min())),
        within / metrics.between_trace(statistics),
        within * float(np.max(statistics.num_samples / counts * inverse)) / max(number, 1),
    ]


def agreement_rows(
    subject: Subject, tolerances: Tolerances | None, noise: float, predicted: float = 1.0
) -> list[Row]:
    """NC4: a second pass over the features, made here if they are at hand.

    Args:
        subject: what is verified.
        tolerances: None for no verdict.
        noise: what squared norms of class means that are as good as zero may be.
        predicted: less than 1 where classes are predicted that are not classified correctly.
    """
    meaning = "fraction of samples whose predicted class is that of the nearest class mean, ties allowed"
    if subject.statistics is None or (subject.rows is None and subject.second_pass is None):
        return []
    statistics = subject.statistics
    second = subject.second_pass
    if second is None:
        logit_ties = 1e-9 if tolerances is None else tolerances.logits
        largest = _farthest(statistics) if noise else 0.0
        distance_ties = max(1e-9, 4 * noise / largest if largest > 0 else 0.0)
        second = NearestMeanAgreement(statistics, logit_ties=logit_ties, distance_ties=distance_ties)
    if subject.rows is not None:
        second.add(subject.rows, check=False)
    if tolerances is None:
        return [info_row("NC4", meaning, second.agreement)]
    tolerance = tolerances.nc4
    if tolerances.within is not None:
        limit = metrics.RANK_TOLERANCE * _farthest(statistics)
        nearest = min(
            float(squares.min(initial=math.inf, where=squares > limit))
            for _, squares in distance_tiles(statistics)
        )
        tolerance += 4 * tolerances.within / nearest if math.isfinite(nearest) else 0.0
    return [scalar_row("NC4", meaning, predicted, second.agreement, tolerance + FLOOR)]
