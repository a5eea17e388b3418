"""A fingerprint of what a run is about: the same in another process, another where anything differs.

Step rules hold functions, whose ``repr`` is a name and an address: ``optax.adam(0.1)`` and ``optax.adam(0.5)`` look
alike. What tells them apart is what their functions close over.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np


def run_key(*about: Any) -> str:
    """Return a fingerprint of everything that must not change when a run goes on: problem, level, rule, start, ...

    Args:
        about: numbers, text, arrays, functions, and what is made of them: dataclasses, tuples, lists, mappings.

    Example:
        >>> run_key(lambda step: 0.1) == run_key(lambda step: 0.5)
        False
    """
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return hashlib.sha256(_told(about, ()).encode()).hexdigest()


def _told(part: Any, around: tuple[int, ...]) -> str:
    """Return all there is to say about a part; ``around`` are those it lies in, since some lie in themselves."""
    if id(part) in around:
        return "itself"
    within = (*around, id(part))
    inner = _inside(part)
    if inner is None:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(part))  # where objects lie in memory
    name = getattr(part, "__qualname__", type(part).__qualname__)
    return f"{name}({', '.join(_told(each, within) for each in inner)})"


def _inside(part: Any) -> list[Any] | None:
    """Return what a part is made of, or None if its ``repr`` says it all."""
    if isinstance(part, type):
        return None
    if inspect.isfunction(part):
        constants = [each for each in part.__code__.co_consts if not isinstance(each, types.CodeType)]
        return [part.__module__, constants, part.__defaults__, part.__kwdefaults__, *_closed_over(part)]
    if inspect.ismethod(part):
        return [part.__func__, part.__self__]
    if isinstance(part, functools.partial):
        return [part.func, part.args, part.keywords]
    if isinstance(part, Mapping):
        return [each for pair in part.items() for each in pair]
    if isinstance(part, tuple | list):
        return list(part)
    if dataclasses.is_dataclass(part):
        return [getattr(part, field.name) for field in dataclasses.fields(part)]
    return None


def _closed_over(function: types.FunctionType) -> list[Any]:
    """Return the values that a function takes from where it was made."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set, or not yet
            found.append(None)
    return found
