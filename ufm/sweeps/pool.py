"""All members of a batch before their first step, stacked once: objectives, units, scales and starting points.

The formulas are those of `ufm.model.objective` and `ufm.solvers.start`, for all members at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from ufm.model.objective import Point, Scaling, Variables, loss_arrays
from ufm.model.problem import bias_curvature, row_labels, row_multiplicities
from ufm.solvers.rule import StepRule
from ufm.solvers.start import normal_draws
from ufm.sweeps.member import Member


class Units(NamedTuple):
    """What turns an objective's own quantities into the certificate's: class and bias units of every member."""

    classes: Float[np.ndarray, "members K"]
    bias: Float[np.ndarray, " members"]


class Pool(NamedTuple):
    """Members of equal `Member.shape` along the first axis of every array.

    Attributes:
        rule: their step rule.
        dtype: the floating-point type that they are solved in.
        nonnegative: whether features are constrained.
        arrays: the fields of their objectives, in ``dtype``.
        units: their units, in ``dtype``.
        scales: from their variables to the coordinates of the rule.
        starts: their random starting points.
    """

    rule: StepRule
    dtype: str
    nonnegative: bool
    arrays: dict[str, Any]
    units: Units
    scales: Any
    starts: Variables

    def points(self, members: Int[np.ndarray, " some"], variables: Variables) -> Point:
        """Return variables of some members in the coordinates of the rule."""
        weight, rows, bias = (part[members] for part in self.scales)
        moved = Point(
            variables.weight * weight[:, None, None],
            variables.features * rows[:, :, None],
            None if variables.bias is None else variables.bias * bias[:, None],
        )
        return jax.tree.map(lambda part: part.astype(self.dtype), moved)

    def variables(self, members: Int[np.ndarray, " some"], points: Point) -> Variables:
        """Return points of some members as users know them, in float64."""
        weight, rows, bias = (part[members] for part in self.scales)
        parts: Any = jax.tree.map(lambda part: np.asarray(part, np.float64), points)
        return Variables(
            parts.weight / weight[:, None, None],
            parts.features / rows[:, :, None],
            None if parts.bias is None else parts.bias / bias[:, None],
        )


class _Numbers(NamedTuple):
    """The numbers that problems are made of, one row per member."""

    counts: Float[np.ndarray, "members K"]
    labels: Int[np.ndarray, "members rows"]
    multiplicities: Float[np.ndarray, "members rows"]
    weight_decay: Float[np.ndarray, " members"]
    feature_decay: Float[np.ndarray, " members"]
    bias_decay: Float[np.ndarray, " members"]
    bias_curvature: Float[np.ndarray, " members"]

    @property
    def samples(self) -> Float[np.ndarray, "members 1"]:
        return self.counts.sum(axis=1, keepdims=True)

    @property
    def nuclear_weight(self) -> Float[np.ndarray, "members 1"]:
        return (np.sqrt(self.weight_decay) * np.sqrt(self.feature_decay))[:, None]

    def balanced(self) -> Scaling:
        """Return the scales to balanced coordinates, stacked."""
        rows: Any = np.sqrt(self.feature_decay[:, None] * self.multiplicities)
        weight: Any = np.sqrt(self.weight_decay)
        bias: Any = np.sqrt(self.bias_curvature)
        return Scaling(weight, rows, bias)


def fill_pool(members: Sequence[Member]) -> Pool:
    """Return the pool of some members of equal `Member.shape`."""
    rule, dtype = members[0].rule, str(members[0].precision)
    numbers = _numbers(members)
    balanced = numbers.balanced()
    natural = jax.tree.map(np.ones_like, balanced)
    scales = balanced if rule.coordinates == "balanced" else natural
    classes = 1 / (np.sqrt(numbers.counts) * numbers.nuclear_weight)
    return Pool(
        rule,
        dtype,
        members[0].problem.features == "nonnegative",
        _arrays(members, numbers, scales, dtype),
        Units(classes.astype(dtype), np.asarray(balanced.bias / scales.bias, dtype)),
        scales,
        _starts(members, numbers, balanced),
    )


def _numbers(members: Sequence[Member]) -> _Numbers:
    problems, level = [member.problem for member in members], members[0].level
    has_bias = problems[0].bias is not None
    return _Numbers(
        np.array([problem.counts for problem in problems], np.float64),
        np.array([row_labels(problem, level) for problem in problems]),
        np.array([row_multiplicities(problem, level) for problem in problems], np.float64),
        np.array([problem.weight_decay for problem in problems]),
        np.array([problem.feature_decay for problem in problems]),
        np.array([problem.bias or 0.0 for problem in problems]),
        np.array([bias_curvature(problem) if has_bias else 1.0 for problem in problems]),
    )


def _arrays(members: Sequence[Member], numbers: _Numbers, scales: Any, dtype: str) -> dict[str, Any]:
    """Return the fields of all objectives, as `ufm.model.objective.objective_arrays` does for one."""
    losses = [loss_arrays(member.problem.loss, dtype) for member in members]
    multiplicities = numbers.multiplicities
    floats = {
        "loss_weights": multiplicities / numbers.samples,
        "logit_scales": 1 / (scales.weight[:, None] * scales.rows),
        "weight_decay": numbers.weight_decay / scales.weight**2,
        "row_decays": numbers.feature_decay[:, None] * multiplicities / scales.rows**2,
        "bias_scale": 1 / scales.bias,
        "bias_decay": numbers.bias_decay / scales.bias**2,
    }
    arrays: dict[str, Any] = {name: values.astype(dtype) for name, values in floats.items()}
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *losses)
    return arrays | {"labels": numbers.labels.astype(np.int32), "loss": stacked}


def _starts(members: Sequence[Member], numbers: _Numbers, balanced: Any) -> Variables:
    """Return the starts of all members, as `ufm.solvers.start.random_start` does for one."""
    problem, rows = members[0].problem, numbers.labels.shape[1]
    draws = [
        normal_draws(member.fields["seed"], problem.num_classes, rows, problem.dim) for member in members
    ]
    unit = numbers.nuclear_weight * np.sqrt(numbers.counts) / 4
    per_class = np.take_along_axis(unit / numbers.counts, numbers.labels, axis=1)
    to_weight = np.sqrt(unit.mean(axis=1) / problem.dim) / balanced.weight
    to_rows = np.sqrt(per_class * numbers.multiplicities / problem.dim) / balanced.rows
    weight = np.array([weight for weight, _ in draws]) * to_weight[:, None, None]
    features = np.array([features for _, features in draws]) * to_rows[:, :, None]
    if problem.features == "nonnegative":
        np.abs(features, out=features)
    bias = None if problem.bias is None else np.zeros((len(members), problem.num_classes))
    return Variables(weight, features, bias)
