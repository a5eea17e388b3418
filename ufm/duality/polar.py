"""The polar of the regulariser: how far a dual point is from feasible, bounded rigorously from above.

``polar(A) = max_{u >= 0, |u| = 1} |A' u|`` for non-negative features, the largest singular value for free
ones. The first is a copositive problem, bounded by ``sqrt(lambda_max(max(A A', 0)))``: for ``u >= 0``
replacing the negative entries of ``A A'`` by zero only increases ``u' A A' u``. The bound is tight when no
off-diagonal entry of ``A A'`` is positive, as at the optimum of cross-entropy, class-weighted and smoothed ones too.
Logit adjustment and vector scaling let small classes share directions, and entries of both signs mix there: then the
features of the point say which negative entries to keep (`ufm.duality.copositive`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm.duality.copositive import sharing_bound, sharpest_bound
from ufm.model.problem import FeatureSet

#: Relative slack for rounding in float64, multiplied by the number of classes.
ROUNDING = 8 * float(np.finfo(np.float64).eps)
#: Up to this size the eigenvalue is computed directly; above it by power iteration.
DENSE_LIMIT = 200
#: Up to this size the bound is sharpened for classes that share directions, in a few seconds; and up to this where
#: it may be the last word, in 12 s for 1,000 classes, 50 s for 1,500.
SHARING_LIMIT, LAST_LIMIT = 600, 1500
#: Beyond, sums of squares of entries overflow.
LARGEST = 1e150
#: Squared bounds above this come from points far from optimal, which no sharper bound would certify.
SHARPENED = 2.0


def polar_bound(
    dual: Float[np.ndarray, "*members C K"],
    features: FeatureSet,
    gram: Float[np.ndarray, "*members C C"] | None = None,
    thorough: bool = False,
) -> Any:
    """Return an upper bound on ``polar(A)``, rounding allowed for; infinite if A, or squares of it, leave float64.

    Args:
        dual: the matrix ``A``, one row per class; leading axes are members.
        features: feature set, which decides the polar.
        gram: Gram matrix of the class means, for losses whose classes may share directions. It sharpens the bound;
            the bound is valid whatever it is.
        thorough: whether more may be done than complementarity suggests.
    """
    finite = np.all(np.abs(dual) < LARGEST, axis=(-2, -1))  # false for NaN
    dual = np.where(finite[..., None, None], dual, 0.0)
    slack = 1 + ROUNDING * max(dual.shape[-2:])
    if features == "free":
        product = dual.mT @ dual if dual.shape[-2] > dual.shape[-1] else dual @ dual.mT
        bound = np.sqrt(np.maximum(np.linalg.eigvalsh(product)[..., -1], 0.0))
    else:
        product = dual @ dual.mT
        squares = perron_bound(np.maximum(product, 0.0))
        if gram is not None and dual.shape[-2] <= (LAST_LIMIT if thorough else SHARING_LIMIT):
            squares = _sharpened(squares, product, gram, thorough)
        bound = np.sqrt(squares)
    return np.where(finite, bound * slack, math.inf)[()]


def _sharpened(squares: Any, product: np.ndarray, gram: np.ndarray, thorough: bool) -> np.ndarray:
    """Return the bounds, those within `SHARPENED` of feasible sharpened for classes that share directions."""
    found, bound = np.array(squares), sharpest_bound if thorough else sharing_bound
    for where in np.argwhere((found > 1) & (found < SHARPENED)).tolist():
        at = tuple(where)
        found[at] = min(found[at], bound(product[at], gram[at]))
    return found


def perron_bound(matrix: Float[np.ndarray, "*members K K"], iterations: int = 60) -> Any:
    """Return an upper bound on the largest eigenvalue of symmetric matrices with non-negative entries.

    Every positive vector x gives ``lambda_max <= max_i (M x)_i / x_i`` (Collatz-Wielandt); power iteration
    makes it sharp, and a diagonal matrix is exact at once.
    """
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    largest = diagonal.max(axis=-1)
    mixed = np.count_nonzero(matrix, axis=(-2, -1)) > np.count_nonzero(diagonal, axis=-1)
    if not np.any(mixed):
        return largest
    open_ones = matrix if matrix.ndim == 2 else matrix[mixed]
    if matrix.shape[-1] <= DENSE_LIMIT:
        values = np.linalg.eigvalsh(open_ones)[..., -1]
    else:
        values = _collatz_wielandt(open_ones, iterations)
    if matrix.ndim == 2:
        return float(max(values, largest)) if len(matrix) <= DENSE_LIMIT else float(values)
    found = largest.copy()
    found[mixed] = np.maximum(values, largest[mixed])
    return found


def _collatz_wielandt(matrix: Float[np.ndarray, "*members K K"], iterations: int) -> np.ndarray:
    """Return the smallest ``max_i (M x)_i / x_i`` along the power iteration."""
    x = np.ones(matrix.shape[:-1])
    best = np.full(matrix.shape[:-2], math.inf)
    for _ in range(iterations):
        image = (matrix @ x[..., None])[..., 0]
        bound = np.max(image / x, axis=-1)
        if not np.any(bound < best):
            break
        best = np.minimum(best, bound)
        x = np.maximum(image, 1e-8 * image.max(axis=-1, keepdims=True))
        x /= x.max(axis=-1, keepdims=True)
    return np.asarray(best)
