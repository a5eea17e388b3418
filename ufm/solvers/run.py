"""One solve in progress: the state on the device, and what the host sees of it between chunks of steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ufm.duality.certificate import Certificate, certify
from ufm.model.devices import choose_layout
from ufm.model.objective import (
    Objective,
    Scaling,
    Variables,
    build_objective,
    scaling,
    to_point,
    to_variables,
)
from ufm.model.problem import Level, Problem, row_labels
from ufm.model.processes import agreed
from ufm.solvers.compiled import advance, begin, value
from ufm.solvers.escape import escape
from ufm.solvers.rule import StepRule

Record = dict[str, Any]
Observer = Callable[[Variables, np.ndarray], dict[str, float]]

#: Times a run that overflowed or climbed is taken back, each time with a more cautious step.
RETREATS = 12
#: A chunk of a rule that should descend climbed if it ends above this many times where it began.
CLIMB = 2.0
#: Times a run that moves without getting anywhere is given shorter steps before it counts as stalled.
CALMINGS = 3


class Run:
    """One solve in progress: the device state, the last look at it, and the record."""

    def __init__(
        self,
        problem: Problem,
        level: Level,
        rule: StepRule,
        start: Callable[[], Variables],
        dtype: str,
        observe: Observer | None,
        report: Callable[[Record], None],
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.problem, self.level, self.rule, self.dtype = problem, level, rule, dtype
        self.observe, self.report = observe, report
        self.labels = row_labels(problem, level)
        self.scales: Scaling = scaling(problem, level, rule.coordinates)
        self.layout = None
        if level == "sample":
            self.layout = choose_layout(len(self.labels), problem.dim, jnp.dtype(dtype).itemsize, devices)
        self.objective: Objective = build_objective(problem, level, rule.coordinates, dtype, self.layout)
        self.history: list[Record] = []
        self.started = time.perf_counter()
        self.steps, self.caution, self.retreats, self.calmed = 0, 1.0, 0, 0
        self.event: str | None = None
        self.variables = start()
        self.restart()
        self.look()

    def restart(self) -> None:
        """Begin again at `variables`, momentum forgotten."""
        point = to_point(self.variables, self.scales, self.dtype, self.layout)
        del self.variables  # before twice as much is made on the device: features may be large
        self.state = begin(self.rule, self.objective, point, jnp.asarray(self.caution, self.dtype))
        self.variables = to_variables(self.rule.point(self.state), self.scales)

    def look(self) -> None:
        """Certify the current point and record what is seen."""
        point = self.variables
        seen = certify(self.problem, point.weight, point.features, self.labels, point.bias)
        self.certificate = Certificate(*agreed(dataclasses.astuple(seen)))
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
        """Take a chunk of steps; go back if it overflowed or climbed. False if an overflow cannot be avoided."""
        state = advance(self.rule, self.objective, self.state, steps)
        now = float(value(self.objective, self.rule.point(state)))
        if not math.isfinite(now):
            self.retreat("overflow", 4)
            return self.retreats <= RETREATS
        if self.rule.descends and now > CLIMB * self.certificate.objective and self.retreats < RETREATS:
            self.retreat("climbed", 2)
            return True
        self.state = state
        del self.variables  # before the next are made: features may be large
        self.variables = to_variables(self.rule.point(state), self.scales)
        self.steps += steps
        return True

    def retreat(self, reason: str, factor: int) -> None:
        """Start again from the last look with steps ``factor`` times shorter."""
        self.retreats += 1
        self.caution *= factor
        self.event = f"{reason}: steps now {self.caution:g} times shorter"
        self.restart()

    def calm(self) -> bool:
        """Start again from here with steps a quarter as long; False once that has been tried often enough."""
        self.calmed += 1
        self.caution *= 4
        self.event = f"no progress: steps now {self.caution:g} times shorter"
        self.restart()
        return self.calmed <= CALMINGS

    def try_escape(self, least: float) -> bool:
        """Make an escape move if one lowers the objective by more than ``least``."""
        move = escape(self.problem, self.level, self.variables)
        if not agreed(move is not None and move.decrease > least):
            return False
        self.variables = agreed(self.variables if move is None else move.variables)
        self.event = "escape" if move is None else "escape: " + move.sentence
        del move
        self.restart()
        self.look()
        return True
