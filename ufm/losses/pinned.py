"""What a divergence from the optimum pins down of the logits: intervals for margins and for single logits."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.special import xlog1py, xlogy

from ufm.losses.divergence import binary_shift, concordant_radius, curvature_loss
from ufm.losses.softmax import label_mask


@dataclasses.dataclass(frozen=True, eq=False)
class Pinned:
    """Bounds on ``u = z - z*`` for all z within a divergence of ``z*``, one row of logits per row here.

    Attributes:
        radius: ``|u_k|``, of u without its part along `free`.
        spread: with ``variances``: ``(a'u_k)^2 <= spread_k^2 sum_j a_j^2 variances_kj`` for every direction a
            orthogonal to `free`.
        variances: see ``spread``.
        margin_fall: how far the margin may fall.
        margin_rise: how far it may rise.
        confusion: least divergence at which some other class has as large a logit as the own one.
        free: unit vector along which the loss does not change, so that nothing is pinned; None if there is none.
    """

    radius: Float[np.ndarray, " rows"]
    spread: Float[np.ndarray, " rows"]
    variances: Float[np.ndarray, "rows K"]
    margin_fall: Float[np.ndarray, " rows"]
    margin_rise: Float[np.ndarray, " rows"]
    confusion: Float[np.ndarray, " rows"]
    free: Float[np.ndarray, " K"] | None = None


def pinned_by_kl(
    p: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], divergence: Float[np.ndarray, " rows"]
) -> Pinned:
    """Return what ``KL(p_k || softmax(z)) <= divergence_k`` pins down of z, where class k has margin of log-odds.

    Two-point distributions (off target, on target) give the margin; generalised self-concordance of log-sum-exp gives
    ``KL >= (u'Hu) psi(t)/t^2`` with ``t = sqrt(2)|u|`` and ``u'Hu >= min_j p_j |u|^2`` for centred u (Bach 2010,
    Proposition 1); along a centred direction ``(a'u)^2 <= (u'Hu) sum_j a_j^2/p_j``.
    """
    p = np.maximum(p, np.finfo(np.float64).tiny)
    own = p[np.arange(len(labels)), labels]
    others = np.where(label_mask(labels, p.shape[1]), 0.0, p)
    radius = concordant_radius(p.min(axis=1), divergence)
    rise, fall = (binary_shift(others.sum(axis=1), divergence, sign) for sign in (-1.0, 1.0))
    pair = own + others.max(axis=1)
    share = own / pair
    # least divergence from p to a distribution that does not prefer the own class
    confusion = pair * (np.log(2) + xlogy(share, share) + xlog1py(1 - share, -share))
    free = np.full(p.shape[1], p.shape[1] ** -0.5)
    return Pinned(radius, np.sqrt(divergence * curvature_loss(radius)), 1 / p, fall, rise, confusion, free)
