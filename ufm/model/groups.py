"""Group level: classes that are alike solved for as one, in numbers that do not grow with how many they are.

Permuting classes of equal count, loss parameters and decays leaves a problem unchanged (with soft targets, those
whose rows and columns can be exchanged). Its classifier and features,
in coordinates of which every class has one of its own (``d >= K``), may then be taken to commute with those
permutations: they lie in the algebra of `ufm.model.algebra`, and so do logits, gradients and Gram matrices. The
optimum of the problem restricted to the algebra is judged by a certificate that is rigorous for the whole problem
(`ufm.duality.groups`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm.losses.scalar import kinds
from ufm.model.algebra import Algebra
from ufm.model.objective import POWER_STEPS, Objective, Point, Variables, loss_arrays
from ufm.model.problem import Problem, bias_curvature
from ufm.model.stack import scaling

#: Share of the squared norm of a class's features that a random start has in its own coordinate.
OWN = 0.5
#: Up to so many classes the class level is as fast, and needs no programs of its own.
FEW_CLASSES = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Which classes are alike.

    Attributes:
        of_class: group of every class; groups are in the order of their first classes.
        first: first class of every group, which stands for the others.
        members: number of classes of every group.

    Example:
        >>> groups = groups_of(Problem([50, 20, 50, 5], 4, 1e-2, 1e-3))
        >>> groups.of_class.tolist(), groups.members.tolist()
        ([0, 1, 0, 2], [2, 1, 1])
    """

    of_class: Int[np.ndarray, " K"]
    first: Int[np.ndarray, " G"]
    members: Int[np.ndarray, " G"]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def algebra(self) -> Algebra:
        """The algebra of matrices over these groups."""
        return Algebra.of_members(self.members)

    @property
    def columns(self) -> Int[np.ndarray, "G columns"]:
        """The class that every entry of a row of logits stands for: one of each group, and last the label's own."""
        G = len(self)
        return np.column_stack([np.broadcast_to(self.first, (G, G)), self.first])

    @functools.cached_property
    def places(self) -> Int[np.ndarray, "G columns"]:
        """The same, with another class than the label's own to stand for its group, where there is one."""
        G = len(self)
        last = np.zeros(G, dtype=np.int64)
        last[self.of_class] = np.arange(len(self.of_class))
        return np.column_stack([np.where(np.eye(G, dtype=bool), last, self.first), self.first])

    @property
    def labels(self) -> Int[np.ndarray, " G"]:
        """Where in a row of logits the label's own is: last."""
        return np.full(len(self), len(self))

    def expand(self, element: Float[np.ndarray, "G columns"]) -> Float[np.ndarray, "K K"]:
        """Return the K x K matrix of an element of the algebra."""
        return self.expand_rows(element, np.arange(len(self.of_class)))

    def expand_rows(
        self, element: Float[np.ndarray, "G columns"], classes: Int[np.ndarray, " rows"] | None = None
    ) -> Float[np.ndarray, "rows K"]:
        """Return the rows of some classes, by default of the first of every group, of an element's matrix."""
        classes = self.first if classes is None else classes
        entries, groups = self.algebra.entries(element), self.of_class[classes]
        rows = entries[np.ix_(groups, self.of_class)]
        rows[np.arange(len(classes)), classes] = entries[groups, len(self)]
        return rows

    def reduce_rows(self, rows: Float[np.ndarray, "G K"]) -> Float[np.ndarray, "G columns"]:
        """Return the element whose matrix has these rows of the first class of every group."""
        return self.algebra.roots * np.take_along_axis(rows, self.places, axis=1)


def groups_of(problem: Problem) -> Groups:
    """Return the groups of classes of equal count, feature decay and loss parameters."""
    first, kind = kinds(problem.counts, problem.feature_decays, *problem.loss.alike())
    order = np.argsort(first)
    return Groups(np.argsort(order)[kind], first[order], np.bincount(kind)[order])


