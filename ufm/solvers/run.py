"""One task under way: what the host knows of it, and the rules by which it ends, escapes, goes back or gives up.

Between chunks of steps the device gives a cheap `Check` of every task. It decides only whether a certificate could
change anything; whether a task is certified, escapes or gives up is judged by its certificate, in float64.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

from ufm.duality.certificate import Certificate
from ufm.model.groups import GroupPoint
from ufm.model.objective import Variables
from ufm.solvers.escape import Move
from ufm.solvers.finish import MOST_EVALUATIONS, STUBBORN, late_from
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Record, Setup, Task

#: Without a gap to compare with, a point is suspected to be stuck when its residual is within this of the target.
NEARLY_STATIONARY = 1e2
#: A point is suspected to be stuck when the gap is this much larger than the squared residual explains.
STUCK_RATIO = 1e3
#: A run creeps when a look finds less than this share of the gap closed since the last one.
CREEP = 0.1
#: Where no escape is found a gap so many times the residual stays open: what further steps could close is of the
#: order of the residual. The point has to be so many times more exact than asked, unless it took so many steps.
OPEN, EXACT, SLOW = 1e5, 1e2, 1000
#: Looks without progress after which the run has stalled.
PATIENCE = 40
#: Times a run that overflowed or climbed is taken back, each time with a more cautious step.
RETREATS = 12
#: A chunk of a rule that should descend climbed if it ends above this many times where it began. Where steps are a
#: little too long for the stiffest direction, momentum never settles and the objective goes up and down by percents.
CLIMB = 1.01
#: Times a run that moves without getting anywhere is given shorter steps before it counts as stalled.
CALMINGS = 3
#: Before this many steps nothing is suspected to creep; after each suspicion, before twice as many.
FIRST_SUSPICION = 80

Action = Status | Literal["escape", "calm"] | None


class Run:
    """One task under way.

    Args:
        index: which of the tasks.
        task: the task.
        setup: what it shares with others: its step rule says whether it should never climb.
    """

    def __init__(self, index: int, task: Task, setup: Setup) -> None:
        self.index, self.task, self.descends = index, task, setup.rule.descends
        self.limits, self.convex = task.limits, task.problem.loss.convex
        self.late_from = late_from(task.problem, setup.level)
        self.steps, self.due = 0, task.chunk(0)
        self.caution, self.retreats, self.calmed, self.escapes = 1.0, 0, 0, 0
        self.latest, self.bound, self.suspicion = math.inf, -math.inf, FIRST_SUSPICION
        self.event: str | None = None
        self.tried_costly = False
        self.history: list[Record] = []
        self.before_look: dict[str, Any] = {}
        self.may_end = self.stuck = False
        self.started = time.perf_counter()
        self.start_afresh()

    def start_afresh(self, steps: int = -1) -> None:
        """Forget what was tried, after an escape move at ``steps``: the next one only after more steps."""
        self.escaped_steps = steps
        self.best, self.idle = math.inf, 0
        self.objective, self.decrease = math.inf, math.inf
        self.refused_residual, self.refused_steps = math.inf, 0

    @property
    def memory(self) -> dict[str, Any]:
        """What must be known to go on from a checkpoint."""
        fixed = ("index", "task", "descends", "limits", "convex", "late_from", "started", "before_look")
        kept = {name: value for name, value in vars(self).items() if name not in fixed}
        return kept | {"history": list(self.history)}

    @memory.setter
    def memory(self, remembered: dict[str, Any]) -> None:
        vars(self).update(remembered)
        if self.history:
            self.started = time.perf_counter() - self.history[-1]["seconds"]

    def passed(self, steps: int, objective: float) -> Literal["back", "due"] | None:
        """Count a chunk of steps: it has to be taken back, the point is due for a look, or neither."""
        if not math.isfinite(objective):
            self._retreat("overflow", 4)
            return "back"
        climb = CLIMB if self.steps > self.escaped_steps else 1.0  # what a move has gained is kept
        if self.descends and objective > climb * self.latest and self.retreats < RETREATS:
            self._retreat("climbed", 2)
            return "back"
        self.steps, self.latest = self.steps + steps, objective
        return "due" if self.steps >= self.due else None

    def _retreat(self, reason: str, factor: int) -> None:
        self.retreats += 1
        self.caution *= factor
        self.event = f"{reason}: steps now {self.caution:g} times shorter"

    @property
    def exhausted(self) -> bool:
        """Whether shorter steps have been tried often enough."""
        return self.retreats > RETREATS

    def wants_certificate(self, objective: float, residual: float, polar: float) -> bool:
        """Plan the next look, and return whether a certificate could change anything, given a check.

        Next to a point that is stuck, a class (or mixture) whose polar exceeds one by x promises a decrease of
        order x squared: that stands in for the gap.
        """
        if self.task.report is not None:  # only what is watched is ever kept in a checkpoint
            self.before_look = self.memory
        self.due = self.steps + self.task.chunk(self.steps)
        self.decrease, self.objective = max(self.objective - objective, 0.0), objective
        self.best, self.idle = (residual, 0) if residual < 0.9 * self.best else (self.best, self.idle + 1)
        stand_in = max(polar - 1, 0.0) ** 2 if self.convex else math.inf
        self.may_end = not residual > self.limits.residual or self.steps >= self.limits.max_steps
        return (
            self.task.record_every is not None
            or residual <= max(self.limits.residual, self.limits.stationary)
            or self.steps >= self.limits.max_steps
            or self.idle >= PATIENCE
            or self._wants_escape(stand_in, residual)
            or self._creeps((objective - self.bound) / objective if objective > 0 else math.inf, residual)
        )

    def judge(self, certificate: Certificate) -> Action:
        """Judge the point by its certificate: the end, an escape move, shorter steps, or nothing to do."""
        gap, residual = certificate.relative_gap, certificate.residual
        self.bound = max(self.bound, certificate.lower_bound)
        status = self.finished(certificate)
        self.stuck = status is None and self._wants_escape(gap, residual)
        if self.stuck or (status is None and self._creeps(gap, residual)):
            return "escape"
        if self.steps >= self.suspicion:
            late = self.late_from
            self.suspicion = min(2 * self.steps, late) if self.steps < late else 2 * self.steps
        return status or self._stay(certificate)

    @property
    def least(self) -> float:
        """By how much an escape move must lower the objective: more than a chunk of steps, if it creeps."""
        return 0.0 if self.stuck else self.decrease

    def refuse(self, certificate: Certificate, minimal: bool = False) -> Action:
        """Remember that there is no escape from here: ask again only when the point is much more exact.

        Args:
            certificate: of the point.
            minimal: whether a second-order method has found nothing better around it.
        """
        self.refused_residual, self.refused_steps = certificate.residual, self.steps
        return Status.STALLED if minimal and self._exact(certificate) else self._stay(certificate)

    def _exact(self, certificate: Certificate) -> bool:
        return certificate.residual <= self.limits.residual

    @property
    def late(self) -> bool:
        """Whether a second-order method may take over, from a rule that only wants to get down."""
        return self.descends and self.convex and self.steps >= self.late_from

    def second_order(self) -> tuple[int, bool]:
        """Return how many evaluations a second-order method may take, and whether it is time for the costly one.

        That is once, when the run has resisted the cheaper one.
        """
        costly = self.steps >= STUBBORN and not self.tried_costly
        self.tried_costly = self.tried_costly or costly
        return min(MOST_EVALUATIONS, 3 * self.steps, self.limits.max_steps - self.steps), costly

    def escaped(self, move: Move) -> None:
        """Start afresh after an escape move, which may have taken steps itself."""
        self.latest += self.limits.stationary * self.latest - move.decrease  # to rounding
        self.steps += min(move.steps, self.limits.max_steps - self.steps)
        self.due = self.steps + self.task.chunk(self.steps)
        self.suspicion = max(self.suspicion, self.steps + self.late_from if move.steps else 0)
        self.start_afresh(self.steps)
        self.escapes += 1
        self.may_end = self.may_end or move.steps > 0
        self.event = f"escape: {move.sentence}"

    def finished(self, certificate: Certificate) -> Status | None:
        """Return the status of a run that has reached all that was asked for, else None."""
        if not self._exact(certificate):
            return None
        if certificate.certifies(self.limits.tol):
            return Status.CERTIFIED
        untried = self.task.escapes and self.refused_residual > NEARLY_STATIONARY * self.limits.residual
        # a loss without a gap is done where no escape move is found
        return None if self.convex or untried else Status.NO_CERTIFICATE

    def _suspicious(self, relative_gap: float, residual: float) -> bool:
        """Return whether the gap is too large for how stationary the point is."""
        if not self.convex:  # every point has an infinite gap; only near stationary ones can be stuck
            return residual <= NEARLY_STATIONARY * self.limits.residual
        return relative_gap > max(self.limits.tol, STUCK_RATIO * residual**2)

    def _wants_escape(self, relative_gap: float, residual: float) -> bool:
        """Return whether an escape move should be tried."""
        fresh = residual <= self.refused_residual / 10 or self.steps >= 2 * self.refused_steps
        fresh = fresh and self.steps > self.escaped_steps
        return self.task.escapes and fresh and self._suspicious(relative_gap, residual)

    def _creeps(self, relative_gap: float, residual: float) -> bool:
        """Return whether at this rate the gap, or late on the residual, would take many more looks to close."""
        slow = self.late or self.decrease < CREEP * relative_gap * self.objective
        first = self.late and self.refused_steps < self.late_from
        again = self.late_from if first else 2 * self.refused_steps
        asked = self.steps >= max(self.suspicion, again)
        left = relative_gap > self.limits.tol or (self.late and residual > self.limits.residual)
        return self.task.escapes and asked and left and self.convex and slow

    def _stay(self, certificate: Certificate) -> Action:
        """Return the status of a run in which nothing moves or the steps are used up; first try shorter steps."""
        gap, residual = certificate.relative_gap, certificate.residual
        exact = self.limits.residual / (1 if self.steps >= SLOW else EXACT)
        refused = self.convex and self.refused_steps == self.steps
        if refused and residual <= exact and gap > OPEN * residual:
            return Status.STALLED
        merit = residual if self._suspicious(gap, residual) else min(residual, abs(gap))
        if merit < 0.9 * self.best:
            self.best, self.idle = merit, 0
        if self.idle >= PATIENCE or residual <= self.limits.stationary:
            return "calm" if residual > self.limits.residual and self._calm() else Status.STALLED
        return Status.MAX_STEPS if self.steps >= self.limits.max_steps else None

    def _calm(self) -> bool:
        """Shorten the steps to a quarter; False once that has been tried often enough."""
        self.calmed += 1
        self.caution *= 4
        self.event = f"no progress: steps now {self.caution:g} times shorter"
        self.start_afresh()
        return self.calmed <= CALMINGS

    def record(self, objective: float, residual: float, seen: dict[str, float]) -> None:
        """Add to the history, if there is one; the bound is the best so far, which holds for every point."""
        if self.task.report is None:
            return
        gap = (objective - self.bound) / objective if objective > 0 else math.inf
        record: Record = {
            "step": self.steps,
            "objective": objective,
            "lower_bound": self.bound,
            "relative_gap": gap,
            "residual": residual,
            "seconds": time.perf_counter() - self.started,
            "event": self.event,
        }
        self.event = None
        self.history.append(record | seen)
        self.task.report(self.history[-1])

    def end(self, point: Variables | GroupPoint, certificate: Certificate, status: Status) -> Outcome:
        """Return the end of the run: the certificate has the last word on the status."""
        if certificate.certifies(self.limits.tol):
            status = Status.CERTIFIED
        elif not self.convex and status is not Status.NONFINITE:
            status = Status.NO_CERTIFICATE
        return Outcome(point, certificate, status, self.steps, self.escapes, tuple(self.history))
