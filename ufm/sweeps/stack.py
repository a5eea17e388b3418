"""Points of many members stacked in float64 NumPy, where one formula serves all: class level, ``H >= 0``, no bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.losses import Loss
from ufm.model.objective import Variables
from ufm.sweeps.member import Member


class Stack(NamedTuple):
    """Points of members with equal loss along the first axis; their rows together are rows of the loss."""

    loss: Loss
    labels: Int[np.ndarray, " rows"]
    weight: Float[np.ndarray, "members K d"]
    features: Float[np.ndarray, "members K d"]
    counts: Float[np.ndarray, "members K"]
    weight_decay: Float[np.ndarray, " members"]
    feature_decay: Float[np.ndarray, " members"]

    @property
    def samples(self) -> Float[np.ndarray, "members 1"]:
        """Number of samples ``N``."""
        return self.counts.sum(axis=1, keepdims=True)

    @property
    def priors(self) -> Float[np.ndarray, "members K"]:
        """Class frequencies ``n_k / N``."""
        return self.counts / self.samples

    @property
    def nuclear_weight(self) -> Float[np.ndarray, "members 1"]:
        """``sqrt(lambda_W lambda_H)``."""
        return (np.sqrt(self.weight_decay) * np.sqrt(self.feature_decay))[:, None]

    def dual_scales(self) -> Float[np.ndarray, "members K"]:
        """``sqrt(n_k)/(N sqrt(lambda_W lambda_H))``, as in `ufm.duality.lower_bound.dual_scales`."""
        return np.sqrt(self.counts) / (self.samples * self.nuclear_weight)

    def balance(self) -> tuple[Float[np.ndarray, "members 1 1"], Float[np.ndarray, "members K 1"]]:
        """``sqrt(lambda_W)`` and ``sqrt(lambda_H n_k)``, the factors that take W and H to balanced coordinates."""
        decays = self.feature_decay[:, None] * self.counts
        return np.sqrt(self.weight_decay)[:, None, None], np.sqrt(decays)[:, :, None]

    def logits(self) -> Float[np.ndarray, "rows K"]:
        """Return the logits of all rows."""
        return (self.features @ self.weight.mT).reshape(-1, self.counts.shape[1])

    def slopes(self) -> Float[np.ndarray, "members K K"]:
        """Return the gradient of the loss in the logits."""
        return self.loss.gradient(self.logits(), self.labels).reshape(
            len(self.counts), -1, self.counts.shape[1]
        )

    def objective(self) -> Float[np.ndarray, " members"]:
        """Return the objective ``P``."""
        losses = self.loss.value(self.logits(), self.labels).reshape(self.counts.shape)
        squares = np.sum(self.counts * np.sum(self.features**2, axis=2), axis=1)
        penalty = self.weight_decay * np.sum(self.weight**2, axis=(1, 2)) + self.feature_decay * squares
        return np.sum(self.priors * losses, axis=1) + penalty / 2


def stackable(member: Member) -> bool:
    """Return whether the points of such members can be stacked."""
    problem = member.problem
    return (
        member.level == "class"
        and problem.features == "nonnegative"
        and problem.bias is None
        and problem.loss.convex
    )


def points_at(points: Variables, where: Any) -> Variables:
    """Return one (an integer) or some (a list) of stacked points; None for the new axis stacks a single one."""
    bias = None if points.bias is None else points.bias[where]
    return Variables(points.weight[where], points.features[where], bias)


def stacks(members: Sequence[Member], points: Variables) -> Iterator[tuple[list[int], Stack]]:
    """Yield the indices of members of equal loss with their stack; nothing if these members cannot be stacked.

    Args:
        members: members of equal `Member.shape`.
        points: one point of each, stacked.
    """
    groups: dict[int, list[int]] = {}
    for i, member in enumerate(members):
        if stackable(member):
            groups.setdefault(id(member.problem.loss), []).append(i)  # equal losses are one object
    for group in groups.values():
        problems = [members[i].problem for i in group]
        counts = np.stack([problem.counts for problem in problems]).astype(np.float64)
        yield (
            group,
            Stack(
                problems[0].loss,
                np.tile(np.arange(counts.shape[1]), len(group)),
                points.weight[group],
                points.features[group],
                counts,
                np.array([problem.weight_decay for problem in problems]),
                np.array([problem.feature_decay for problem in problems]),
            ),
        )
