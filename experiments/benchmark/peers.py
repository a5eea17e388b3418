"""What a user would pick instead: general optimisers on the same objective, from the same start, under one clock.

Every peer minimises equation (1) in ``(W, H)``, with ``H >= 0`` unless features are free, in float64: SciPy's
L-BFGS-B and jaxopt's projected gradient and L-BFGS-B on a compiled JAX value and gradient, and PyTorch's SGD with
momentum and Adam with features clamped after every step, at the best of a few learning rates (in SGD times the
number of rows for features, whose gradients are that much smaller). "Rescaled" peers get what makes most of the
difference to those who know it: features in units in which both regularisers weigh the same, as in
`ufm.model.objective`. The clock stands still while an objective is evaluated only to be reported; compilation and
set-up are not counted.

Not a script: a part of `python -m experiments.benchmark`.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from ufm.model.problem import Level, row_labels, row_multiplicities
from ufm.model.stack import random_start

#: Learning rates that are tried.
SGD_RATES = (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
ADAM_RATES = (3e-4, 3e-3, 3e-2)
MOMENTUM = 0.9
#: Problems that `ufm.sweep` solves at once.
TOGETHER = 64
#: Share of the time limit that is spent on choosing a learning rate, all of them together; not counted.
PILOT_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem at one level, where it starts, and the optimal value.

    Attributes:
        name: of the problem.
        problem: the problem.
        level: level of the feature rows.
        seed: of the start.
        units: of the features that a peer sees, one for every row; None: those of the problem.
    """

    name: str
    problem: ufm.Problem
    level: Level
    seed: int = 0
    units: np.ndarray | None = None

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the starting classifier and features that everybody gets."""
        first = random_start(self.problem, self.level, self.seed)
        return first.weight, first.features if self.units is None else first.features / self.units[:, None]

    def rescaled(self) -> Case:
        """Return the case with features in units in which the features of a row weigh what the classifier does."""
        multiplicities = row_multiplicities(self.problem, self.level).astype(np.float64)
        units = np.sqrt(self.problem.weight_decay / (self.problem.feature_decay * multiplicities))
        return dataclasses.replace(self, units=units)

    @property
    def optimum(self) -> float:
        """The optimal value, in closed form where there is one, else certified."""
        return ufm.predict(self.problem, solve=True).objective

    @property
    def least(self) -> float:
        """The least that an entry of the features may be."""
        return 0.0 if self.problem.features == "nonnegative" else -math.inf


@dataclasses.dataclass
class Course:
    """Seconds and objectives of one run so far, and whether it should go on.

    Attributes:
        optimum: optimal value.
        gap: relative objective gap at which to stop.
        limit: seconds after which to stop.
        compiling: seconds until the first step could be taken.
        seconds: on the clock so far.
        steps: taken so far.
        records: seconds, steps and gap after every step.
    """

    optimum: float
    gap: float
    limit: float
    compiling: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    records: list[tuple[float, int, float]] = dataclasses.field(default_factory=list)

    def add(self, seconds: float, objective: float) -> bool:
        """Record a step; return whether the gap is open and time is left."""
        self.seconds += seconds
        self.steps += 1
        self.records.append((self.seconds, self.steps, objective / self.optimum - 1))
        return (
            objective > self.optimum * (1 + self.gap)
            and self.seconds < self.limit
            and math.isfinite(objective)
        )

    @property
    def diverged(self) -> bool:
        """Whether the objective is far above where it began, or is no number."""
        first, last = self.records[0][2], self.records[-1][2]
        return not math.isfinite(last) or last > 100 * (1 + first)

    def reached(self, gap: float) -> tuple[float, int] | None:
        """Return seconds and steps until the objective was within ``gap`` of the optimum, or None."""
        return next(((seconds, steps) for seconds, steps, found in self.records if found <= gap), None)


def objective_in_jax(case: Case) -> Callable[[tuple[jax.Array, jax.Array]], jax.Array]:
    """Return equation (1) as anyone would write it in JAX, for autodiff."""
    problem = case.problem
    labels = jnp.asarray(row_labels(problem, case.level))
    multiplicities = jnp.asarray(row_multiplicities(problem, case.level), jnp.float64)
    share = multiplicities / problem.num_samples
    units = None if case.units is None else jnp.asarray(case.units)[:, None]

    def objective(point: tuple[jax.Array, jax.Array]) -> jax.Array:
        weight, features = point
        if units is not None:
            features = features * units
        logits = features @ weight.T
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        loss = share @ (jax.nn.logsumexp(logits, axis=1) - own)
        decay = problem.weight_decay * jnp.sum(weight**2)
        decay += problem.feature_decay * (multiplicities @ jnp.sum(features**2, axis=1))
        return loss + decay / 2

    return objective


def scipy_lbfgsb(case: Case, course: Course) -> None:
    """Run SciPy's L-BFGS-B; an iteration is an evaluation of value and gradient."""
    from scipy.optimize import Bounds, minimize

    weight, features = case.start()
    split = weight.size
    value_and_gradient = jax.jit(jax.value_and_grad(objective_in_jax(case)))

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[:split].reshape(weight.shape), x[split:].reshape(features.shape)

    class EnoughError(Exception):
        """The gap is reached or the time is up."""

    since = 0.0

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal since
        if not course.steps:
            since = time.perf_counter()
            course.compiling = since - started
        value, (in_weight, in_features) = value_and_gradient(unpack(x))
        found = float(value), np.concatenate([np.ravel(in_weight), np.ravel(in_features)])
        if not course.add(time.perf_counter() - since, found[0]):
            raise EnoughError
        since = time.perf_counter()
        return found

    first = np.concatenate([weight.ravel(), features.ravel()])
    started = time.perf_counter()
    jax.block_until_ready(value_and_gradient(unpack(first)))
    bounds = Bounds(np.append(np.full(split, -np.inf), np.full(features.size, case.least)), np.inf)
    options = {"maxiter": 10**6, "maxfun": 10**7, "ftol": 0.0, "gtol": 0.0}
    try:
        minimize(evaluate, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    except EnoughError:
        return


def _jaxopt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says that it is no longer maintained
        import jaxopt
    return jaxopt


def jaxopt_projected_gradient(case: Case, course: Course) -> None:
    """Run jaxopt's accelerated projected gradient with line search."""
    jaxopt = _jaxopt()

    def project(point: Any, _: Any = None) -> Any:
        return point[0], jnp.maximum(point[1], case.least)

    _run_jaxopt(
        case, course, jaxopt.ProjectedGradient(objective_in_jax(case), project, maxiter=10**6, tol=0.0)
    )


def jaxopt_lbfgsb(case: Case, course: Course) -> None:
    """Run jaxopt's L-BFGS-B."""
    jaxopt = _jaxopt()

    weight, features = case.start()
    lower = (jnp.full(weight.shape, -jnp.inf), jnp.full(features.shape, case.least))
    upper = (jnp.full(weight.shape, jnp.inf), jnp.full(features.shape, jnp.inf))
    solver = jaxopt.LBFGSB(objective_in_jax(case), maxiter=10**6, tol=0.0)
    _run_jaxopt(case, course, solver, bounds=(lower, upper))


def _run_jaxopt(case: Case, course: Course, solver: Any, **arguments: Any) -> None:
    point: Any = tuple(map(jnp.asarray, case.start()))
    objective = jax.jit(objective_in_jax(case))
    arguments = arguments or {"hyperparams_proj": None}
    started = time.perf_counter()
    state = solver.init_state(point, **arguments)
    update = jax.jit(solver.update)
    jax.block_until_ready((update(point, state, **arguments), objective(point)))
    course.compiling = time.perf_counter() - started
    going = True
    while going:
        started = time.perf_counter()
        point, state = jax.block_until_ready(update(point, state, **arguments))
        seconds = time.perf_counter() - started
        going = course.add(seconds, float(objective(point)))


def torch_sgd(case: Case, course: Course) -> None:
    """Run PyTorch's SGD with momentum, features clamped, at the best of `SGD_RATES`."""
    import torch

    def make(parts: list[Any], rate: float) -> Any:
        weight, features = parts
        groups = [{"params": [weight], "lr": rate}, {"params": [features], "lr": rate * len(features)}]
        return torch.optim.SGD(groups, momentum=MOMENTUM)

    _run_torch(case, course, make, list(SGD_RATES))


def torch_adam(case: Case, course: Course) -> None:
    """Run PyTorch's Adam, features clamped, at the best of `ADAM_RATES`."""
    import torch

    _run_torch(case, course, lambda parts, rate: torch.optim.Adam(parts, lr=rate), list(ADAM_RATES))


def _run_torch(case: Case, course: Course, make: Any, rates: list[float]) -> None:
    """Try the rates for a while each, then run the best from the start, or the next if that one comes to diverge."""
    share = PILOT_SHARE * course.limit / len(rates)
    pilots = {}
    for rate in rates:
        pilot = Course(course.optimum, course.gap, share)
        for seconds, objective in _torch_steps(case, make, rate):
            if not pilot.add(seconds, objective) or pilot.diverged:
                break
        # the sooner at the gap the better, else the lower the better
        arrived = pilot.reached(course.gap)
        pilots[rate] = (math.inf if pilot.diverged else pilot.records[-1][2], share)
        if arrived:
            pilots[rate] = (0.0, arrived[0])
    for rate in sorted(pilots, key=lambda rate: pilots[rate]):
        course.seconds, course.steps, course.records = 0.0, 0, []
        for seconds, objective in _torch_steps(case, make, rate):
            if not course.add(seconds, objective) or course.diverged:
                break
        if not course.diverged:
            return


def _torch_steps(case: Case, make: Any, rate: float) -> Iterator[tuple[float, float]]:
    """Yield the seconds of every step, and the objective before it, which the step computes anyway."""
    import torch

    problem = case.problem
    weight, features = (torch.tensor(part, requires_grad=True) for part in case.start())
    labels = torch.tensor(row_labels(problem, case.level).astype(np.int64))
    multiplicities = torch.tensor(row_multiplicities(problem, case.level).astype(np.float64))
    optimizer = make([weight, features], rate)
    while True:
        started = time.perf_counter()
        losses = torch.nn.functional.cross_entropy(features @ weight.T, labels, reduction="none")
        objective = (multiplicities @ losses) / problem.num_samples
        objective = objective + problem.weight_decay / 2 * weight.square().sum()
        squares = features.square().sum(dim=1)
        objective = objective + problem.feature_decay / 2 * (multiplicities @ squares)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        with torch.no_grad():
            features.clamp_(min=case.least)
        yield time.perf_counter() - started, float(objective.detach())


def ufm_default(case: Case, course: Course) -> None:
    """Run `ufm.solve`, certificates and all: the clock sees all it does, the record what it has at a look."""
    started = time.perf_counter()
    ufm.solve(case.problem, case.level, seed=case.seed, max_steps=2)
    course.compiling = time.perf_counter() - started
    solution = ufm.solve(case.problem, case.level, seed=case.seed, tol=course.gap)
    for record in solution.history:
        course.records.append((record["seconds"], record["step"], record["objective"] / course.optimum - 1))
    course.seconds, course.steps = course.records[-1][:2]


def ufm_together(case: Case, course: Course) -> None:
    """Run `ufm.sweep` over `TOGETHER` starts; the seconds are those of one of them, the steps and gap the worst."""
    problem = case.problem
    fixed = {
        "counts": [int(count) for count in problem.counts],
        "dim": problem.dim,
        "weight_decay": problem.weight_decay,
        "feature_decay": problem.feature_decay,
        "features": problem.features,
        "level": case.level,
        "tol": course.gap,
    }
    seeds = {"seed": list(range(case.seed, case.seed + TOGETHER))}
    started = time.perf_counter()
    ufm.sweep(fixed, seeds)
    compiled = time.perf_counter()
    found = ufm.sweep(fixed, seeds)
    seconds = time.perf_counter() - compiled
    course.compiling = max(0.0, compiled - started - seconds)
    course.seconds, course.steps = seconds / TOGETHER, int(found.steps.max())
    course.records.append((course.seconds, course.steps, float(found.objective.max()) / course.optimum - 1))


SOLVERS: dict[str, Callable[[Case, Course], None]] = {
    "ufm": ufm_default,
    "ufm, 64 together": ufm_together,
    "scipy L-BFGS-B": scipy_lbfgsb,
    "scipy, rescaled": lambda case, course: scipy_lbfgsb(case.rescaled(), course),
    "jaxopt PG": jaxopt_projected_gradient,
    "jaxopt PG, rescaled": lambda case, course: jaxopt_projected_gradient(case.rescaled(), course),
    "jaxopt LBFGSB": jaxopt_lbfgsb,
    "torch SGD + clamp": torch_sgd,
    "torch Adam + clamp": torch_adam,
}
