"""Problems of equal shape side by side on the device: stacked objectives, stacked states, one compiled chunk.

The step rule is the one that solves single problems, under `jax.vmap`. Between chunks members that have converged
leave and waiting ones take their slots; when none wait the batch shrinks through a few sizes, so that few are ever
compiled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.objective import Objective, Point, Variables, objective_arrays, scaling
from ufm.softmax import label_mask
from ufm.solvers.rule import StepRule
from ufm.sweep.member import Member

#: Factor between the sizes that a batch passes through as members leave it, and the smallest one per device.
SHRINK = 4
SMALLEST = 8


class Glance(NamedTuple):
    """What a batch sees of its members between chunks, computed on the device.

    Attributes:
        residual: relative norm of the projected gradient, as in `ufm.certificate`; NaN after an overflow.
        polar: estimate of ``polar(A)`` at the raw class-mean gradients; above 1 an escape move may exist.
    """

    residual: Float[Array, " members"]
    polar: Float[Array, " members"]


class Units(NamedTuple):
    """What turns an objective's own quantities into the certificate's: class and bias units of a member."""

    classes: Float[np.ndarray, " K"]
    bias: Float[np.ndarray, ""]


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def _begin(rule: StepRule, nonnegative: bool, arrays: Any, points: Any, caution: Any) -> Any:
    def one(arrays: Any, point: Any, caution: Any) -> Any:
        return rule.init(Objective(**arrays, nonnegative=nonnegative), point, caution)

    return jax.vmap(one)(arrays, points, caution)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def _chunk(rule: StepRule, nonnegative: bool, arrays: Any, units: Any, states: Any, steps: Any) -> Any:
    """Take ``steps`` steps of all members; return the states, the points and a glance at them."""

    def step(_: Any, states: Any) -> Any:
        def one(arrays: Any, state: Any) -> Any:
            return rule.step(Objective(**arrays, nonnegative=nonnegative), state)

        return jax.vmap(one)(arrays, states)

    def glance(arrays: Any, units: Any, state: Any) -> tuple[Point, Glance]:
        point = rule.point(state)
        return point, _glance(Objective(**arrays, nonnegative=nonnegative), point, units)

    states = jax.lax.fori_loop(0, steps, step, states)
    return states, *jax.vmap(glance)(arrays, units, states)


def _glance(objective: Objective, point: Point, units: Any) -> Glance:
    """Return residual and polar of one member (see `ufm.certificate` for both)."""
    gradient = objective.gradient(point)
    in_features = gradient.features / jnp.sqrt(objective.row_decays)[:, None]
    if objective.nonnegative:
        in_features = jnp.where(point.features > 0, in_features, jnp.minimum(in_features, 0))
    square = jnp.sum(gradient.weight**2) / objective.weight_decay + jnp.sum(in_features**2)
    if gradient.bias is not None:
        square += jnp.sum((gradient.bias / units.bias) ** 2)
    residual = jnp.sqrt(square / (2 * objective.value(point)))
    mask = label_mask(objective.labels, len(point.weight)).astype(point.weight.dtype)
    dual = (mask.T @ objective.residual(point)) * units.classes[:, None]
    gram = dual @ dual.T
    if objective.nonnegative:
        largest = jnp.max(jnp.sum(jnp.maximum(gram, 0), axis=1))
    else:
        largest = jnp.max(jnp.linalg.eigvalsh(gram))
    return Glance(residual, jnp.sqrt(jnp.maximum(largest, 0)))


def sizes(width: int, devices: int) -> list[int]:
    """Return the sizes that a batch of ``width`` members shrinks through, ascending.

    Each is a multiple of the number of devices, and at most about `SHRINK` times the one before.
    """
    found = [math.ceil(width / devices) * devices]
    while found[0] > SMALLEST * devices:
        found.insert(0, math.ceil(found[0] / (SHRINK * devices)) * devices)
    return found


class Batch:
    """Members of equal shape on the device, each in a slot; the slots after them are padding.

    Args:
        members: the members, all of the same `Member.shape`.
        starts: their starting points.
        width: the largest number of members there will ever be.
        sharding: how to spread the batch axis over devices; None for the default device.
    """

    def __init__(
        self,
        members: Sequence[Member],
        starts: Sequence[Variables],
        width: int,
        sharding: jax.sharding.NamedSharding | None = None,
    ) -> None:
        first = members[0]
        self.rule, self.dtype = first.rule, str(first.precision)
        self.nonnegative = first.problem.features == "nonnegative"
        self.sharding = sharding
        self.sizes = sizes(width, 1 if sharding is None else sharding.num_devices)
        self.scales: Any = self._scaling(members)
        fields = self._fields(members)
        padded = self._padded(len(members))
        self.arrays, self.units = self._put(jax.tree.map(lambda part: part[padded], fields))
        self.states = self._begin(range(len(members)), starts, np.ones(len(padded)))
        self.points = self.rule.point(self.states)

    def advance(self, steps: int) -> None:
        """Take a chunk of steps. Returns at once: the device works on while the host does something else."""
        self.before = self.points
        count = jnp.asarray(steps, jnp.int32)
        self.states, self.points, self.seen = _chunk(
            self.rule, self.nonnegative, self.arrays, self.units, self.states, count
        )

    def glance(self) -> Glance:
        """Wait for the chunk and return the glance at all members."""
        return jax.tree.map(np.asarray, self.seen)

    def variables(self, slots: Sequence[int], before: bool = False) -> Variables:
        """Return the points of some members as users know them, stacked, now or before the last chunk."""
        index = np.asarray(slots, dtype=np.int64)
        point = self.before if before else self.points
        parts: Any = jax.tree.map(lambda part: np.asarray(part)[index].astype(np.float64), point)
        weight, rows, bias = (part[index] for part in self.scales)
        return Variables(
            parts.weight / weight[:, None, None],
            parts.features / rows[:, :, None],
            None if parts.bias is None else parts.bias / bias[:, None],
        )

    def renew(
        self, kept: Sequence[int], members: Sequence[Member], starts: Mapping[int, tuple[Variables, float]]
    ) -> None:
        """Go on with some slots and new members after them, in the smallest size that holds all.

        Args:
            kept: slots to keep; their order is the new numbering.
            members: new members.
            starts: new slot -> where to begin (again) and how cautiously; all new members must be among them.
        """
        count = len(kept) + len(members)
        same = count == len(self.scales.weight) and not members
        index = np.append(kept, np.zeros(len(members), dtype=np.int64)).astype(np.int64)[self._padded(count)]
        if not same:
            fields = jax.tree.map(lambda part: np.asarray(part)[index], (self.arrays, self.units))
            self.scales = jax.tree.map(lambda part: part[list(kept)], self.scales)
            if members:
                joined = (self.scales, self._scaling(members))
                self.scales = jax.tree.map(lambda *parts: np.concatenate(parts), *joined)
                new = self._fields(members)
                jax.tree.map(lambda part, rows: _set(part, slice(len(kept), count), rows), fields, new)
            self.arrays, self.units = self._put(fields)
        states = jax.tree.map(lambda part: np.asarray(part)[index], self.states)
        if starts:
            slots, caution = list(starts), np.ones(len(index))
            caution[slots] = [cautious for _, cautious in starts.values()]
            fresh = self._begin(slots, [start for start, _ in starts.values()], caution)
            jax.tree.map(lambda part, begun: _set(part, slots, np.asarray(begun)[slots]), states, fresh)
        self.states = self._put(states)
        self.points = self.rule.point(self.states)

    def _scaling(self, members: Sequence[Member]) -> Any:
        """Return the scales of members, stacked."""
        scales = [scaling(member.problem, member.level, self.rule.coordinates) for member in members]
        return jax.tree.map(lambda *parts: np.stack(parts), *scales)

    def _fields(self, members: Sequence[Member]) -> tuple[dict[str, Any], Units]:
        """Objectives and units, stacked; the dual matrix ``A`` is class sums of residuals times its units."""
        fields = []
        for member in members:
            problem = member.problem
            arrays = objective_arrays(problem, member.level, self.rule.coordinates, self.dtype)
            classes = 1 / (np.sqrt(problem.counts) * problem.nuclear_weight)
            bias = 1.0
            if problem.bias is not None and self.rule.coordinates == "natural":
                bias = scaling(problem, member.level, "balanced").bias
            fields.append((arrays, Units(classes.astype(self.dtype), np.asarray(bias, self.dtype))))
        return jax.tree.map(lambda *parts: np.stack(parts), *fields)

    def _begin(self, slots: Sequence[int], starts: Sequence[Variables], caution: np.ndarray) -> Any:
        """Return states that begin at ``starts`` in ``slots``; what stands in other slots has no meaning."""
        index = np.asarray(slots)
        where = np.full(len(caution), len(index) - 1)
        where[index] = np.arange(len(index))
        stacked: Any = jax.tree.map(lambda *parts: np.stack(parts), *starts)
        weight, rows, bias = (part[index] for part in self.scales)
        points = Point(
            stacked.weight * weight[:, None, None],
            stacked.features * rows[:, :, None],
            None if stacked.bias is None else stacked.bias * bias[:, None],
        )
        points = jax.tree.map(lambda part: part[where].astype(self.dtype), points)
        points, cautious = self._put((points, caution.astype(self.dtype)))
        return _begin(self.rule, self.nonnegative, self.arrays, points, cautious)

    def _size(self, members: int) -> int:
        return next(size for size in self.sizes if size >= members)

    def _padded(self, members: int) -> np.ndarray:
        """Return slot indices up to the size, the last member filling the rest."""
        return np.minimum(np.arange(self._size(members)), members - 1)

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self.sharding)


def _set(part: np.ndarray, where: Any, rows: np.ndarray) -> None:
    part[where] = rows
