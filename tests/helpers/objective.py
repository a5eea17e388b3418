"""The package's objective at a point, whose rows share the samples of their class."""

import numpy as np

from ufm.duality.certificate import objective_values
from ufm.model.objective import Variables


def objective_value(problem, weight, features, labels, bias=None):
    """``P(W, H, b)``."""
    multiplicities = (problem.counts / np.bincount(labels, minlength=problem.num_classes))[labels]
    return float(objective_values(problem, Variables(weight, features, bias), labels, multiplicities))
