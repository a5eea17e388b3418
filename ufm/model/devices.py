"""How feature rows are laid out: spread over devices, and on each device worked through in blocks.

A step of the solver reads every feature row once and writes it once if all that is done to a row is done while the
row is in cache. So rows are processed in blocks of about a megabyte; on accelerators, which fuse better and need
large pieces, in sixteenths. The classifier is on every device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

#: Name of the mesh axis that rows are spread over.
SAMPLES = "samples"
#: Bytes of one block of features on a CPU: what stays in cache with its temporaries.
CACHED_BYTES = 2**20
#: Blocks per accelerator: temporaries stay below an eighth of the features.
ACCELERATOR_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows spread evenly over the devices of a mesh, on each in blocks of equal size.

    Attributes:
        mesh: one axis, `SAMPLES`.
        block: rows of a block.
        blocks: blocks on each device.
    """

    mesh: Mesh
    block: int
    blocks: int

    @property
    def rows(self) -> int:
        """Rows in all, those that only fill the last blocks included."""
        return self.block * self.blocks * self.mesh.size

    @property
    def by_row(self) -> NamedSharding:
        """Sharding of arrays with one entry per row."""
        return NamedSharding(self.mesh, PartitionSpec(SAMPLES))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of everything else: the same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


def use_all_cores(rows: int, dim: int) -> int:
    """Make every core of this machine a device of JAX, so that sample-level solves and sweeps keep all of them busy.

    XLA gives a product to all cores, but all else in a block of rows to one. Has no effect on accelerators, nor where
    the environment (``JAX_NUM_CPU_DEVICES``, ``XLA_FLAGS``) says how many there are, nor after JAX has been used.

    Args:
        rows: number of feature rows.
        dim: feature dimension d. No device gets less than one block that fills a cache.

    Returns:
        The number of devices.

    Example:
        >>> use_all_cores(rows=100, dim=4) == len(jax.devices())
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    useful = max(1, min(cores, rows * dim * np.dtype(np.float64).itemsize // CACHED_BYTES))
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen:
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", useful)
    return len(jax.devices())


def choose_layout(rows: int, dim: int, itemsize: int, devices: Sequence[jax.Device] | None = None) -> Layout:
    """Return the layout of ``rows`` feature rows of ``dim`` numbers.

    Args:
        rows: number of rows; the layout may have a few more.
        dim: feature dimension d.
        itemsize: bytes per number.
        devices: devices to use; all of the default backend, of every process, if omitted.
    """
    chosen = jax.devices() if devices is None else list(devices)
    share = math.ceil(rows / len(chosen))
    if chosen[0].platform == "cpu":
        blocks = min(math.ceil(share * dim * itemsize / CACHED_BYTES), share)
    else:
        blocks = min(ACCELERATOR_BLOCKS, share)
    mesh = jax.make_mesh((len(chosen),), (SAMPLES,), devices=chosen, axis_types=(AxisType.Auto,))
    return Layout(mesh, math.ceil(share / blocks), blocks)
