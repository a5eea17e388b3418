"""What the solver, the certificate and the test matrix ask of a loss."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Loss(ABC):
    """A loss ``loss_y(z)`` of the logits, given the label: subclass it to add one.

    A subclass is a frozen dataclass (``eq=False``) whose fields are its parameters, floats or vectors over classes,
    with value, gradient, curvature bound, conjugate and centring. Everything else follows: solver, certificate,
    verification. Methods that the solver calls take NumPy and JAX arrays; those of the dual, NumPy.

    Shapes: logits and gradients (rows, K), labels (rows,) in ``0..K-1``, values (rows,). ``value`` sets the unit.

    Example:
        >>> from ufm.losses import MSE
        >>> logits, labels = np.array([[1.0, 2.0]]), np.array([0])
        >>> dual = MSE().gradient(logits, labels)  # Fenchel-Young holds with equality at the gradient
        >>> float(MSE().value(logits, labels)[0] + MSE().conjugate(dual, labels)[0]), float(np.sum(dual * logits))
        (4.0, 4.0)
    """

    #: Whether ``loss_y`` is convex in the logits: only then does a duality gap certify anything.
    convex: ClassVar[bool] = True
    #: Whether classes may share a direction at the optimum with non-negative features; False saves certificates work.
    shares_directions: ClassVar[bool] = True

    @abstractmethod
    def value(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return ``loss_{y_i}(z_i)`` for every row."""

    @abstractmethod
    def gradient(self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"]) -> Float[Any, "rows K"]:
        """Return the gradient of ``loss_{y_i}`` at ``z_i`` for every row."""

    @abstractmethod
    def curvature(self, labels: Int[Any, " rows"], num_classes: int) -> Float[Any, " rows"]:
        """Return, for every row, a bound on the largest eigenvalue of the Hessian in the logits."""

    @abstractmethod
    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, " rows"]:
        """Return ``loss*_y(Q) = sup_z <Q, z> - loss_y(z)`` for rows Q in the domain (see `into_domain`)."""

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows in the domain of the conjugate; those inside already change by rounding at most."""
        return dual

    @abstractmethod
    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows near ``dual``, inside the domain, with ``sum_i priors_i Q_i = 0``: feasible for a free bias."""

    def check_classes(self, num_classes: int) -> None:
        """Raise `InputError` if a per-class parameter does not have ``num_classes`` entries."""
        for name, value in self._parameters():
            if isinstance(value, np.ndarray) and len(value) != num_classes:
                raise InputError(
                    f"{name} of {type(self).__name__} must have one entry per class ({num_classes}), "
                    f"got {len(value)}"
                )

    def _parameters(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def _key(self) -> tuple[Any, ...]:
        values = (value for _, value in self._parameters())
        return (type(self), *(v.tobytes() if isinstance(v, np.ndarray) else v for v in values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
