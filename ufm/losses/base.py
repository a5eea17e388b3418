"""What the solver, the certificate, the theorems and verification ask of a loss: it answers for itself."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError
from ufm.losses.pinned import Pinned
from ufm.losses.scalar import ScalarForm

#: One number per column of the logits, or one per row and column, or None.
Times = Float[Any, "..."] | None


class SoftmaxParameters(NamedTuple):
    """Of ``c_y [ -sum_k t_k log softmax(a z + o)_k ]`` with ``t = (1-e) onehot_y + e/K``."""

    weights: Float[np.ndarray, " K"]
    scales: Float[np.ndarray, " K"]
    offsets: Float[np.ndarray, " K"]
    smoothing: float


@dataclasses.dataclass(frozen=True, eq=False)
class Loss(ABC):
    """A loss ``loss_y(z)`` of the logits, given the label: subclass it to add one.

    A subclass is a frozen dataclass (``eq=False``) whose fields are its parameters, floats or vectors over classes,
    with value, gradient, curvature bound, conjugate and centring. Solver, certificate and verification need no more.
    Methods that the solver calls take NumPy and JAX arrays; those of the dual, NumPy.

    What else is known of a loss it *declares*; every default is the safe answer "nothing". A class that defines
    its own ``value`` inherits no declaration, only what it says itself, since what holds for another value need not
    hold for its own; with the conjugate of another it is not `bounded`, and certifies nothing.

    Shapes: logits and gradients (rows, K), labels (rows,) in ``0..K-1``, values (rows,). ``value`` sets the unit.

    A loss with ``grouped = True`` also takes ``times`` everywhere, broadcastable to the logits: column j of row i
    then stands for ``times[i, j]`` equal logits (the label's for one), sums run over all of them, and gradients and
    dual entries are those of a *single* logit.

    Example:
        >>> from ufm.losses import MSE
        >>> logits, labels = np.array([[1.0, 2.0]]), np.array([0])
        >>> dual = MSE().gradient(logits, labels)  # Fenchel-Young holds with equality at the gradient
        >>> float(MSE().value(logits, labels)[0] + MSE().conjugate(dual, labels)[0]), float(np.sum(dual * logits))
        (4.0, 4.0)
    """

    #: Whether ``loss_y`` is convex in the logits: then a bound exists that the optimum attains.
    convex: ClassVar[bool] = True
    #: Whether `conjugate` is a true upper bound on ``sup_z <Q, z> - loss(z)``, so that gaps certify.
    bounded: ClassVar[bool] = True
    #: Whether classes may share a direction at the optimum with non-negative features; False saves certificates work.
    shares_directions: ClassVar[bool] = True
    #: Whether all methods take ``times``.
    grouped: ClassVar[bool] = False
    #: Whether rows have labels among the logits; else contexts, with targets over them.
    labelled: ClassVar[bool] = True
    #: Whether a constant added to all logits changes nothing; the margin is then one of log-odds, else a difference.
    shift_invariant: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "value" in vars(cls):
            for name in _DECLARED:
                if name not in vars(cls):
                    setattr(cls, name, vars(Loss)[name])
            if not {"conjugate", "bounded"} & set(vars(cls)) and cls.conjugate is not Loss.conjugate:
                cls.bounded = False

    @abstractmethod
    def value(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, " rows"]:
        """Return ``loss_{y_i}(z_i)`` for every row."""

    @abstractmethod
    def gradient(
        self, logits: Float[Any, "rows K"], labels: Int[Any, " rows"], times: Times = None
    ) -> Float[Any, "rows K"]:
        """Return the gradient of ``loss_{y_i}`` at ``z_i`` for every row."""

    @abstractmethod
    def curvature(self, labels: Int[Any, " rows"]) -> Float[Any, " rows"]:
        """Return, for every row, a bound on the largest eigenvalue of the Hessian in the logits."""

    @abstractmethod
    def conjugate(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, " rows"]:
        """Return ``loss*_y(Q) = sup_z <Q, z> - loss_y(z)`` for rows Q in the domain (see `into_domain`)."""

    def into_domain(
        self, dual: Float[np.ndarray, "rows K"], labels: Int[np.ndarray, " rows"], times: Times = None
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows in the domain of the conjugate; those inside already change by rounding at most."""
        return dual

    @abstractmethod
    def centre(
        self,
        dual: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        priors: Float[np.ndarray, " rows"],
        times: Times = None,
        columns: Int[np.ndarray, "rows K"] | None = None,
    ) -> Float[np.ndarray, "rows K"]:
        """Return rows near ``dual``, inside the domain, with ``sum_i priors_i Q_i = 0``: feasible for a free bias.

        Columns that stand for several logits need ``columns``, which names the bias of every column by any number
        (the one given to `of_columns`, for instance): then the sum over all logits of each bias vanishes.
        """

    # What a loss may declare

    def targets(
        self, labels: Int[np.ndarray, " rows"], num_classes: int
    ) -> Float[np.ndarray, "rows K"] | None:
        """Return the distributions that the loss is cross-entropy against (weights aside), if it is one."""
        return None

    def softmax_parameters(self, num_classes: int) -> SoftmaxParameters | None:
        """Return class weights, scales and offsets of a weighted softmax cross-entropy of ``a z + o``, or None."""
        return None

    def scalar_form(self, num_classes: int) -> ScalarForm | None:
        """Return ``phi_k(M) = loss_k(M u_k)`` of every class along a ray of logits, or None.

        Only for a loss whose gradient stays on the ray, such as every shift-invariant one that is symmetric in its
        off-target logits, with ``u_k = e_k - 1/K``. Theorem (T) then holds if it is convex and ``<u_k, u_l> <= 0``.
        """
        return None

    def pinned(
        self,
        logits: Float[np.ndarray, "rows K"],
        labels: Int[np.ndarray, " rows"],
        divergence: Float[np.ndarray, " rows"],
    ) -> Pinned | None:
        """Return what ``Bregman_y(z, logits_i) <= divergence_i`` says of z, row i having label y_i; None: nothing."""
        return None

    def zero_margins(
        self, divergence: Float[np.ndarray, "*members K"]
    ) -> Float[np.ndarray, "*members K"] | None:
        """Return the largest margin of class k within this divergence of equal logits, for one or more members.

        None says that a margin of zero tells nothing of collapse (classes may share a direction and both live, as
        with one-versus-rest losses), or that nothing is known.
        """
        return None

    # Parameters

    def of_columns(self, columns: Int[Any, "rows C"]) -> Loss:
        """Return the loss of rows whose column j is the logit of class ``columns[i, j]``.

        Per-class parameters become ``parameter[columns]``; those that belong to the label are then taken from the
        label's column. Labels count columns from now on.

        Example:
            >>> from ufm.losses import WeightedCrossEntropy
            >>> loss = WeightedCrossEntropy([1.0, 2.0]).of_columns(np.array([[1, 0]]))
            >>> loss.value(np.zeros((1, 2)), np.array([0])).round(4).tolist()
            [1.3863]
        """
        made = object.__new__(type(self))  # parameters of rows would not pass the checks of vectors
        for name, value in self._parameters():
            object.__setattr__(made, name, value[columns] if np.ndim(value) == 1 else value)
        return made

    def alike(self) -> list[np.ndarray]:
        """Return what classes that can change places have in common, a number each: all parameters per class."""
        return [value for _, value in self._parameters() if isinstance(value, np.ndarray)]

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


#: What a class with a ``value`` of its own has to say itself.
_DECLARED = (
    "shares_directions",
    "grouped",
    "shift_invariant",
    "targets",
    "scalar_form",
    "softmax_parameters",
    "pinned",
    "zero_margins",
)


def of_label(values: Any, labels: Int[Any, " rows"]) -> Any:
    """Return the parameter of the label: of one number, one per class, or one per row and column.

    Example:
        >>> of_label(np.array([1.0, 2.0]), np.array([1, 1, 0])).tolist()
        [2.0, 2.0, 1.0]
    """
    xp = labels.__array_namespace__()
    if np.ndim(values) == 0:
        return xp.broadcast_to(xp.asarray(values), labels.shape)
    return (
        values[labels] if np.ndim(values) == 1 else xp.take_along_axis(values, labels[:, None], axis=1)[:, 0]
    )