def why_not_grouped(problem: Problem) -> str | None:
    """Return why a problem has no group level, the end of a sentence, or None if it has one."""
    if not problem.loss.grouped:
        return f"{type(problem.loss).__name__} cannot take classes together"
    if problem.num_classes != problem.num_logits:
        return f"targets must be square, got {problem.num_classes} contexts and {problem.num_logits} logits"
    if problem.classifier is not None:
        return "the classifier is fixed"
    if problem.dim < problem.num_classes:
        return f"dim must be at least the number of classes, got {problem.dim} and {problem.num_classes}"
    return None


def much_smaller(problem: Problem) -> bool:
    """Return whether a problem has a group level that is much smaller than its class level."""
    K = problem.num_classes
    return K > FEW_CLASSES and why_not_grouped(problem) is None and len(groups_of(problem)) <= K // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupObjective(Objective):
    """The objective on points of the algebra, in balanced coordinates.

    Classifier and features of a `Point` are stored elements (G, G+1), rows of the features being classes and columns
    coordinates; its bias is ``sqrt(m_g)`` times the balanced bias of a class of group g. Value, gradient and inner
    products are those of the K x K matrices. Takes NumPy and JAX arrays.

    Attributes:
        labels: where the label's own logit is in a row.
        loss: the loss with its parameters gathered to the columns of a row.
        loss_weights: ``n_g / N`` of one class.
        logit_scales: ``c_g = 1/sqrt(lambda_W lambda_H n_g)``.
        weight_decay: 1.
        row_decays: ones.
        bias_scale: bias over balanced bias.
        bias_decay: decay of the balanced bias.
        nonnegative: whether features are constrained to be non-negative.
        layout: None: all rows at once, on one device.
        algebra: the algebra.
        curvatures: bounds on the Hessian of the loss in the logits.
    """

    algebra: Algebra = dataclasses.field(kw_only=True)
    curvatures: Float[Any, " G"] = dataclasses.field(kw_only=True)

    def logits(self, point: Point) -> Float[Any, "G columns"]:
        """Return the logits of one class of every group: those of every group's classes, and last its own."""
        algebra = self.algebra
        xp = point.weight.__array_namespace__()
        product = algebra.blocks(point.features) @ algebra.blocks(point.weight).transpose
        logits = self.logit_scales[:, None] * algebra.entries(algebra.element(product))
        if point.bias is None:
            return logits
        bias = self.bias_scale * point.bias / xp.sqrt(algebra.members)
        shift = xp.concat([xp.broadcast_to(bias, (len(bias), len(bias))), bias[:, None]], axis=1)
        return logits + xp.where(algebra.roots > 0, shift, 0.0)

    def value(self, point: Point) -> Float[Any, ""]:
        """Return the objective."""
        xp = point.weight.__array_namespace__()
        losses = self.loss.value(self.logits(point), self.labels, self.algebra.times)
        return xp.vdot(self.algebra.members * self.loss_weights, losses) + self.regulariser(point)

    def slopes(self, point: Point) -> Float[Any, "G columns"]:
        """Return the gradient of the loss in the logits, per single logit."""
        return self.loss.gradient(self.logits(point), self.labels, self.algebra.times)

    def residual(self, point: Point) -> Float[Any, "G columns"]:
        """Return ``n_g/N`` times the gradient of the loss in the logits, a stored element."""
        return self.loss_weights[:, None] * self.algebra.roots * self.slopes(point)

    def weight_slope(
        self, scaled: Float[Any, "G columns"], features: Float[Any, "G columns"]
    ) -> Float[Any, "G columns"]:
        """Return the gradient of the loss in the classifier from a residual times `logit_scales`."""
        blocks = self.algebra.blocks
        return self.algebra.element(blocks(scaled).transpose @ blocks(features))

    def feature_slope(
        self, scaled: Float[Any, "G columns"], weight: Float[Any, "G columns"]
    ) -> Float[Any, "G columns"]:
        """Return the gradient of the loss in the features from a residual times `logit_scales`."""
        return self.algebra.element(self.algebra.blocks(scaled) @ self.algebra.blocks(weight))

    def total(self, residual: Float[Any, "G columns"]) -> Float[Any, " G"]:
        """Return the gradient of the loss in a bias added to the logits, ``sqrt(m_g)`` times that of one class."""
        xp = residual.__array_namespace__()
        G = len(self.algebra.members)
        others = xp.sum(self.algebra.roots[:, :G] * residual[:, :G], axis=0)
        return others / xp.sqrt(self.algebra.members) + residual[:, G]

    def gradient(self, point: Point) -> Point:
        """Return the gradient of the objective, the regulariser included."""
        residual = self.residual(point)
        scaled = residual * self.logit_scales[:, None]
        bias = None
        if point.bias is not None:
            bias = self.bias_scale * self.total(residual) + self.bias_decay * point.bias
        return Point(
            self.weight_slope(scaled, point.features) + point.weight,
            self.feature_slope(scaled, point.weight) + point.features,
            bias,
        )

    def polar_estimate(self, residual: Float[Any, "G columns"], units: Float[Any, " G"]) -> Float[Any, ""]:
        """Return what ``polar(A)`` may be, as for classes."""
        algebra = self.algebra
        xp = residual.__array_namespace__()
        dual = algebra.blocks(units[:, None] * residual)
        if self.nonnegative:
            entries = algebra.entries(algebra.element(dual @ dual.transpose))
            return xp.sqrt(xp.max(xp.sum(algebra.times * xp.maximum(entries, 0), axis=1)))
        square, longest = (
            dual.square,
            dual.square[jax.lax.argmax(xp.sum(dual.square**2, axis=1), 0, np.int32)],
        )
        for _ in range(POWER_STEPS):
            unit = longest / xp.maximum(xp.linalg.vector_norm(longest), xp.finfo(square.dtype).tiny)
            longest = (square @ unit) @ square
        return xp.maximum(xp.sqrt(xp.linalg.vector_norm(longest)), xp.max(xp.abs(dual.single)))

    def curvature_bound(self, point: Point) -> Float[Any, ""]:
        """Return a bound on the norm of the Hessian at the point, as for classes."""
        xp = point.weight.__array_namespace__()
        curvature = self.curvatures * self.loss_weights
        kappa = curvature * self.logit_scales**2
        bilinear = xp.vdot(kappa, xp.sum(point.features**2, axis=1))
        bilinear = bilinear + xp.max(kappa) * xp.vdot(point.weight, point.weight)
        if point.bias is not None:
            bilinear = bilinear + self.bias_scale**2 * xp.vdot(self.algebra.members, curvature)
        scaled = self.residual(point) * self.logit_scales[:, None]
        return 1 + bilinear + xp.sqrt(xp.vdot(scaled, scaled))


