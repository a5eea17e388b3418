"""The one loop: compiled chunks of steps, and between chunks the host looks, decides, escapes and records.

The rule runs on the device in its own precision; the host evaluates the certificate in float64 at the point it
would return. Nothing on the device decides when to stop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm.certificate import Certificate, certify
from ufm.objective import Objective, Point, Scaling, Variables, build_objective, scaling, to_point, to_variables
from ufm.problem import Level, Problem, row_labels
from ufm.solvers.escape import escape
from ufm.solvers.rule import StepRule
from ufm.solvers.status import Status

Record = dict[str, Any]
Observer = Callable[[Variables, np.ndarray], dict[str, float]]

#: Steps between two looks at the point: few at first, then a tenth of the steps so far.
FIRST_CHUNK = 20
#: A point is suspected to be stuck when the gap is this much larger than the squared residual explains.
STUCK_RATIO = 1e3
#: Looks without progress after which the run has stalled.
PATIENCE = 40
#: Times a run that overflowed is taken back, each time with a fourfold more cautious step.
RETREATS = 12


@functools.partial(jax.jit, static_argnames="rule")
def advance(rule: StepRule, objective: Objective, state: Any, steps: jax.Array) -> Any:
    """Take ``steps`` steps of ``rule``; compiled once per rule and shapes, whatever the number of steps."""
    return jax.lax.fori_loop(0, steps, lambda _, inner: rule.step(objective, inner), state)


@functools.partial(jax.jit, static_argnames="rule")
def begin(rule: StepRule, objective: Objective, point: Point, caution: jax.Array) -> Any:
    """Return the state of ``rule`` at ``point``, compiled."""
    return rule.init(objective, point, caution)


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        tol: relative duality gap to reach.
        residual: relative norm of the projected gradient to reach as well, because the geometry is only as exact
            as the square root of the gap.
        stationary: residual below which no further progress is possible in this precision.
        max_steps: step limit.
    """

    tol: float
    residual: float
    stationary: float
    max_steps: int


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
        self.steps, self.caution, self.retreats = 0, 1.0, 0
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

    def try_escape(self) -> bool:
        """Make an escape move if one lowers the objective."""
        move = escape(self.problem, self.level, self.variables)
        if move is None:
            return False
        self.event = "escape: " + move.sentence
        self.restart(move.variables)
        self.look()
        return True

    def outcome(self, status: Status, tol: float) -> Outcome:
        """Return where the run stands; the certificate has the last word on the status."""
        if self.certificate.certifies(tol):
            status = Status.CERTIFIED
        elif status is not Status.NONFINITE and not self.problem.loss.convex:
            status = Status.NO_CERTIFICATE
        return Outcome(self.variables, self.certificate, status, self.steps, tuple(self.history))


def drive(run: Run, limits: Limits, escapes: bool, record_every: int | None) -> Outcome:
    """Run chunks until the certificate is satisfied or nothing helps any more."""
    best, idle, refused = math.inf, 0, (math.inf, 0)
    while True:
        certificate = run.certificate
        if certificate.certifies(limits.tol) and certificate.residual <= limits.residual:
            return run.outcome(Status.CERTIFIED, limits.tol)
        if certificate.residual <= limits.residual and not run.problem.loss.convex:
            return run.outcome(Status.NO_CERTIFICATE, limits.tol)
        stuck = certificate.relative_gap > max(limits.tol, STUCK_RATIO * certificate.residual**2)
        if escapes and stuck and (certificate.residual <= refused[0] / 10 or run.steps >= 2 * refused[1]):
            if run.try_escape():
                best, idle, refused = math.inf, 0, (math.inf, 0)
                continue
            refused = (certificate.residual, run.steps)
        merit = certificate.residual if stuck else min(certificate.residual, abs(certificate.relative_gap))
        best, idle = (merit, 0) if merit < 0.9 * best else (best, idle + 1)
        if idle >= PATIENCE or certificate.residual <= limits.stationary:
            return run.outcome(Status.STALLED, limits.tol)
        if run.steps >= limits.max_steps:
            return run.outcome(Status.MAX_STEPS, limits.tol)
        chunk = record_every or max(FIRST_CHUNK, run.steps // 10)
        if not run.advance(min(chunk, limits.max_steps - run.steps)):
            return run.outcome(Status.NONFINITE, limits.tol)
        run.look()
