"""Arrays as users have them (NumPy, JAX, torch, lists) into float64 NumPy, or one sentence of complaint."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError

#: Largest absolute value accepted: squares of anything larger, summed, leave the range of float64.
LARGEST = 1e100


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return ``value`` as a NumPy array of its own type. A torch tensor is detached and copied to the host.

    No array library is imported: a tensor is recognised by what it can do (``detach``), the rest by NumPy.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if "bfloat16" in str(value.dtype):  # NumPy has no such type
                value = value.float()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # torch: sparse, without data, or lazily conjugated
        raise InputError(f"{name} must be a dense array of numbers, got {type(value).__name__}") from None


def float_array(
    name: str, value: Any, ndim: int, *, nonnegative: bool = False, offset: int = 0
) -> Float[np.ndarray, ...]:
    """Return ``value`` as a finite float64 array with ``ndim`` axes.

    Args:
        name: the argument, for messages.
        value: what the user passed.
        ndim: number of axes required.
        nonnegative: refuse negative entries.
        offset: index of the first row in the user's array, for messages about a block of it.

    Raises:
        InputError: naming the argument, the offending entry and the requirement.
    """
    array = to_numpy(name, value)
    if array.ndim != ndim:
        kind = "matrix" if ndim == 2 else "vector"
        raise InputError(f"{name} must be a {kind}, got an array of shape {array.shape}")
    if array.dtype.kind in "bcOSUMm":
        raise InputError(f"{name} must hold real numbers, got entries of type {array.dtype}")
    try:
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold real numbers, got entries of type {array.dtype}") from None
    good = np.abs(array) <= LARGEST  # false for NaN
    if not np.all(good):
        where = np.unravel_index(int(np.argmin(good)), array.shape)
        raise InputError(
            f"{name} must be finite and at most {LARGEST:g} in size, "
            f"got {_entry(name, where, offset)} = {array[where]}"
        )
    if nonnegative and array.size and array.min() < 0:
        where = np.unravel_index(int(np.argmin(array)), array.shape)
        raise InputError(
            f"{name} must be non-negative (features after a ReLU), "
            f"got {_entry(name, where, offset)} = {array[where]}"
        )
    return array


def _entry(name: str, where: tuple[Any, ...], offset: int) -> str:
    first, *rest = (int(i) for i in where)
    return f"{name}[{', '.join(str(i) for i in (first + offset, *rest))}]"


def label_array(labels: Any, num_classes: int, rows: int | None = None) -> Int[np.ndarray, " rows"]:
    """Return ``labels`` as integers in ``0 .. num_classes - 1``.

    Floating-point labels are accepted if they are whole numbers, as files often hold them.

    Raises:
        InputError: naming the offending label and the requirement.
    """
    array = to_numpy("labels", labels)
    if array.ndim != 1:
        raise InputError(
            "labels must be a vector with one label per row of features (of one-hot rows, take the argmax), "
            f"got shape {array.shape}"
        )
    if rows is not None and len(array) != rows:
        raise InputError(f"labels must have one entry per row of features ({rows}), got {len(array)}")
    if array.dtype.kind not in "iuf":
        raise InputError(
            f"labels must be integers from 0 to {num_classes - 1}, got entries of type {array.dtype}"
        )
    good = (array >= 0) & (array < num_classes) & (array == np.floor(array))  # false for NaN
    if not np.all(good):
        where = int(np.argmin(good))
        hint = (
            "; if yours count from 1, subtract 1" if array.min() == 1 and array.max() == num_classes else ""
        )
        raise InputError(
            f"labels must be integers from 0 to {num_classes - 1}, got labels[{where}] = {array[where]}{hint}"
        )
    return array.astype(np.int64)


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
