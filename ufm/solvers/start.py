"""Random starts, on the scale that the problem's own units suggest and nothing else."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from ufm.model.objective import Variables, scaling
from ufm.model.problem import Level, Problem, row_labels, row_multiplicities

#: Up to this many, normal draws are kept for the next problem of the same seed and size, as sweeps ask for them.
KEPT_DRAWS = 10_000


def random_start(problem: Problem, level: Level, seed: int) -> Variables:
    """Return independent Gaussian classifier and (rectified) features whose logits are of order one.

    In balanced coordinates the rows of class k get squared norm ``sqrt(lambda_W lambda_H n_k) / 4`` (at sample
    level shared among its samples), the size at which ``W h`` is of order one; the bias starts at zero.

    Args:
        problem: the problem.
        level: one feature row per class, or per sample.
        seed: of NumPy's default generator; the same start on every device and in every precision.
    """
    labels, multiplicities = row_labels(problem, level), row_multiplicities(problem, level)
    scales = scaling(problem, level, "balanced")
    unit = problem.nuclear_weight * np.sqrt(problem.counts) / 4
    weight, features = normal_draws(seed, problem.num_classes, len(labels), problem.dim)
    weight = weight * np.sqrt(unit.mean() / problem.dim)
    share = unit[labels] * multiplicities / problem.counts[labels]
    features = features * (np.sqrt(share / problem.dim) / scales.rows)[:, None]
    if problem.features == "nonnegative":
        np.abs(features, out=features)
    bias = None if problem.bias is None else np.zeros(problem.num_classes)
    return Variables(weight / scales.weight, features, bias)


def normal_draws(
    seed: int, num_classes: int, rows: int, dim: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "rows d"]]:
    """Return standard normal numbers for classifier and features; not to be written to."""
    draw = _kept_draws if (num_classes + rows) * dim <= KEPT_DRAWS else _draws
    return draw(seed, num_classes, rows, dim)


def _draws(
    seed: int, num_classes: int, rows: int, dim: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "rows d"]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_classes, dim)), rng.standard_normal((rows, dim))


_kept_draws = functools.lru_cache(maxsize=16)(_draws)
