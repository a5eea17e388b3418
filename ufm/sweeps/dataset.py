"""The data set of a sweep: one variable per quantity, dimensions the axes of the grid and the class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ufm.inputs.checks import InputError
from ufm.sweeps.grid import Grid
from ufm.sweeps.measure import STATUSES, variables


def empty_dataset(grid: Grid, num_classes: int, matrices: bool) -> xr.Dataset:
    """Return the data set of a sweep of which nothing has been computed."""
    dims = [axis.name for axis in grid.axes]
    sizes = {"class": num_classes, "other_class": num_classes}
    found: dict[str, Any] = {}
    for name, variable in variables(matrices).items():
        shape = (*grid.shape, *(sizes[dim] for dim in variable.dims))
        attributes: dict[str, Any] = {"long_name": variable.meaning}
        if name == "status":
            attributes |= {"flag_values": list(range(len(STATUSES))), "flag_meanings": " ".join(STATUSES)}
        values = np.full(shape, variable.fill, dtype=variable.dtype)
        found[name] = ((*dims, *variable.dims), values, attributes)
    coordinates: dict[str, Any] = {axis.name: axis.labels for axis in grid.axes}
    coordinates |= {
        dim: np.arange(num_classes) for dim in (("class", "other_class") if matrices else ("class",))
    }
    attributes = {"sweep": json.dumps(grid.content()), "key": grid.key}
    return xr.Dataset(found, coordinates, attributes)


def fill(values: np.ndarray, grid: Grid, indices: Sequence[int], rows: np.ndarray, first: int = 0) -> None:
    """Write rows of members into a variable (or the part of it that begins at ``first`` on the first axis)."""
    where: list[Any] = list(np.unravel_index(np.asarray(indices), grid.shape or (1,)))
    if grid.shape:
        where[0] = where[0] - first
    block = values if grid.shape else values[None]
    block[(*where, *(slice(size) for size in rows.shape[1:]))] = rows


def decoded(dataset: xr.Dataset) -> xr.Dataset:
    """Return the data set with the status in words (``missing`` where nothing has been computed)."""
    words = np.array([*map(str, STATUSES), "missing"], dtype=object)
    status = dataset["status"]
    attributes = {"long_name": status.attrs["long_name"]}
    return dataset.assign(status=(status.dims, words[status.values.astype(int)], attributes))


class Memory:
    """Keeps results in memory only, with the interface of a `Store`."""

    def __init__(
        self, grid: Grid, batches: Sequence[Sequence[int]], num_classes: int, matrices: bool
    ) -> None:
        self.grid, self.batches = grid, batches
        self.found = empty_dataset(grid, num_classes, matrices)

    def open(self, resume: bool) -> set[int]:
        """Return the complete batches: none."""
        return set()

    def write(self, batch: int, rows: Mapping[str, np.ndarray]) -> None:
        """Keep the members of a batch."""
        for name, values in rows.items():
            fill(self.found[name].values, self.grid, self.batches[batch], values)

    def dataset(self) -> xr.Dataset:
        """Return the data set, the status in words."""
        return decoded(self.found)


def open_dataset(folder: str | Path) -> xr.Dataset:
    """Return the data set of a stored sweep, complete or not, the status in words.

    Args:
        folder: what `ufm.sweep` wrote to.

    Raises:
        InputError: if there is none.
    """
    data = Path(folder) / "data.zarr"
    if not data.is_dir():
        raise InputError(
            f"{folder} holds no sweep (there is no data.zarr in it); name the folder that "
            "`ufm sweep CONFIG.toml --out FOLDER` wrote"
        )
    try:
        return decoded(xr.open_zarr(data, consolidated=False, chunks=None))
    except (KeyError, OSError, RuntimeError, ValueError) as reason:
        raise InputError(f"{data} cannot be read: {reason}") from None
