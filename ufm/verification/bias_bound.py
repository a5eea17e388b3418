r"""How far the bias of a point with a gap can be from the optimal one (notation of `ufm.verification.resolution`).

A regularised bias is pinned by its own term of the gap, ``lambda_b/2 |b - b*|^2``. An unregularised one by the
logits, of which the features explain only so much:

* symmetric losses, where every row of A is a multiple of ``e_k - 1/K``: off the target row k of ``X = G V'`` is equal
  up to ``|g_k| |V - A'G|``, so that differences of logits within a row are differences of biases, and two rows cover
  all of them, with a factor below 4.
* free features: ``nu' A = 0`` for ``nu_k = sqrt(n_k/N)``, hence ``|nu' G|^2 <= 2 eps`` and ``b`` is the mean of
  logits with weights ``nu_k units_k``.
* non-negative features: for a class k that shares its direction with no other, ``A_l + S_lk A_k`` vanishes on
  ``V g_k`` at the optimum, and nearly so at the point, which bounds ``(A_l + S_lk A_k)'(b - b*)``; two such classes
  give every ``A_l'(b - b*)``, hence the bias across the directions that A has.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

#: What no bound is found for; far beyond any logit, and its square within float64.
OPEN = 1e60


def free_mean_bound(
    units: Float[np.ndarray, " K"],
    radius: Float[np.ndarray, " K"],
    priors: Float[np.ndarray, " K"],
    root: float,
    largest: float,
) -> float:
    """Return the bound for free features and an unregularised bias; ``largest`` bounds ``|V|``."""
    shares = np.sqrt(priors) * units
    return float((shares @ radius + root * largest) / shares.sum())


def unshared_bound(
    A: Float[np.ndarray, "K K"],
    S: Float[np.ndarray, "K K"],
    units: Float[np.ndarray, " K"],
    radius: Float[np.ndarray, " K"],
    alone: Bool[np.ndarray, " K"],
    eps: float,
    largest: float,
) -> float:
    """Return the bound for non-negative features and an unregularised bias.

    Args:
        A: dual matrix.
        S: its multiplier.
        units: ``X_k = units_k (z_k - b)``.
        radius: of ``z_k``.
        alone: classes that share their direction with no other.
        eps: the gap.
        largest: bounds ``|g_k|``.
    """
    if np.sum(alone) < 2:
        return OPEN
    lengths = np.linalg.norm(A, axis=1)
    bend = 1 - float(np.linalg.eigvalsh(A @ A.T + S)[0])
    slip = np.sqrt(2 * eps) * np.sqrt(bend + lengths**2) * largest
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(S > 0, eps / S, np.inf)  # how far <g_l, g_k> may move
        through = np.where(np.eye(len(A), dtype=bool), 0.0, apart)
        moved = np.nan_to_num(S @ np.minimum(through, OPEN), posinf=OPEN)
        small = apart + S * eps + moved + slip[:, None] + S * slip
        error = (lengths[:, None] + S * lengths) * radius + small / units
        error = np.where((S > 0) & alone, np.minimum(error, OPEN), OPEN)
        both = np.where(S < 1, (error + S * error.T) / (1 - S**2), OPEN)
    own = np.where(alone, both.min(axis=1), OPEN)
    along = np.minimum(own, np.min(error + S * own, axis=1))
    values = np.linalg.eigvalsh(A.T @ A)
    if values[1] <= 1e-12 * values[-1]:
        return OPEN
    return min(float(np.linalg.norm(np.minimum(along, OPEN)) / math.sqrt(values[1])), OPEN)
