r"""Matrices that stay what they are when like classes change places, in as few numbers as they need.

Classes are sorted into G groups of ``m_g`` classes that are alike. A K x K matrix that commutes with every
permutation inside groups has one number ``D_g`` on the diagonal of group g and one number ``O_gh`` for all other
pairs of a class of g with one of h: ``G^2 + G`` numbers. Such matrices form an algebra: sums, products and
transposes are of the same kind.

An element is stored as an array ``[O | D]`` of shape (G, G+1), *every entry times the square root of the number of
matrix entries that it stands for* (``m_g m_h`` off the diagonal, ``m_g (m_g - 1)`` for ``O_gg``, ``m_g`` for
``D_g``). So inner products and norms are those of the K x K matrices, and the nearest non-negative matrix is clipped
at zero, entry by entry. A group of one class has no ``O_gg``: that entry is zero.

Products are easiest where the algebra falls into blocks: vectors that are constant within groups see the G x G
matrix ``B_gh = sqrt(m_g m_h) O_gh + [g = h] a_g``, and those that sum to zero in group g see the number ``a_g = D_g
- O_gg``. Hence a product costs G^3, and eigenvalues and singular values are those of B and the ``a_g``, the latter
``m_g - 1``-fold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.losses.softmax import label_mask


class Blocks(NamedTuple):
    """An element in block form: what it is on vectors constant within groups, and on those that sum to zero there.

    Attributes:
        square: ``B``.
        single: ``a``; zero for a group of one class, which has no such vectors.
    """

    square: Float[Any, "G G"]
    single: Float[Any, " G"]

    @property
    def transpose(self) -> Blocks:
        """The transposed matrix."""
        return Blocks(self.square.mT, self.single)

    def __matmul__(self, other: Blocks) -> Blocks:
        """Return the product."""
        return Blocks(self.square @ other.square, self.single * other.single)


class Algebra(NamedTuple):
    """The algebra of matrices that commute with permutations inside groups of the given sizes.

    Attributes:
        members: ``m_g``, in floating point.
        roots: square roots of the number of matrix entries that every stored entry stands for.

    Example:
        >>> algebra = Algebra.of_members(np.array([2, 1]))
        >>> identity = algebra.diagonal(np.ones(2))
        >>> float(np.sum(identity**2)), algebra.blocks(identity).square.round(12).tolist()
        (3.0000000000000004, [[1.0, 0.0], [0.0, 1.0]])
    """

    members: Float[Any, " G"]
    roots: Float[Any, "G columns"]

    @classmethod
    def of_members(cls, members: Int[np.ndarray, " G"]) -> Algebra:
        """Return the algebra of groups with so many classes, in NumPy."""
        sizes = np.asarray(members, np.float64)
        pairs = np.outer(sizes, sizes) - np.diag(sizes)
        return cls(sizes, np.sqrt(np.column_stack([pairs, sizes])))

    @property
    def times(self) -> Float[Any, "G columns"]:
        """How many of the entries of one row of the matrix every stored entry stands for."""
        xp = self.members.__array_namespace__()
        others = self.members - xp.where(self._own(xp), xp.ones_like(self.members), 0)
        return xp.concat([others, xp.ones_like(self.members)[:, None]], axis=1)

    def _own(self, xp: Any) -> Bool[Any, "G G"]:
        """Where a group meets itself."""
        G = len(self.members)
        return label_mask(xp.arange(G, dtype=xp.int32), G)

    def blocks(self, element: Float[Any, "G columns"]) -> Blocks:
        """Return an element in block form."""
        xp = element.__array_namespace__()
        G = len(self.members)
        eye, square, own = self._own(xp), element[:, :G], element[:, G]
        root, rest = xp.sqrt(self.members), xp.sqrt(self.members - 1)
        others = xp.sum(xp.where(eye, square, 0.0), axis=1)
        along = (own + rest * others) / root
        single = xp.where(rest > 0, (own - others / xp.where(rest > 0, rest, 1.0)) / root, 0.0)
        return Blocks(xp.where(eye, along[:, None], square), single)

    def element(self, blocks: Blocks) -> Float[Any, "G columns"]:
        """Return the element with this block form."""
        xp = blocks.square.__array_namespace__()
        eye = self._own(xp)
        root, rest = xp.sqrt(self.members), xp.sqrt(self.members - 1)
        along = xp.sum(xp.where(eye, blocks.square, 0.0), axis=1)
        own = (along + rest**2 * blocks.single) / root
        others = rest * (along - blocks.single) / root
        return xp.concat([xp.where(eye, others[:, None], blocks.square), own[:, None]], axis=1)

    def diagonal(self, entries: Float[Any, " G"]) -> Float[Any, "G columns"]:
        """Return the diagonal matrix with ``entries`` for the classes of every group."""
        xp = entries.__array_namespace__()
        G = len(self.members)
        off = xp.zeros((G, G), dtype=entries.dtype)
        return xp.concat([off, (xp.sqrt(self.members) * entries)[:, None]], axis=1)

    def transpose(self, element: Float[Any, "G columns"]) -> Float[Any, "G columns"]:
        """Return the transposed matrix."""
        xp, G = element.__array_namespace__(), len(self.members)
        return xp.concat([element[:, :G].mT, element[:, G:]], axis=1)

    def entries(self, element: Float[Any, "G columns"]) -> Float[Any, "G columns"]:
        """Return ``[O | D]``, the entries of the matrix; zero where a group has no such entry."""
        xp = element.__array_namespace__()
        return element / xp.where(self.roots > 0, self.roots, 1.0)
