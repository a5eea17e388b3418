"""What is to be solved, until when, and what the caller wants to see of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm.duality.certificate import Certificate
from ufm.model.groups import GroupPoint
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem
from ufm.solvers.limits import Limits, Precision
from ufm.solvers.rule import StepRule
from ufm.solvers.status import Status

Record = dict[str, Any]
Observer = Callable[[Variables, np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One problem to solve.

    Attributes:
        problem: the problem.
        limits: when to stop.
        seed: of the random start.
        start: makes the start, where it is not random.
        escapes: whether to use escape moves when stuck.
        report: is given every record of the history; None where no history is wanted.
        record_every: steps between two records, each with a certificate of its own; None: few at first, growing with
            the run, a certificate only where it could end the run, free it, or give it up.
        observe: adds to every record what it sees of the point.
        starts: how many random starts to try until one is certified (`ufm.solvers.starts`).
    """

    problem: Problem
    limits: Limits
    seed: int = 0
    start: Callable[[], Variables] | None = None
    escapes: bool = True
    report: Callable[[Record], None] | None = None
    record_every: int | None = None
    observe: Observer | None = None
    starts: int = 1

    def chunk(self, steps: int) -> int:
        """Return how many steps to take before the next look."""
        if self.record_every is None:
            return self.limits.chunk(steps)
        return min(self.record_every, self.limits.max_steps - steps)


class Setup(NamedTuple):
    """What all tasks of a run share: everything that is compiled in.

    Attributes:
        level: level of the feature rows.
        rule: the step rule.
        dtype: the floating-point type that the rule runs in.
        devices: devices that share the samples of one task, or several tasks; all that JAX sees if None.
    """

    level: Level
    rule: StepRule
    dtype: Precision
    devices: Sequence[jax.Device] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where one task ended.

    Attributes:
        point: the point; at group level in the form that is as small as the groups are few.
        certificate: its certificate.
        status: why it stopped.
        steps: number of steps taken.
        escapes: number of escape moves made.
        history: the records, if they were wanted.
    """

    point: Variables | GroupPoint
    certificate: Certificate
    status: Status
    steps: int
    escapes: int
    history: tuple[Record, ...] = ()

    @property
    def variables(self) -> Variables:
        """The point in full size."""
        return self.point.variables if isinstance(self.point, GroupPoint) else self.point
