"""Arrays as users have them (NumPy, JAX, torch, lists, mapped files) into NumPy, or one sentence of complaint."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import LARGEST, InputError, label_order, to_numpy

_NAMES = "; names are numbered, in alphabetical order, by numpy.unique(names, return_inverse=True)[1] of all of them"


def real_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """Return ``value`` as an array of floating-point numbers with ``ndim`` axes; its entries are not looked at.

    Nothing is copied that holds float16, float32 or float64 already.

    Raises:
        InputError: naming the argument, its shape or type, and the requirement.
    """
    array = to_numpy(name, value)
    if array.ndim != ndim:
        kind = "matrix" if ndim == 2 else "vector"
        raise InputError(f"{name} must be a {kind}, got an array of shape {array.shape}")
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array
    if array.dtype.kind in "bcOSUMm" or array.dtype.names is not None:
        raise InputError(f"{name} must hold real numbers, got entries of type {array.dtype}")
    try:
        with np.errstate(over="ignore"):
            return array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold real numbers, got entries of type {array.dtype}") from None


def float_array(
    name: str,
    value: Any,
    ndim: int,
    *,
    nonnegative: bool = False,
    offset: int = 0,
    largest: float = LARGEST,
) -> Float[np.ndarray, ...]:
    """Return ``value`` as a finite float64 array with ``ndim`` axes.

    Args:
        name: the argument, for messages.
        value: what the user passed.
        ndim: number of axes required.
        nonnegative: refuse negative entries.
        offset: index of the first row in the user's array, for messages about a block of it.
        largest: size above which entries are refused.

    Raises:
        InputError: naming the argument, the offending entry and the requirement.
    """
    array = real_array(name, value, ndim).astype(np.float64, copy=False)
    if not array.size:
        return array
    low, high = float(array.min()), float(array.max())  # NaN if one entry is
    if not (-largest <= low and high <= largest):
        where = np.unravel_index(int(np.argmin(np.abs(array) <= largest)), array.shape)
        raise InputError(
            f"{name} must be finite and at most {largest:g} in size, "
            f"got {_entry(name, where, offset)} = {array[where]}"
        )
    if nonnegative and low < 0:
        where = np.unravel_index(int(np.argmin(array)), array.shape)
        after = " (features after a ReLU)" if name == "features" else ""
        raise InputError(
            f"{name} must be non-negative{after}, got {_entry(name, where, offset)} = {array[where]}"
        )
    return array


def _entry(name: str, where: tuple[Any, ...], offset: int) -> str:
    first, *rest = (int(i) for i in where)
    return f"{name}[{', '.join(str(i) for i in (first + offset, *rest))}]"


def rows_of(table: Any, part: slice) -> Any:
    """Return ``table[..., part, :]``; pages of a mapped file that were read before are given back.

    Otherwise a pass over a file would end with all of it in memory. Files mapped for writing are left alone.
    """
    owner, mapped = table, None
    while isinstance(owner, np.ndarray):
        owner, mapped = owner.base, owner if isinstance(owner, np.memmap) else mapped
    if mapped is not None and mapped.mode == "r" and hasattr(owner, "madvise"):
        owner.madvise(mmap.MADV_DONTNEED)
    return table[..., part, :] if len(table.shape) > 2 else table[part]


class Table(NamedTuple):
    """Feature rows as they were given: a tensor or a mapped file is read block by block, and only then converted."""

    rows: Any
    shape: tuple[int, int]

    def block(self, start: int, stop: int, *, check: bool = True, nonnegative: bool = False) -> np.ndarray:
        """Return rows as float64; ``check`` what they hold unless that has been done."""
        try:
            part = rows_of(self.rows, slice(start, stop))
        except (TypeError, ValueError, LookupError, NotImplementedError, RuntimeError):
            raise InputError(f"features must have rows to slice, got {type(self.rows).__name__}") from None
        if check:
            return float_array("features", part, 2, nonnegative=nonnegative, offset=start)
        return real_array("features", part, 2).astype(np.float64, copy=False)

    def blocks(self, size: int) -> Iterator[slice]:
        """Yield slices of ``size`` rows that cover the table."""
        yield from (slice(first, min(first + size, self.shape[0])) for first in range(0, self.shape[0], size))


def feature_table(value: Any, columns: int | None = None, classes: int | None = None) -> Table:
    """Return features with two axes, and ``columns`` columns, without reading them.

    Args:
        value: what the user passed.
        columns: the feature dimension, if known.
        classes: number of classes, for a hint where they are the columns by mistake.

    Raises:
        InputError: naming the shape and the requirement.
    """
    lazy = hasattr(value, "shape") and hasattr(value, "__getitem__") and not isinstance(value, np.generic)
    rows = value if lazy and not isinstance(value, np.ma.MaskedArray) else to_numpy("features", value)
    try:
        shape = tuple(int(length) for length in rows.shape)
    except (TypeError, ValueError):
        raise InputError(f"features must be a matrix, got {type(value).__name__}") from None
    if len(shape) != 2 or shape[1] < 1:
        raise InputError(f"features must be a matrix, one row per sample, got shape {shape}")
    if columns is not None and shape[1] != columns:
        hint = "; its rows are classes: transpose it" if shape[1] == classes else ""
        raise InputError(
            f"features must have as many columns as weight, the feature dimension ({columns}), "
            f"got shape {shape}{hint}"
        )
    table = Table(rows, (shape[0], shape[1]))
    table.block(0, 0)  # refuses what holds no numbers even if it has no rows
    return table


def label_array(labels: Any, num_classes: int, rows: int | None = None) -> Int[np.ndarray, " rows"]:
    """Return ``labels`` as integers in ``0 .. num_classes - 1``.

    Floating-point labels are accepted if they are whole numbers, as files often hold them; names if all classes are
    named, which makes them numbers in alphabetical order.

    Raises:
        InputError: naming the offending label and the requirement.
    """
    array, _ = numbered(labels, num_classes)
    if array.ndim != 1:
        hint = (
            "of a column, take labels[:, 0]"
            if array.shape[1:] == (1,)
            else "of one-hot rows, take the argmax"
        )
        raise InputError(
            f"labels must be a vector with one label per row of features ({hint}), got shape {array.shape}"
        )
    if rows is not None and len(array) != rows:
        raise InputError(f"labels must have one entry per row of features ({rows}), got {len(array)}")
    wanted = f"labels must be integers from 0 to {num_classes - 1}"
    if array.dtype.kind not in "iuf":
        raise InputError(f"{wanted}, got entries of type {array.dtype}")
    good = (array >= 0) & (array < num_classes) & (array == np.floor(array))  # false for NaN
    if not np.all(good):
        where = int(np.argmin(good))
        raise InputError(f"{wanted}, got labels[{where}] = {array[where]}{_label_hint(array, num_classes)}")
    return array.astype(np.int64)


def numbered(labels: Any, num_classes: int | None = None) -> tuple[Any, tuple[str, ...]]:
    """Return labels that are names as numbers, in alphabetical order, and the names.

    Texts of integers are these integers, without names; others are returned as they are. All classes must occur where
    their number is given: the order of some would not be that of classifier rows.

    Raises:
        InputError: if there are not ``num_classes`` names.

    Example:
        >>> numbered(["cat", "ant", "cat"], 2)
        (array([1, 0, 1]), ('ant', 'cat'))
    """
    array = to_numpy("labels", labels)
    text = array.dtype.kind in "US" or (
        array.dtype.kind == "O" and all(isinstance(x, str) for x in array.flat)
    )
    if array.ndim != 1 or not array.size or not text:
        return array, ()
    try:
        return array.astype(np.int64), ()
    except (ValueError, OverflowError):
        names, codes = np.unique(array.astype(str), return_inverse=True)
    order = sorted(range(len(names)), key=lambda i: label_order(str(names[i])))
    if num_classes is not None and len(names) != num_classes:
        raise InputError(
            f"labels must be integers, or must name each of the {num_classes} classes, got {len(names)} names{_NAMES}"
        )
    return np.argsort(order)[codes], tuple(names[order].tolist())


def _label_hint(array: np.ndarray, num_classes: int) -> str:
    if array.min() == 1 and array.max() == num_classes:
        return "; if yours count from 1, subtract 1"
    if array.min() == -1:
        return "; if -1 means no label, keep = labels >= 0 selects the other rows, of features too"
    return ""


def number_of_classes(labels: Any) -> int:
    """Return the largest label plus one, or how many names there are.

    Raises:
        InputError: if there is none, or it is no integer of at least 0.
    """
    array, _ = numbered(labels)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf":
        raise InputError(
            f"labels must be a vector of integers from 0, got {array.dtype} of shape {array.shape}"
        )
    largest = float(array.max())
    if not 0 <= largest < 2**31:
        raise InputError(f"labels must be integers from 0 to 2^31 - 2, got a largest one of {array.max()}")
    return int(largest) + 1


def classifier(
    weight: Any, bias: Any = None
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, " K"] | None]:
    """Return a classifier's weight and bias as float64 arrays of matching shapes.

    Raises:
        InputError: naming the argument, its value and the requirement.
    """
    matrix = float_array("weight", weight, 2)
    if len(matrix) < 2 or matrix.shape[1] < 1:
        raise InputError(
            f"weight must have one row per class, at least two, and at least one column, got {matrix.shape}"
        )
    if bias is None:
        return matrix, None
    vector = float_array("bias", bias, 1)
    if len(vector) != len(matrix):
        raise InputError(f"bias must have one entry per row of weight ({len(matrix)}), got {len(vector)}")
    return matrix, vector


class Point(NamedTuple):
    """A point of a problem whose shapes fit: what `point_of` returns."""

    weight: Float[np.ndarray, "K d"]
    features: Float[np.ndarray, "rows d"]
    labels: Int[np.ndarray, " rows"]
    bias: Float[np.ndarray, " K"] | None


def point_of(problem: Any, weight: Any, features: Any, labels: Any, bias: Any = None) -> Point:
    """Return a point of a problem as arrays that fit it and each other.

    Entries that are not finite, and features of the wrong sign, pass: they are for the certificate to judge.

    Args:
        problem: a `ufm.Problem`; its ``dim`` is not looked at.
        weight: ``W``, one row per class.
        features: ``H``.
        labels: class of every row.
        bias: ``b``, if and only if the problem has one.

    Raises:
        InputError: naming the argument, its value and the requirement.
    """
    num_logits = getattr(problem, "num_logits", None)
    if num_logits is None or not hasattr(problem, "feature_decay"):
        raise InputError(f"problem must be a ufm.Problem, got {type(problem).__name__}")
    matrix, table = real_array("weight", weight, 2), real_array("features", features, 2)
    if len(matrix) != num_logits or matrix.shape[1] < 1:
        raise InputError(
            f"weight must have one row for each of the problem's {num_logits} classes and at least one column, "
            f"got shape {matrix.shape}"
        )
    kept = feature_table(table, matrix.shape[1], problem.num_classes)
    check_bias(problem, bias)
    if bias is not None:
        bias = real_array("bias", bias, 1).astype(np.float64, copy=False)
        if len(bias) != num_logits:
            raise InputError(
                f"bias must have one entry for each of the problem's {num_logits} classes, got {len(bias)}"
            )
    return Point(
        matrix.astype(np.float64, copy=False),
        table,
        label_array(labels, problem.num_classes, kept.shape[0]),
        bias,
    )


def check_bias(problem: Any, bias: Any) -> None:
    """Raise `InputError` unless a bias is given if and only if the problem has one."""
    if (bias is None) != (problem.bias is None):
        has, needs = ("none", "needs one") if bias is None else ("one", "has none")
        raise InputError(
            f"bias must be given if and only if the problem has a bias, got {has} and the problem {needs}"
        )


def multiplicity_array(multiplicities: Any, rows: int) -> Float[np.ndarray, " rows"]:
    """Return the number of samples that every row stands for; ones if None.

    Raises:
        InputError: if one is not positive, or their number is wrong.
    """
    if multiplicities is None:
        return np.ones(rows)
    array = float_array("multiplicities", multiplicities, 1)
    if len(array) != rows:
        raise InputError(f"multiplicities must have one entry per row of features ({rows}), got {len(array)}")
    if rows and array.min() <= 0:
        where = int(np.argmin(array))
        raise InputError(f"multiplicities must be above 0, got multiplicities[{where}] = {array[where]}")
    return array
