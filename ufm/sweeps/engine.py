"""Solve many problems of equal shape at once: the same steps and the same certificate as one.

Between chunks the device gives a cheap `Glance` at every member. It decides only when to look closer; whether a
member is certified, escapes or gives up is judged on its own certificate, in float64 NumPy, as in a single solve.
What a glance does not show is left out: a member that creeps (`Judge.creeps`), as slow step rules do near a stuck
point, is not tried for an escape, and one that stalls is not given shorter steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax

from ufm.duality.certificate import Certificate
from ufm.model.objective import Variables
from ufm.solvers.judge import Judge
from ufm.solvers.run import RETREATS
from ufm.solvers.solve import _precision
from ufm.solvers.status import Status
from ufm.sweeps.batch import Batch
from ufm.sweeps.certify_many import certify_many
from ufm.sweeps.escape_many import escape_many
from ufm.sweeps.member import Member
from ufm.sweeps.pool import Pool, fill_pool
from ufm.sweeps.stack import points_at


@dataclasses.dataclass(frozen=True)
class Solved:
    """Where one member ended.

    Attributes:
        variables: the point.
        certificate: its certificate.
        status: why it stopped.
        steps: number of steps taken.
        escapes: number of escape moves made.
    """

    variables: Variables
    certificate: Certificate
    status: Status
    steps: int
    escapes: int


class _Course:
    """One member under way: what the host keeps about it."""

    def __init__(self, index: int, member: Member) -> None:
        self.index, self.member = index, member
        self.judge = Judge(member.limits, member.fields["escapes"], member.problem.loss.convex)
        self.steps, self.due, self.escapes, self.retreats, self.caution = 0, 0, 0, 0, 1.0
        self.schedule()

    def schedule(self) -> None:
        """Plan the next look, as in a single solve."""
        self.due = self.steps + self.judge.limits.chunk(self.steps)

    def deserves_look(self, residual: float, polar: float) -> bool:
        """Return whether a certificate could change anything, given a glance.

        Next to a point that is stuck, a class (or mixture) whose polar exceeds one by x promises a decrease of
        order x squared: that stands in for the gap.
        """
        stand_in = max(polar - 1, 0.0) ** 2 if self.judge.convex else math.inf
        return (
            residual <= self.judge.limits.residual
            or self.judge.wants_escape(stand_in, residual, self.steps)
            or self.judge.gives_up(math.inf, residual, self.steps) is not None
        )

    def look(self, certificate: Certificate) -> Status | Literal["escape"] | None:
        """Judge the point by its certificate: the end, an escape move, or nothing to do."""
        gap, residual = certificate.relative_gap, certificate.residual
        status = self.judge.finished(certificate)
        if status is None and self.judge.wants_escape(gap, residual, self.steps):
            return "escape"
        return status or self.stay(certificate)

    def stay(self, certificate: Certificate) -> Status | None:
        """Remember that there is no escape from here, and return the status of a course that gives up."""
        self.judge.refused(certificate.residual, self.steps)
        return self.judge.gives_up(certificate.relative_gap, certificate.residual, self.steps)

    def escaped(self) -> None:
        """Start afresh after an escape move."""
        self.judge.escaped()
        self.escapes += 1

    def end(self, variables: Variables, certificate: Certificate, status: Status) -> Solved:
        """Return the end of the course; the certificate has the last word on the status."""
        return Solved(
            variables, certificate, self.judge.verdict(certificate, status), self.steps, self.escapes
        )

    def retreat(self, variables: Variables) -> Solved | Variables:
        """After an overflow: go on more cautiously from the point before, or end there if that is exhausted."""
        self.retreats += 1
        self.caution *= 4
        if self.retreats <= RETREATS:
            return variables
        stacked = points_at(variables, None)
        return self.end(variables, certify_many([self.member], stacked)[0], Status.NONFINITE)


class _Lane:
    """One batch of courses with a chunk under way on the device."""

    def __init__(
        self, pool: Pool, courses: list[_Course], width: int, sharding: jax.sharding.NamedSharding | None
    ) -> None:
        self.courses, self.width = courses, width
        self.batch = Batch(pool, [course.index for course in courses], width, sharding)
        self.advance()

    def advance(self) -> None:
        """Send the next chunk on its way: no course is taken beyond its next look."""
        self.chunk = min(course.due - course.steps for course in self.courses)
        self.batch.advance(self.chunk)

    def turn(self, waiting: deque[_Course]) -> dict[int, Solved]:
        """Judge all courses after the chunk, fill free slots, send the next chunk; return what has ended."""
        restarts: dict[int, Variables] = {}
        ended: dict[int, Solved] = {}
        for slot, result in self._results():
            if isinstance(result, Solved):
                ended[slot] = result
            else:
                restarts[slot] = result
        solved = {self.courses[slot].index: result for slot, result in ended.items()}
        kept = [slot for slot in range(len(self.courses)) if slot not in ended]
        places = {slot: place for place, slot in enumerate(kept)}
        again = {places[slot]: (start, self.courses[slot].caution) for slot, start in restarts.items()}
        new = [waiting.popleft() for _ in range(min(self.width - len(kept), len(waiting)))]
        self.courses = [self.courses[slot] for slot in kept] + new
        if self.courses and (ended or new or again):
            self.batch.renew(kept, [course.index for course in new], again)
        if self.courses:
            self.advance()
        return solved

    def _results(self) -> Iterator[tuple[int, Solved | Variables]]:
        """Yield (slot, end or new start) of the courses for which something happens."""
        residuals, polars = (part.tolist() for part in self.batch.glance())
        overflowed, looked = [], []
        for slot, course in enumerate(self.courses):
            if not math.isfinite(residuals[slot]):
                overflowed.append(slot)
                continue
            course.steps += self.chunk
            if course.steps >= course.due:
                if course.deserves_look(residuals[slot], polars[slot]):
                    looked.append(slot)
                course.schedule()
        if overflowed:
            points = self.batch.variables(overflowed, before=True)
            for i, slot in enumerate(overflowed):
                yield slot, self.courses[slot].retreat(points_at(points, i))
        if looked:
            yield from self._looks(looked)

    def _looks(self, slots: Sequence[int]) -> Iterator[tuple[int, Solved | Variables]]:
        """Yield (slot, end or new start) of the courses that a certificate ends or that escape."""
        courses, points = [self.courses[slot] for slot in slots], self.batch.variables(slots)
        certificates = certify_many([course.member for course in courses], points)
        views = [course.look(certificate) for course, certificate in zip(courses, certificates, strict=True)]
        stuck = [i for i, view in enumerate(views) if view == "escape"]
        moves: list[Variables | None] = []
        if stuck:
            moves = escape_many([courses[i].member for i in stuck], points_at(points, stuck))
        for i, move in zip(stuck, moves, strict=True):
            if move is None:
                views[i] = courses[i].stay(certificates[i])
            else:
                courses[i].escaped()
                yield slots[i], move
        for i, view in enumerate(views):
            if isinstance(view, Status):
                yield slots[i], courses[i].end(points_at(points, i), certificates[i], view)


def solve_together(
    members: Sequence[Member],
    width: int,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Callable[[int], None] = lambda members: None,
) -> list[Solved]:
    """Solve members of equal `Member.shape`, at most ``width`` at a time, from their random starts.

    They travel in two lanes, so that the device works on one while the host judges the other.

    Args:
        members: the members.
        width: how many share the device at a time, both lanes together.
        sharding: how to spread each lane over devices; None for the default device.
        report: called with the number of members solved, now and then.

    Returns:
        One result per member, in order.
    """
    solved: dict[int, Solved] = {}
    half = math.ceil(width / 2)
    with _precision(members[0].precision):
        pool = fill_pool(members)
        waiting = deque(_Course(i, member) for i, member in enumerate(members))
        lanes: list[_Lane] = []
        while waiting and len(lanes) < 2:
            taken = [waiting.popleft() for _ in range(min(half, len(waiting)))]
            lanes.append(_Lane(pool, taken, half, sharding))
        while lanes:
            for lane in lanes:
                ended = lane.turn(waiting)
                solved |= ended
                report(len(ended))
            lanes = [lane for lane in lanes if lane.courses]
    return [solved[i] for i in range(len(members))]
