"""What runs on the device: starting a rule, chunks of its steps, and the objective, which shows an overflow."""

from __future__ import annotations

import functools
from typing import Any

import jax

from ufm.model.objective import Objective, Point
from ufm.solvers.rule import StepRule


def advance(rule: StepRule, objective: Objective, state: Any, steps: int) -> Any:
    """Take ``steps`` steps of ``rule``, in the memory of ``state``, which cannot be used afterwards.

    Compiled once per rule and shapes, whatever the number of steps. Where features are large, two steps make a round:
    iterates that take turns in two places are then back in their own, and nothing is copied.
    """
    if objective.layout is None:
        return advance_rounds(rule, objective, state, steps, 1)
    state = advance_rounds(rule, objective, state, steps // 2, 2)
    return advance_rounds(rule, objective, state, 1, 1) if steps % 2 else state


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
def value(objective: Objective, point: Point) -> jax.Array:
    """Return the objective; compiled. It is not finite where the point is not."""
    return objective.value(point)