def group_objective(problem: Problem, groups: Groups, dtype: str = "float64") -> GroupObjective:
    """Return the objective of ``problem`` on the algebra of its groups, its arrays in NumPy."""
    first = groups.first
    scale = 1.0 if problem.bias is None else 1 / math.sqrt(bias_curvature(problem))
    arrays = {
        "algebra": Algebra(*(part.astype(dtype) for part in groups.algebra)),
        "labels": groups.labels.astype(np.int32),
        "loss": loss_arrays(problem.loss.of_columns(groups.places), dtype),
        "loss_weights": problem.priors[first].astype(dtype),
        "logit_scales": (1 / (problem.nuclear_weights[first] * np.sqrt(problem.counts[first]))).astype(dtype),
        "curvatures": np.asarray(problem.loss.curvature(first), dtype),
        "weight_decay": np.asarray(1.0, dtype),
        "row_decays": np.ones(len(groups), dtype),
        "bias_scale": np.asarray(scale, dtype),
        "bias_decay": np.asarray((problem.bias or 0.0) * scale**2, dtype),
    }
    return GroupObjective(**arrays, nonnegative=problem.features == "nonnegative")


def group_start(problem: Problem, groups: Groups, seed: int) -> Point:
    """Return a random point of the algebra whose logits are of order one, on the scale of `Stack.random_starts`.

    A share `OWN` of the squared norm of a class is in its own coordinate, the rest in all of them.

    Args:
        problem: the problem.
        groups: its groups.
        seed: of NumPy's default generator.
    """
    rng = np.random.default_rng(seed)
    G, algebra = len(groups), groups.algebra
    first = groups.first
    unit = problem.nuclear_weights[first] * np.sqrt(problem.counts[first]) / 4
    mean = np.full(G, algebra.members @ unit / problem.num_classes)
    shares = np.column_stack([np.full((G, G), (1 - OWN) / problem.num_classes), np.full(G, OWN)])
    weight, features = (
        np.sqrt(size[:, None] * shares) * algebra.roots * rng.standard_normal((G, G + 1))
        for size in (mean, unit)
    )
    if problem.features == "nonnegative":
        np.abs(features, out=features)
    return Point(weight, features, None if problem.bias is None else np.zeros(G))


