"""One problem of a sweep and how to solve it, made from named fields, with a key that never changes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from ufm.loss_forms import parse_loss
from ufm.losses import Loss
from ufm.problem import LEVELS, Level, Problem, row_labels
from ufm.profiles import parse_counts
from ufm.solvers import RESIDUALS, Precision
from ufm.solvers.accelerated import Accelerated
from ufm.solvers.judge import Limits
from ufm.solvers.projected_gradient import ProjectedGradient
from ufm.solvers.rule import StepRule
from ufm.validation import (
    InputError,
    class_counts,
    gap_tolerance,
    nonnegative_integer,
    one_of,
    positive_float,
    positive_integer,
)

#: What a problem is made of. ``nuclear_weight`` (with ``decay_ratio`` = lambda_W / lambda_H, 1 if left out)
#: stands for both decays. ``counts`` may be completed by ``counts.ratio`` and the like, ``loss`` by
#: ``loss.parameter``.
PROBLEM_FIELDS: dict[str, Any] = {
    "counts": None,
    "dim": None,
    "weight_decay": None,
    "feature_decay": None,
    "nuclear_weight": None,
    "decay_ratio": None,
    "loss": "ce",
    "features": "nonnegative",
    "bias": None,
}
#: How it is solved, with the defaults of `ufm.solve`.
SOLVER_FIELDS: dict[str, Any] = {
    "level": "class",
    "solver": "accelerated",
    "learning_rate": 0.1,
    "seed": 0,
    "tol": 1e-8,
    "residual_tol": None,
    "max_steps": 100_000,
    "precision": "float64",
    "escapes": True,
}
#: Step rules by name, given a learning rate.
SOLVERS: dict[str, Any] = {
    "accelerated": lambda rate: Accelerated(),
    "sgd": lambda rate: ProjectedGradient(optax.sgd(rate)),
    "momentum": lambda rate: ProjectedGradient(optax.sgd(rate, momentum=0.9)),
    "adam": lambda rate: ProjectedGradient(optax.adam(rate)),
}


@functools.cache
def step_rule(name: str, learning_rate: float) -> StepRule:
    """Return the step rule called ``name``, the same object every time so that it compiles once."""
    return SOLVERS[one_of("solver", name, tuple(SOLVERS))](positive_float("learning_rate", learning_rate))


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One point of the grid.

    Attributes:
        problem: the problem.
        fields: all fields it was made from, solver fields included, in plain Python values.
        limits: when to stop.
    """

    problem: Problem
    fields: Mapping[str, Any]
    limits: Limits

    @property
    def level(self) -> Level:
        """Level of the feature rows."""
        return self.fields["level"]

    @property
    def precision(self) -> Precision:
        """Floating-point type that the solver runs in."""
        return self.fields["precision"]

    @property
    def rule(self) -> StepRule:
        """The step rule."""
        return step_rule(self.fields["solver"], float(self.fields["learning_rate"]))

    @functools.cached_property
    def shape(self) -> tuple[Any, ...]:
        """What members of one batch have in common: everything that is compiled in."""
        problem = self.problem
        rows = len(row_labels(problem, self.level))
        loss = tuple(np.shape(value) for value in vars(problem.loss).values())
        bias = problem.bias is not None
        kind = (self.fields["solver"], float(self.fields["learning_rate"]), self.precision)
        return (
            problem.num_classes,
            rows,
            problem.dim,
            problem.features,
            bias,
            type(problem.loss),
            loss,
            *kind,
        )

    @functools.cached_property
    def key(self) -> str:
        """Hash of the mathematical content: counts, decays, loss, ... and how it is solved; 16 hex digits."""
        problem = self.problem
        content = {name: _plain(self.fields[name]) for name in SOLVER_FIELDS} | {
            "counts": problem.counts.tolist(),
            "dim": problem.dim,
            "weight_decay": problem.weight_decay.hex(),
            "feature_decay": problem.feature_decay.hex(),
            "loss": _loss_content(problem.loss),
            "features": problem.features,
            "bias": _plain(problem.bias),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def command(self) -> str:
        """Return the command that solves this member alone."""
        flags = {"counts": _counts_text(self.problem.counts), "dim": self.problem.dim}
        flags |= {
            name: getattr(self.problem, name)
            for name in ("weight_decay", "feature_decay", "features", "bias")
        }
        flags |= {"loss": _loss_text(self.fields)}
        defaults = PROBLEM_FIELDS | SOLVER_FIELDS
        flags |= {
            name: self.fields[name] for name in SOLVER_FIELDS if name not in ("residual_tol", "escapes")
        }
        given = {name: value for name, value in flags.items() if value != defaults[name]}
        return "ufm solve " + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())


