"""How bounds on squares and inner products carry over to lengths, angles and normalised residuals."""

from __future__ import annotations

import math

import numpy as np

#: Added to relative tolerances, for rounding in the metrics themselves.
FLOOR = 1e-11


def largest_root(b: float | np.ndarray, c: float | np.ndarray) -> np.ndarray:
    """Return the largest x with ``x^2 <= b x + c``."""
    return np.asarray((b + np.sqrt(np.square(b) + 4 * c)) / 2)


def largest_eigenvalue(gram: np.ndarray) -> float:
    """Return the largest eigenvalue of a Gram matrix."""
    if np.array_equal(gram, np.diag(np.diagonal(gram))):
        return float(np.diagonal(gram).max())
    return max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)


def bound_of_root(predicted: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return a bound on ``|a - a*|`` from one on ``|a^2 - a*^2|``."""
    floor = FLOOR * predicted
    safe = np.where(predicted > 0, predicted, 1.0)
    return floor + np.where(predicted > 0, np.minimum(squares / safe, np.sqrt(squares)), np.sqrt(squares))


def bound_of_direction(error: float, predicted: float) -> float:
    """Return a bound on ``|A/|A| - A*/|A*||`` from one on ``|A - A*|``; infinite if A* is zero."""
    return FLOOR + 2 * error / predicted if predicted > 0 else math.inf


def bound_of_cosine(
    dot: np.ndarray,
    error: np.ndarray,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return a bound on ``|a/(bc) - a*/(b*c*)|`` from those on ``a``, ``b^2`` and ``c^2``."""
    low = np.sqrt(np.maximum(first[0] - first[1], 0.0) * np.maximum(second[0] - second[1], 0.0))
    high = np.sqrt((first[0] + first[1]) * (second[0] + second[1]))
    middle = np.sqrt(first[0] * second[0])
    defined = low > 0
    safe, length = np.where(defined, low, 1.0), np.where(middle > 0, middle, 1.0)
    spread = np.maximum(high - middle, middle - low)
    return np.where(defined, FLOOR + (error + np.abs(dot) / length * spread) / safe, np.inf)
