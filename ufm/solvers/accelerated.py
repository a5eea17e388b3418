"""Accelerated projected gradient with restart in balanced coordinates: the default rule.

FISTA (Beck and Teboulle, 2009) with the gradient restart of O'Donoghue and Candes (2015) and a step size that needs
no objective evaluations: one pass over the features per step. The curvature is observed for free, as
``|grad(y_k) - grad(y_{k-1})| / |y_k - y_{k-1}|`` of the loss at successive extrapolated points, and the step is the
inverse of the largest of the last few observations. A line search on the objective would need a second pass, and
stops working at half the digits of the precision, where decreases drown in rounding; differences of gradients do
not. The quadratic regulariser and the sign constraint are handled exactly by the proximal map.

A step may still come out far too long: on a plateau of the loss the curvature observed so far says nothing about the
slope beyond. The next observation shows it, and the step is taken back. The restart comes one step after the step
that asks for it: otherwise the next gradient could not be evaluated in the pass that makes the step (`row_pass`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.model.objective import Coordinates, Objective, Point
from ufm.solvers.row_pass import Classifier, Move, Moved, move_part, nothing_kept, pass_over_rows
from ufm.solvers.settings import SETTINGS

#: A step is taken back if it met this many times the curvature that it was made for.
TOO_LONG = 20
#: Steps grow at most by this factor, or every window would end in a leap into the next wall.
GROWTH = 2


class Seen(NamedTuple):
    """The last evaluation of the loss, at ``point + extrapolation (point - previous)``.

    Attributes:
        kept: what `row_pass` keeps of every row.
        weight_slope: gradient in the classifier.
        bias_slope: gradient in the bias.
        curvature: ``|difference of gradients| / |difference of points|`` to the evaluation before.
    """

    kept: Float[Any, "rows any"]
    weight_slope: Float[Any, "K d"]
    bias_slope: Float[Any, " K"] | None
    curvature: Float[Any, ""]


class AcceleratedState(NamedTuple):
    """Two last iterates, the momentum sequence, the last evaluation, and a ring of curvature observations.

    ``uphill`` is the inner product of the last step with the gradient that made it: positive if momentum carried the
    iterate uphill, and the next step then starts from rest.
    """

    point: Point
    previous: Point
    momentum: Float[Any, ""]
    extrapolation: Float[Any, ""]
    uphill: Float[Any, ""]
    went_back: Bool[Any, ""]
    seen: Seen
    curvatures: Float[Any, " window"]
    made_for: Float[Any, ""]
    taken: Int[Any, ""]
    caution: Float[Any, ""]


@dataclasses.dataclass(frozen=True)
class Accelerated:
    """Accelerated projected gradient with gradient restart and observed curvature: the default step rule.

    ``x <- prox(y - grad(y)/L)``, ``y <- x + beta (x - x_previous)`` in balanced coordinates (`ufm.model.objective`),
    with L the largest of the last observed curvatures and beta the momentum of FISTA.

    Args:
        window: number of latest curvature observations whose maximum sets the step size.

    Source: Beck and Teboulle, SIAM J. Imaging Sci. 2009; O'Donoghue and Candes, Found. Comput. Math. 2015.

    Example:
        >>> import ufm
        >>> ufm.solve(ufm.Problem([30, 20], 4, 1e-2, 1e-3), solver=ufm.Accelerated(window=4)).certified
        True
    """

    window: int = SETTINGS["window"].default
    coordinates: Coordinates = dataclasses.field(default="balanced", init=False)
    descends: bool = dataclasses.field(default=True, init=False)

    def init(self, objective: Objective, point: Point, caution: Float[Any, ""]) -> AcceleratedState:
        """Start at rest: the first step only evaluates, the next is as long as the worst-case bound allows."""
        point = objective.project(point)
        xp, dtype = point.weight.__array_namespace__(), point.weight.dtype
        zero, one, no = xp.zeros((), dtype), xp.ones((), dtype), xp.zeros((), bool)
        with np.errstate(all="ignore"):  # infinite at a start whose squares overflow
            bound = xp.asarray(objective.curvature_bound(point), dtype=dtype)
        nothing = Seen(
            nothing_kept(objective, point),
            xp.zeros_like(point.weight),
            None if point.bias is None else xp.zeros_like(point.bias),
            zero,
        )
        curvatures, taken = bound * (xp.arange(self.window, dtype=xp.int32) == 0), xp.zeros((), xp.int32)
        return AcceleratedState(
            point, point, one, zero, zero, no, nothing, curvatures, bound, taken, caution.astype(dtype)
        )

    def point(self, state: AcceleratedState) -> Point:
        """Return the last iterate."""
        return state.point

    def step(self, objective: Objective, state: AcceleratedState) -> AcceleratedState:
        """Choose the step from the curvature seen, make it, and evaluate the loss where the next one begins."""
        curvature, observations = state.seen.curvature, state.curvatures
        # where nothing moved nothing can be observed, but the step was lost in rounding: the next ones are longer,
        # up to that of the regulariser, whose curvature is one
        still = (state.taken > 1) & (curvature == 0)
        longer = jnp.maximum(observations / 4, jnp.minimum(observations, 1.0))
        observations = jnp.where(still, longer, observations)
        known = jnp.max(observations)
        latest = jnp.where((state.taken > 1) & ~still, curvature, known)
        curvatures = observations.at[(state.taken - 1) % self.window].set(latest)
        back = (latest > TOO_LONG * jnp.maximum(known, state.made_for)) & ~state.went_back
        rest = (state.uphill > 0) | back
        momentum = jnp.where(rest, 1.0, state.momentum)
        # nothing has been evaluated yet: a step of no length does that
        first = state.taken == 0
        curvatures = jnp.where(first, observations, curvatures)
        following = jnp.where(first, 1.0, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
        made_for = jnp.maximum(jnp.max(curvatures), state.made_for / GROWTH)
        step = jnp.where(first, 0.0, 1 / (state.caution * made_for))
        move = Move(step, state.extrapolation, (momentum - 1) / following, back)
        moved = _go(
            objective, state._replace(momentum=following, curvatures=curvatures, made_for=made_for), move
        )
        return moved._replace(uphill=jnp.where(rest, 0.0, moved.uphill))


def _go(objective: Objective, state: AcceleratedState, move: Move) -> AcceleratedState:
    """Move the point and evaluate the loss at the next extrapolated one."""
    point, previous, seen = state.point, state.previous, state.seen
    weight = move_part(point.weight, previous.weight, seen.weight_slope, objective.weight_decay, move)
    bias: Moved | None = None
    if point.bias is not None and previous.bias is not None and seen.bias_slope is not None:
        bias = move_part(point.bias, previous.bias, seen.bias_slope, objective.bias_decay, move)
    before = point.weight + move.extrapolation * (point.weight - previous.weight)
    classifier = Classifier(before, weight.ahead, None if bias is None else bias.ahead)
    rows = pass_over_rows(objective, point.features, previous.features, seen.kept, classifier, move)
    sums = rows.sums
    change = sums.weight_slope - seen.weight_slope
    bend = jnp.maximum(sums.bend, 0) + jnp.vdot(change, change)
    jump, uphill, bias_slope = weight.jump + sums.jump, weight.uphill + sums.uphill, None
    if bias is not None and seen.bias_slope is not None:
        bias_slope = objective.bias_scale * sums.residual
        bend += jnp.vdot(bias_slope - seen.bias_slope, bias_slope - seen.bias_slope)
        jump, uphill = jump + bias.jump, uphill + bias.uphill
    curvature = jnp.where(jump > 0, jnp.sqrt(bend / jump), 0.0)
    return state._replace(
        point=Point(weight.point, rows.features, None if bias is None else bias.point),
        previous=point,
        extrapolation=move.next_extrapolation,
        uphill=uphill,
        went_back=jnp.asarray(move.back),
        seen=Seen(rows.kept, sums.weight_slope, bias_slope, curvature),
        taken=state.taken + 1,
    )
