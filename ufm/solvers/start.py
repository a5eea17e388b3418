"""Random starts, on the scale that the problem's own units suggest and nothing else."""

from __future__ import annotations

import numpy as np

from ufm.objective import Variables, scaling
from ufm.problem import Level, Problem, row_labels, row_multiplicities


def random_start(problem: Problem, level: Level, seed: int) -> Variables:
    """Return independent Gaussian classifier and (rectified) features whose logits are of order one.

    In balanced coordinates the rows of class k get squared norm ``sqrt(lambda_W lambda_H n_k) / 4`` (at sample
    level shared among its samples), the size at which ``W h`` is of order one; the bias starts at zero.

    Args:
        problem: the problem.
        level: one feature row per class, or per sample.
        seed: of NumPy's default generator; the same start on every device and in every precision.
    """
    rng = np.random.default_rng(seed)
    labels, multiplicities = row_labels(problem, level), row_multiplicities(problem, level)
    scales = scaling(problem, level, "balanced")
    unit = problem.nuclear_weight * np.sqrt(problem.counts) / 4
    weight = rng.standard_normal((problem.num_classes, problem.dim)) * np.sqrt(unit.mean() / problem.dim)
    features = rng.standard_normal((len(labels), problem.dim))
    if problem.features == "nonnegative":
        np.abs(features, out=features)
    share = unit[labels] * multiplicities / problem.counts[labels]
    features *= (np.sqrt(share / problem.dim) / scales.rows)[:, None]
    bias = None if problem.bias is None else np.zeros(problem.num_classes)
    return Variables(weight / scales.weight, features, bias)
