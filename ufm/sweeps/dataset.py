"""The data set of a sweep: one variable per quantity, dimensions the axes of the grid and the class."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ufm.sweeps.grid import Grid, Places
from ufm.sweeps.measure import STATUSES, Variable, variables


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What the data set of a sweep looks like, whether its values are in memory or in files.

    Attributes:
        axes: the coordinates by dimension.
        num_classes: length of the class dimensions.
        variables: the variables by name.
        statuses: what the numbers of ``status`` mean; -1 stands for a member that has not been computed.
        attributes: of the data set.
    """

    axes: Mapping[str, np.ndarray]
    num_classes: int
    variables: Mapping[str, Variable]
    statuses: tuple[str, ...]
    attributes: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(len(labels) for labels in self.axes.values())

    @property
    def size(self) -> int:
        """Number of members."""
        return int(np.prod(self.shape, dtype=np.int64))

    def inner_shape(self, variable: Variable) -> tuple[int, ...]:
        """Return the lengths of a variable's dimensions after the axes."""
        return (self.num_classes,) * len(variable.dims)

    def dataset(self, values: Callable[[str], Any]) -> xr.Dataset:
        """Return the data set with ``values`` of every variable by name, the status in words."""
        found: dict[str, Any] = {}
        for name, variable in self.variables.items():
            data = values(name)
            if name == "status":
                data = np.array([*self.statuses, "missing"], dtype=object)[np.asarray(data).astype(int)]
            found[name] = xr.Variable((*self.axes, *variable.dims), data, {"long_name": variable.meaning})
        dims = sorted({dim for variable in self.variables.values() for dim in variable.dims})
        coordinates = dict(self.axes) | {dim: np.arange(self.num_classes) for dim in dims}
        return xr.Dataset(found, coordinates, dict(self.attributes))

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values."""
        axes = [
            {"name": name, "dtype": labels.dtype.name, "labels": labels.tolist()}
            for name, labels in self.axes.items()
        ]
        described = {name: dataclasses.asdict(variable) for name, variable in self.variables.items()}
        return {"axes": axes, "num_classes": self.num_classes, "variables": described} | {
            "statuses": list(self.statuses),
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Layout:
        """Return the layout that `to_json` gave."""
        axes = {axis["name"]: np.array(axis["labels"], dtype=axis["dtype"]) for axis in stored["axes"]}
        described = {
            name: Variable(variable["meaning"], tuple(variable["dims"]), variable["dtype"])
            for name, variable in stored["variables"].items()
        }
        statuses = tuple(stored["statuses"])
        return cls(axes, stored["num_classes"], described, statuses, stored["attributes"])


def layout_of(grid: Grid, num_classes: int, matrices: bool) -> Layout:
    """Return the layout of a grid's data set, for members of at most ``num_classes`` classes."""
    axes = {axis.name: axis.labels for axis in grid.axes}
    attributes = {"sweep": json.dumps(grid.content()), "key": grid.key}
    return Layout(axes, num_classes, variables(matrices), tuple(map(str, STATUSES)), attributes)


def place(values: np.ndarray, where: np.ndarray, rows: np.ndarray) -> None:
    """Write rows of members at positions of ``values``, whose class dimensions may be longer."""
    index: tuple[Any, ...] = (where, *(slice(size) for size in rows.shape[1:]))
    values[index] = rows


class Memory:
    """Keeps results in memory only, with the interface of a `Store`."""

    def __init__(self, layout: Layout, batches: Sequence[Places]) -> None:
        self.layout, self.batches, self.place = layout, batches, None
        self.found = {
            name: np.full((layout.size, *layout.inner_shape(variable)), variable.fill, variable.dtype)
            for name, variable in layout.variables.items()
        }

    @contextlib.contextmanager
    def opened(self, resume: bool, share: tuple[int, int]) -> Iterator[set[int]]:
        """Yield the complete batches: none."""
        yield set()

    def write(self, batch: int, rows: Mapping[str, np.ndarray]) -> None:
        """Keep the members of a batch."""
        for name, values in rows.items():
            place(self.found[name], np.asarray(self.batches[batch]), values)

    def dataset(self) -> xr.Dataset:
        """Return the data set."""
        shape = self.layout.shape
        return self.layout.dataset(lambda name: self.found[name].reshape(shape + self.found[name].shape[1:]))
