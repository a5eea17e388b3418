"""One problem of a sweep and how to solve it, made from named fields, with a key that never changes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError, class_counts, positive_float
from ufm.losses import Loss
from ufm.losses.by_name import as_loss
from ufm.model.groups import groups_of
from ufm.model.problem import Level, Problem, row_labels
from ufm.profiles import parse_counts
from ufm.solvers.coordinates import chosen_level
from ufm.solvers.limits import Limits, Precision
from ufm.solvers.rule import StepRule
from ufm.solvers.rules import parameters_of, rule_parameters, step_rule
from ufm.solvers.settings import SETTINGS, check_settings, limits
from ufm.sweeps.content import label, object_content, plain
from ufm.targets import parse_targets

#: What a problem is made of. ``nuclear_weight`` (with ``decay_ratio`` = lambda_W / lambda_H, 1 if left out)
#: stands for both decays. ``counts`` may be completed by ``counts.ratio`` and the like, ``loss`` by
#: ``loss.parameter``, ``targets`` by ``targets.flip``. How it is solved is said by `ufm.solvers.settings.SETTINGS`.
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
    "targets": None,
}


#: Targets that keep the classes as they are: what a sweep can measure.
NOISES = ("noise", "pair")


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One point of the grid.

    Attributes:
        problem: the problem.
        fields: all fields it was made from, checked, those left out at their defaults.
        limits: when to stop.
    """

    problem: Problem
    fields: Mapping[str, Any]
    limits: Limits

    @functools.cached_property
    def level(self) -> Level:
        """Level that it is solved at."""
        return chosen_level(self.problem, self.fields["level"], self.rule)

    @property
    def precision(self) -> Precision:
        """Floating-point type that the solver runs in."""
        return self.fields["precision"]

    @property
    def rule(self) -> StepRule:
        """The step rule."""
        solver = self.fields["solver"]
        return step_rule(solver, {name: self.fields[name] for name in parameters_of(solver, {}) or ()})

    @functools.cached_property
    def shape(self) -> tuple[Any, ...]:
        """What members of one batch have in common: everything that is compiled in."""
        problem, fields = self.problem, {**self.fields, "level": self.level}
        grouped = self.level == "group"
        rows = len(groups_of(problem) if grouped else row_labels(problem, self.level))
        loss = tuple(
            np.shape(getattr(problem.loss, field.name)) for field in dataclasses.fields(problem.loss)
        )
        bias = problem.bias is not None
        compiled = (str(plain(fields[name])) for name, setting in SETTINGS.items() if setting.compiled)
        kind = (problem.features, bias, type(problem.loss), loss)
        return (problem.num_classes, problem.num_logits, rows, problem.dim, *kind, *compiled)

    @functools.cached_property
    def key(self) -> str:
        """Hash of the mathematical content: counts, decays, loss, ... and how it is solved; 16 hex digits."""
        problem, fields = self.problem, {**self.fields, "level": self.level}
        settings = {
            name: plain(fields[name])
            for name, setting in SETTINGS.items()
            if setting.always_in_key or self._differs(name)
        }
        content = settings | {
            "counts": problem.counts.tolist(),
            "dim": problem.dim,
            "weight_decay": plain(problem.weight_decay),
            "feature_decay": plain(problem.feature_decay),
            "loss": object_content(problem.loss),
            "features": problem.features,
            "bias": plain(problem.bias),
        }
        if self.fields["targets"] is not None:
            content["targets"] = self.fields["targets"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def command(self) -> str:
        """Return the command that solves this member alone, in Python where no flag can say what it is made of."""
        problem = self.problem
        names = ("counts", "dim", "weight_decay", "feature_decay", "features", "bias")
        about = {name: getattr(problem, name) for name in names} | {
            name: self.fields[name] for name in ("loss", "targets")
        }
        given = {name: value for name, value in about.items() if plain(value) != PROBLEM_FIELDS[name]}
        settings = {name: self.fields[name] for name in SETTINGS if self._differs(name)}
        texts = isinstance(about["loss"], str) and isinstance(self.fields["solver"], str)
        if texts and np.ndim(problem.feature_decay) == 0 and problem.counts.dtype.kind == "i":
            return "ufm solve " + " ".join(_flag(name, value) for name, value in (given | settings).items())
        given |= {"loss": problem.loss} | ({} if problem.targets is None else {"targets": problem.targets})
        arguments = ", ".join(f"{name}={_python(value)}" for name, value in given.items())
        chosen = "".join(f", {name}={_python(value)}" for name, value in settings.items())
        return f"ufm.solve(ufm.Problem({arguments}){chosen})"

    def _differs(self, setting: str) -> bool:
        """Return whether a setting is not at its default."""
        value = self.fields[setting]
        return not isinstance(value, type(SETTINGS[setting].default)) or value != SETTINGS[setting].default


def build_member(fields: Mapping[str, Any]) -> Member:
    """Return the member that ``fields`` describe; those left out have their defaults.

    Raises:
        InputError: naming the field, its value and what is required.
    """
    full = PROBLEM_FIELDS | dict(fields)
    settings = check_settings(full)
    parameters_of(settings["solver"], rule_parameters(full))
    counts = _counts(full)
    weight_decay, feature_decay = _decays(full)
    if full["dim"] is None:
        raise InputError("dim must be given")
    full["loss"] = _loss(full)
    loss = _same_object(as_loss(full["loss"], counts))
    full["targets"] = _targets(full)
    targets = None if full["targets"] is None else parse_targets(full["targets"], counts).targets
    about = (full["dim"], weight_decay, feature_decay, loss, full["features"], full["bias"], targets)
    problem = Problem(counts, *about)
    return Member(problem, full | settings, limits(settings))


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


def _loss(fields: Mapping[str, Any]) -> Any:
    """Return the loss as text with its parameter, or as the object that it is."""
    loss = fields["loss"]
    if "loss.parameter" not in fields:
        return loss
    if not isinstance(loss, str) or ":" in loss:
        raise InputError(f"loss.parameter needs loss by name, without a parameter of its own, got {loss!r}")
    return f"{loss}:{_number_text(fields['loss.parameter'])}"


def _targets(fields: Mapping[str, Any]) -> str | None:
    """Return the targets as text with their number, or None for labels."""
    targets = fields["targets"]
    if "targets.flip" in fields:
        name = "noise" if targets is None else targets
        if name not in NOISES:
            raise InputError(f"targets.flip needs targets to be one of {', '.join(NOISES)}, got {targets!r}")
        return f"{name}:{_number_text(fields['targets.flip'])}"
    if targets is not None and str(targets).partition(":")[0] not in NOISES:
        raise InputError(f"targets of a sweep must be noise:FLIP or pair:FLIP, got {targets!r}")
    return None if targets is None else str(targets)


@functools.lru_cache(maxsize=4096)
def _same_object(loss: Loss) -> Loss:
    """Return one object for all equal losses, so that members are grouped by identity."""
    return loss


def _number_text(value: Any) -> str:
    """Write a number so that it reads back exactly, whole ones without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _flag(name: str, value: Any) -> str:
    """Write a field as a flag of ``ufm solve``."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {_counts_text(value) if name == 'counts' else value}"


def _python(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return repr(value.tolist())
    if isinstance(value, str):
        return repr(value)
    # a label has digits where there are no parameters, which is no Python
    bare = dataclasses.is_dataclass(value) and not dataclasses.fields(value)
    text = f"{type(value).__name__}()" if bare else label(value)
    return f"ufm.{text}" if type(value).__module__.startswith("ufm.") else text


def _counts_text(counts: np.ndarray) -> str:
    """Write counts as COUNTxREPEAT."""
    starts = np.flatnonzero(np.diff(counts, prepend=-1))
    repeats = np.diff(np.append(starts, len(counts)))
    return ",".join(
        f"{counts[i]}x{n}" if n > 1 else f"{counts[i]}" for i, n in zip(starts, repeats, strict=True)
    )
