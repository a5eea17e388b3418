"""The one loop: compiled chunks of steps, and between chunks the host looks, decides, escapes and records.

The rule runs on the device in its own precision; the host evaluates the certificate in float64 at the point it
would return. Nothing on the device decides when to stop.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm.certificate import Certificate, certify
from ufm.objective import (
    Objective,
    Point,
    Scaling,
    Variables,
    build_objective,
    scaling,
    to_point,
    to_variables,
)
from ufm.problem import Level, Problem, row_labels
from ufm.solvers.escape import escape
from ufm.solvers.judge import Judge, Limits
from ufm.solvers.rule import StepRule
from ufm.status import Status

Record = dict[str, Any]
Observer = Callable[[Variables, np.ndarray], dict[str, float]]

#: Times a run that overflowed is taken back, each time with a fourfold more cautious step.
RETREATS = 12
#: Times a run that moves without getting anywhere is given shorter steps before it counts as stalled.
CALMINGS = 3


@functools.partial(jax.jit, static_argnames="rule")
def advance(rule: StepRule, objective: Objective, state: Any, steps: jax.Array) -> Any:
    """Take ``steps`` steps of ``rule``; compiled once per rule and shapes, whatever the number of steps."""
    return jax.lax.fori_loop(0, steps, lambda _, inner: rule.step(objective, inner), state)


@functools.partial(jax.jit, static_argnames="rule")
def begin(rule: StepRule, objective: Objective, point: Point, caution: jax.Array) -> Any:
    """Return the state of ``rule`` at ``point``, compiled."""
    return rule.init(objective, point, caution)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where the loop ended."""

    variables: Variables
    certificate: Certificate
    status: Status
    steps: int
    history: tuple[Record, ...]


class Run:
    """One solve in progress: the device state, the last look at it, and the record."""

    def __init__(
        self,
        problem: Problem,
        level: Level,
        rule: StepRule,
        start: Variables,
        dtype: str,
        observe: Observer | None,
        report: Callable[[Record], None],
    ) -> None:
        self.problem, self.level, self.rule, self.dtype = problem, level, rule, dtype
        self.observe, self.report = observe, report
        self.labels = row_labels(problem, level)
        self.scales: Scaling = scaling(problem, level, rule.coordinates)
        self.objective: Objective = build_objective(problem, level, rule.coordinates, dtype)
        self.history: list[Record] = []
        self.started = time.perf_counter()
        self.steps, self.caution, self.retreats, self.calmed = 0, 1.0, 0, 0
        self.event: str | None = None
        self.restart(start)
        self.look()

    def restart(self, variables: Variables) -> None:
        """Begin again at a point, momentum forgotten."""
        point = to_point(variables, self.scales, self.dtype)
        self.state = begin(self.rule, self.objective, point, jnp.asarray(self.caution, self.dtype))
        self.variables = to_variables(self.rule.point(self.state), self.scales)

    def look(self) -> None:
        """Certify the current point and record what is seen."""
        point = self.variables
        self.certificate = certify(self.problem, point.weight, point.features, self.labels, point.bias)
        record: Record = {
            "step": self.steps,
            "objective": self.certificate.objective,
            "lower_bound": self.certificate.lower_bound,
            "relative_gap": self.certificate.relative_gap,
            "residual": self.certificate.residual,
            "seconds": time.perf_counter() - self.started,
            "event": self.event,
        }
        if self.observe is not None:
            record |= self.observe(point, self.labels)
        self.event = None
        self.history.append(record)
        self.report(record)

    def advance(self, steps: int) -> bool:
        """Take a chunk of steps; on overflow go back to its start with more caution. False if that is exhausted."""
        state = advance(self.rule, self.objective, self.state, jnp.asarray(steps, jnp.int32))
        variables = to_variables(self.rule.point(state), self.scales)
        if not all(np.all(np.isfinite(part)) for part in variables if part is not None):
            self.retreats += 1
            self.caution *= 4
            self.event = f"overflow: steps now {self.caution:g} times shorter"
            self.restart(self.variables)
            return self.retreats <= RETREATS
        self.state, self.variables = state, variables
        self.steps += steps
        return True

    def calm(self) -> bool:
        """Start again from here with steps a quarter as long; False once that has been tried often enough."""
        self.calmed += 1
        self.caution *= 4
        self.event = f"no progress: steps now {self.caution:g} times shorter"
        self.restart(self.variables)
        return self.calmed <= CALMINGS

    def try_escape(self) -> bool:
        """Make an escape move if one lowers the objective."""
        move = escape(self.problem, self.level, self.variables)
        if move is None:
            return False
        self.event = "escape: " + move.sentence
        self.restart(move.variables)
        self.look()
        return True


def drive(run: Run, limits: Limits, escapes: bool, record_every: int | None) -> Outcome:
    """Run chunks until the certificate is satisfied or nothing helps any more."""
    judge = Judge(limits, escapes, run.problem.loss.convex)
    while True:
        gap, residual = run.certificate.relative_gap, run.certificate.residual
        status = judge.finished(run.certificate)
        if status is None and judge.wants_escape(gap, residual, run.steps):
            if run.try_escape():
                judge.escaped()
                continue
            judge.refused(residual, run.steps)
        status = status or judge.gives_up(gap, residual, run.steps)
        if status is Status.STALLED and residual > limits.residual and run.calm():
            judge.escaped()
            status = None
        if status is None and not run.advance(_chunk(limits, run.steps, record_every)):
            status = Status.NONFINITE
        if status is not None:
            status = judge.verdict(run.certificate, status)
            return Outcome(run.variables, run.certificate, status, run.steps, tuple(run.history))
        run.look()


def _chunk(limits: Limits, steps: int, record_every: int | None) -> int:
    return limits.chunk(steps) if record_every is None else min(record_every, limits.max_steps - steps)
