"""The certificate of `ufm.duality.certificate` for many members at once, where stacking makes it cheap.

For a `Stack` one dual point, every row scaled onto the boundary by itself, closes the gap to second order, and all
its formulas are row-wise. They are evaluated here on the rows of all members together, in float64 NumPy, with the
loss's own methods; the constraint ``polar(A) <= 1`` is checked through
``lambda_max(M) <= max_k sum_l M_kl`` for ``M = max(A A', 0)``. Everything else, and every member that this leaves
uncertified although it looks optimal, is a case for `ufm.duality.certificate.certify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ufm.duality.certificate import Certificate, certify
from ufm.duality.polar import ROUNDING
from ufm.model.objective import Variables
from ufm.model.problem import row_labels
from ufm.sweeps.member import Member
from ufm.sweeps.stack import Stack, points_at, stacks


def certify_many(members: Sequence[Member], points: Variables) -> list[Certificate]:
    """Certify one point of every member.

    Args:
        members: members of equal `Member.shape`.
        points: their points, stacked.

    Returns:
        One certificate per member, in order.
    """
    found: dict[int, Certificate] = {}
    with np.errstate(all="ignore"):
        for group, stack in stacks(members, points):
            found |= zip(group, _certificates(stack), strict=True)
    for i, member in enumerate(members):
        if i not in found or (not found[i].certifies(member.limits.tol) and _looks_optimal(member, found[i])):
            point, labels = points_at(points, i), row_labels(member.problem, member.level)
            found[i] = certify(member.problem, point.weight, point.features, labels, point.bias)
    return [found[i] for i in range(len(members))]


def _looks_optimal(member: Member, certificate: Certificate) -> bool:
    return certificate.residual <= member.limits.residual


def _certificates(stack: Stack) -> list[Certificate]:
    """Evaluate objective, bound, polar and residual as `ufm.duality.certificate` defines them."""
    slopes = stack.slopes()
    bound, polar = _lower_bound(stack, slopes)
    feasible = np.all(stack.features >= 0, axis=(1, 2)) & np.all(np.isfinite(slopes), axis=(1, 2))
    bound, polar = np.where(feasible, bound, -math.inf), np.where(feasible, polar, math.nan)
    objective = stack.objective()
    residual = np.where(objective > 0, _residual(stack, slopes) / np.sqrt(2 * objective), math.inf)
    columns = (part.tolist() for part in (objective, bound, polar, residual))
    return [
        Certificate(value, below, largest, slope, slopes.shape[1])
        for value, below, largest, slope in zip(*columns, strict=True)
    ]


def _lower_bound(
    stack: Stack, slopes: Float[np.ndarray, "members K K"]
) -> tuple[Float[np.ndarray, " members"], Float[np.ndarray, " members"]]:
    """Return the dual value of rows scaled onto the boundary each by itself, and the polar of the raw rows."""
    K, loss, labels = slopes.shape[1], stack.loss, stack.labels
    scales = stack.dual_scales().reshape(-1, 1)
    raw = slopes.reshape(-1, K)
    norms = np.linalg.norm(scales * raw, axis=1, keepdims=True)
    factors = 1 / np.where(norms > 0, norms, 1.0)
    shrunk = np.minimum(factors, 1.0) * raw
    stretched = loss.into_domain(factors * raw, labels)
    gain = loss.conjugate(shrunk, labels) - loss.conjugate(stretched, labels)
    chosen = loss.into_domain(np.where(gain[:, None] > 0, stretched, shrunk), labels)
    excess = np.maximum(_polar((scales * chosen).reshape(-1, K, K)), 1.0)
    feasible = (chosen.reshape(-1, K, K) / excess[:, None, None]).reshape(-1, K)
    bound = -np.sum(stack.priors * loss.conjugate(feasible, labels).reshape(-1, K), axis=1)
    return np.where(np.isnan(bound), -math.inf, bound), _polar((scales * raw).reshape(-1, K, K))


def _polar(dual: Float[np.ndarray, "members K K"]) -> Float[np.ndarray, " members"]:
    """Return upper bounds on the polar, rounding allowed for."""
    crossed = np.maximum(dual @ dual.mT, 0.0)
    return np.sqrt(np.max(crossed.sum(axis=2), axis=1)) * (1 + ROUNDING * dual.shape[1])


def _residual(stack: Stack, slopes: Float[np.ndarray, "members K K"]) -> Float[np.ndarray, " members"]:
    """Return the norm of the projected gradient in balanced coordinates."""
    to_weight, to_rows = stack.balance()
    slopes = slopes * stack.priors[:, :, None]
    in_weight = slopes.mT @ stack.features / to_weight + to_weight * stack.weight
    in_features = slopes @ stack.weight / to_rows + to_rows * stack.features
    in_features = np.where(stack.features > 0, in_features, np.minimum(in_features, 0))
    return np.sqrt(np.sum(in_weight**2, axis=(1, 2)) + np.sum(in_features**2, axis=(1, 2)))
