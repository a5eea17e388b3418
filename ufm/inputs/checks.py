"""Checks of what users pass in: every message names the argument, its value and what is required."""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
import reprlib
from collections.abc import Iterable, Set
from typing import Any

import numpy as np
from jaxtyping import Float, Int

#: Totals stay exactly representable as float64.
MAX_SAMPLES = 2**53
#: Largest absolute value accepted: squares of anything larger, summed, leave the range of float64.
LARGEST = 1e100
#: Rows of targets may miss a sum of one by this much: what single precision and rounded tables leave.
SUM_TOLERANCE = 1e-5


class InputError(ValueError):
    """An argument that the mathematics does not allow; the message is one sentence fit for a terminal.

    Example:
        >>> positive_float("weight_decay", -1)
        Traceback (most recent call last):
        ufm.inputs.checks.InputError: weight_decay must be a finite number above 0, got -1.0
    """


class OutputError(OSError):
    """Something that was asked for could not be written; the message is one sentence fit for a terminal."""


class CheckpointError(OutputError):
    """A checkpoint could not be written; the one before, if any, is intact.

    Attributes:
        solution: what `ufm.solve` has found all the same.
    """

    solution: Any = None


def positive_integer(name: str, value: Any, most: int | None = None) -> int:
    """Return ``value`` as an int of at least 1, and at most ``most``, or raise `InputError`."""
    number = _integer(name, value, 1)
    if most is not None and number > most:
        raise InputError(f"{name} must be at most {most}, got {reprlib.repr(number)}")
    return number


def nonnegative_integer(name: str, value: Any) -> int:
    """Return ``value`` as an int of at least 0, or raise `InputError`."""
    return _integer(name, value, 0)


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}") from None
    if number < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {number}")
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


def memory_bytes() -> int:
    """Return how much memory the machine has; where it does not say, more than any has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**60


def fits_memory(what: str, numbers: int, hint: str) -> None:
    """Raise `InputError` if so many float64 numbers, needed for ``what``, are more than the machine's memory."""
    if 8 * numbers > memory_bytes():
        numbers = min(numbers, 10**18)  # more, beyond what a float holds, says no more
        raise InputError(
            f"{what} need {8e-9 * numbers:,.0f} GB, and this machine has {1e-9 * memory_bytes():,.0f}; {hint}"
        )


def gap_tolerance(name: str, value: Any) -> float:
    """Return ``value`` as a relative gap between 0 and 1, or raise `InputError`.

    No loss is negative, so that 0 bounds every objective from below: a gap of 1 or more proves nothing.
    """
    number = positive_float(name, value)
    if number >= 1:
        raise InputError(
            f"{name} must be below 1 (the bound 0, which proves nothing, has gap 1), got {number}"
        )
    return number


def fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float of at least zero and below one, or raise `InputError`."""
    number = nonnegative_float(name, value)
    if number >= 1:
        raise InputError(f"{name} must be below 1, where nothing could fail, got {number}")
    return number


def _as_float(name: str, value: Any, requirement: str) -> float:
    if isinstance(value, bool | np.bool_ | str) or not (
        isinstance(value, numbers.Real) or (hasattr(value, "__float__") and np.ndim(value) == 0)
    ):
        raise InputError(f"{name} must be {requirement}, got {value!r}")
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (OverflowError, TypeError, ValueError):
        raise InputError(f"{name} must be {requirement}, got {reprlib.repr(value)}") from None


def class_counts(counts: Any) -> Int[np.ndarray, " K"] | Float[np.ndarray, " K"]:
    """Return counts as a read-only vector of at least two positive entries, or raise `InputError`.

    Whole numbers become int64, others float64 (weights of a sampler). A mapping from labels to counts is taken by
    sorted label, texts of integers as integers.
    """
    if hasattr(counts, "keys") and hasattr(counts, "items"):
        counts = _by_label(dict(counts.items()))
    if isinstance(counts, str | bytes | Set) or not isinstance(
        counts, Iterable
    ):  # a set has lost equal counts
        raise InputError(f"counts must be a sequence of positive integers, got {reprlib.repr(counts)}")
    if isinstance(counts, np.ma.MaskedArray):
        raise InputError("counts must have no mask: leave out the masked classes")
    entries: Any = counts if hasattr(counts, "__array__") else list(counts)
    try:
        array = np.asarray(entries)
    except ValueError:
        raise InputError(f"counts must be a flat sequence of integers, got {reprlib.repr(entries)}") from None
    if array.ndim != 1:
        raise InputError(f"counts must be a flat sequence of integers, got an array of shape {array.shape}")
    if array.size == 0:
        raise InputError("counts must name at least two classes, got an empty sequence")
    if array.dtype.kind not in "iuf":
        values = array.tolist() if entries is counts else entries
        bad = [value for value in values if not _is_integer(value)] or [max(values, key=abs)]
        raise InputError(f"counts must be positive integers below 2^53, got {bad[0]!r}")
    good = (array > 0) & (array < np.inf)  # false for NaN
    if not np.all(good):
        where = int(np.argmin(good))
        kind = "positive and finite" if array.dtype.kind == "f" else "positive integers"
        raise InputError(f"counts must be {kind}, got counts[{where}] = {array[where]:g}")
    if array.size < 2:
        raise InputError(f"counts must name at least two classes, got one class of {array[0]:.15g} samples")
    total = float(array.sum(dtype=np.float64))
    if total >= MAX_SAMPLES:
        raise InputError(f"counts must add up to less than 2^53 = {MAX_SAMPLES}, got a total of {total:.6g}")
    array = array.astype(np.int64 if _is_whole(array) else np.float64)
    array.flags.writeable = False
    return array


def _by_label(table: dict[Any, Any]) -> list[Any]:
    try:
        return [table[label] for label in sorted(table, key=label_order)]
    except TypeError:
        shown = reprlib.repr(list(table))
        raise InputError(f"counts must have labels that can be sorted, got {shown}") from None


def label_order(label: Any) -> tuple[bool, Any]:
    """Sort integers and their texts by value, before other labels."""
    whole = re.fullmatch(r"[-+]?[0-9]{1,18}", str(label)) is not None
    return not whole, int(str(label)) if whole else label


def _is_whole(array: np.ndarray) -> bool:
    if array.dtype.kind == "f":
        return bool(np.all(np.isfinite(array)) and np.all(array == np.floor(array)))
    return array.dtype.kind in "iu"


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return ``value`` as a NumPy array of its own type. A torch tensor is detached and copied to the host.

    No array library is imported: a tensor is recognised by what it can do (``detach``), the rest by NumPy.

    Raises:
        InputError: for what is no dense array, or has a mask, which would be lost.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must have no mask: fill the masked entries, or leave out their rows")
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if "bfloat16" in str(value.dtype):  # NumPy has no such type
                value = value.float()
        array = np.asarray(value)
    except MemoryError:
        raise
    except (
        Exception
    ):  # torch: sparse, without data, or lazily conjugated; lists of different lengths; anything
        shown = reprlib.repr(value) if isinstance(value, list | tuple) else type(value).__name__
        raise InputError(f"{name} must be a dense array of numbers, got {shown}") from None
    if array.ndim == 0 and array.dtype.kind == "O":
        raise InputError(f"{name} must be a dense array of numbers, got {type(value).__name__}")
    return array


def finite_vector(name: str, values: Any, *, positive: bool = False) -> Float[np.ndarray, " K"]:
    """Return ``values`` as a read-only float64 vector of finite (and, if asked, positive) entries."""
    given = to_numpy(name, values)
    try:
        if given.dtype.kind not in "iufVO" or not all(
            isinstance(value, numbers.Real) for value in (given.ravel() if given.dtype.kind == "O" else ())
        ):
            raise TypeError
        with np.errstate(over="ignore"):
            array = np.array(given, dtype=np.float64)
    except (OverflowError, TypeError, ValueError):
        raise InputError(f"{name} must be a vector of numbers, got {reprlib.repr(values)}") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must be a vector with one entry per class, got shape {array.shape}")
    # what may be negative is added to logits, and squared with them
    most = math.nextafter(math.inf, 0) if positive else LARGEST
    good = (np.abs(array) <= most) & ((array > 0) | (not positive))  # false for NaN
    if not np.all(good):
        where = int(np.argmin(good))
        requirement = "finite and above 0" if positive else "finite"
        if most < abs(array[where]) < math.inf:
            requirement += f", at most {most:g} in size,"
        raise InputError(
            f"{name} must be {requirement} for all classes, got {name}[{where}] = {array[where]}"
        )
    array.flags.writeable = False
    return array


def dense(name: str, value: Any) -> Any:
    """Return a SciPy sparse matrix as a dense one, if it fits into memory; anything else as it is."""
    if not hasattr(value, "toarray"):
        return value
    fits_memory(f"{name} of shape {value.shape}", math.prod(value.shape), "take fewer rows or columns")
    return value.toarray()


def target_rows(targets: Any, contexts: int) -> Float[np.ndarray, "C K"]:
    """Return target distributions, one row per context, as float64 rows that sum to one as exactly as they can.

    Args:
        targets: (C, K), dense or SciPy sparse; made dense, as logits are.
        contexts: how many rows there must be.

    Raises:
        InputError: naming ``targets``, what it is and what it must be.
    """
    array = to_numpy("targets", dense("targets", targets))
    if array.ndim != 2 or len(array) != contexts or array.shape[1] < 2 or array.dtype.kind not in "biuf":
        raise InputError(
            f"targets must be numbers with one row per entry of counts ({contexts}) and at least two columns, "
            f"got shape {array.shape} of {array.dtype}"
        )
    rows = array.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        sums = rows.sum(axis=1)
    good = (np.abs(sums - 1) <= SUM_TOLERANCE) & (rows.min(axis=1) >= 0)  # false for NaN
    if not np.all(good):
        where = int(np.argmin(good))
        raise InputError(
            f"targets must have rows of non-negative numbers that sum to one, got a smallest entry of "
            f"{rows[where].min():g} and a sum of {sums[where]:.8g} in row {where}"
        )
    exact = np.max(np.abs(sums - 1)) <= rows.shape[1] * np.finfo(np.float64).eps
    return np.array(rows) if exact else rows / sums[:, None]


def instance_of(name: str, value: Any, kind: type, description: str = "") -> Any:
    """Return ``value`` if it is an instance of ``kind``, or raise `InputError`."""
    if not isinstance(value, kind):
        wanted = description or f"a ufm.{kind.__name__}"
        raise InputError(f"{name} must be {wanted}, got {type(value).__name__}")
    return value


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``allowed``, or raise `InputError`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value
