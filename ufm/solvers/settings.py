"""Every setting of a solve, listed once: its default, meaning and check, and whether it is compiled in.

`ufm.solve`, the flags of ``ufm solve``, the fields of sweeps, the keys and shapes of their members and "how to run it
alone" all read `SETTINGS`; what step rules there are and what they take stands in `ufm.solvers.rules`. To add a
setting, add a line here and use it where it acts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ufm.inputs.checks import (
    InputError,
    gap_tolerance,
    nonnegative_integer,
    one_of,
    positive_float,
    positive_integer,
)
from ufm.model.problem import LEVELS, Level
from ufm.solvers.limits import Limits, Precision

#: Default bound on the relative residual, and the residual that rounding leaves, for each precision.
RESIDUALS: dict[str, tuple[float, float]] = {"float64": (1e-7, 1e-13), "float32": (1e-4, 1e-6)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a solve.

    Attributes:
        default: what it is if it is not given.
        kind: its type on the command line.
        meaning: the help of its flag.
        check: from its name and a value to the value in its plain form; raises `InputError`.
        compiled: whether problems that differ in it cannot share a batch.
        of_rules: whether it is a parameter of step rules by name, see `ufm.solvers.rules.RULES`.
        otherwise: of a parameter: what rules without it do instead.
        always_in_key: whether it is in a sweep member's key even at its default. Only for settings that the first
            keys were made of: one that is added later leaves the keys of before as they are.
    """

    default: Any
    kind: Any
    meaning: str
    check: Callable[[str, Any], Any]
    compiled: bool = False
    of_rules: bool = False
    otherwise: str = "has none"
    always_in_key: bool = False


def _choice(allowed: tuple[str, ...]) -> Callable[[str, Any], str]:
    return lambda name, value: one_of(name, value, allowed)


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return bool(value)


def _rule(name: str, value: Any) -> Any:
    from ufm.solvers.rules import check_rule

    return check_rule(name, value)


SETTINGS: dict[str, Setting] = {
    "level": Setting(
        "auto",
        Literal["auto", Level],
        "feature rows: one per class, sample, or group of classes that are alike",
        _choice(("auto", *LEVELS)),
        compiled=True,
        always_in_key=True,
    ),
    "solver": Setting("accelerated", str, "", _rule, compiled=True, always_in_key=True),
    "learning_rate": Setting(
        0.1,
        float,
        "length of a step",
        positive_float,
        compiled=True,
        of_rules=True,
        otherwise="chooses its own step",
        always_in_key=True,
    ),
    "window": Setting(
        8,
        int,
        "latest curvatures whose maximum sets the step",
        positive_integer,
        compiled=True,
        of_rules=True,
    ),
    "precision": Setting(
        "float64",
        Precision,
        "floating-point type of the steps",
        _choice(tuple(RESIDUALS)),
        compiled=True,
        always_in_key=True,
    ),
    "seed": Setting(0, int, "of the random start", nonnegative_integer, always_in_key=True),
    "starts": Setting(
        1,
        int,
        "random starts to try, from the seed on, until one is certified; the best counts",
        positive_integer,
    ),
    "tol": Setting(
        1e-8, float, "relative duality gap to certify, below 1", gap_tolerance, always_in_key=True
    ),
    "residual_tol": Setting(
        None,
        float | None,
        "relative projected gradient to reach besides; None: 1e-7, in float32 1e-4",
        _or_none(positive_float),
        always_in_key=True,
    ),
    "max_steps": Setting(100_000, int, "limit on the number of steps", positive_integer, always_in_key=True),
    "escapes": Setting(True, bool, "without escape moves from stuck points", _switch, always_in_key=True),
}


def check_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings in their plain form: those given, and others (parameters that are None, too) by default.

    Raises:
        InputError: naming the setting, its value and what is required.
    """
    full = {}
    for name, setting in SETTINGS.items():
        value = given.get(name, setting.default)
        absent = value is None and setting.of_rules
        full[name] = setting.default if absent else setting.check(name, value)
    return full


def limits(settings: Mapping[str, Any]) -> Limits:
    """Return when to stop, from checked settings."""
    residual, stationary = RESIDUALS[settings["precision"]]
    asked = settings["residual_tol"]
    return Limits(
        tol=settings["tol"],
        residual=residual if asked is None else asked,
        stationary=stationary,
        max_steps=settings["max_steps"],
    )
