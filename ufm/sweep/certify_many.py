"""The certificate of `ufm.certificate` for many members at once, where stacking makes it cheap.

Class level, non-negative features, no bias: there one dual point, every row scaled onto the boundary by itself,
closes the gap to second order, and all its formulas are row-wise. They are evaluated here on the rows of all members
together, in float64 NumPy, with the loss's own methods; the constraint ``polar(A) <= 1`` is checked through
``lambda_max(M) <= max_k sum_l M_kl`` for ``M = max(A A', 0)``. Everything else, and every member that this leaves
uncertified although it looks optimal, is a case for `ufm.certificate.certify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.certificate import Certificate, certify
from ufm.losses import Loss
from ufm.objective import Variables
from ufm.polar import ROUNDING
from ufm.problem import row_labels
from ufm.sweep.member import Member


def certify_many(members: Sequence[Member], points: Sequence[Variables]) -> list[Certificate]:
    """Certify one point of every member.

    Args:
        members: members of equal `Member.shape`.
        points: their points.

    Returns:
        One certificate per member, in order.
    """
    found: dict[int, Certificate] = {}
    if members and _stackable(members[0]):
        groups: dict[Loss, list[int]] = {}
        for i, member in enumerate(members):
            groups.setdefault(member.problem.loss, []).append(i)
        for loss, group in groups.items():
            stack = _stack([members[i] for i in group], [points[i] for i in group])
            with np.errstate(all="ignore"):
                found |= zip(group, _certificates(loss, stack), strict=True)
    for i, (member, point) in enumerate(zip(members, points, strict=True)):
        if i not in found or (not found[i].certifies(member.limits.tol) and _looks_optimal(member, found[i])):
            labels = row_labels(member.problem, member.level)
            found[i] = certify(member.problem, point.weight, point.features, labels, point.bias)
    return [found[i] for i in range(len(members))]


def _stackable(member: Member) -> bool:
    problem = member.problem
    return (
        member.level == "class"
        and problem.features == "nonnegative"
        and problem.bias is None
        and problem.loss.convex
    )


def _looks_optimal(member: Member, certificate: Certificate) -> bool:
    return certificate.residual <= member.limits.residual


class _Stack(NamedTuple):
    """Members along the first axis."""

    weight: Float[np.ndarray, "members K d"]
    features: Float[np.ndarray, "members K d"]
    counts: Float[np.ndarray, "members K"]
    samples: Float[np.ndarray, members]
    weight_decay: Float[np.ndarray, members]
    feature_decay: Float[np.ndarray, members]


def _stack(members: Sequence[Member], points: Sequence[Variables]) -> _Stack:
    problems = [member.problem for member in members]
    counts = np.stack([problem.counts for problem in problems]).astype(np.float64)
    return _Stack(
        np.stack([point.weight for point in points]),
        np.stack([point.features for point in points]),
        counts,
        counts.sum(axis=1),
        np.array([problem.weight_decay for problem in problems]),
        np.array([problem.feature_decay for problem in problems]),
    )


def _certificates(loss: Loss, stack: _Stack) -> list[Certificate]:
    """Evaluate objective, bound, polar and residual as `ufm.certificate` defines them."""
    members, K = stack.counts.shape
    labels = np.tile(np.arange(K), members)
    logits = (stack.features @ stack.weight.mT).reshape(-1, K)
    priors = stack.counts / stack.samples[:, None]
    losses = np.sum(priors * loss.value(logits, labels).reshape(members, K), axis=1)
    squares = stack.counts * np.sum(stack.features**2, axis=2)
    penalty = stack.weight_decay * np.sum(stack.weight**2, axis=(1, 2))
    objective = losses + (penalty + stack.feature_decay * squares.sum(axis=1)) / 2
    slopes = loss.gradient(logits, labels).reshape(members, K, K)
    bound, polar = _lower_bound(loss, labels, stack, slopes, priors)
    feasible = np.all(stack.features >= 0, axis=(1, 2)) & np.all(np.isfinite(slopes), axis=(1, 2))
    bound, polar = np.where(feasible, bound, -math.inf), np.where(feasible, polar, math.nan)
    residual = np.where(objective > 0, _residual(stack, slopes, priors) / np.sqrt(2 * objective), math.inf)
    columns = (part.tolist() for part in (objective, bound, polar, residual))
    return [
        Certificate(value, below, largest, slope, K)
        for value, below, largest, slope in zip(*columns, strict=True)
    ]


def _lower_bound(
    loss: Loss, labels: np.ndarray, stack: _Stack, slopes: np.ndarray, priors: np.ndarray
) -> tuple[Float[np.ndarray, " members"], Float[np.ndarray, " members"]]:
    """Return the dual value of rows scaled onto the boundary each by itself, and the polar of the raw rows."""
    K = slopes.shape[1]
    nuclear = np.sqrt(stack.weight_decay) * np.sqrt(stack.feature_decay)
    scales = (np.sqrt(stack.counts) / (stack.samples * nuclear)[:, None]).reshape(-1, 1)
    raw = slopes.reshape(-1, K)
    norms = np.linalg.norm(scales * raw, axis=1, keepdims=True)
    factors = 1 / np.where(norms > 0, norms, 1.0)
    shrunk = np.minimum(factors, 1.0) * raw
    stretched = loss.into_domain(factors * raw, labels)
    gain = loss.conjugate(shrunk, labels) - loss.conjugate(stretched, labels)
    chosen = loss.into_domain(np.where(gain[:, None] > 0, stretched, shrunk), labels)
    excess = np.maximum(_polar((scales * chosen).reshape(-1, K, K)), 1.0)
    feasible = (chosen.reshape(-1, K, K) / excess[:, None, None]).reshape(-1, K)
    bound = -np.sum(priors * loss.conjugate(feasible, labels).reshape(-1, K), axis=1)
    return np.where(np.isnan(bound), -math.inf, bound), _polar((scales * raw).reshape(-1, K, K))


def _polar(dual: Float[np.ndarray, "members K K"]) -> Float[np.ndarray, " members"]:
    """Return upper bounds on the polar, rounding allowed for."""
    crossed = np.maximum(dual @ dual.mT, 0.0)
    return np.sqrt(np.max(crossed.sum(axis=2), axis=1)) * (1 + ROUNDING * dual.shape[1])


def _residual(stack: _Stack, slopes: np.ndarray, priors: np.ndarray) -> Float[np.ndarray, " members"]:
    """Return the norm of the projected gradient in balanced coordinates."""
    decay = stack.weight_decay[:, None, None]
    slopes = slopes * priors[:, :, None]
    in_weight = (slopes.mT @ stack.features + decay * stack.weight) / np.sqrt(decay)
    decays = (stack.feature_decay[:, None] * stack.counts)[:, :, None]
    in_features = (slopes @ stack.weight + decays * stack.features) / np.sqrt(decays)
    in_features = np.where(stack.features > 0, in_features, np.minimum(in_features, 0))
    return np.sqrt(np.sum(in_weight**2, axis=(1, 2)) + np.sum(in_features**2, axis=(1, 2)))
