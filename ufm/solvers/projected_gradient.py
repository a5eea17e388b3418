"""Projected gradient descent on any optax transformation: the method the field uses, SGD, momentum and Adam alike."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float

from ufm.model.objective import Coordinates, Objective, Point


class ProjectedGradientState(NamedTuple):
    """The point and the state of the transformation."""

    point: Point
    transformation: Any
    caution: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class ProjectedGradient:
    """``x <- project(x + update(gradient))`` with ``update`` an `optax.GradientTransformation`.

    Args:
        transformation: for instance ``optax.sgd(0.1, momentum=0.9)`` or ``optax.adam(1e-3)``.
        coordinates: ``"natural"`` works on ``(W, H, b)`` as training code does; ``"balanced"`` on the
            well-conditioned variables of `ufm.model.objective`, where a step of 0.1 suits most problems.

    Example:
        >>> import ufm
        >>> adam = ufm.ProjectedGradient(optax.adam(1e-2), coordinates="balanced")
        >>> ufm.solve(ufm.Problem([30, 20], 4, 1e-2, 1e-3), solver=adam, tol=1e-6).certified
        True
    """

    transformation: optax.GradientTransformation
    coordinates: Coordinates = "natural"
    descends: bool = dataclasses.field(default=False, init=False)  # Adam and momentum may swing

    def init(self, objective: Objective, point: Point, caution: Float[Any, ""]) -> ProjectedGradientState:
        """Project the start and initialise the transformation."""
        point = objective.project(point)
        return ProjectedGradientState(point, self.transformation.init(point), caution)

    def point(self, state: ProjectedGradientState) -> Point:
        """Return the last iterate."""
        return state.point

    def step(self, objective: Objective, state: ProjectedGradientState) -> ProjectedGradientState:
        """Take one step of the transformation (shortened by ``caution``), then clip features at zero."""
        gradient = objective.gradient(state.point)
        updates, inner = self.transformation.update(gradient, state.transformation, state.point)
        point = optax.apply_updates(state.point, optax.tree.scale(1 / state.caution, updates))
        if objective.nonnegative:
            point = point._replace(features=optax.projections.projection_non_negative(point.features))
        return ProjectedGradientState(point, inner, state.caution)
