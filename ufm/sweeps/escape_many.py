"""The commonest escape move for many members at once; `ufm.solvers.escape` does the rest one by one.

For a `Stack` with ``dim >= K`` every class can have a coordinate of its own: with the class means G in balanced
coordinates, the rotation that takes G to ``(G G')^{1/2}`` leaves all logits as they are and gives a dead class a free
coordinate. There its atom is placed, ``u = e_k`` and ``w = -A_k/|A_k|``, if ``|A_k| > 1``; the strengths of all such
classes solve scalar problems, one per class and row of logits. A move counts only if it lowers the objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from ufm.model.objective import Variables
from ufm.solvers.atoms import DOUBLINGS, MARGIN
from ufm.solvers.escape import NEGLIGIBLE, escape
from ufm.sweeps.member import Member
from ufm.sweeps.stack import Stack, points_at, stacks

BISECTIONS = 16


def escape_many(members: Sequence[Member], points: Variables) -> list[Variables | None]:
    """Return a point of lower objective for every member, or None where there is none to be found.

    Args:
        members: members of equal `Member.shape`.
        points: the points that they are stuck at, stacked.
    """
    found: dict[int, Variables] = {}
    for group, stack in stacks(members, points):
        if members[0].problem.dim >= stack.counts.shape[1]:
            with np.errstate(all="ignore"):
                moved = _with_atoms(stack)
                better = moved.objective() < stack.objective()
            found |= {group[i]: Variables(moved.weight[i], moved.features[i]) for i in np.flatnonzero(better)}
    for i, member in enumerate(members):
        if i not in found:
            move = escape(member.problem, member.level, points_at(points, i))
            if move is not None:
                found[i] = move.variables
    return [found.get(i) for i in range(len(members))]


def _with_atoms(stack: Stack) -> Stack:
    """Return the rotated points with an atom for every dead class that wants one."""
    members, K, dim = stack.weight.shape
    to_weight, to_rows = stack.balance()
    weight, features = to_weight * stack.weight, to_rows * stack.features
    left, values, right = np.linalg.svd(features, full_matrices=False)
    left = np.where(values[:, None, :] > NEGLIGIBLE * values[:, :1, None], left, 0.0)
    rotation = right.mT @ left.mT
    weight, features = weight @ rotation, np.maximum(features @ rotation, 0)

    dual = stack.dual_scales()[:, :, None] * stack.slopes()
    sizes = np.linalg.norm(dual, axis=2)
    dead = np.linalg.norm(features, axis=2) <= NEGLIGIBLE * values[:, :1]
    wanting = dead & (sizes > 1 + MARGIN)
    directions = -dual / np.where(sizes > 0, sizes, 1.0)[:, :, None]
    strengths = np.zeros((members, K))
    strengths[wanting] = _strengths(stack, directions[wanting], wanting)

    roots = np.sqrt(strengths)
    features = np.where(wanting[:, :, None], roots[:, :, None] * np.eye(K), features)
    weight = np.where(wanting[:, None, :], (roots[:, :, None] * directions).mT, weight)
    unused = np.zeros((members, K, dim - K))
    return stack._replace(
        weight=np.concatenate([weight, unused], axis=2) / to_weight,
        features=np.concatenate([features, unused], axis=2) / to_rows,
    )


def _strengths(
    stack: Stack, directions: Float[np.ndarray, "wanting K"], wanting: Bool[np.ndarray, "members K"]
) -> Float[np.ndarray, " wanting"]:
    """Return where the slope of the objective in each atom's strength is zero, by bisection.

    An atom of strength theta moves the logits of its own class only, by ``theta w / (sqrt(n_k) sqrt(lambda_W
    lambda_H))``, and costs theta.
    """
    labels = np.nonzero(wanting)[1]
    logits = stack.logits().reshape(*wanting.shape, -1)[wanting]
    reach = 1 / (np.sqrt(stack.counts) * stack.nuclear_weight)
    share, reach = (stack.priors * reach)[wanting], reach[wanting]

    def falling(theta: Float[np.ndarray, " wanting"]) -> Bool[np.ndarray, " wanting"]:
        slopes = stack.loss.gradient(logits + (reach * theta)[:, None] * directions, labels)
        return 1 + share * np.sum(slopes * directions, axis=1) < 0

    low, high = np.zeros(len(labels)), 1 / reach
    for _ in range(DOUBLINGS):
        short = falling(high)
        if not np.any(short):
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = falling(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
