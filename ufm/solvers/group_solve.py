"""Solve at group level: chunks of compiled steps, a cheap check after each, the certificate where it matters."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm.duality.certificate import Certificate
from ufm.duality.groups import GroupDual
from ufm.model.groups import GroupObjective, Groups, expand_point, group_start, groups_of
from ufm.model.objective import Point, Variables
from ufm.model.problem import Problem
from ufm.solvers.accelerated import Accelerated
from ufm.solvers.compiled import advance, begin
from ufm.solvers.group_escape import MARGIN, group_escape
from ufm.solvers.run import CLIMB
from ufm.solvers.status import Status

#: Steps before the first escape move, and between two of them.
FIRST_ESCAPE = 40
#: Steps between two checks: few at first, then a tenth of the steps so far.
FIRST_CHUNK = 20
#: A gap this much larger than the squared residual explains says that the point is stuck.
STUCK_RATIO = 1e3
#: Looks without progress after which nothing more is to be expected.
PATIENCE = 20
#: Steps of a chunk that climbed are made this many times shorter.
CALMER = 2.0


class Check(NamedTuple):
    """Cheap numbers from the device: objective, relative residual, and the length of the longest row of A."""

    objective: Any
    residual: Any
    longest: Any


@dataclasses.dataclass(frozen=True, eq=False)
class GroupSolution:
    """A point of the algebra with its certificate; ``(W, H, b)`` is made when asked for.

    Attributes:
        problem: the problem.
        groups: its groups.
        point: balanced classifier, features and bias, stored elements of the algebra.
        certificate: what is known about the point.
        status: why the solver stopped.
        steps: number of steps.
        events: escape moves and retreats, with the step that they came after.
    """

    problem: Problem
    groups: Groups
    point: Point
    certificate: Certificate
    status: Status
    steps: int
    events: tuple[tuple[int, str], ...]

    @functools.cached_property
    def variables(self) -> Variables:
        """``(W, H, b)`` with one row of features per class."""
        return expand_point(self.problem, self.groups, self.point)


@jax.jit
def check(objective: GroupObjective, point: Point) -> Check:
    """Return what the device knows of a point; compiled."""
    gradient, slopes = objective.gradient(point), objective.slopes(point)
    features = gradient.features
    if objective.nonnegative:
        features = jnp.where(point.features > 0, features, jnp.minimum(features, 0))
    parts = (gradient.weight, features, gradient.bias)
    square = sum(jnp.vdot(part, part) for part in parts if part is not None)
    value = objective.value(point)
    lengths = jnp.sqrt(jnp.sum(objective.algebra.times * slopes**2, axis=1))
    scales = objective.loss_weights * objective.logit_scales
    return Check(value, jnp.sqrt(square / (2 * value)), jnp.max(scales * lengths))


def solve_groups(
    problem: Problem,
    seed: int = 0,
    tol: float = 1e-8,
    residual: float = 1e-7,
    max_steps: int = 100_000,
    start: Point | None = None,
) -> GroupSolution:
    """Minimise the objective on the algebra of a problem's groups, and certify the answer for the whole problem.

    Args:
        problem: a problem with ``dim >= K`` and a loss that is `grouped`.
        seed: of the random start.
        tol: relative gap to certify.
        residual: relative projected gradient to reach as well.
        max_steps: limit on the number of steps.
        start: a balanced point of the algebra to start from.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        groups = groups_of(problem)
        run = _Run(problem, groups, group_start(problem, groups, seed) if start is None else start)
        return run.drive(tol, residual, max_steps)


class _Run:
    """One solve in progress."""

    def __init__(self, problem: Problem, groups: Groups, start: Point) -> None:
        self.problem, self.groups, self.rule = problem, groups, Accelerated()
        self.dual = GroupDual.of(problem, groups)
        self.objective = jax.device_put(self.dual.objective)
        self.steps, self.caution = 0, 1.0
        self.events: list[tuple[int, str]] = []
        self.begin(start)

    def begin(self, point: Point, event: str | None = None) -> None:
        """Start afresh at a point, momentum forgotten."""
        device = jax.tree.map(jnp.array, point)  # a copy: the state takes its memory
        self.state = begin(self.rule, self.objective, device, jnp.asarray(self.caution))
        self.escaped, self.refused, self.decrease = self.steps, math.inf, math.inf
        self.best, self.idle = math.inf, 0
        self.seen = Check(*map(float, check(self.objective, self.rule.point(self.state))))
        if event is not None:
            self.events.append((self.steps, event))

    @property
    def point(self) -> Point:
        """The point in NumPy."""
        return jax.tree.map(np.asarray, self.rule.point(self.state))

    def advance(self, steps: int) -> bool:
        """Take a chunk of steps; begin again with shorter ones if it climbed. False if that does not help."""
        before, last = self.point, self.seen
        self.state = advance(self.rule, self.objective, self.state, steps)
        self.seen = Check(*map(float, check(self.objective, self.rule.point(self.state))))
        if not self.seen.objective <= CLIMB * last.objective:
            self.caution *= CALMER
            self.begin(before, f"climbed: steps now {self.caution:g} times shorter")
            return self.caution < CALMER**12
        self.decrease = last.objective - self.seen.objective
        self.steps += steps
        return True

    def drive(self, tol: float, residual: float, max_steps: int) -> GroupSolution:
        """Go on until the certificate is satisfied or nothing helps any more."""
        while True:
            certificate, status = self.look(tol, residual)
            if status is None and self.steps >= max_steps:
                status = Status.MAX_STEPS
            if status is None and not self.advance(
                min(max(FIRST_CHUNK, self.steps // 20 * 2), max_steps - self.steps)
            ):
                status = Status.NONFINITE
            if status is not None:
                certificate = certificate or self.dual.certify(self.point)
                if certificate.certifies(tol):
                    status = Status.CERTIFIED
                found = (self.point, certificate, status, self.steps, tuple(self.events))
                return GroupSolution(self.problem, self.groups, *found)

    def look(self, tol: float, residual: float) -> tuple[Certificate | None, Status | None]:
        """Look at the point: escape if that helps more than steps do, certify if that could be the end."""
        seen = self.seen
        certificate: Certificate | None = None
        merit = seen.residual
        self.best, self.idle = (merit, 0) if merit < 0.9 * self.best else (self.best, self.idle + 1)
        violated = self.problem.loss.convex and seen.longest > 1 + 1e3 * MARGIN + seen.residual
        near = seen.residual <= residual or self.idle >= PATIENCE
        if near:
            certificate = self.dual.certify(self.point, tol)
            if certificate.residual <= residual and certificate.certifies(tol):
                return certificate, Status.CERTIFIED
        open_gap = certificate is not None and certificate.relative_gap > max(tol, STUCK_RATIO * merit**2)
        rested = self.steps >= self.escaped + FIRST_ESCAPE or (near and self.steps not in dict(self.events))
        worth = self.decrease < self.refused / 4 or near
        if (violated or open_gap) and rested and worth:
            move = group_escape(self.dual, self.point, 0.0 if open_gap else max(self.decrease, 0.0))
            if move is not None:
                self.begin(move.point, move.sentence)
                return None, None
            self.refused = self.decrease
        if self.idle >= PATIENCE or seen.residual <= 1e-14:
            return certificate, Status.STALLED
        return certificate, None
