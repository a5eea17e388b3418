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
    hashed = hashlib.sha256()
    _add(hashed, about, ())
    return hashed.hexdigest()


def _add(hashed: Any, part: Any, around: tuple[int, ...]) -> None:
    """Hash a part with all that it is made of; ``around`` are the parts it lies in, since some lie in themselves."""
    if id(part) in around:
        return _add_bytes(hashed, b"itself", b"")
    inner = _inside(part)
    if inner is not None:
        name = getattr(part, "__qualname__", type(part).__qualname__)
        _add_bytes(hashed, f"{name} of {len(inner)}".encode(), b"")
        for each in inner:
            _add(hashed, each, (*around, id(part)))
        return None
    array = np.asarray(part) if hasattr(part, "__array__") else None
    if array is not None and array.dtype != object:
        return _add_bytes(hashed, f"{array.dtype.str} {array.shape}".encode(), array.tobytes())
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(part))  # where objects lie in memory
    return _add_bytes(hashed, b"text", text.encode())


def _add_bytes(hashed: Any, kind: bytes, content: bytes) -> None:
    """Hash what something is and its bytes, with their numbers: no two sequences of parts make the same bytes."""
    hashed.update(f"{len(kind)} {len(content)} ".encode() + kind)
    hashed.update(content)


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
