"""Step rules by name, listed once: what the command line and sweeps offer, and what each takes.

To add a rule, add a line to `RULES`; a parameter that no rule had before is a line in `ufm.solvers.settings` too.
Rules are made when they are first asked for, so that reading their names does not wait for JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ufm.inputs.checks import InputError, one_of
from ufm.solvers.settings import SETTINGS

if TYPE_CHECKING:
    from ufm.solvers.rule import StepRule


@dataclasses.dataclass(frozen=True)
class NamedRule:
    """A step rule that goes by a name.

    Attributes:
        build: from its parameters, by name, to the rule.
        parameters: the settings that it takes.
    """

    build: Callable[..., StepRule]
    parameters: tuple[str, ...] = ()


def _accelerated(window: int) -> StepRule:
    from ufm.solvers.accelerated import Accelerated

    return Accelerated(window)


def _optax(name: str, learning_rate: float, **fixed: float) -> StepRule:
    import optax

    from ufm.solvers.projected_gradient import ProjectedGradient

    return ProjectedGradient(getattr(optax, name)(learning_rate, **fixed))


RULES: dict[str, NamedRule] = {
    "accelerated": NamedRule(_accelerated, ("window",)),
    "sgd": NamedRule(functools.partial(_optax, "sgd"), ("learning_rate",)),
    "momentum": NamedRule(functools.partial(_optax, "sgd", momentum=0.9), ("learning_rate",)),
    "adam": NamedRule(functools.partial(_optax, "adam"), ("learning_rate",)),
}


def check_rule(name: str, value: Any) -> str | StepRule:
    """Return the name of a step rule or a step rule as it is, or raise `InputError`."""
    if isinstance(value, str) or not hasattr(value, "init"):
        return one_of(name, value, tuple(RULES))
    from ufm.solvers.rule import StepRule

    if not isinstance(value, StepRule):
        raise InputError(f"{name} must be one of {', '.join(RULES)} or a step rule, got {value!r}")
    return value


def step_rule(solver: str | StepRule, given: Mapping[str, Any]) -> StepRule:
    """Return the step rule that ``solver`` names (the same object every time, so that it compiles once) or is.

    Args:
        solver: a name in `RULES`, or a step rule.
        given: parameters of the rule that a user gave, by name; those that are None were not given.

    Raises:
        InputError: naming the parameter that the rule does not take, or whose value is not allowed.

    Example:
        >>> step_rule("accelerated", {"window": 4})
        Accelerated(window=4, coordinates='balanced', descends=True)
    """
    values = parameters_of(solver, given)
    if values is None or not isinstance(solver, str):
        return solver  # type: ignore[return-value]
    return _built(solver, tuple(values.items()))


def parameters_of(solver: str | StepRule, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parameters of a step rule by name, given or by default; None for a rule that is an object.

    Raises:
        InputError: as for `step_rule`.
    """
    rule = check_rule("solver", solver)
    chosen = {name: SETTINGS[name].check(name, value) for name, value in given.items() if value is not None}
    if not isinstance(rule, str):
        if chosen:
            raise InputError(
                f"{next(iter(chosen))} is for step rules by name; solver is an object with its own: {rule!r}"
            )
        return None
    taken = RULES[rule].parameters
    for name in chosen:
        if name not in taken:
            raise InputError(f"{name} is for {takers(name)}; {rule} {SETTINGS[name].otherwise}")
    return {name: chosen.get(name, SETTINGS[name].default) for name in taken}


@functools.cache
def _built(rule: str, values: tuple[tuple[str, Any], ...]) -> StepRule:
    return RULES[rule].build(**dict(values))


def rule_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``values`` that are parameters of step rules."""
    return {name: values[name] for name, setting in SETTINGS.items() if setting.of_rules and name in values}


def takers(parameter: str) -> str:
    """Return in words the rules that take a parameter: ``sgd, momentum and adam``."""
    return _listed([name for name, rule in RULES.items() if parameter in rule.parameters], "and")


def rule_names() -> str:
    """Return in words the rules that there are: ``accelerated, sgd, momentum or adam``."""
    return _listed(list(RULES), "or")


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
