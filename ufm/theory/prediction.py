"""What a closed form says about the global optimum: one record for every theorem family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.inputs.checks import InputError
from ufm.model.problem import Problem
from ufm.text import Readable, class_table, wrapped

#: Largest K for which a K x K matrix is formed (3.2 GB in float64).
MAX_MATRIX_CLASSES = 20_000


class ClosedFormError(ValueError):
    """No theorem covers this problem; the message says which assumption fails and what to do instead.

    Example:
        >>> import ufm
        >>> ufm.predict(Problem([30, 20], 4, 1e-2, 1e-3, features="free"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ufm.theory.prediction.ClosedFormError: no closed form: cross-entropy with free features needs equal counts...
    """


def not_covered(reason: str) -> ClosedFormError:
    """Return the error that says which assumption fails and what to do instead."""
    return ClosedFormError(
        f"no closed form: {reason}; the certified solver, ufm.solve, is then the prediction, "
        "as ufm.predict(problem, solve=True) returns it"
    )


def or_none(predict: Callable[..., Prediction], *about: Any) -> Prediction | None:
    """Return what is predicted, None where no theorem covers it."""
    try:
        return predict(*about)
    except ClosedFormError:
        return None


def require_matrix_size(name: str, num_classes: int) -> None:
    """Raise `InputError` if a K x K matrix called ``name`` would be too large to form."""
    if num_classes > MAX_MATRIX_CLASSES:
        raise InputError(
            f"{name} would have {num_classes:,} x {num_classes:,} entries ({8e-9 * num_classes**2:,.0f} GB); "
            f"K x K matrices are formed for at most {MAX_MATRIX_CLASSES:,} classes"
        )


#: Makes some rows of a K x K matrix.
Matrix = Callable[[slice | np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction(Readable):
    """The geometry of the global optimum, in closed form or (`ufm.predict` with ``solve=True``) as certified.

    Vectors have one entry per class. The K x K matrices are formed only when asked for, so a prediction for a
    million classes costs a few vectors; above `MAX_MATRIX_CLASSES` asking for one raises `InputError`.

    Attributes:
        problem: the problem that the prediction is for.
        theorem: source of the closed form, for people; of a solved one its gap.
        norms: ``|h_k|``, norm of the feature of class k (class mean at sample level).
        weight_norms: ``|w_k|``, norm of the classifier row of class k.
        margins: ``M_k = z_kk - max_{j != k} z_kj`` of the logits of class k; 0 when it is collapsed. Where others'
            logits differ and the loss is shift-invariant, log-odds against their mean (`ufm.metrics.margins`).
        collapsed: classes whose feature is zero and whose classifier row is shared ("minority collapse").
        objective: the optimal value P*.
        bias: the optimal bias, or None for a problem without one.
        relative_gap: duality gap of a solved prediction, None for a theorem.

    Margins and logits are in nats for the losses of the cross-entropy family.

    Source: ``theorem`` names it.

    Example:
        >>> import ufm
        >>> prediction = ufm.predict(Problem([500, 500, 5], 4, weight_decay=5e-3, feature_decay=1e-3))
        >>> prediction.collapsed.tolist(), prediction.gram_features.shape
        ([False, False, True], (3, 3))
    """

    problem: Problem
    theorem: str
    norms: Float[np.ndarray, " K"]
    weight_norms: Float[np.ndarray, " K"]
    margins: Float[np.ndarray, " K"]
    collapsed: Bool[np.ndarray, " K"]
    objective: float
    _gram_features: Matrix
    _gram_weights: Matrix
    _logits: Matrix
    bias: Float[np.ndarray, " K"] | None = None
    relative_gap: float | None = None
    _dual: Matrix | None = None

    def __str__(self) -> str:
        columns = {
            "|h|": self.norms,
            "|w|": self.weight_norms,
            "margin": self.margins,
            "": np.where(self.collapsed, "collapsed", ""),
        }
        form = "No closed form" if self.relative_gap is not None else "Closed form"
        lines = [
            str(self.problem),
            "",
            class_table(self.problem.counts, columns),
            "",
            f"{self.num_collapsed} of {self.problem.num_classes} classes collapse.",
            f"Optimal value P* = {self.objective:.12g}",
            wrapped(f"{form}: {self.theorem}"),
        ]
        return "\n".join(lines)

    @property
    def gap(self) -> float:
        """How far the objective may be above the optimal value."""
        return 0.0 if self.relative_gap is None else max(self.relative_gap, 0.0) * self.objective

    @property
    def source(self) -> str:
        """``theorem ...`` or ``solved, relative gap ...``."""
        return f"theorem: {self.theorem}" if self.relative_gap is None else self.theorem

    @property
    def gram_features(self) -> Float[np.ndarray, "K K"]:
        """``<h_k, h_l>``, the Gram matrix of class means."""
        require_matrix_size("gram_features", len(self.norms))
        return self._gram_features(slice(None))

    @property
    def gram_weights(self) -> Float[np.ndarray, "K K"]:
        """``<w_k, w_l>``, the Gram matrix of classifier rows."""
        require_matrix_size("gram_weights", len(self.norms))
        return self._gram_weights(slice(None))

    @property
    def logits(self) -> Float[np.ndarray, "K K"]:
        """Logits ``W h_k (+ b)`` of class k in *row* k."""
        require_matrix_size("logits", len(self.norms))
        return self._logits(slice(None))

    def rows(
        self, name: Literal["gram_features", "gram_weights", "logits"], classes: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows K"]:
        """Return some rows of a matrix, without forming the rest."""
        matrix: Matrix = getattr(self, f"_{name}")
        return matrix(classes)

    def inner_products(self, classes: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Return ``<w_k, h_k>`` of some classes: their own logits without the bias."""
        own = self.rows("logits", classes)[np.arange(len(classes)), classes]
        return own if self.bias is None else own - self.bias[classes]

    def dual_rows(self, classes: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows K"]:
        """Return rows of the dual optimum Q: gradients of the loss, or of a solved one the point of its bound."""
        if self._dual is not None:
            return self._dual(classes)
        return self.problem.loss.gradient(self.rows("logits", classes), classes)

    @property
    def num_collapsed(self) -> int:
        """Number of collapsed classes."""
        return int(self.collapsed.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the per-class vectors and the optimal value as plain Python objects, ready for JSON."""
        return {
            "theorem": self.theorem,
            "source": self.source,
            "objective": self.objective,
            "num_collapsed": self.num_collapsed,
            "collapsed": self.collapsed.tolist(),
            "norms": self.norms.tolist(),
            "weight_norms": self.weight_norms.tolist(),
            "margins": self.margins.tolist(),
            "bias": None if self.bias is None else self.bias.tolist(),
        }
