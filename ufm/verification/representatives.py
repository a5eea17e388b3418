"""K x K matrices of classes that are alike, by one row per group: nothing larger than G x K is ever formed.

Where classes of one group may change places, a matrix over all classes (Gram matrix, logits, gradients) is known from
the rows of one class per group. Sums along a row, entry by entry formulas and largest entries need no more than
these rows; transposes, products, norms and eigenvalues know how many classes a row stands for (`ufm.model.algebra`).
Where nothing is known to be alike every class stands for itself, and rows are the matrix.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ufm.duality import copositive, groups
from ufm.model.groups import Groups
from ufm.verification.propagation import largest_eigenvalue


@dataclasses.dataclass(frozen=True, eq=False)
class Representatives:
    """One class per group, which stands for the others.

    Example:
        >>> pair = Representatives(Groups(np.array([0, 0]), np.array([0]), np.array([2])))
        >>> rows = np.array([[3.0, 1.0]])  # of the matrix [[3, 1], [1, 3]]
        >>> round(pair.largest_eigenvalue(rows), 12), pair.product(rows, rows).round(12).tolist()
        (4.0, [[10.0, 6.0]])
    """

    groups: Groups

    @classmethod
    def of_all(cls, num_classes: int) -> Representatives:
        """Every class for itself."""
        classes = np.arange(num_classes)
        return cls(Groups(classes, classes, np.ones(num_classes, dtype=np.int64)))

    @property
    def whole(self) -> bool:
        """Whether every class stands for itself."""
        return len(self.groups) == len(self.groups.of_class)

    @property
    def first(self) -> Int[np.ndarray, " G"]:
        """The classes that stand for their groups."""
        return self.groups.first

    def own(self, rows: Float[np.ndarray, "*members G K"]) -> Float[np.ndarray, "*members G"]:
        """Return the diagonal entries, as `of_classes` and `times` also of a stack of matrices."""
        return rows[..., np.arange(len(self.first)), self.first]

    @property
    def apart(self) -> Bool[np.ndarray, "G K"]:
        """Where row and column are different classes."""
        return np.arange(len(self.groups.of_class)) != self.first[:, None]

    def of_classes(self, values: Shaped[np.ndarray, "*members G"]) -> Shaped[np.ndarray, "*members K"]:
        """Return what every class has, from what one of every group has."""
        return values[..., self.groups.of_class]

    def times(self, rows: Float[np.ndarray, "*members G any"]) -> Float[np.ndarray, "*members G any"]:
        """Return rows times the root of how many classes they stand for: norms are then those of all rows."""
        return np.sqrt(self.groups.members)[:, None] * rows

    def norm(self, rows: Float[np.ndarray, "G any"]) -> float:
        """Return the Frobenius norm of the matrix."""
        return float(np.linalg.norm(self.times(rows)))

    def transpose(self, rows: Float[np.ndarray, "G K"]) -> Float[np.ndarray, "G K"]:
        """Return the rows of the transposed matrix."""
        if self.whole:
            return rows.T
        stored = self.groups.reduce_rows(rows)
        return self.groups.expand_rows(self.groups.algebra.transpose(stored))

    def product(
        self, left: Float[np.ndarray, "G K"], right: Float[np.ndarray, "G K"]
    ) -> Float[np.ndarray, "G K"]:
        """Return the rows of the product of two matrices."""
        if self.whole:
            return left @ right
        algebra = self.groups.algebra
        first, second = (algebra.blocks(self.groups.reduce_rows(rows)) for rows in (left, right))
        return self.groups.expand_rows(algebra.element(first @ second))

    def sharing_multiplier(
        self, product: Float[np.ndarray, "G K"], gram: Float[np.ndarray, "G K"]
    ) -> Float[np.ndarray, "G K"]:
        """Return the multiplier of `ufm.duality.copositive` for a symmetric matrix and features."""
        if self.whole:
            return copositive.sharing_multiplier(product, gram)
        algebra = self.groups.algebra
        first, second = (algebra.blocks(self.groups.reduce_rows(rows)) for rows in (product, gram))
        return self.groups.expand_rows(groups.sharing_multiplier(algebra, first, second))

    def extreme_eigenvalues(self, rows: Float[np.ndarray, "G K"]) -> tuple[float, float]:
        """Return the smallest and the largest eigenvalue of a symmetric matrix."""
        if self.whole:
            square, alone = rows, np.zeros(0)
        else:
            square, single = self.groups.algebra.blocks(self.groups.reduce_rows(rows))
            alone = single[self.groups.members > 1]
        values = np.append(np.linalg.eigvalsh((square + square.T) / 2), alone)
        return float(values.min()), float(values.max())

    def largest_eigenvalue(self, rows: Float[np.ndarray, "G K"]) -> float:
        """Return the largest eigenvalue of a Gram matrix."""
        if self.whole:
            return largest_eigenvalue(rows)
        blocks = self.groups.algebra.blocks(self.groups.reduce_rows(rows))
        return max(largest_eigenvalue(blocks.square), float(blocks.single.max()))
