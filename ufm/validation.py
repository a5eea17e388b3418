"""Checks of what users pass in: every message names the argument, its value and what is required."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int


class InputError(ValueError):
    """An argument that the mathematics does not allow; the message is one sentence fit for a terminal."""


def positive_integer(name: str, value: Any) -> int:
    """Return ``value`` as an int of at least 1, or raise `InputError`."""
    if isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}") from None
    if number < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {number}")
    return number


def positive_float(name: str, value: Any) -> float:
    """Return ``value`` as a finite float above zero, or raise `InputError`."""
    number = _as_float(name, value, "a finite number above 0")
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} must be a finite number above 0, got {number}")
    return number


def nonnegative_float(name: str, value: Any) -> float:
    """Return ``value`` as a finite float of at least zero, or raise `InputError`."""
    number = _as_float(name, value, "a finite number of at least 0")
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{name} must be a finite number of at least 0, got {number}")
    return number


def _as_float(name: str, value: Any, requirement: str) -> float:
    if isinstance(value, bool | np.bool_ | str) or not (
        isinstance(value, numbers.Real) or (hasattr(value, "__float__") and np.ndim(value) == 0)
    ):
        raise InputError(f"{name} must be {requirement}, got {value!r}")
    return float(value)


def class_counts(counts: Any) -> Int[np.ndarray, " K"]:
    """Return class counts as a read-only int64 vector of at least two positive entries, or raise `InputError`."""
    if isinstance(counts, str) or not isinstance(counts, Iterable):
        raise InputError(f"counts must be a sequence of positive integers, got {counts!r}")
    array = np.asarray(counts if hasattr(counts, "__array__") else list(counts))
    if array.ndim != 1:
        raise InputError(f"counts must be a flat sequence of integers, got an array of shape {array.shape}")
    if array.size == 0:
        raise InputError("counts must name at least two classes, got an empty sequence")
    if array.dtype.kind not in "iu":
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
            bad = next((c for c in array.tolist() if not _is_integer(c)), array.tolist()[0])
            raise InputError(f"counts must be positive integers, got {bad!r}")
        if np.any(np.abs(array) >= 2**53):
            raise InputError(f"counts must be below 2^53, got {array.max()!r}")
    if np.any(array > np.iinfo(np.int64).max // 2):
        raise InputError(f"counts must be below 2^62, got {array.max()!r}")
    array = array.astype(np.int64)
    smallest = int(np.argmin(array))
    if array[smallest] < 1:
        raise InputError(f"counts must be positive integers, got counts[{smallest}] = {array[smallest]}")
    if array.size < 2:
        raise InputError(f"counts must name at least two classes, got one class of {array[0]} samples")
    array.flags.writeable = False
    return array


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def finite_vector(name: str, values: Any, *, positive: bool = False) -> Float[np.ndarray, " K"]:
    """Return ``values`` as a read-only float64 vector of finite (and, if asked, positive) entries."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a vector of numbers, got {values!r}") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must be a vector with one entry per class, got shape {array.shape}")
    good = np.isfinite(array) & (array > 0) if positive else np.isfinite(array)
    if not np.all(good):
        where = int(np.argmin(good))
        requirement = "finite and above 0" if positive else "finite"
        raise InputError(f"{name} must be {requirement} for every class, got {name}[{where}] = {array[where]}")
    array.flags.writeable = False
    return array


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``allowed``, or raise `InputError`."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value
