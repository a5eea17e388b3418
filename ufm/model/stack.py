"""Problems of equal shape side by side: every number of a `Problem` with a leading axis, in float64 NumPy.

Formulas that are written for ``...`` leading axes take a stack in the place of a problem: `counts` is (members, K)
instead of (K,), and so on. A single problem is a stack of one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm.losses import Loss
from ufm.model.devices import Layout
from ufm.model.objective import Coordinates, Objective, Scaling, Variables, loss_arrays
from ufm.model.problem import FeatureSet, Level, Problem, bias_curvature, row_labels, row_multiplicities

#: Up to this many, normal draws are kept for the next problem of the same seed and size, as sweeps ask for them.
KEPT_DRAWS = 10_000


class Stack:
    """Problems with as many classes, rows and dimensions, the same loss class, feature set and kind of bias.

    Args:
        problems: at least one.
        level: of their feature rows.
    """

    def __init__(self, problems: Sequence[Problem], level: Level) -> None:
        self.problems, self.level = tuple(problems), level

    def __len__(self) -> int:
        return len(self.problems)

    def take(self, members: Sequence[int]) -> Stack:
        """Return the stack of some members."""
        return Stack([self.problems[i] for i in members], self.level)

    @property
    def loss(self) -> Loss:
        """The loss, where all members have the same."""
        return self.problems[0].loss

    @property
    def features(self) -> FeatureSet:
        """The feature set."""
        return self.problems[0].features

    @property
    def num_classes(self) -> int:
        """``K``."""
        return self.problems[0].num_classes

    @property
    def num_logits(self) -> int:
        """Logits of every row: ``K``, or with soft targets what these are over."""
        return self.problems[0].num_logits

    @property
    def dim(self) -> int:
        """``d``."""
        return self.problems[0].dim

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, "members rows"]:
        """Class of every row."""
        return np.stack([row_labels(problem, self.level) for problem in self.problems])

    @functools.cached_property
    def counts(self) -> Float[np.ndarray, "members K"]:
        """``n_k``."""
        return np.stack([problem.counts for problem in self.problems]).astype(np.float64)

    @functools.cached_property
    def multiplicities(self) -> Float[np.ndarray, "members rows"]:
        """``m_i``."""
        return np.stack([row_multiplicities(problem, self.level) for problem in self.problems]).astype(
            np.float64
        )

    @functools.cached_property
    def num_samples(self) -> Float[np.ndarray, " members"]:
        """``N``."""
        return self.counts.sum(axis=1)

    @property
    def priors(self) -> Float[np.ndarray, "members K"]:
        """``n_k / N``."""
        return self.counts / self.num_samples[:, None]

    @functools.cached_property
    def weight_decay(self) -> Float[np.ndarray, " members"]:
        """``lambda_W``."""
        return np.array([problem.weight_decay for problem in self.problems])

    @functools.cached_property
    def feature_decays(self) -> Float[np.ndarray, "members K"]:
        """``lambda_H,k``."""
        decays = [np.atleast_1d(problem.feature_decay) for problem in self.problems]
        if any(len(own) > 1 for own in decays):
            return np.stack([problem.feature_decays for problem in self.problems])
        return np.broadcast_to(np.array(decays, np.float64), self.counts.shape)

    @functools.cached_property
    def charged_decay(self) -> Float[np.ndarray, " members"]:
        """``lambda_W``, 0 where the classifier is fixed."""
        return np.array([problem.charged_decay for problem in self.problems])

    @functools.cached_property
    def classifier(self) -> Float[np.ndarray, "members K d"] | None:
        """The fixed classifiers, or None for problems whose classifier is free."""
        if self.problems[0].classifier is None:
            return None
        return np.stack([np.asarray(problem.classifier) for problem in self.problems])

    @functools.cached_property
    def nuclear_weights(self) -> Float[np.ndarray, "members K"]:
        """``l_k = sqrt(lambda_W lambda_H,k)``."""
        return np.sqrt(self.weight_decay)[:, None] * np.sqrt(self.feature_decays)

    @functools.cached_property
    def bias(self) -> Float[np.ndarray, " members"] | None:
        """``lambda_b``, or None for problems without a bias."""
        if self.problems[0].bias is None:
            return None
        return np.array([problem.bias for problem in self.problems], np.float64)

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
