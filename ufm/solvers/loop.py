"""The one loop: compiled chunks of steps, and between chunks the host looks, decides, escapes and records.

The rule runs on the device in its own precision; the host evaluates the certificate in float64 at the point it
would return. Nothing on the device decides when to stop.
"""

from __future__ import annotations

import dataclasses

from ufm.duality.certificate import Certificate
from ufm.model.objective import Variables
from ufm.solvers.checkpoint import Checkpoints
from ufm.solvers.judge import Judge, Limits
from ufm.solvers.run import Record, Run
from ufm.solvers.status import Status


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where the loop ended."""

    variables: Variables
    certificate: Certificate
    status: Status
    steps: int
    history: tuple[Record, ...]


def drive(
    run: Run,
    limits: Limits,
    escapes: bool,
    record_every: int | None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
) -> Outcome:
    """Run chunks until the certificate is satisfied or nothing helps any more."""
    judge = Judge(limits, escapes, run.problem.loss.convex)
    if checkpoints is not None and resume:
        checkpoints.restore(run, judge)
    while True:
        gap, residual = run.certificate.relative_gap, run.certificate.residual
        status = judge.finished(run.certificate)
        creeps = judge.creeps(run.certificate.objective, gap, run.steps)
        stuck = judge.wants_escape(gap, residual, run.steps)
        if status is None and (stuck or creeps):
            if run.try_escape(0.0 if stuck else judge.decrease):
                judge.escaped(run.steps)
                continue
            judge.refused(residual, run.steps)
        status = status or judge.gives_up(gap, residual, run.steps)
        if status is Status.STALLED and residual > limits.residual and run.calm():
            judge.escaped()
            status = None
        if status is None and not run.advance(_chunk(limits, run.steps, record_every)):
            status = Status.NONFINITE
        if status is not None:
            if (
                checkpoints is not None
                and status is not Status.NONFINITE
                and checkpoints.last_step != run.steps
            ):
                checkpoints.keep(run, judge, now=True)
            status = judge.verdict(run.certificate, status)
            return Outcome(run.variables, run.certificate, status, run.steps, tuple(run.history))
        run.look()
        if checkpoints is not None:
            checkpoints.keep(run, judge, now=run.steps >= limits.max_steps)


def _chunk(limits: Limits, steps: int, record_every: int | None) -> int:
    return limits.chunk(steps) if record_every is None else min(record_every, limits.max_steps - steps)
