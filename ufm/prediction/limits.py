r"""Hard-margin geometries: what parameterised losses approach as their decays vanish, by continuation.

As ``l = sqrt(lambda_W lambda_H) -> 0`` the logits grow without bound and in the direction of

    ``min |diag(sqrt(n)) Z|_*``  subject to margins, ``a_y z_y - a_j z_j >= 1``,

(scales a of vector scaling; offsets and class weights play no part in the end), with the gauge of non-negative
features in the place of the nuclear norm where they are. Without scales that is SELI (`ufm.theory.seli`), or
orthogonal features (`ufm.theory.weak_decay_limit`); with them there is no closed form. Directions approach their
limit like the reciprocal of the logits' size, which grows like ``log(1/l)``: so certified optima at falling decays
are extrapolated in that reciprocal by polynomials (Neville), and the error is a multiple of what the last orders
still change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError
from ufm.model.problem import Problem, a_problem
from ufm.theory.prediction import require_matrix_size
from ufm.theory.seli import WeakDecayLimit

#: Decays of the continuation, as fractions of the one at which the smallest class could have no gradient left.
LEVELS = tuple(10.0**-power for power in range(3, 13))
#: How much of what the last orders change is stated as the error.
CAUTION = 4.0


@dataclasses.dataclass(frozen=True, eq=False)
class HardMarginLimit(WeakDecayLimit):
    """The limit, extrapolated.

    Attributes:
        error: of each matrix, in Frobenius norm: four times what the last two orders of extrapolation change, which
            also raise what the optima are off by.
        relative_gap: the largest duality gap of the optima that it rests on.
    """

    error: float
    relative_gap: float


def hard_margin_limit(problem: Problem | Any) -> HardMarginLimit:
    r"""Return the geometry that the optimum of a problem approaches as its decays vanish, and its error.

    Args:
        problem: any loss whose margins grow without bound, both feature sets, no bias; of its decays only the ratio
            is used. With logit adjustments decays must be very small before these stop to matter: a large error
            says so.

    Raises:
        InputError: for a bias, a fixed classifier, soft targets, or too many classes.

    Source: Kini et al., NeurIPS 2021 (vector scaling and cost-sensitive support vectors); Thrampoulidis et al.,
        NeurIPS 2022; the extrapolation is the module docstring's.

    Example:
        >>> from ufm.theory import seli
        >>> found = hard_margin_limit(Problem([40, 20, 10], 4, 1e-2, 1e-2, features="free"))
        >>> off = np.linalg.norm(found.gram_features - seli([40, 20, 10]).gram_features)
        >>> bool(off <= found.error < 1e-2)
        True
    """
    from ufm.solvers.solve import solve  # loads JAX

    a_problem(problem)
    if problem.bias is not None or problem.classifier is not None or not problem.loss.labelled:
        raise InputError("problem must have class labels, no bias and a classifier that is free")
    require_matrix_size("the geometry", problem.num_classes)
    unit = np.sqrt(problem.counts.min()) / problem.num_samples / problem.nuclear_weight
    places, points, gaps = [], [], []
    for level in LEVELS:
        changed = problem.replace(
            weight_decay=problem.weight_decay * level * unit,
            feature_decay=problem.feature_decay * level * unit,
        )
        solution = solve(changed, level="class", tol=1e-10, residual_tol=1e-9)
        weight, features = solution.weight, solution.features
        logits = features @ weight.T
        places.append(1 / float(np.linalg.norm(logits)))
        points.append([m / np.linalg.norm(m) for m in (features @ features.T, weight @ weight.T, logits)])
        gaps.append(solution.certificate.relative_gap)
    estimates = _extrapolated(np.array(places), np.array(points))
    changes = np.linalg.norm(np.diff(estimates, axis=0), axis=(-2, -1)).max(axis=-1)
    doubts = changes[1:] + changes[:-1]
    order = int(np.argmin(doubts))
    features, weights, logits = (matrix / np.linalg.norm(matrix) for matrix in estimates[order + 2])
    return HardMarginLimit(features, weights, logits, float(CAUTION * doubts[order]), float(max(gaps)))


def _extrapolated(places: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the values at 0 of the polynomials through the last 1, 2, 3, ... points, by Neville's scheme."""
    values, found = points, [points[-1]]
    for order in range(1, len(places)):
        low, high = (part.reshape(-1, 1, 1, 1) for part in (places[:-order], places[order:]))
        values = (low * values[1:] - high * values[:-1]) / (low - high)
        found.append(values[-1])
    return np.array(found)
