"""The commonest escape move, for many members at once: every dead class that wants one gets a coordinate of its own.

At class level with ``dim >= K``: with the class means G in balanced coordinates, the rotation that takes G to
``(G G')^{1/2}`` leaves all logits as they are and gives a dead class a free coordinate. There its atom is placed,
``u = e_k`` and ``w = -A_k/|A_k|``, if ``|A_k| > 1``; the strengths of all such classes solve scalar problems, one per
class and row of logits. A move counts only if it lowers the objective.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.duality.certificate import objective_values
from ufm.duality.lower_bound import dual_scales
from ufm.duality.row_sums import by_row, logits_of
from ufm.model.objective import Scaling, Variables
from ufm.model.stack import Stack
from ufm.solvers.atoms import MARGIN, where_zero

#: Class means below this share of the largest singular value are zero.
NEGLIGIBLE = 1e-8


def applicable(stack: Stack) -> bool:
    """Return whether the move is meant for such members (of equal loss)."""
    return (
        stack.level == "class"
        and stack.features == "nonnegative"
        and stack.bias is None
        and stack.loss.convex
        and stack.dim >= stack.num_classes
    )


def with_own_coordinates(
    stack: Stack, points: Variables
) -> tuple[Variables, Int[np.ndarray, " members"], Float[np.ndarray, " members"]]:
    """Return the rotated points with an atom for every dead class that wants one, how many, and by how much lower.

    Args:
        stack: members of equal loss to which the move is `applicable`.
        points: the points that they are stuck at, stacked.
    """
    with np.errstate(all="ignore"):
        moved, wanting = _moved(stack, points)
        labels, times = stack.labels[0], stack.multiplicities
        decrease = objective_values(stack, points, labels, times) - objective_values(
            stack, moved, labels, times
        )
    return moved, wanting.sum(axis=1), decrease


def _moved(stack: Stack, points: Variables) -> tuple[Variables, Bool[np.ndarray, "members C"]]:
    (members, C, _), dim = points.features.shape, stack.dim
    scales: Scaling = stack.scaling("balanced")
    to_weight, to_rows = scales.weight[:, None, None], scales.rows[:, :, None]
    weight, features = to_weight * points.weight, to_rows * points.features
    left, values, right = np.linalg.svd(features, full_matrices=False)
    left = np.where(values[:, None, :] > NEGLIGIBLE * values[:, :1, None], left, 0.0)
    rotation = right.mT @ left.mT
    weight, features = weight @ rotation, np.maximum(features @ rotation, 0)

    logits = logits_of(points.weight, points.features, None)
    dual = dual_scales(stack)[:, :, None] * by_row(stack.loss.gradient, logits, np.arange(C))
    sizes = np.linalg.norm(dual, axis=2)
    dead = np.linalg.norm(features, axis=2) <= NEGLIGIBLE * values[:, :1]
    wanting = dead & (sizes > 1 + MARGIN)
    directions = -dual / np.where(sizes > 0, sizes, 1.0)[:, :, None]
    strengths = np.zeros((members, C))
    strengths[wanting] = _strengths(stack, logits, directions[wanting], wanting)

    roots = np.sqrt(strengths)
    features = np.where(wanting[:, :, None], roots[:, :, None] * np.eye(C), features)
    weight = np.where(wanting[:, None, :], (roots[:, :, None] * directions).mT, weight)
    unused = ((0, 0), (0, 0), (0, dim - C))
    moved = Variables(np.pad(weight, unused) / to_weight, np.pad(features, unused) / to_rows)
    return moved, wanting


def _strengths(
    stack: Stack,
    logits: Any,
    directions: Float[np.ndarray, "wanting K"],
    wanting: Bool[np.ndarray, "members C"],
) -> Float[np.ndarray, " wanting"]:
    """Return about where the slope of the objective in each atom's strength is zero.

    An atom of strength theta moves the logits of its own class only, by ``theta w / (sqrt(n_k) l_k)``, and
    costs theta.
    """
    labels = np.nonzero(wanting)[1]
    logits = logits[wanting]
    reach = 1 / (np.sqrt(stack.counts) * stack.nuclear_weights)
    share, reach = (stack.priors * reach)[wanting], reach[wanting]

    def slope(theta: Float[np.ndarray, " wanting"]) -> Float[np.ndarray, " wanting"]:
        slopes = stack.loss.gradient(logits + (reach * theta)[:, None] * directions, labels)
        return 1 + share * np.sum(slopes * directions, axis=1)

    return where_zero(slope, 1 / reach)
