"""What a value of a field is, for keys, descriptions and labels: the same in every process and machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ufm.solvers.fingerprint import run_key

#: What JSON writes as it is.
PLAIN = (str, bool, int, float, type(None))


def plain(value: Any) -> Any:
    """Return ``value`` as something that JSON writes in one way only; objects by all that they are made of."""
    return described(value, float.hex)


def object_content(value: Any) -> list[Any]:
    """Return what tells an object from others: type and parameters, or a fingerprint of these."""
    kind = type(value)
    own = kind.__module__.partition(".")[0] == "ufm"
    name = kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
    parts = sorted(vars(value).items())
    if all(isinstance(part, (*PLAIN, np.ndarray, np.generic)) for _, part in parts):
        return [name, *([part, plain(inner)] for part, inner in parts)]
    return [name, fingerprint(value)]


@functools.lru_cache(maxsize=4096)
def fingerprint(value: Any) -> str:
    """Return a fingerprint of an object's content (see `ufm.solvers.fingerprint`); 16 hex digits."""
    return run_key(value if dataclasses.is_dataclass(value) else vars(value))[:16]


def label(value: Any) -> str:
    """Return how a value is called on an axis: as text, an object as one would write it, or by its type and content.

    Objects made of functions cannot be written down; the digits behind their type tell them apart.

    Example:
        >>> import ufm
        >>> label(ufm.LabelSmoothing(0.1)), label(ufm.Accelerated(4))
        ('LabelSmoothing(smoothing=0.1)', 'Accelerated(window=4)')
    """
    if isinstance(value, (*PLAIN, list, tuple, np.ndarray)):
        return str(value)
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    parts = {field.name: getattr(value, field.name) for field in fields if field.init}
    if not fields or not all(isinstance(part, (*PLAIN, np.ndarray, np.generic)) for part in parts.values()):
        return f"{type(value).__name__}-{fingerprint(value)[:8]}"
    written = (f"{name}={described(part)!r}" for name, part in parts.items())
    return f"{type(value).__name__}({', '.join(written)})"


def described(value: Any, number: Callable[[float], Any] = lambda number: number) -> Any:
    """Return a value as JSON writes it: exactly as it was given where it can, floats as ``number`` of them."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [described(entry, number) for entry in value]
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, PLAIN) else object_content(value)
