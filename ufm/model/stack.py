"""Problems of equal shape side by side at one level: their rows, scales, objectives and random starts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm.model.devices import Layout
from ufm.model.objective import Coordinates, Objective, Scaling, Variables, loss_arrays
from ufm.model.problem import Level, Problem, bias_curvature, row_labels, row_multiplicities
from ufm.model.problems import Problems

#: Up to this many, normal draws are kept for the next problem of the same seed and size, as sweeps ask for them.
KEPT_DRAWS = 10_000


class Stack(Problems):
    """Problems that have as many rows too.

    Args:
        problems: at least one.
        level: of their feature rows.
    """

    def __init__(self, problems: Sequence[Problem], level: Level) -> None:
        super().__init__(problems)
        self.level = level

    def take(self, members: Sequence[int]) -> Stack:
        """Return the stack of some members."""
        return Stack([self.problems[i] for i in members], self.level)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, "members rows"]:
        """Class of every row."""
        return np.stack([row_labels(problem, self.level) for problem in self.problems])

    @functools.cached_property
    def multiplicities(self) -> Float[np.ndarray, "members rows"]:
        """``m_i``."""
        return np.stack([row_multiplicities(problem, self.level) for problem in self.problems]).astype(
            np.float64
        )

    def scaling(self, coordinates: Coordinates) -> Scaling:
        """Return the factors that take ``(W, H, b)`` to the coordinates, stacked.

        The bias has no partner to balance with; it is scaled to unit curvature (`bias_curvature`), if there is one.
        """
        ones = np.ones(len(self))
        if coordinates == "natural":
            return Scaling(ones, np.ones_like(self.multiplicities), ones)
        row_decays = np.take_along_axis(self.feature_decays, self.labels, axis=1)
        bias = ones if self.bias is None else np.sqrt(bias_curvature(self))
        return Scaling(np.sqrt(self.weight_decay), np.sqrt(row_decays * self.multiplicities), bias)

    def objective_arrays(self, scales: Scaling, dtype: str) -> dict[str, Any]:
        """Return the fields of all objectives (`ufm.model.objective.Objective`), ready to be moved to a device."""
        times = self.multiplicities
        row_decays = np.take_along_axis(self.feature_decays, self.labels, axis=1)
        bias_decay = np.zeros(len(self)) if self.bias is None else self.bias
        floats = {
            "loss_weights": times / self.num_samples[:, None],
            "logit_scales": 1 / (scales.weight[:, None] * scales.rows),
            "weight_decay": self.charged_decay / scales.weight**2,
            "row_decays": row_decays * times / scales.rows**2,
            "bias_scale": 1 / scales.bias,
            "bias_decay": bias_decay / scales.bias**2,
        }
        losses = [loss_arrays(problem.loss, dtype) for problem in self.problems]
        return {name: values.astype(dtype) for name, values in floats.items()} | {
            "labels": self.labels.astype(np.int32),
            "loss": jax.tree.map(lambda *parts: np.stack(parts), *losses),
        }

    def random_starts(self, seeds: Sequence[int]) -> Variables:
        """Return independent Gaussian classifiers and (rectified) features whose logits are of order one.

        In balanced coordinates the rows of class k get squared norm ``l_k sqrt(n_k) / 4`` (at sample level shared
        among its samples), the size at which ``W h`` is of order one; the bias starts at zero.

        Args:
            seeds: of NumPy's default generator, one per member; the same starts in every precision.
        """
        balanced, rows = self.scaling("balanced"), self.labels.shape[1]
        draws = [normal_draws(seed, self.num_logits, rows, self.dim) for seed in seeds]
        unit = self.nuclear_weights * np.sqrt(self.counts) / 4
        share = np.take_along_axis(unit / self.counts, self.labels, axis=1) * self.multiplicities
        to_weight = np.sqrt(unit.mean(axis=1) / self.dim) / balanced.weight
        to_rows = np.sqrt(share / self.dim) / balanced.rows
        weight = np.stack([weight for weight, _ in draws]) * to_weight[:, None, None]
        if self.classifier is not None:
            weight = self.classifier
        rows_of = [features for _, features in draws]
        features = (np.stack(rows_of) if len(self) > 1 else rows_of[0][None]) * to_rows[:, :, None]
        if self.features == "nonnegative":
            np.abs(features, out=features)
        bias = None if self.bias is None else np.zeros((len(self), self.num_logits))
        return Variables(weight, features, bias)


def scaling(problem: Problem, level: Level, coordinates: Coordinates) -> Scaling:
    """Return the factors that take ``(W, H, b)`` of one problem to the given coordinates."""
    weight, rows, bias = Stack([problem], level).scaling(coordinates)
    return Scaling(float(weight[0]), rows[0], float(bias[0]))


def random_start(problem: Problem, level: Level, seed: int) -> Variables:
    """Return the random start of one problem (`Stack.random_starts`)."""
    return member(Stack([problem], level).random_starts([seed]), 0)


def build_objective(
    problem: Problem, level: Level, coordinates: Coordinates, dtype: str, layout: Layout | None = None
) -> Objective:
    """Return the objective of ``problem`` at ``level`` in ``coordinates``, its arrays in ``dtype``.

    With a ``layout`` they are on its devices, and where it has more rows than the problem, rows without weight fill
    it up, which stay zero; without one they are in NumPy, to be moved with what else a compiled function is given.
    """
    stack = Stack([problem], level)
    arrays = jax.tree.map(lambda part: part[0], stack.objective_arrays(stack.scaling(coordinates), dtype))
    if layout is not None:
        per_row = {
            name: arrays.pop(name) for name in ("labels", "loss_weights", "logit_scales", "row_decays")
        }
        fill = layout.rows - len(per_row["labels"])
        ends = {"labels": 0, "loss_weights": 0, "logit_scales": 1, "row_decays": 1}
        filled = {name: np.pad(part, (0, fill), constant_values=ends[name]) for name, part in per_row.items()}
        arrays = jax.device_put(filled, layout.by_row) | jax.device_put(arrays, layout.replicated)
    return Objective(**arrays, nonnegative=problem.features == "nonnegative", layout=layout)


def member(variables: Any, where: Any) -> Any:
    """Return one (an integer), some (a list), or a stack of one (None) of a named tuple of stacked arrays."""
    return type(variables)(*(None if part is None else part[where] for part in variables))


def normal_draws(
    seed: int, num_logits: int, rows: int, dim: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "rows d"]]:
    """Return standard normal numbers for classifier and features; not to be written to."""
    draw = _kept_draws if (num_logits + rows) * dim <= KEPT_DRAWS else _draws
    return draw(seed, num_logits, rows, dim)


def _draws(
    seed: int, num_logits: int, rows: int, dim: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "rows d"]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_logits, dim)), rng.standard_normal((rows, dim))


_kept_draws = functools.lru_cache(maxsize=16)(_draws)