def build_member(fields: Mapping[str, Any]) -> Member:
    """Return the member that ``fields`` describe; those left out have their defaults.

    Raises:
        InputError: naming the field, its value and what is required.
    """
    full = PROBLEM_FIELDS | SOLVER_FIELDS | dict(fields)
    counts = _counts(full)
    weight_decay, feature_decay = _decays(full)
    if full["dim"] is None:
        raise InputError("dim must be given")
    problem = Problem(
        counts,
        full["dim"],
        weight_decay,
        feature_decay,
        _same_object(parse_loss(_loss_text(full), counts)),
        full["features"],
        full["bias"],
    )
    return Member(problem, full, _limits(full))


def _counts(fields: Mapping[str, Any]) -> np.ndarray:
    base = fields["counts"]
    if base is None:
        raise InputError("counts must be given, as text such as '5000x5,50x5' or a list")
    parameters = {name.partition(".")[2]: fields[name] for name in fields if name.startswith("counts.")}
    if not isinstance(base, str):
        if parameters:
            raise InputError(
                f"counts.{next(iter(parameters))} needs counts to name a profile such as 'step:K=10'"
            )
        return class_counts(base)
    texts = [f"{name}={_number_text(value)}" for name, value in parameters.items()]
    joint = "," if base.partition(":")[2].strip() else ":" if ":" not in base else ""
    return _parsed_counts(base + (joint + ",".join(texts) if texts else ""))


@functools.lru_cache(maxsize=4096)
def _parsed_counts(text: str) -> np.ndarray:
    return parse_counts(text)


def _decays(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return both decays: as given, or from their geometric mean and ratio."""
    mean, ratio = fields["nuclear_weight"], fields["decay_ratio"]
    pair = (fields["weight_decay"], fields["feature_decay"])
    if mean is None:
        if ratio is not None:
            raise InputError(
                "decay_ratio is used with nuclear_weight only; give weight_decay and feature_decay"
            )
        for name, value in zip(("weight_decay", "feature_decay"), pair, strict=True):
            if value is None:
                raise InputError(f"{name} must be given, or nuclear_weight in place of both decays")
        return pair
    if pair != (None, None):
        raise InputError(
            "nuclear_weight takes the place of weight_decay and feature_decay; give one or the other"
        )
    root = positive_float("decay_ratio", 1.0 if ratio is None else ratio) ** 0.5
    mean = positive_float("nuclear_weight", mean)
    return mean * root, mean / root


def _limits(fields: Mapping[str, Any]) -> Limits:
    one_of("level", fields["level"], LEVELS)
    one_of("precision", fields["precision"], tuple(RESIDUALS))
    step_rule(fields["solver"], positive_float("learning_rate", fields["learning_rate"]))
    if not isinstance(fields["escapes"], bool):
        raise InputError(f"escapes must be true or false, got {fields['escapes']!r}")
    nonnegative_integer("seed", fields["seed"])
    residual, stationary = RESIDUALS[fields["precision"]]
    asked = fields["residual_tol"]
    return Limits(
        tol=gap_tolerance("tol", fields["tol"]),
        residual=residual if asked is None else positive_float("residual_tol", asked),
        stationary=stationary,
        max_steps=positive_integer("max_steps", fields["max_steps"]),
    )


def _loss_text(fields: Mapping[str, Any]) -> str:
    if not isinstance(fields["loss"], str):
        raise InputError(f"loss must be text such as 'ce' or 'smoothing:0.1', got {fields['loss']!r}")
    if "loss.parameter" not in fields:
        return fields["loss"]
    if ":" in fields["loss"]:
        raise InputError(f"loss.parameter needs loss without a parameter of its own, got {fields['loss']!r}")
    return f"{fields['loss']}:{_number_text(fields['loss.parameter'])}"


@functools.lru_cache(maxsize=4096)
def _same_object(loss: Loss) -> Loss:
    """Return one object for all equal losses, so that members are grouped by identity."""
    return loss


def _loss_content(loss: Loss) -> list[Any]:
    return [type(loss).__name__, *([name, _plain(value)] for name, value in sorted(vars(loss).items()))]


def _plain(value: Any) -> Any:
    """``value`` as something that JSON writes in one way only."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    return value.hex() if isinstance(value, float) else value


def _number_text(value: Any) -> str:
    """Write a number so that it reads back exactly, whole ones without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _counts_text(counts: np.ndarray) -> str:
    """Write counts as COUNTxREPEAT."""
    starts = np.flatnonzero(np.diff(counts, prepend=-1))
    repeats = np.diff(np.append(starts, len(counts)))
    return ",".join(
        f"{counts[i]}x{n}" if n > 1 else f"{counts[i]}" for i, n in zip(starts, repeats, strict=True)
    )
