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
from jaxtyping import Array, Bool, Float, Int

from ufm.losses.softmax import label_mask
from ufm.model.objective import Objective, Point, Variables
from ufm.solvers.rule import StepRule
from ufm.sweeps.pool import Pool

#: Factor between the sizes that a batch passes through as members leave it, and the smallest one per device.
SHRINK = 4
SMALLEST = 16
#: Points that a CPU keeps in its cache, in bytes; what a step needs besides is several times as large.
BLOCK_BYTES = 1 << 18


class Glance(NamedTuple):
    """What a batch sees of its members between chunks, computed on the device.

    Attributes:
        residual: relative norm of the projected gradient, as in `ufm.duality.certificate`; NaN after an overflow.
        polar: estimate of ``polar(A)`` at the raw class-mean gradients; above 1 an escape move may exist.
    """

    residual: Float[Array, " members"]
    polar: Float[Array, " members"]


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def _init(rule: StepRule, nonnegative: bool, arrays: Any, points: Any, caution: Any) -> Any:
    """Return the states of members that begin at ``points``."""

    def one(arrays: Any, point: Any, caution: Any) -> Any:
        return rule.init(Objective(**arrays, nonnegative=nonnegative), point, caution)

    return jax.vmap(one)(arrays, points, caution)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative"))
def _begin(
    rule: StepRule, nonnegative: bool, arrays: Any, states: Any, points: Any, caution: Any, fresh: Any
) -> Any:
    """Return the states, those of ``fresh`` members begun at their points."""
    begun = _init(rule, nonnegative, arrays, points, caution)
    return jax.vmap(lambda new, old, own: jax.tree.map(functools.partial(jnp.where, own), new, old))(
        begun, states, fresh
    )


@jax.jit
def _take(tree: Any, index: Any) -> Any:
    """Return some members of stacked arrays."""
    return jax.tree.map(lambda part: part[index], tree)


@functools.partial(jax.jit, static_argnames=("rule", "nonnegative", "block"))
def _chunk(
    rule: StepRule, nonnegative: bool, block: int, arrays: Any, units: Any, states: Any, steps: Any
) -> Any:
    """Take ``steps`` steps of all members, a block at a time; return the states, the points and a glance at them."""

    def one(member: Any) -> tuple[Any, Point, Glance]:
        arrays, units, state = member
        objective = Objective(**arrays, nonnegative=nonnegative)
        state = jax.lax.fori_loop(0, steps, lambda _, state: rule.step(objective, state), state)
        point = rule.point(state)
        return state, point, _glance(objective, point, units)

    members = (arrays, units, states)
    return jax.lax.map(one, members, batch_size=block) if block else jax.vmap(one)(members)


def _glance(objective: Objective, point: Point, units: Any) -> Glance:
    """Return residual and polar of one member (see `ufm.duality.certificate` for both)."""
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
    """Members of a pool on the device, each in a slot; the slots after them are padding.

    Args:
        pool: the pool.
        members: which of its members.
        width: the largest number of members there will ever be.
        sharding: how to spread the batch axis over devices; None for the default device.
    """

    def __init__(
        self,
        pool: Pool,
        members: Sequence[int],
        width: int,
        sharding: jax.sharding.NamedSharding | None = None,
    ) -> None:
        self.pool, self.sharding = pool, sharding
        self.sizes = sizes(width, 1 if sharding is None else sharding.num_devices)
        self.members = np.zeros(0, dtype=np.int64)
        self.states: Any = None
        self.points: Any = None
        self.renew([], members, {})

    def advance(self, steps: int) -> None:
        """Take a chunk of steps. Returns at once: the device works on while the host does something else."""
        self.before = self.points
        count = jnp.asarray(steps, jnp.int32)
        block = self._block(len(self.points.weight))
        self.states, self.points, self.seen = _chunk(
            self.pool.rule, self.pool.nonnegative, block, self.arrays, self.units, self.states, count
        )

    def glance(self) -> Glance:
        """Wait for the chunk and return the glance at all members."""
        return jax.tree.map(np.asarray, self.seen)

    def variables(self, slots: Sequence[int], before: bool = False) -> Variables:
        """Return the points of some members as users know them, stacked, now or before the last chunk."""
        index = np.asarray(slots, dtype=np.int64)
        points = jax.tree.map(lambda part: np.asarray(part)[index], self.before if before else self.points)
        return self.pool.variables(self.members[index], points)

    def renew(
        self, kept: Sequence[int], new: Sequence[int], restarts: Mapping[int, tuple[Variables, float]]
    ) -> None:
        """Go on with some slots and new members after them, in the smallest size that holds all.

        Args:
            kept: slots to keep; their order is the new numbering.
            new: members of the pool that begin at their random starts.
            restarts: new slot of a kept member -> where to begin again and how cautiously.
        """
        count, before = len(kept) + len(new), self.members
        self.members = np.concatenate([before[list(kept)], np.asarray(new, dtype=np.int64)])
        padded = np.minimum(np.arange(self._size(count)), count - 1)
        members = self.members[padded]
        if len(new) or len(self.members) != len(before):
            fields = (self.pool.arrays, self.pool.units)
            self.arrays, self.units = self._put(jax.tree.map(lambda part: part[members], fields))
        if self.states is not None:
            old = np.append(kept, np.zeros(len(new), dtype=np.int64)).astype(np.int64)[padded]
            self.states = self._put(_take(self.states, old))
        if len(new) or restarts:
            self._begin(members, np.arange(len(members)) >= len(kept), restarts)
        self.points = self.pool.rule.point(self.states)

    def _begin(
        self,
        members: Int[np.ndarray, " slots"],
        fresh: Bool[np.ndarray, " slots"],
        restarts: Mapping[int, tuple[Variables, float]],
    ) -> None:
        """Begin in fresh slots at random starts, and in others where they are to begin again."""
        starts = jax.tree.map(lambda part: part[members], self.pool.starts)
        caution = np.ones(len(members))
        if restarts:
            slots = list(restarts)
            again = jax.tree.map(lambda *parts: np.stack(parts), *(start for start, _ in restarts.values()))
            jax.tree.map(lambda part, own: _set(part, slots, own), starts, again)
            caution[slots], fresh[slots] = [cautious for _, cautious in restarts.values()], True
        points, caution, fresh = self._put(
            (self.pool.points(members, starts), caution.astype(self.pool.dtype), fresh)
        )
        fixed = (self.pool.rule, self.pool.nonnegative, self.arrays)
        if self.states is None:  # what stands there before the first start is never used
            shapes = _init.eval_shape(*fixed, points, caution)
            nothing = jax.tree.map(lambda part: np.zeros(part.shape, part.dtype), shapes)
            self.states = self._put(nothing)
        self.states = _begin(*fixed, self.states, points, caution, fresh)

    def _block(self, size: int) -> int:
        """Return how many members to take through a chunk at a time: on a CPU what its cache holds, else all (0)."""
        if self.sharding is not None or jax.default_backend() != "cpu":
            return 0
        fitting = BLOCK_BYTES // sum(part[0].nbytes for part in jax.tree.leaves(self.pool.starts))
        blocks = [block for block in self.sizes if block <= fitting and block < size and size % block == 0]
        return max(blocks, default=0)

    def _size(self, members: int) -> int:
        return next(size for size in self.sizes if size >= members)

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, self.sharding)


def _set(part: np.ndarray, slots: Sequence[int], values: np.ndarray) -> None:
    part[slots] = values
