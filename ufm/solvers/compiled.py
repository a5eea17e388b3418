"""What runs on the device: starting a rule, chunks of its steps, and a cheap check of where they lead."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ufm.model.objective import Objective, Point, Scaling
from ufm.model.stack import Stack
from ufm.solvers.row_pass import standing
from ufm.solvers.rule import StepRule

#: Programs kept at a time: each takes up to 170 memory maps, and Linux allows a process 65,530 before it crashes.
MOST_PROGRAMS = 150


class Units(NamedTuple):
    """What turns an objective's own quantities into the certificate's: units of classes and of the bias."""

    classes: Any
    bias: Any


class Check(NamedTuple):
    """What the device says of a point after a chunk of steps.

    Attributes:
        objective: not finite where the point is not.
        residual: relative norm of the projected gradient, as in the certificate.
        polar: estimate of ``polar(A)`` at the raw class-mean gradients; above 1 an escape move may exist.
    """

    objective: Float[Any, "*members"]
    residual: Float[Any, "*members"]
    polar: Float[Any, "*members"]


def units_of(stack: Stack, scales: Scaling, dtype: str) -> Units:
    """Return the units of the members of a stack, whose rule works in the coordinates of ``scales``."""
    classes = 1 / (np.sqrt(stack.counts) * stack.nuclear_weights)
    return Units(classes.astype(dtype), np.asarray(stack.scaling("balanced").bias / scales.bias, dtype))


def advance(rule: StepRule, objective: Objective, state: Any, steps: int) -> Any:
    """Take ``steps`` steps of ``rule``, in the memory of ``state``, which cannot be used afterwards.

    Compiled once per rule and shapes, whatever the number of steps. Where features are large, two steps make a round:
    iterates that take turns in two places are then back in their own, and nothing is copied.
    """
    if objective.layout is None:
        return advance_rounds(rule, objective, state, np.int32(steps), 1)
    state = advance_rounds(rule, objective, state, np.int32(steps // 2), 2)
    return advance_rounds(rule, objective, state, np.int32(1), 1) if steps % 2 else state


@functools.partial(jax.jit, static_argnames=("rule", "together"), donate_argnames="state")
def advance_rounds(rule: StepRule, objective: Objective, state: Any, rounds: Any, together: int) -> Any:
    """Take ``rounds`` times ``together`` steps, compiled."""

    def one_round(_: Any, inner: Any) -> Any:
        for _ in range(together):
            inner = rule.step(objective, inner)
        return inner

    return jax.lax.fori_loop(0, rounds, one_round, state)


@functools.partial(jax.jit, static_argnames="rule", donate_argnames="point")
def begin(rule: StepRule, objective: Objective, point: Point, caution: jax.Array) -> Any:
    """Return the state of ``rule`` at ``point``, in the memory of ``point``; compiled."""
    return rule.init(objective, point, caution)


@jax.jit
def check_rows(objective: Objective, point: Point, units: Units) -> Check:
    """Check a point whose rows are spread over devices and blocks; compiled."""
    layout, decay = objective.layout, objective.weight_decay
    assert layout is not None
    sums = standing(objective, layout, point, len(units.classes))
    in_weight = (sums.weight_slope + decay * point.weight) * (decay > 0)
    value = sums.value + decay * jnp.sum(point.weight**2) / 2
    in_bias = None
    if point.bias is not None:
        in_bias = objective.bias_scale * sums.residual + objective.bias_decay * point.bias
        value += objective.bias_decay * jnp.sum(point.bias**2) / 2
    polar = objective.polar_estimate(sums.by_class, units.classes)
    return _checked(value, in_weight, sums.square, in_bias, polar, decay, units)


@functools.partial(jax.jit, static_argnames="rule")
def chunk_of_one(
    rule: StepRule, objective: Objective, units: Units, state: Any, steps: Any
) -> tuple[Any, Check]:
    """Take ``steps`` steps of one task and check where they lead; compiled."""
    return _chunk(rule, objective, units, state, steps)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def begin_many(rule: StepRule, nonnegative: bool, arrays: Any, points: Any, caution: Any) -> Any:
    """Return the states of tasks that begin at ``points``; compiled."""

    def one(arrays: Any, point: Any, caution: Any) -> Any:
        return rule.init(Objective(**arrays, nonnegative=nonnegative), point, caution)

    return jax.vmap(one)(arrays, points, caution)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def begin_some(
    rule: StepRule, nonnegative: bool, arrays: Any, states: Any, points: Any, caution: Any, fresh: Any
) -> Any:
    """Return the states, those of ``fresh`` tasks begun at their points; compiled."""
    begun = begin_many(rule, nonnegative, arrays, points, caution)
    return jax.vmap(lambda new, old, own: jax.tree.map(functools.partial(jnp.where, own), new, old))(
        begun, states, fresh
    )


@jax.jit
def take(tree: Any, index: Any) -> Any:
    """Return some members of stacked arrays; compiled."""
    return jax.tree.map(lambda part: part[index], tree)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative", "block"))
def chunk_of_many(
    rule: StepRule,
    nonnegative: bool,
    block: int,
    arrays: Any,
    units: Units,
    states: Any,
    steps: Any,
    count: Any,
) -> tuple[Any, Check]:
    """Take ``steps`` steps of all tasks, ``block`` of them at a time (0: all), and check; compiled.

    One at a time, those after the first ``count`` only fill the batch and cost nothing.
    """

    def one(task: Any) -> tuple[Any, Check]:
        arrays, units, state = task
        return _chunk(rule, Objective(**arrays, nonnegative=nonnegative), units, state, steps)

    def one_if_real(numbered: Any) -> tuple[Any, Check]:
        number, task = numbered
        nothing = jnp.zeros((), rule.point(task[2]).weight.dtype)
        return jax.lax.cond(
            number < count, one, lambda task: (task[2], Check(nothing, nothing, nothing)), task
        )

    tasks = (arrays, units, states)
    if block == 0:
        return jax.vmap(one)(tasks)
    if block == 1:
        slots = len(jax.tree.leaves(states)[0])
        return jax.lax.map(one_if_real, (jnp.arange(slots, dtype=jnp.int32), tasks))
    return jax.lax.map(one, tasks, batch_size=block)


def _chunk(rule: StepRule, objective: Objective, units: Units, state: Any, steps: Any) -> tuple[Any, Check]:
    state = jax.lax.fori_loop(0, steps, lambda _, state: rule.step(objective, state), state)
    return state, check(objective, rule.point(state), units)


def check(objective: Objective, point: Point, units: Units) -> Check:
    """Return objective, residual and polar at a point (see `ufm.duality.certificate` for the last two)."""
    gradient = objective.gradient(point)
    in_features = gradient.features / jnp.sqrt(objective.row_decays)[:, None]
    if objective.nonnegative:
        in_features = jnp.where(point.features > 0, in_features, jnp.minimum(in_features, 0))
    polar = objective.polar_estimate(objective.residual(point), units.classes)
    square, decay = jnp.sum(in_features**2), objective.weight_decay
    return _checked(objective.value(point), gradient.weight, square, gradient.bias, polar, decay, units)


def _checked(
    value: Any, in_weight: Any, in_features: Any, in_bias: Any, polar: Any, decay: Any, units: Units
) -> Check:
    """Return the check from gradients in classifier and bias, and the squared norm of that in the features."""
    square = jnp.sum(in_weight**2) / jnp.where(decay > 0, decay, 1) + in_features  # 0: nothing moves it
    if in_bias is not None:
        square += jnp.sum((in_bias / units.bias) ** 2)
    return Check(value, jnp.sqrt(square / (2 * value)), polar)


_COMPILED: tuple[Any, ...] = (
    advance_rounds,
    begin,
    check_rows,
    chunk_of_one,
    begin_many,
    begin_some,
    take,
    chunk_of_many,
)


def spare_programs() -> None:
    """Forget what is compiled once problems of very many shapes have been solved in one process."""
    if sum(function._cache_size() for function in _COMPILED) > MOST_PROGRAMS:
        for function in _COMPILED:
            function.clear_cache()
