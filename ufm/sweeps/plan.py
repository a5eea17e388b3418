"""How a sweep is cut into batches: members of equal shape, as many as their cost allows, whoever solves them.

What members have in common when they are compiled is found without making all of them: plain numbers such as decays,
seeds and tolerances change no shape, so that one member stands for all that differ in them alone. The plan is the
same for one process and for many workers, and millions of members are planned in seconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from ufm.sweeps.grid import Axis, Grid
from ufm.sweeps.member import Member

#: Members of a batch, the memory their solver states may take, in bytes, and the numbers in a step of all of them.
BATCH_SIZE = 2048
BATCH_BYTES = 1 << 29
BATCH_COST = 1 << 20
#: With more batches of a kind than this, which only many workers share, the last ones are this much smaller.
MANY_BATCHES, SMALLER = 16, 8
#: Members on the device at a time (see `solve_many`).
WIDTH = 512
#: Fields whose numbers are checked one by one and compiled into nothing.
DECAYS = ("weight_decay", "feature_decay", "nuclear_weight", "decay_ratio", "bias")
NUMBERS = (*DECAYS, "seed", "tol", "residual_tol", "max_steps")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of a member: what its cost is predicted from."""

    classes: int
    rows: int
    dim: int

    @property
    def cost(self) -> int:
        """Numbers in a step of one member, in units of nobody."""
        return (self.classes + self.rows) * (self.dim + self.classes)

    @property
    def bytes(self) -> int:
        """Memory of the solver state of one member."""
        return 8 * (12 * (self.classes + self.rows) * self.dim + 6 * self.rows * self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Members that are solved together.

    Attributes:
        members: places in the grid.
        width: how many of them are on the device at a time.
        cost: prediction of how long it takes, in units of nobody.
    """

    members: Int[np.ndarray, " members"]
    width: int
    cost: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a sweep, and the largest number of classes in it."""

    batches: list[Batch]
    num_classes: int

    @property
    def members(self) -> list[Int[np.ndarray, " members"]]:
        """The members of every batch."""
        return [batch.members for batch in self.batches]


def plan(grid: Grid, batch_size: int) -> Plan:
    """Return the batches: members of equal shape in grid order, at most ``batch_size``, of limited memory and cost.

    Raises:
        InputError: naming the field, and the position if one member only is at fault.
    """
    kinds, first = _kinds(grid)
    batches: list[Batch] = []
    for kind, member in enumerate(first):
        shape = shape_of(member)
        alike = np.flatnonzero(kinds == kind)
        size = max(1, min(batch_size, BATCH_BYTES // shape.bytes, BATCH_COST // shape.cost))
        wide = min(WIDTH, size, len(alike))
        batches += [Batch(members, wide, len(members) * shape.cost) for members in _cut(alike, size)]
    return Plan(batches, max(member.problem.num_classes for member in first))


def _cut(members: Int[np.ndarray, " members"], size: int) -> Iterator[Int[np.ndarray, " size"]]:
    """Yield batches of ``size``; of many, the last quarter in small ones, which begin last and fill what is left."""
    long = len(members) // size
    first = long * 3 // 4 * size if long > MANY_BATCHES else len(members)
    small = max(1, size // SMALLER)
    for part, length in ((members[:first], size), (members[first:], small)):
        yield from (part[i : i + length] for i in range(0, len(part), length))


def shape_of(member: Member) -> Shape:
    """Return the size of a member; of classes that are alike one is solved for."""
    _, logits, rows, dim = member.shape[:4]
    return Shape(rows, rows, rows) if member.level == "group" else Shape(logits, rows, dim)


def _kinds(grid: Grid) -> tuple[Int[np.ndarray, " members"], list[Member]]:
    """Return which kind of shape every member is of, and one member of every kind; check every setting."""
    shaping = [not _only_numbers(axis) for axis in grid.axes]
    reduced = tuple(n if chosen else 1 for n, chosen in zip(grid.shape, shaping, strict=True))
    first: list[Member] = []
    kinds, found = np.empty(reduced, np.int32), dict[object, int]()
    for position in np.ndindex(reduced):
        member = grid.at(position)
        if member.shape not in found:
            found[member.shape] = len(first)
            first.append(member)
        kinds[position] = found[member.shape]
    for place, axis in enumerate(grid.axes):  # the numbers of all others, each at the first place of the rest
        for i in range(1, 1 if shaping[place] else len(axis.settings)):
            grid.at(tuple(i if other == place else 0 for other in range(len(grid.axes))))
    return np.broadcast_to(kinds, grid.shape).reshape(math.prod(grid.shape)), first


def _only_numbers(axis: Axis) -> bool:
    """Return whether an axis sets nothing but plain numbers that change no shape."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return all(
        name in NUMBERS and number(value) for setting in axis.settings for name, value in setting.items()
    )
