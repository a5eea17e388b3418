"""From matrices of all classes back to the algebra of groups, which the package itself never needs."""

import numpy as np

from ufm.model.objective import Point
from ufm.model.stack import scaling


def reduced(groups, matrix):
    """The element of the algebra nearest to a K x K matrix: its average over permutations."""
    roots = groups.algebra.roots
    onehot = (groups.of_class[:, None] == np.arange(len(groups))).astype(np.float64)
    own = onehot.T @ np.diagonal(matrix)
    sums = np.column_stack([onehot.T @ matrix @ onehot - np.diag(own), own])
    return np.where(roots > 0, sums / np.where(roots > 0, roots, 1.0), 0.0)


def reduced_point(problem, groups, variables):
    """The point of the algebra nearest to ``(W, H, b)``, whose first K coordinates belong to the classes."""
    scales, K = scaling(problem, "class", "balanced"), problem.num_classes
    weight = reduced(groups, variables.weight[:, :K] * scales.weight)
    features = reduced(groups, variables.features[:, :K] * scales.rows[:, None])
    bias = None
    if variables.bias is not None:
        sums = np.bincount(groups.of_class, variables.bias, len(groups))
        bias = scales.bias * sums / np.sqrt(groups.members)
    return Point(weight, features, bias)