@dataclasses.dataclass(frozen=True, eq=False)
class GroupPoint:
    """A point of the algebra as users know it: what classes of one group have in common stands once.

    In coordinates of which every class has one of its own, the entries of W, H, their Gram matrices and the logits
    depend on the groups of row and column only, and on whether both are the same class. `entries` of such a matrix
    are an array (G, G+1): those between a class of every group and *another* of every group, and last its own.

    Attributes:
        problem: the problem.
        groups: its groups.
        point: balanced classifier, features and bias, stored elements of the algebra, in NumPy.
    """

    problem: Problem
    groups: Groups
    point: Point

    @functools.cached_property
    def variables(self) -> Variables:
        """``(W, H, b)`` with one row of features per class, in full size."""
        return expand_point(self.problem, self.groups, self.point)

    @property
    def bias(self) -> Float[np.ndarray, " G"] | None:
        """``b`` of a class of every group."""
        if self.point.bias is None:
            return None
        scale = math.sqrt(bias_curvature(self.problem))
        return self.point.bias / np.sqrt(self.groups.members) / scale

    def rows(self, name: str, classes: Int[np.ndarray, " rows"] | slice) -> Float[np.ndarray, "rows K"]:
        """Return the rows of some classes of ``"logits"``, ``"gram_features"`` or ``"gram_weights"``."""
        element = self.groups.algebra.roots * getattr(self, name)
        return self.groups.expand_rows(element, np.arange(self.problem.num_classes)[classes])

    def _entries(self, left: Any, right: Any) -> Float[np.ndarray, "G columns"]:
        algebra = self.groups.algebra
        return algebra.entries(algebra.element(algebra.blocks(left) @ algebra.blocks(right).transpose))

    @property
    def _scales(self) -> Float[np.ndarray, "G 1"]:
        problem, first = self.problem, self.groups.first
        return np.sqrt(problem.feature_decays[first] * problem.counts[first])[:, None]

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "G columns"]:
        """Entries of ``H W' + b``."""
        return group_objective(self.problem, self.groups).logits(self.point)

    @functools.cached_property
    def gram_features(self) -> Float[np.ndarray, "G columns"]:
        """Entries of ``H H'``."""
        scales = self._scales
        columns = np.concatenate([np.broadcast_to(scales.T, (len(scales),) * 2), scales], axis=1)
        return self._entries(self.point.features, self.point.features) / (scales * columns)

    @functools.cached_property
    def gram_weights(self) -> Float[np.ndarray, "G columns"]:
        """Entries of ``W W'``."""
        return self._entries(self.point.weight, self.point.weight) / self.problem.weight_decay


def expand_point(problem: Problem, groups: Groups, point: Point) -> Variables:
    """Return ``(W, H, b)``, one row of features per class, from a balanced point of the algebra.

    Coordinates beyond the K that the algebra uses are zero.
    """
    scales = scaling(problem, "class", "balanced")
    weight, features = (
        np.pad(groups.expand(np.asarray(part)), ((0, 0), (0, problem.dim - problem.num_classes)))
        for part in (point.weight, point.features)
    )
    bias = None
    if point.bias is not None:
        bias = (np.asarray(point.bias) / np.sqrt(groups.members))[groups.of_class] / scales.bias
    return Variables(weight / scales.weight, features / scales.rows[:, None], bias)
