"""Accelerated projected gradient with restart in balanced coordinates: the default rule.

FISTA (Beck and Teboulle, 2009) with the gradient restart of O'Donoghue and Candes (2015) and a step size that needs
no objective evaluations: one pass over the features per step. The curvature is observed for free, as
``|grad(y_k) - grad(y_{k-1})| / |y_k - y_{k-1}|`` of the loss at successive extrapolated points, and the step is the
inverse of the largest of the last few observations. A line search on the objective would need a second pass, and
stops working at half the digits of the precision, where decreases drown in rounding; differences of gradients do
not. The quadratic regulariser and the sign constraint are handled exactly by the proximal map.

A step may still come out far too long: on a plateau of the loss the curvature observed so far says nothing about the
slope beyond. The next observation shows it, and the step is taken back.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ufm.objective import Coordinates, Objective, Point
from ufm.softmax import feature_gradient, weight_gradient

#: A step is taken back if it met this many times the curvature that it was made for.
TOO_LONG = 20


class Observed(NamedTuple):
    """What the last step saw, kept to measure the curvature.

    The feature slope ``R V`` is kept where rows are few; where they are many (``rows >= 4 K``) the smaller logit
    residual ``R`` takes its place.
    """

    weight: Float[Array, "K d"]
    rows: Float[Array, "rows any"]
    weight_slope: Float[Array, "K d"]
    bias_slope: Float[Array, " K"] | None
    distance: Float[Array, ""]


class AcceleratedState(NamedTuple):
    """Two last iterates, the momentum sequence, and a ring of curvature observations.

    ``uphill`` is the inner product of the last step with the gradient that made it: positive if momentum carried the
    iterate uphill, and the next step then starts from rest.
    """

    point: Point
    previous: Point
    momentum: Float[Array, ""]
    uphill: Float[Array, ""]
    extrapolation: Float[Array, ""]
    observed: Observed
    curvatures: Float[Array, " window"]
    taken: Int[Array, ""]
    caution: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Accelerated:
    """Accelerated projected gradient with gradient restart and observed curvature.

    Args:
        window: number of latest curvature observations whose maximum sets the step size.
    """

    window: int = 8
    coordinates: Coordinates = dataclasses.field(default="balanced", init=False)

    def init(self, objective: Objective, point: Point, caution: Float[Array, ""]) -> AcceleratedState:
        """Start at rest; the first step is as long as the worst-case curvature bound allows."""
        point = objective.project(point)
        dtype = point.weight.dtype
        many = _many_rows(point)
        rows = jnp.zeros((len(point.features), len(point.weight)), dtype) if many else point.features
        none_yet = Observed(
            jnp.zeros_like(point.weight),
            jnp.zeros_like(rows),
            jnp.zeros_like(point.weight),
            None if point.bias is None else jnp.zeros_like(point.bias),
            jnp.zeros((), dtype),
        )
        curvatures = jnp.zeros(self.window, dtype).at[0].set(objective.curvature_bound(point))
        one = jnp.ones((), dtype)
        return AcceleratedState(
            point,
            point,
            one,
            0 * one,
            0 * one,
            none_yet,
            curvatures,
            jnp.ones((), jnp.int32),
            caution.astype(dtype),
        )

    def point(self, state: AcceleratedState) -> Point:
        """Return the last iterate."""
        return state.point

    def step(self, objective: Objective, state: AcceleratedState) -> AcceleratedState:
        """Extrapolate, observe the curvature, take one proximal gradient step, restart momentum if it hurts."""
        ahead = jax.tree.map(
            lambda x, before: x + state.extrapolation * (x - before), state.point, state.previous
        )
        residual = objective.residual(ahead)
        scaled = residual * objective.logit_scales[:, None]
        weight_slope = weight_gradient(scaled, ahead.features, ahead.weight, 0.0)
        feature_slope = feature_gradient(scaled, ahead.weight, ahead.features, jnp.zeros(()))
        bias_slope = None if ahead.bias is None else objective.bias_scale * residual.sum(axis=0)

        rows = scaled if _many_rows(ahead) else feature_slope
        now = Observed(ahead.weight, rows, weight_slope, bias_slope, state.observed.distance)
        curvature = _observed_curvature(state.observed, now, _many_rows(ahead))
        known = jnp.max(state.curvatures)  # stands in where nothing moved and nothing can be observed
        latest = jnp.where((state.taken > 1) & (curvature > 0), curvature, known)
        curvatures = state.curvatures.at[(state.taken - 1) % self.window].set(latest)
        step = 1 / (state.caution * jnp.max(curvatures))
        slope = Point(weight_slope, feature_slope, bias_slope)
        too_long = latest > TOO_LONG * known
        proposed = _proximal_step(objective, ahead, slope, step)
        point = _choose(too_long, state.previous, proposed)
        previous = _choose(too_long, state.previous, state.point)

        rest = (state.uphill > 0) | too_long
        momentum = jnp.where(rest, 1.0, state.momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        extrapolation = (momentum - 1) / following
        travelled = jax.tree.map(jnp.subtract, point, previous)
        uphill = jnp.where(rest, 0.0, _inner(jax.tree.map(jnp.subtract, ahead, point), travelled))
        jump = jax.tree.map(lambda x, gone, y: x + extrapolation * gone - y, point, travelled, ahead)
        return AcceleratedState(
            point,
            previous,
            following,
            uphill,
            extrapolation,
            now._replace(distance=jnp.sqrt(_inner(jump, jump))),
            curvatures,
            state.taken + 1,
            state.caution,
        )


def _choose(condition: Bool[Array, ""], first: Point, second: Point) -> Point:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def _inner(a: Point, b: Point) -> Float[Array, ""]:
    return sum(
        (jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.zeros(())
    )


def _proximal_step(objective: Objective, point: Point, slope: Point, step: Float[Array, ""]) -> Point:
    """Return the proximal map of the regulariser and the sign constraint after a step along ``-slope``."""
    bias = None
    if point.bias is not None and slope.bias is not None:
        bias = (point.bias - step * slope.bias) / (1 + step * objective.bias_decay)
    return objective.project(
        Point(
            (point.weight - step * slope.weight) / (1 + step * objective.weight_decay),
            (point.features - step * slope.features) / (1 + step * objective.row_decays[:, None]),
            bias,
        )
    )


def _many_rows(point: Point) -> bool:
    return len(point.features) >= 4 * len(point.weight)


def _observed_curvature(old: Observed, new: Observed, many_rows: bool) -> Float[Array, ""]:
    """Return ``|difference of gradients| / |difference of points|`` of the loss between two evaluations.

    Where feature gradients ``R V`` are not stored, with ``dR = R - R_old`` and ``dV = V - V_old`` their difference
    is ``dR V + R_old dV``, whose norm needs K x K products only and, unlike ``|R V|^2 - ...``, does not cancel.
    """
    d_rows, d_weight = new.rows - old.rows, new.weight - old.weight
    if many_rows:
        square = jnp.vdot(d_rows.T @ d_rows, new.weight @ new.weight.T)
        square += 2 * jnp.vdot(d_rows.T @ old.rows, new.weight @ d_weight.T)
        square += jnp.vdot(old.rows.T @ old.rows, d_weight @ d_weight.T)
    else:
        square = jnp.vdot(d_rows, d_rows)
    d_slope = new.weight_slope - old.weight_slope
    square = jnp.maximum(square, 0) + jnp.vdot(d_slope, d_slope)
    if new.bias_slope is not None and old.bias_slope is not None:
        d_bias = new.bias_slope - old.bias_slope
        square += jnp.vdot(d_bias, d_bias)
    return jnp.where(new.distance > 0, jnp.sqrt(square) / new.distance, 0.0)
