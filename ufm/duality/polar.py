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

import numpy as np
from jaxtyping import Float

from ufm.duality.copositive import sharing_bound
from ufm.model.problem import FeatureSet

#: Relative slack for rounding in float64, multiplied by the number of classes.
ROUNDING = 8 * float(np.finfo(np.float64).eps)
#: Up to this size the eigenvalue is computed directly; above it by power iteration.
DENSE_LIMIT = 200
#: Up to this size the bound is sharpened for classes that share directions: the cost grows like the cube.
SHARING_LIMIT = 400
#: Squared bounds above this come from points far from optimal, which no sharper bound would certify.
SHARPENED = 2.0


def polar_bound(
    dual: Float[np.ndarray, "K K"], features: FeatureSet, gram: Float[np.ndarray, "K K"] | None = None
) -> float:
    """Return an upper bound on ``polar(A)``, rounding allowed for; infinite if A is not finite.

    Args:
        dual: the matrix ``A``, one row per class.
        features: feature set, which decides the polar.
        gram: Gram matrix of the class means, for losses whose classes may share directions. It sharpens the bound;
            the bound is valid whatever it is.
    """
    if not np.all(np.isfinite(dual)):
        return math.inf
    slack = 1 + ROUNDING * len(dual)
    if features == "free":
        return float(np.linalg.norm(dual, 2)) * slack
    product = dual @ dual.T
    bound = perron_bound(np.maximum(product, 0.0))
    if gram is not None and 1 < bound < SHARPENED and len(dual) <= SHARING_LIMIT:
        bound = min(bound, sharing_bound(product, gram))
    return math.sqrt(bound) * slack


def perron_bound(matrix: Float[np.ndarray, "K K"], iterations: int = 60) -> float:
    """Return an upper bound on the largest eigenvalue of a symmetric matrix with non-negative entries.

    Every positive vector x gives ``lambda_max <= max_i (M x)_i / x_i`` (Collatz-Wielandt); power iteration
    makes it sharp, and a diagonal matrix is exact at once.
    """
    diagonal = np.diagonal(matrix)
    if np.count_nonzero(matrix) == np.count_nonzero(diagonal):
        return float(diagonal.max())
    if len(matrix) <= DENSE_LIMIT:
        return max(float(np.linalg.eigvalsh(matrix)[-1]), float(diagonal.max()))
    best, x = math.inf, np.ones(len(matrix))
    for _ in range(iterations):
        image = matrix @ x
        bound = float(np.max(image / x))
        if bound >= best:
            break
        best = bound
        x = np.maximum(image, 1e-8 * image.max())
        x /= x.max()
    return best
