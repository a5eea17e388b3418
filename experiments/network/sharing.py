r"""What sets the charge exponent? A calculation for deep linear networks, and what inputs say before any training.

Weight decay on all matrices of a network costs, at equal balance, ``lambda/2`` times the sum over classes of
``w_k^2 + L s_k^(2/L)``: L matrices lie before the classifier, and ``s_k`` is the singular value that class k needs of
their product (directions of classes orthogonal). Let ``s_k^2`` be proportional to ``n_k^c |h_k|^2``: c = 0 if
samples of a class share all of their input, so that one direction serves them all, and c = 1 if they share nothing,
so that each has to be written by itself. Stationarity of ``(n_k/N) phi(M_k)`` plus that cost, ``M_k`` proportional to
``w_k |h_k|``, then gives, while margins vary slowly with n,

    q_k proportional to n_k^-(1 - c/(L+1)),   |h_k|^2/M_k proportional to n_k^-(c/(L+1)),   so   g = 1 - 2 c/(L+1).

The network is linear here and the classes are orthogonal in its inputs, which real ones are not: `charge.py` fits one
c to all depths of a data set and prints how far that is from what was measured. Independently, c is the slope of the
cost of writing the indicator of a class with one hidden ReLU layer of infinite width (its kernel: Cho and Saul, 2009)
on the size of the class: no network is trained for that.

Not a script: a part of `charge.py`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

#: Added to the kernel, as a fraction of its mean diagonal; 0.1 changes c by 0.03 at most.
RIDGE = 0.01


def law(depth: Float[np.ndarray, "*shape"], sharing: float) -> Float[np.ndarray, "*shape"]:
    """Return ``g = 1 - 2 c/(L+1)`` for L hidden layers and the data's exponent c.

    Example:
        >>> law(np.array([1.0, 3.0]), 1.0).tolist(), law(np.array([1.0]), 0.0).tolist()
        ([0.0, 0.5], [1.0])
    """
    return 1 - 2 * sharing / (depth + 1)


def fitted(
    depth: Float[np.ndarray, " rows"], charge: Float[np.ndarray, " rows"], error: Float[np.ndarray, " rows"]
) -> tuple[float, float, float]:
    """Return c by weighted least squares, its standard error, and the rms deviation of g from the law."""
    slope, weight = 2 / (depth + 1), 1 / error**2
    curvature = float(weight @ slope**2)
    sharing = float(weight @ (slope * (1 - charge))) / curvature
    return sharing, curvature**-0.5, float(np.sqrt(np.mean((charge - law(depth, sharing)) ** 2)))


def sharing_of_inputs(inputs: Float[np.ndarray, "N p"], labels: Int[np.ndarray, " N"]) -> float:
    """Return c from the inputs alone: the slope of ``log y_k' A^-1 y_k`` on ``log n_k``, A the kernel's matrix."""
    rows = np.column_stack([np.asarray(inputs, np.float64), np.ones(len(inputs))])
    lengths = np.linalg.norm(rows, axis=1)
    cosines = np.clip(rows @ rows.T / np.outer(lengths, lengths), -1.0, 1.0)
    angles = np.arccos(cosines)
    kernel = np.outer(lengths, lengths) * (np.sin(angles) + (np.pi - angles) * cosines)
    kernel[np.diag_indices_from(kernel)] += RIDGE * np.trace(kernel) / len(kernel)
    indicators = np.eye(labels.max() + 1)[labels]
    costs = np.einsum("nk,nk->k", indicators, np.linalg.solve(kernel, indicators))
    return float(np.polyfit(np.log(indicators.sum(axis=0)), np.log(costs), 1)[0])
