"""Newton's method under bounds, for runs that first-order steps do not bring to an end.

Where decays vanish, counts differ a billionfold or a bias is free, curvatures differ by ten orders of magnitude in
balanced coordinates too, and momentum needs as many steps as their root. Every step here minimises the quadratic
model plus ``damping |step|^2 / 2`` under the bounds, exactly (`box_minimum`); damping falls while the model is
believed and rises where it is not convex or promised too much (Levenberg, Marquardt). Squared error over eight
decades of counts, which 20,000 first-order steps leave at a gap of 0.03, is closed to 1e-14 in 200 of them.

It runs on the host, where a step of n variables costs a few factorisations of n x n matrices: 2 to 3 ms for K = 10,
20 to 80 for K = 16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ufm.solvers.vectors import Vector

#: Residual that is exact enough: a little above rounding.
STATIONARY = 1e-11
#: Damping of the first step in units of the regulariser's curvature, the least after a refusal, and how many times
#: the largest entry of the Hessian it may be: that is a gradient step too short to matter.
DAMPING, LEAST, HOPELESS = 1e-3, 1e-12, 1e4
#: What refusals multiply it by, and good steps divide it by; from which share of the promise a step is good or poor.
MORE, LESS, GOOD, POOR = 4.0, 5.0, 0.75, 0.25
#: Share of the promised decrease that a step must keep; promises below this share of the objective are rounding.
KEPT, ROUNDING = 1e-4, 1e-13
#: Negative curvature down to this, in units of the regulariser's, is that of directions that nothing uses; what is
#: more negative says that the model does not hold for long, and damping is right.
MILD = 3.0
#: Variables up to which a spectrum costs about as much as a few factorisations.
SPECTRAL = 1500
#: Changes of the set of held coordinates in one model; it settles in two or three.
CHANGES = 12


class _Point(NamedTuple):
    x: Float[np.ndarray, " all"]
    value: float
    gradient: Float[np.ndarray, " all"]
    held: Bool[np.ndarray, " all"]


def newton(objective: Vector, most: int) -> tuple[Float[np.ndarray, " all"], int]:
    """Return where Newton's method leads from the objective's start, and the evaluations that it took.

    Args:
        objective: in few enough variables for its Hessian.
        most: number of evaluations.
    """
    x = objective.start
    value, gradient = objective(x)
    point = _Point(x, value, gradient, ~objective.movable(x, gradient))
    damping, spent = DAMPING, 0
    while spent < most and objective.residual(point.x, point.value, point.gradient) > STATIONARY:
        following, damping, tried = _step(objective, point, damping, most - spent)
        spent += tried
        if following is None:
            break
        point = following
    return point.x, spent


def _step(objective: Vector, point: _Point, damping: float, most: int) -> tuple[_Point | None, float, int]:
    """Return the next point, None where there is none, the next damping, and the evaluations that it took."""
    x, value, gradient, held = point
    hessian, tried, refused, clipped = objective.hessian(x), 0, False, False
    largest = float(np.max(np.abs(hessian)))
    while tried < most and damping < HOPELESS * largest < np.inf:
        found = box_minimum(hessian, gradient, objective.lowest - x, held, damping)
        if found is None and not clipped and damping < MILD and len(x) <= SPECTRAL:
            clipped = True
            if box_minimum(hessian, gradient, objective.lowest - x, held, MILD) is not None:
                hessian = without_negative_curvature(hessian, ~held)
                continue
        if found is not None:
            at = np.maximum(x + found[0], objective.lowest)
            step, (new, slope) = at - x, objective(at)
            tried += 1
            promised = -float(gradient @ step + step @ hessian @ step / 2)
            kept = (value - new) / promised if promised > 0 else 0.0
            lost = abs(promised) <= ROUNDING * value  # in rounding: then the gradient has to get smaller
            if lost and not objective.residual(at, new, slope) < objective.residual(x, value, gradient):
                break
            if lost or kept > KEPT:
                easier = damping / LESS if kept > GOOD and not refused else damping
                return _Point(at, new, slope, found[1]), 2 * damping if kept < POOR else easier, tried
        damping, refused = max(MORE * damping, LEAST), True
    return None, damping, tried


def without_negative_curvature(
    hessian: Float[np.ndarray, "n n"], moving: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "n n"]:
    """Return the Hessian with negative eigenvalues of its moving part set to zero.

    Damping alone would have to exceed them, and hold back what has less curvature than that: next to a saddle whose
    way down is never taken, everything else would creep. Escape moves take it.
    """
    there = np.ix_(moving, moving)
    values, vectors = np.linalg.eigh(hessian[there])
    found = hessian.copy()
    found[there] = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return found


def box_minimum(
    hessian: Float[np.ndarray, "n n"],
    gradient: Float[np.ndarray, " n"],
    lowest: Float[np.ndarray, " n"],
    held: Bool[np.ndarray, " n"],
    damping: float,
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
    """Return the step of least ``gradient s + s (hessian + damping) s / 2`` with ``s >= lowest``, and what it holds.

    The primal-dual active set method: solve with the held coordinates at their bounds, let those go that would
    rather leave, hold those that went beyond, until nothing changes.

    Args:
        hessian: of the model.
        gradient: of the model.
        lowest: bounds, at most 0.
        held: coordinates to begin with at their bounds.
        damping: see above.

    Returns:
        None where the model is not convex on the coordinates that move.
    """
    step = np.zeros_like(gradient)
    for _ in range(CHANGES):
        moving = np.flatnonzero(~held)
        step = np.where(held, lowest, 0.0)
        known = (gradient + hessian @ step)[moving]
        own = hessian[np.ix_(moving, moving)]
        own[np.diag_indices_from(own)] += damping
        try:
            factor = cho_factor(own, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        step[moving] = -cho_solve(factor, known, check_finite=False)
        push = hessian @ step + damping * step + gradient
        following = np.where(held, push > 0, step < lowest)
        if np.array_equal(following, held):
            break
        held = following
    return step, held
