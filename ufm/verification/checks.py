"""How a number becomes a row with a verdict."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from ufm.verification.report import Row, Verdict

#: A normalised residual or a cosine cannot be off by much more than 1: wider tolerances decide nothing.
WIDEST = 1.0


def judged(error: float, tolerance: float, widest: float = math.inf) -> Verdict:
    """Return the verdict on an error; never ``"pass"`` for NaN."""
    if not tolerance < widest:
        return "unresolved"
    return "pass" if error <= tolerance else "fail"


def scalar_row(
    name: str, meaning: str, predicted: float, measured: float, tolerance: float, note: str = ""
) -> Row:
    """Compare a residual, a ratio or a fraction."""
    error = abs(measured - predicted)
    return Row(
        name, meaning, predicted, measured, error, tolerance, judged(error, tolerance, WIDEST), "", note
    )


def info_row(name: str, meaning: str, measured: float | int | None, note: str = "") -> Row:
    """Report a number without a verdict."""
    return Row(name, meaning, None, measured, None, None, "info", "", note)


def worst_row(
    name: str,
    meaning: str,
    predicted: Float[np.ndarray, ...],
    measured: Float[np.ndarray, ...],
    tolerance: Float[np.ndarray, ...],
    widest: float = math.inf,
    classes: Int[np.ndarray, " rows"] | None = None,
) -> Row:
    """Compare an array and show the entry with the largest error relative to its tolerance.

    Entries whose tolerance is at least ``widest`` (or infinite) decide nothing; if there is no other, the row
    is unresolved. ``classes`` says which class a row stands for, if not that of its number.
    """
    usable = tolerance < widest
    if not np.any(usable):
        return Row(
            name, meaning, None, None, None, None, "unresolved", "", "nothing that the data can resolve"
        )
    error = np.abs(measured - predicted)
    ratio = np.where(usable, np.divide(error, tolerance, out=np.zeros_like(error), where=tolerance > 0), -1.0)
    ratio = np.where(usable & (error > tolerance), np.maximum(ratio, 2.0), ratio)
    ratio = np.where(usable & np.isnan(error), np.inf, ratio)
    where = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    named = [int(index) for index in where]
    if classes is not None:
        named[0] = int(classes[named[0]])
    place = f"class {named[0]}" if len(named) == 1 else "classes " + " and ".join(map(str, named))
    values = (float(predicted[where]), float(measured[where]), float(error[where]), float(tolerance[where]))
    return Row(name, meaning, *values, judged(values[2], values[3]), place)


def listed(classes: np.ndarray, limit: int = 12) -> str:
    """Return class numbers in words, at most ``limit`` of them."""
    names = ", ".join(str(int(k)) for k in classes[:limit])
    more = f" and {len(classes) - limit} more" if len(classes) > limit else ""
    return f"{'class' if len(classes) == 1 else 'classes'} {names}{more}"
