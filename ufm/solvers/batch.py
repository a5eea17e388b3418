"""Tasks on the device: one by itself, at group level too, or many of equal shape side by side.

The step rule is the same, under `jax.vmap` for many. Between chunks tasks that have ended leave and waiting ones take
their places; when none wait a batch shrinks through a few sizes, so that few are ever compiled. All kinds have
the same interface, in which everything has a leading axis of tasks: how points are judged and left is theirs to say.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ufm.duality.certificate import Certificate, certificates
from ufm.duality.groups import GroupDual
from ufm.model.devices import choose_layout
from ufm.model.groups import GroupPoint, group_objective, group_start, groups_of
from ufm.model.objective import Point, Scaling, Variables, to_point, to_variables
from ufm.model.problem import Problem
from ufm.model.stack import Stack, build_objective, member, scaling
from ufm.solvers.compiled import (
    Check,
    Units,
    advance,
    begin,
    begin_many,
    begin_some,
    check_rows,
    chunk_of_many,
    chunk_of_one,
    take,
    units_of,
)
from ufm.solvers.escape import Move, escape_all
from ufm.solvers.finish import MANY, row_vector, second_order
from ufm.solvers.group_escape import group_escape
from ufm.solvers.task import Setup, Task
from ufm.solvers.vectors import Vector

#: Factor between the sizes that a batch passes through as members leave it, and the smallest one per device.
SHRINK = 4
SMALLEST = 16
#: Points that a CPU keeps in its cache, in bytes; what a step needs besides is several times as large.
BLOCK_BYTES = 1 << 18
#: Where tasks begin again: place -> a box with the point, emptied by whoever takes it, and how cautiously.
Restarts = Mapping[int, tuple[list[Any], float]]


class _Stacked:
    """What is done on the host with points that are stacked ``(W, H, b)``."""

    stack: Stack
    #: Whether the point to go back to is that of the last certificate, not the one before the last chunk.
    goes_far_back = False

    def stack_of(self, problems: Sequence[Problem]) -> Stack:
        """Return some of the problems side by side."""
        return Stack(problems, self.stack.level)

    def certify(
        self, problems: Sequence[Problem], points: Any, tol: Any, residual: Any, thorough: bool
    ) -> list[Certificate]:
        """Return the certificates of points."""
        return certificates(self.stack_of(problems), points, tol, residual, thorough)

    def escapes(self, problems: Sequence[Problem], points: Any, least: Sequence[float]) -> list[Move | None]:
        """Return for every point a move that lowers its objective (if only by less than ``least``), or None."""
        return escape_all(self.stack_of(problems), points)

    def descent(self, problem: Problem, point: Any, steps: int, costly: bool) -> Move | None:
        """Return where so many steps of a second-order method lead from a point (`second_order`)."""
        used = np.any(point.features, axis=0)  # nothing else moves a coordinate that no row has
        if (len(point.weight) + len(point.features)) * np.count_nonzero(used) > MANY or not np.any(used):
            return None
        own = point._replace(weight=point.weight[:, used], features=point.features[:, used])
        move = second_order(row_vector(problem, self.stack.level, own), steps, costly)
        if move is None or not move.steps:
            return move
        own = to_variables(move.point, scaling(problem, self.stack.level, "balanced"))
        weight, features = np.zeros_like(point.weight), np.zeros_like(point.features)
        weight[:, used], features[:, used] = own.weight, own.features
        return dataclasses.replace(move, point=Variables(weight, features, own.bias))

    def answer(self, point: Any) -> Variables | GroupPoint:
        """Return a point as the answer of a task."""
        return point


class Alone(_Stacked):
    """One task on the device; at sample level its rows are spread over devices and worked through in blocks.

    Features may fill most of the memory there, so that they are given up before the next ones are made.
    """

    def __init__(self, task: Task, setup: Setup) -> None:
        problem, self.rule, self.dtype = task.problem, setup.rule, setup.dtype
        self.stack = Stack([problem], setup.level)
        self.scales = scaling(problem, setup.level, self.rule.coordinates)
        self.layout = None
        if setup.level == "sample":
            rows = self.stack.labels.shape[1]
            self.layout = choose_layout(rows, problem.dim, jnp.dtype(self.dtype).itemsize, setup.devices)
        self.objective = build_objective(problem, setup.level, self.rule.coordinates, self.dtype, self.layout)
        units = units_of(self.stack, self.stack.scaling(self.rule.coordinates), self.dtype)
        self.goes_far_back = self.layout is not None
        self._place(jax.tree.map(lambda part: part[0], units))
        self.host: list[Variables] = []
        self._begin(self._inward(_start(task, self.stack)), 1.0)

    def _place(self, units: Units) -> None:
        """Put what stays the same on the device; without a layout a copy in NumPy is what runs begin with."""
        everywhere = None if self.layout is None else self.layout.replicated
        self.at_rest, self.units = self.objective, jax.device_put(units, everywhere)
        if self.layout is None:
            self.objective = jax.device_put(self.objective)

    def _begin(self, point: Any, caution: float) -> None:
        cautious = np.asarray(caution, self.dtype)
        if self.layout is None:  # in NumPy: nothing to compile
            self.state = jax.device_put(self.rule.init(self.at_rest, point, cautious))
        else:
            self.state = begin(self.rule, self.objective, point, cautious)
        self.before: Any = None
        self.fresh, self.kept = True, None
        self._keep()

    def _keep(self) -> None:
        """Where features are large, keep the point on the host, fetched once: a step overwrites it on the device."""
        point = self.rule.point(self.state)
        if self.layout is not None and self.kept is not point.features:
            self.kept = point.features
            self.host.clear()
            self.host.append(self._outward(point))

    def advance(self, steps: int) -> None:
        """Take a chunk of steps."""
        self.fresh = False
        if self.layout is not None:
            if steps:
                self.state = advance(self.rule, self.objective, self.state, steps)
            self.seen = check_rows(self.objective, self.rule.point(self.state), self.units)
            return
        self.before = self.rule.point(self.state)
        count = np.int32(steps)
        self.state, self.seen = chunk_of_one(self.rule, self.objective, self.units, self.state, count)

    def check(self) -> Check:
        """Return the check of the chunk."""
        return Check(*(np.asarray(part, np.float64)[None] for part in self.seen))

    def variables(self, slots: Sequence[int], before: bool = False) -> Any:
        """Return the point now, or before the last chunk, in float64."""
        if self.layout is None:
            point = self.before if before and self.before is not None else self.rule.point(self.state)
            return member(self._outward(jax.tree.map(np.asarray, point)), None)
        if not before:
            self._keep()
        return member(self.host[0], None)

    def renew(self, kept: Sequence[int], new: Sequence[int], restarts: Restarts) -> None:
        """Begin again where that is asked for."""
        for box, caution in restarts.values():
            self.host.clear()
            self._begin(self._inward(box.pop()), caution)

    def _inward(self, point: Any) -> Point:
        return to_point(point, self.scales, self.dtype, self.layout)

    def _outward(self, point: Point) -> Any:
        return to_variables(point, self.scales)


class Grouped(Alone):
    """One task at group level; its points are stored elements of the algebra of its groups."""

    def __init__(self, task: Task, setup: Setup) -> None:
        problem, self.rule, self.dtype = task.problem, setup.rule, setup.dtype
        groups = groups_of(problem)
        self.stack, self.layout, self.host = Stack([problem], setup.level), None, []
        self.dual = GroupDual.of(problem, groups)
        self.objective = group_objective(problem, groups, self.dtype)
        self._place(Units(self.objective.logit_scales, np.ones((), self.dtype)))
        start = group_start(problem, groups, task.seed) if task.start is None else task.start()
        self._begin(self._inward(start), 1.0)

    def _inward(self, point: Any) -> Point:
        return jax.tree.map(lambda part: np.asarray(part, self.dtype), point)

    def _outward(self, point: Point) -> Point:
        return jax.tree.map(lambda part: np.asarray(part, np.float64), point)

    def certify(
        self, problems: Sequence[Problem], points: Any, tol: Any, residual: Any, thorough: bool
    ) -> list[Certificate]:
        """Return the certificate of the point."""
        return [self.dual.certify(member(points, 0), -math.inf if thorough else float(tol[0]))]

    def escapes(self, problems: Sequence[Problem], points: Any, least: Sequence[float]) -> list[Move | None]:
        """Return a move that lowers the objective by more than ``least``, or None."""
        return [group_escape(self.dual, member(points, 0), least[0])]

    def descent(self, problem: Problem, point: Any, steps: int, costly: bool) -> Move | None:
        """Return where so many steps of a second-order method lead from a point (`second_order`)."""
        return second_order(Vector(self.dual.objective, point), steps, costly)

    def answer(self, point: Any) -> GroupPoint:
        """Return the point as the answer of the task."""
        return GroupPoint(self.dual.problem, self.dual.groups, point)


class Many(_Stacked):
    """Tasks of equal shape on the device, each in a slot; the slots after them are padding.

    Args:
        tasks: all there are.
        chosen: which of them to begin with.
        width: the largest number of members there will ever be.
        setup: what they share.
        sharding: how to spread them over devices; None for the default device.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        chosen: Sequence[int],
        width: int,
        setup: Setup,
        sharding: jax.sharding.NamedSharding | None = None,
    ) -> None:
        self.tasks, self.rule, self.dtype, self.sharding = tasks, setup.rule, setup.dtype, sharding
        self.nonnegative = tasks[0].problem.features == "nonnegative"
        self.stack = Stack([task.problem for task in tasks], setup.level)
        self.scales: Scaling = self.stack.scaling(self.rule.coordinates)
        self.fields = (
            self.stack.objective_arrays(self.scales, self.dtype),
            units_of(self.stack, self.scales, self.dtype),
        )
        self.sizes = sizes(width, 1 if sharding is None else sharding.num_devices)
        self.members = np.zeros(0, dtype=np.int64)
        self.states: Any = None
        self.renew([], chosen, {})

    @property
    def points(self) -> Any:
        """The points of all slots, in the coordinates of the rule."""
        return self.rule.point(self.states)

    def advance(self, steps: int) -> None:
        """Take a chunk of steps. Returns at once: the device works on while the host does something else."""
        self.before = self.points
        block = self._block(len(self.before.weight))
        count = np.int32(steps)
        self.states, self.seen = chunk_of_many(
            self.rule,
            self.nonnegative,
            block,
            self.arrays,
            self.units,
            self.states,
            count,
            np.int32(len(self.members)),
        )

    def check(self) -> Check:
        """Wait for the chunk and return the check of all slots."""
        return Check(*(np.asarray(part, np.float64) for part in self.seen))

    def variables(self, slots: Sequence[int], before: bool = False) -> Variables:
        """Return the points of some members as users know them, stacked, now or before the last chunk."""
        index = np.asarray(slots, dtype=np.int64)
        points = jax.tree.map(lambda part: np.asarray(part)[index], self.before if before else self.points)
        return to_variables(points, member(self.scales, self.members[index]))

    def renew(self, kept: Sequence[int], new: Sequence[int], restarts: Restarts) -> None:
        """Go on with some slots and new members after them, in the smallest size that holds all.

        Args:
            kept: slots to keep; their order is the new numbering.
            new: tasks that begin at their starts.
            restarts: new slot of a kept member -> where to begin again and how cautiously.
        """
        count, before = len(kept) + len(new), self.members
        self.members = np.concatenate([before[list(kept)], np.asarray(new, dtype=np.int64)])
        padded = np.minimum(np.arange(self._size(count)), count - 1)
        if len(new) or len(self.members) != len(before):
            self.slots = self.members[padded]
            self.arrays, self.units = self._put(jax.tree.map(lambda part: part[self.slots], self.fields))
        if self.states is not None:
            old = np.append(kept, np.zeros(len(new))).astype(np.int32)[padded]
            self.states = self._put(take(self.states, old))
        if len(new) or restarts:
            self._begin(np.arange(len(padded)) >= len(kept), restarts)

    def _begin(self, fresh: Bool[np.ndarray, " slots"], restarts: Restarts) -> None:
        """Begin in fresh slots at their starts, and in others where they are to begin again."""
        starts, caution = self._starts(fresh), np.ones(len(self.slots))
        for slot, (box, cautious) in restarts.items():
            for part, own in zip(starts, box.pop(), strict=True):
                if part is not None:
                    part[slot] = own
            caution[slot], fresh[slot] = cautious, True
        points = to_point(starts, member(self.scales, self.slots), self.dtype)
        points, caution, fresh = self._put((points, caution.astype(self.dtype), fresh))
        fixed = (self.rule, self.nonnegative, self.arrays)
        if self.states is None:  # what stands there before the first start is never used
            shapes = begin_many.eval_shape(*fixed, points, caution)
            self.states = self._put(jax.tree.map(lambda part: np.zeros(part.shape, part.dtype), shapes))
        self.states = begin_some(*fixed, self.states, points, caution, fresh)

    def _starts(self, fresh: Bool[np.ndarray, " slots"]) -> Variables:
        """Return the starts of fresh slots, zeros in the others."""
        stack, slots = self.stack, len(fresh)
        starts = Variables(
            np.zeros((slots, stack.num_logits, stack.dim)),
            np.zeros((slots, stack.labels.shape[1], stack.dim)),
            None if stack.bias is None else np.zeros((slots, stack.num_logits)),
        )
        new = np.flatnonzero(fresh).tolist()
        chosen = [self.tasks[i] for i in self.slots[new]]
        mine = (
            stack.take(self.slots[new].tolist()).random_starts([task.seed for task in chosen])
            if new
            else None
        )
        for number, (slot, task) in enumerate(zip(new, chosen, strict=True)):
            for part, own in zip(starts, task.start() if task.start else member(mine, number), strict=True):
                if part is not None:
                    part[slot] = own
        return starts

    def _block(self, size: int) -> int:
        """Return how many members to take through a chunk at a time: on a CPU what its cache holds, else all (0)."""
        if self.sharding is not None or jax.default_backend() != "cpu":
            return 0
        fitting = BLOCK_BYTES // sum(part[0].nbytes for part in jax.tree.leaves(self.before))
        if fitting < min(self.sizes):
            return 1
        blocks = [block for block in self.sizes if block <= fitting and block < size and size % block == 0]
        return max(blocks, default=0)

    def _size(self, members: int) -> int:
        return next(size for size in self.sizes if size >= members)

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self.sharding)


def sizes(width: int, devices: int) -> list[int]:
    """Return the sizes that a batch of ``width`` members shrinks through, ascending.

    Each is a multiple of the number of devices, and at most about `SHRINK` times the one before.
    """
    found = [math.ceil(width / devices) * devices]
    while found[0] > SMALLEST * devices:
        found.insert(0, math.ceil(found[0] / (SHRINK * devices)) * devices)
    return found


def _start(task: Task, stack: Stack) -> Variables:
    return member(stack.random_starts([task.seed]), 0) if task.start is None else task.start()
