r"""A linear head of several layers on free features, MSE without bias: singular values, one scalar problem per class.

With weights ``W_D ... W_1`` of one decay ``lambda_W`` and logits ``Z = H (W_D ... W_1)'`` the least regulariser of a
product of ``D + 1`` factors is ``(D+1)/2 c sum_k s_k^(2/(D+1))`` over the singular values of ``diag(sqrt n) Z``,
``c = (lambda_W^D lambda_H)^(1/(D+1))``. Logits ``z_k e_k`` have ``s_k = sqrt(n_k) z_k``, hence class by class

    ``min_z (n_k/(2 N)) (1 - z)^2 + (D+1)/2 c (sqrt(n_k) z)^(2/(D+1))``,

which is not convex for D > 1. With ``b = D N (N lambda_W^D lambda_H)^(1/D)`` it is stationary where ``b/n_k =
D (1-z)^((D+1)/D) z^((D-1)/D)``, and its largest root is better than ``z = 0`` where ``z > (D-1)/D``, that is
``b/n_k < (D-1)^((D-1)/D)/D``: there the logit jumps to zero from ``(D-1)/D`` although the root lives on. A prediction
without a certificate: that no other logits are better was checked by direct optimisation only, for D up to 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.inputs.checks import class_counts, positive_float, positive_integer


@dataclasses.dataclass(frozen=True, eq=False)
class DeepHead:
    """The predicted optimum; layers are balanced, ``W_1 h_k`` and all that follows stays on the axis of its class.

    Attributes:
        logits: ``z_k``, of the label; all others are 0.
        norms: ``|h_k|``.
        layer_norms: singular value of every weight layer on the axis of class k.
        collapsed: classes with ``z_k = 0``.
        objective: the value.
    """

    logits: Float[np.ndarray, " K"]
    norms: Float[np.ndarray, " K"]
    layer_norms: Float[np.ndarray, " K"]
    collapsed: Bool[np.ndarray, " K"]
    objective: float


def deep_linear_head(counts: Any, depth: Any, weight_decay: Any, feature_decay: Any) -> DeepHead:
    """Return the optimum of MSE with a linear head of ``depth`` layers, each as wide as K at least.

    Accuracy: logits 1e-13, the objective 1e-13 of itself.

    Args:
        counts: samples per class.
        depth: number D of weight matrices; 1 is the usual model (`ufm.predict`).
        weight_decay: ``lambda_W``, of every one of them.
        feature_decay: ``lambda_H``, of every sample's feature.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: Dang et al., ICML 2023 (arXiv:2301.00437), Theorem 4.1, imbalanced data; the threshold is derived above.

    Example:
        >>> head = deep_linear_head([60, 20, 7], 2, 2e-2, 2e-2)
        >>> head.logits.round(4).tolist(), head.collapsed.tolist()
        ([0.8816, 0.7388, 0.0], [False, False, True])
    """
    from scipy.optimize import elementwise  # only where a root is needed: `import ufm` stays fast

    n, D = class_counts(counts).astype(np.float64), positive_integer("depth", depth)
    w, h = positive_float("weight_decay", weight_decay), positive_float("feature_decay", feature_decay)
    N, lowest = n.sum(), (D - 1) / D
    level = N ** ((D + 1) / D) * w * h ** (1 / D) / n  # b / (D n_k)

    def excess(z: np.ndarray, level: np.ndarray) -> np.ndarray:
        return (1 - z) ** ((D + 1) / D) * z ** ((D - 1) / D) - level

    threshold = (1 - lowest) ** ((D + 1) / D) * lowest ** ((D - 1) / D)
    living = level < threshold
    low, high = np.full_like(n, lowest), np.ones_like(n)
    found = elementwise.find_root(excess, (low, high), args=(np.where(living, level, threshold / 2),))
    z = np.where(living, found.x, 0.0)
    c = (w**D * h) ** (1 / (D + 1))
    energy = c * (np.sqrt(n) * z) ** (2 / (D + 1))  # of every factor, balanced
    return DeepHead(
        logits=z,
        norms=np.sqrt(energy / (h * n)),
        layer_norms=np.sqrt(energy / w),
        collapsed=~living,
        objective=float(n @ (1 - z) ** 2 / (2 * N) + (D + 1) / 2 * energy.sum()),
    )
