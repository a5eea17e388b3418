"""What the loop asks of a step rule: four pure functions. Rules propose; the certificate decides."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float

from ufm.model.objective import Coordinates, Objective, Point


@runtime_checkable
class StepRule(Protocol):
    """A first-order method. Instances are frozen and hashable: they are static arguments of the compiled loop."""

    @property
    def coordinates(self) -> Coordinates:
        """Coordinates that the rule works in."""

    @property
    def descends(self) -> bool:
        """Whether a chunk of steps must not end much above where it began: if it does, it is taken back."""

    def init(self, objective: Objective, point: Point, caution: Float[Any, ""]) -> Any:
        """Return the state for a start at ``point``; ``caution`` >= 1 asks for shorter steps after a failure."""

    def step(self, objective: Objective, state: Any) -> Any:
        """Return the state after one step."""

    def point(self, state: Any) -> Point:
        """Return the feasible point that the state stands for."""
