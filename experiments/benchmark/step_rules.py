"""Which step-size rule needs the fewest passes over the features?

Compares, on the same starts, the passes (one gradient = 1, one extra objective value = 1/2) until the relative
duality gap is 1e-8 for accelerated projected gradient with: the observed curvature of `ufm.Accelerated` (windows of
1, 4, 8, 16), a backtracking line search, the worst-case bound of the section on curvature, and for the spectral
(Barzilai-Borwein) projected gradient method. Escape moves are off: what is compared is the descent, from starts
that reach the optimum without them.

Example: python -m experiments.benchmark.step_rules --quick
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.duality.certificate import certify
from ufm.model.objective import Objective, Point, to_point, to_variables
from ufm.model.problem import row_labels
from ufm.model.stack import build_objective, random_start, scaling
from ufm.profiles import parse_counts
from ufm.text import plain_table, track

PROBLEMS = {
    "100..500, d=64": ("100x2,200x2,300x2,400x2,500x2", 64, 2e-4, 1.7e-6),
    "5x500+5x50, d=64": ("500x5,50x5", 64, 5e-3, 1e-6),
    "5x500+5x50, weak decay, d=32": ("500x5,50x5", 32, 1e-9, 1e-9),
    "CIFAR-10-LT 100, d=128": ("cifar10-lt-100", 128, 5e-4, 1e-5),
}
GAP, LOOK_EVERY = 1e-8, 5


class State(NamedTuple):
    """Iterates and what the rules below remember; ``passes`` counts passes over the features."""

    point: Point
    previous: Point
    slope: Point
    momentum: jax.Array
    extrapolation: jax.Array
    curvature: jax.Array
    passes: jax.Array


@dataclasses.dataclass(frozen=True)
class LineSearch:
    """FISTA with gradient restart and backtracking on the objective (or a fixed multiple of the bound)."""

    shrink: float = 0.9
    search: bool = True

    def init(self, objective: Objective, point: Point, caution: jax.Array) -> State:
        """Start at rest."""
        bound = objective.curvature_bound(point)
        one = jnp.ones_like(bound)
        return State(point, point, point, one, 0 * one, bound, 0 * one)

    def point(self, state: State) -> Point:
        """Return the last iterate."""
        return state.point

    def step(self, objective: Objective, state: State) -> State:
        """Take one step and count its passes."""
        ahead = jax.tree.map(lambda x, b: x + state.extrapolation * (x - b), state.point, state.previous)
        value, slope = objective.value(ahead), objective.gradient(ahead)

        def propose(curvature: jax.Array) -> Point:
            return objective.project(jax.tree.map(lambda y, g: y - g / curvature, ahead, slope))

        def too_long(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
            curvature, _ = carry
            point = propose(curvature)
            jump = jax.tree.map(jnp.subtract, point, ahead)
            model = value + inner(slope, jump) + curvature / 2 * inner(jump, jump)
            return objective.value(point) > model + 1e-14 * jnp.abs(value)

        if self.search:
            start = (state.curvature * self.shrink, state.passes + 1.5)
            curvature, passes = jax.lax.while_loop(too_long, lambda c: (2 * c[0], c[1] + 0.5), start)
        else:
            curvature, passes = objective.curvature_bound(ahead), state.passes + 1
        point = propose(curvature)
        back = jax.tree.map(jnp.subtract, ahead, point)
        restart = inner(back, jax.tree.map(jnp.subtract, point, state.point)) > 0
        momentum = jnp.where(restart, 1.0, state.momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return State(point, state.point, slope, following, (momentum - 1) / following, curvature, passes)


@dataclasses.dataclass(frozen=True)
class Spectral:
    """Projected gradient with alternating Barzilai-Borwein steps."""

    def init(self, objective: Objective, point: Point, caution: jax.Array) -> State:
        """Start at rest."""
        bound = objective.curvature_bound(point)
        zero = 0 * bound
        return State(point, point, jax.tree.map(jnp.zeros_like, point), zero, zero, bound, zero)

    def point(self, state: State) -> Point:
        """Return the last iterate."""
        return state.point

    def step(self, objective: Objective, state: State) -> State:
        """Take one step and count its passes."""
        slope = objective.gradient(state.point)
        moved = jax.tree.map(jnp.subtract, state.point, state.previous)
        bent = jax.tree.map(jnp.subtract, slope, state.slope)
        ss, sy, yy = inner(moved, moved), inner(moved, bent), inner(bent, bent)
        long, short = sy / ss, yy / sy
        chosen = jnp.where(short > 2 * long, short, long)
        curvature = jnp.where((state.passes > 0) & (sy > 0), chosen, state.curvature)
        point = objective.project(jax.tree.map(lambda x, g: x - g / curvature, state.point, slope))
        return State(
            point, state.point, slope, state.momentum, state.extrapolation, curvature, state.passes + 1
        )


def inner(a: Point, b: Point) -> jax.Array:
    return jnp.vdot(a.weight, b.weight) + jnp.vdot(a.features, b.features)


RULES: dict[str, Any] = {
    "observed, window 1": ufm.Accelerated(window=1),
    "observed, window 4": ufm.Accelerated(window=4),
    "observed, window 8 (default)": ufm.Accelerated(),
    "observed, window 16": ufm.Accelerated(window=16),
    "line search, shrink 0.9": LineSearch(),
    "line search, shrink 0.7": LineSearch(shrink=0.7),
    "worst-case bound": LineSearch(search=False),
    "spectral (Barzilai-Borwein)": Spectral(),
}


def passes_to_gap(problem: ufm.Problem, rule: Any, seed: int, most: int) -> float:
    """Return the passes over the features until the gap is 1e-8, infinity if ``most`` steps are not enough."""
    scales, labels = scaling(problem, "class", "balanced"), row_labels(problem, "class")
    objective = build_objective(problem, "class", "balanced", "float64")
    step = jax.jit(lambda o, s: jax.lax.fori_loop(0, LOOK_EVERY, lambda _, t: rule.step(o, t), s))
    point = to_point(random_start(problem, "class", seed), scales, "float64")
    state = rule.init(objective, point, jnp.ones(()))
    for taken in range(LOOK_EVERY, most + 1, LOOK_EVERY):
        state = step(objective, state)
        found = to_variables(rule.point(state), scales)
        if certify(problem, found.weight, found.features, labels).certifies(GAP):
            return float(getattr(state, "passes", taken))
    return float("inf")


def main(
    seeds: int = 7,
    max_steps: int = 3000,
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    quick: bool = False,
) -> None:
    """Print the table of median passes and save all of them.

    Args:
        seeds: random starts per problem.
        max_steps: give up after so many steps.
        outputs: where the passes of every run go; there is no picture.
        quick: two starts and one problem.
    """
    problems = dict(list(PROBLEMS.items())[:1]) if quick else PROBLEMS
    seeds = 2 if quick else seeds
    passes: dict[str, dict[str, list[float]]] = {}
    with jax.enable_x64(True):
        for name in track(RULES, "step rules"):
            passes[name] = {}
            for title, (counts, *rest) in problems.items():
                problem = ufm.Problem(parse_counts(counts), *rest)
                runs = [passes_to_gap(problem, RULES[name], seed, max_steps) for seed in range(seeds)]
                passes[name][title] = runs
    lines = [
        [
            name,
            *(f"{np.median(runs):.0f}" if np.isfinite(np.median(runs)) else "-" for runs in table.values()),
        ]
        for name, table in passes.items()
    ]
    print(
        f"Median passes over the features to relative gap {GAP:g} ({seeds} starts; - = not in {max_steps} steps)"
    )
    print(plain_table(["rule", *problems], lines))
    outputs.of("step_rules", quick).save(passes)


if __name__ == "__main__":
    tyro.cli(main)
