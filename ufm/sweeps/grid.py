"""Grids: named axes over the fields of problem and solver, every point a member with a stable key."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError, one_of, positive_float, positive_integer
from ufm.solvers.settings import SETTINGS
from ufm.sweeps.content import described, label
from ufm.sweeps.member import PROBLEM_FIELDS, Member, build_member

#: Members by their places in a grid.
Places = Sequence[int] | np.ndarray
#: Largest number of members of one sweep: a guard against typing errors.
MAX_MEMBERS = 10_000_000
RANGE_KEYS = ("start", "stop", "num", "spacing", "integer")
#: Names that the data set uses itself.
RESERVED = ("class", "other_class")


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of the grid.

    Attributes:
        name: the dimension's name.
        labels: its coordinate: numbers, or text where the values are no numbers.
        settings: the fields that every position sets.
    """

    name: str
    labels: np.ndarray
    settings: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """All combinations of the axes' settings on top of fixed fields, the last axis varying fastest.

    Args:
        fixed: fields that are the same for all members.
        axes: the dimensions.
    """

    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(len(axis.settings) for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of members."""
        return math.prod(self.shape)

    def members(self) -> Iterator[Member]:
        """Yield all members in order.

        Raises:
            InputError: naming the field, and the position if one member only is at fault.
        """
        for index in range(self.size):
            yield self.member(index)

    def member(self, index: int) -> Member:
        """Return one member by its place in that order; errors as in `members`."""
        return self.at(self.position(index))

    def at(self, position: Sequence[int]) -> Member:
        """Return the member at a place on every axis; errors as in `members`."""
        fields = dict(self.fixed)
        for axis, i in zip(self.axes, position, strict=True):
            fields |= axis.settings[i]
        try:
            return build_member(fields)
        except InputError as error:
            raise InputError(f"{error} (at {self.describe(position)})" if position else str(error)) from None

    def position(self, index: int) -> tuple[int, ...]:
        """Return the place of a member on every axis."""
        return tuple(int(i) for i in np.unravel_index(index, self.shape)) if self.shape else ()

    def describe(self, position: Sequence[int]) -> str:
        """Return the coordinates of a member in words."""
        return ", ".join(f"{axis.name}={axis.labels[i]}" for axis, i in zip(self.axes, position, strict=True))

    def content(self) -> dict[str, Any]:
        """Return everything that defines the grid, as flat JSON values by name."""
        content = {name: described(value) for name, value in sorted(self.fixed.items())}
        for axis in self.axes:
            content[f"axes.{axis.name}"] = [
                {name: described(value) for name, value in sorted(setting.items())}
                for setting in axis.settings
            ]
        return content

    @property
    def key(self) -> str:
        """Hash of the content, axes in order; 16 hex digits."""
        ordered = [self.content(), [axis.name for axis in self.axes]]
        return hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()[:16]


def make_grid(fixed: Mapping[str, Any], axes: Mapping[str, Any]) -> Grid:
    """Return the grid over ``axes`` with all other fields ``fixed``.

    Args:
        fixed: any of `PROBLEM_FIELDS` and of `ufm.solvers.settings.SETTINGS`, ``counts.NAME`` for a profile's
            parameter, ``loss.parameter`` and ``targets.flip``. A loss or step rule is given by name or as an object.
        axes: field -> its values: a sequence, or a range ``{"start": 1, "stop": 100, "num": 64, "spacing":
            "log"}``. An axis whose values are tables sets several fields together and may have any name; an
            entry ``label`` names the position.

    Raises:
        InputError: naming the key, its value and what is required.

    Example:
        >>> grid = make_grid({"counts": "10x5,5x5", "dim": 4}, {"nuclear_weight": [1e-3, 1e-2], "seed": [0, 1, 2]})
        >>> grid.shape, grid.describe((1, 2))
        ((2, 3), 'nuclear_weight=0.01, seed=2')
    """
    for name in fixed:
        _check_field(name)
    size = math.prod(_length(values) for values in axes.values())
    if size > MAX_MEMBERS:
        raise InputError(f"axes must span at most {MAX_MEMBERS} members, got {size}")
    made = []
    for name, values in axes.items():
        if name in fixed:
            raise InputError(f"{name} is fixed and an axis at once; give it once")
        made.append(_axis(name, values))
    taken: dict[str, str] = {}
    for axis in made:
        for name in axis.settings[0]:
            if name in taken or name in fixed:
                raise InputError(
                    f"{name} is set by axis {axis.name} and by {taken.get(name, 'a fixed field')}"
                )
            taken[name] = axis.name
    return Grid({name: _none(value) for name, value in fixed.items()}, _with_short_names(made))


def _length(values: Any) -> int:
    """Return how many values an axis would have, before they are made; 1 where the axis itself is refused."""
    num = (
        values.get("num") if isinstance(values, Mapping) else len(values) if hasattr(values, "__len__") else 1
    )
    return num if isinstance(num, int) and 0 < num <= MAX_MEMBERS else 1


def _axis(name: str, values: Any) -> Axis:
    if isinstance(values, Mapping):
        values = _range(name, values)
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or len(values) == 0:
        raise InputError(
            f"axis {name} must be a list of values or a range with start, stop and num, got {values!r}"
        )
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if all(isinstance(value, Mapping) for value in values):
        return _table_axis(name, values)
    _check_field(name)
    labels = _labels(values)
    if len(set(labels.tolist())) < len(labels):
        raise InputError(f"axis {name} must have different values, got one of them twice")
    return Axis(name, labels, tuple({name: _none(value)} for value in values))


def _table_axis(name: str, tables: list[Mapping[str, Any]]) -> Axis:
    """An axis whose positions set several fields at once."""
    if name in PROBLEM_FIELDS or name in SETTINGS:
        raise InputError(f"axis {name} is a field and takes plain values, got tables")
    labels = _labels([table.get("label", i) for i, table in enumerate(tables)])
    settings = tuple(
        {field: _none(value) for field, value in table.items() if field != "label"} for table in tables
    )
    for setting in settings:
        if set(setting) != set(settings[0]) or not setting:
            raise InputError(f"axis {name} must set the same fields at every position, got {sorted(setting)}")
        for field in setting:
            _check_field(field)
    if len(set(labels.tolist())) < len(labels):
        raise InputError(f"axis {name} must have different labels, got one of them twice")
    return Axis(name, labels, settings)


def _range(name: str, table: Mapping[str, Any]) -> np.ndarray:
    unknown = [key for key in table if key not in RANGE_KEYS]
    missing = [key for key in ("start", "stop", "num") if key not in table]
    if unknown or missing:
        problem = f"unknown {unknown[0]}" if unknown else f"missing {missing[0]}"
        raise InputError(f"axis {name} must be a list or a range of {', '.join(RANGE_KEYS)}; {problem}")
    num = positive_integer(f"axis {name}: num", table["num"], most=MAX_MEMBERS)
    spacing = one_of(f"axis {name}: spacing", table.get("spacing", "linear"), ("linear", "log"))
    if spacing == "log":
        start, stop = (positive_float(f"axis {name}: {end}", table[end]) for end in ("start", "stop"))
        values = np.geomspace(start, stop, num)
    else:
        try:
            start, stop = float(table["start"]), float(table["stop"])
            if not (math.isfinite(start) and math.isfinite(stop)):
                raise ValueError
            values = np.linspace(start, stop, num)
        except (OverflowError, TypeError, ValueError):
            raise InputError(
                f"axis {name} must have finite numbers as start and stop, got {dict(table)}"
            ) from None
    return np.unique(np.rint(values).astype(np.int64)) if table.get("integer", False) else values


def _with_short_names(axes: list[Axis]) -> tuple[Axis, ...]:
    """Name dimensions after the last part of the field (``ratio`` for ``counts.ratio``) where that is unique."""
    short = [axis.name.rpartition(".")[2] for axis in axes]
    names = [
        last
        if short.count(last) == 1 and last not in ("parameter", *RESERVED)
        else axis.name.replace(".", "_")
        for axis, last in zip(axes, short, strict=True)
    ]
    for name in names:
        if name in reserved_names():
            raise InputError(f"axis {name} must have another name: the data set uses it itself")
        if re.fullmatch(r"\w[\w-]{0,63}", name) is None:
            raise InputError(
                f"axis must have a name of at most 64 letters, digits, _ and -, got {reprlib.repr(name)}"
            )
    return tuple(dataclasses.replace(axis, name=name) for axis, name in zip(axes, names, strict=True))


def reserved_names() -> set[str]:
    """Return the names that the data set uses itself."""
    from ufm.sweeps.measure import variables

    return {*RESERVED, *variables(matrices=True)}


def _check_field(name: str) -> None:
    known = [*PROBLEM_FIELDS, *SETTINGS, "loss.parameter", "targets.flip"]
    if name in known or (name.startswith("counts.") and name != "counts."):
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)} and counts.NAME"
    raise InputError(f"{name} is no field of a problem or solver{hint}")


def _none(value: Any) -> Any:
    """The text ``none`` stands for None, which TOML cannot write."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def _labels(values: list[Any]) -> np.ndarray:
    """Return the coordinate: numbers where all values are, else text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        labels = np.array(values)
        if labels.dtype.kind not in "iuf":
            raise InputError(
                f"an axis must have numbers below 2^63, got {reprlib.repr(max(values, key=abs))}"
            )
        return labels
    return np.array([label(value) for value in values], dtype=object)
