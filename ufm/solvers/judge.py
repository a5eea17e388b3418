"""When a run is finished, stuck or not worth going on with: one set of rules for single solves and sweeps."""

from __future__ import annotations

import dataclasses
import math

from ufm.duality.certificate import Certificate
from ufm.solvers.status import Status

#: Without a gap to compare with, a point is suspected to be stuck when its residual is within this of the target.
NEARLY_STATIONARY = 1e2
#: Steps between two looks at the point: few at first, then a tenth of the steps so far.
FIRST_CHUNK = 20
#: A point is suspected to be stuck when the gap is this much larger than the squared residual explains.
STUCK_RATIO = 1e3
#: A run creeps when a look finds less than this share of the gap closed since the last one.
CREEP = 0.1
#: Looks without progress after which the run has stalled.
PATIENCE = 40


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        tol: relative duality gap to reach.
        residual: relative norm of the projected gradient to reach as well, because the geometry is only as
            exact as the square root of the gap.
        stationary: residual below which no further progress is possible in this precision.
        max_steps: step limit.
    """

    tol: float
    residual: float
    stationary: float
    max_steps: int

    def chunk(self, steps: int) -> int:
        """Return how many steps to take before the next look, after ``steps`` of them: an even number or all."""
        return min(max(FIRST_CHUNK, steps // 20 * 2), self.max_steps - steps)


class Judge:
    """The judgement of one run, asked in this order: is it finished, should it escape, should it give up."""

    def __init__(self, limits: Limits, escapes: bool, convex: bool) -> None:
        self.limits, self.escapes, self.convex = limits, escapes, convex
        self.escaped()

    def escaped(self, steps: int = -1) -> None:
        """Start afresh after an escape move at ``steps``: the next one only after more steps."""
        self.escaped_steps = steps
        self.best, self.idle = math.inf, 0
        self.objective, self.decrease = math.inf, math.inf
        self.refused_residual, self.refused_steps = math.inf, 0

    @property
    def memory(self) -> dict[str, float]:
        """What the judge remembers of the run, for a checkpoint."""
        settings = ("limits", "escapes", "convex")
        return {name: value for name, value in vars(self).items() if name not in settings}

    @memory.setter
    def memory(self, remembered: dict[str, float]) -> None:
        vars(self).update(remembered)

    def refused(self, residual: float, steps: int) -> None:
        """Remember that no escape move was found here: ask again only when the point is much more exact."""
        self.refused_residual, self.refused_steps = residual, steps

    def finished(self, certificate: Certificate) -> Status | None:
        """Return the status of a run that has reached all that was asked for, else None."""
        if not certificate.residual <= self.limits.residual:
            return None
        if certificate.certifies(self.limits.tol):
            return Status.CERTIFIED
        untried = self.escapes and self.refused_residual > NEARLY_STATIONARY * self.limits.residual
        # a loss without a gap is done where no escape move is found
        return None if self.convex or untried else Status.NO_CERTIFICATE

    def stuck(self, relative_gap: float, residual: float) -> bool:
        """Return whether the gap is too large for how stationary the point is."""
        if not self.convex:  # every point has an infinite gap; only near stationary ones can be stuck
            return residual <= NEARLY_STATIONARY * self.limits.residual
        return relative_gap > max(self.limits.tol, STUCK_RATIO * residual**2)

    def wants_escape(self, relative_gap: float, residual: float, steps: int) -> bool:
        """Return whether an escape move should be tried."""
        fresh = residual <= self.refused_residual / 10 or steps >= 2 * self.refused_steps
        fresh = fresh and steps > self.escaped_steps
        return self.escapes and fresh and self.stuck(relative_gap, residual)

    def creeps(self, objective: float, relative_gap: float, steps: int) -> bool:
        """Remember the objective; return whether at this rate the gap would take many more looks to close."""
        self.decrease, self.objective = max(self.objective - objective, 0.0), objective
        slow = self.convex and self.decrease < CREEP * relative_gap * objective
        return self.escapes and relative_gap > self.limits.tol and slow and steps >= 2 * self.refused_steps

    def gives_up(self, relative_gap: float, residual: float, steps: int) -> Status | None:
        """Count a look; return the status of a run in which nothing moves or the steps are used up."""
        merit = residual if self.stuck(relative_gap, residual) else min(residual, abs(relative_gap))
        self.best, self.idle = (merit, 0) if merit < 0.9 * self.best else (self.best, self.idle + 1)
        if self.idle >= PATIENCE or residual <= self.limits.stationary:
            return Status.STALLED
        return Status.MAX_STEPS if steps >= self.limits.max_steps else None

    def verdict(self, certificate: Certificate, status: Status) -> Status:
        """Return the final status: the certificate has the last word."""
        if certificate.certifies(self.limits.tol):
            return Status.CERTIFIED
        return status if self.convex or status is Status.NONFINITE else Status.NO_CERTIFICATE
