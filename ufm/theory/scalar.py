r"""What a theorem leaves of a problem: one scalar problem per class, and the inequality that decides its collapse.

Every closed form here has logits ``M_k u_k`` on a fixed ray per class (`ufm.losses.scalar`), and the optimal value is

    ``P* = sum_k min_{M >= 0} [ (n_k/N) phi_k(M) + a l_k sqrt(n_k) M ]``,   ``l_k = sqrt(lambda_W lambda_H,k)``,   (T)

with a frame constant a. Class k collapses iff the slope at M = 0 is not negative:

    ``sqrt(n_k) <= x_k sqrt(n_k)``,   ``x_k = N l_k a / (-phi_k'(0) sqrt(n_k))``;

otherwise ``phi_k'(M_k) = x_k phi_k'(0)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ufm.losses.base import Loss
from ufm.losses.scalar import ScalarForm
from ufm.model.problem import Problem
from ufm.model.problems import Problems
from ufm.theory.prediction import not_covered

#: Relative distance to the threshold below which float64 cannot be trusted and fractions decide.
_TIE = 1e-12
#: Floor of ``x_k``, far below any that matters, so that extreme class weights give finite margins.
_SMALLEST = 1e-290


@dataclasses.dataclass(frozen=True, eq=False)
class ScalarProblems:
    """The scalar problems of a problem under one theorem.

    Attributes:
        problem: the problem; or `Problems`, for which saturation, optimum and value have a leading axis.
        form: ``phi_k`` and its ray.
        squared_frame: ``a^2``.
    """

    problem: Any
    form: ScalarForm
    squared_frame: Fraction

    @property
    def frame(self) -> float:
        """``a``."""
        return math.sqrt(self.squared_frame)

    @cached_property
    def root(self) -> Float[np.ndarray, " K"]:
        """``r_k`` such that class k collapses iff ``sqrt(n_k) <= N l_k r_k``."""
        return self.frame / self.form.pull

    def factor(self, k: int) -> Fraction:
        """Return ``f`` such that class k collapses iff ``n_k <= f N^2``, exactly (floats are fractions)."""
        pull = Fraction(float(self.form.pull[k])) if self.form.exact is None else self.form.exact(k)
        decays = Fraction(self.problem.weight_decay) * Fraction(float(self.problem.feature_decays[k]))
        return decays * self.squared_frame / pull**2

    @cached_property
    def saturation(self) -> Float[np.ndarray, "... K"]:
        """``x_k = sqrt(threshold_k / n_k)``: class k collapses iff ``x_k >= 1``."""
        problem = self.problem
        with np.errstate(over="ignore", under="ignore"):  # class weights may be anything positive
            samples = np.asarray(problem.num_samples)[..., None]
            x = samples * problem.nuclear_weights * self.root / np.sqrt(problem.counts)
        return np.maximum(x, _SMALLEST)

    @cached_property
    def collapsed(self) -> Bool[np.ndarray, "... K"]:
        """Which classes collapse, exactly: ties are decided in fractions, not by rounding."""
        flags = self.saturation >= 1
        tied = np.abs(self.saturation - 1) <= _TIE
        if not np.any(tied):
            return flags
        if flags.ndim > 1:  # each by its own numbers, which are exact
            for i in np.flatnonzero(np.any(tied, axis=1)):
                flags[i] = dataclasses.replace(self, problem=self.problem.problems[i]).collapsed
            return flags
        close = np.flatnonzero(tied)
        alike = np.stack([self.problem.counts, self.form.pull, self.problem.feature_decays])[:, close]
        _, first, group = np.unique(alike, axis=1, return_index=True, return_inverse=True)
        total = Fraction(float(self.problem.num_samples))
        exact = [
            Fraction(float(self.problem.counts[k])) <= self.factor(k) * total**2
            for k in close[first].tolist()
        ]
        flags[close] = np.array(exact, dtype=bool)[group.ravel()]
        return flags

    @property
    def share(self) -> Float[np.ndarray, "... K"]:
        """``min(x_k, 1)``, the slope at the optimum over that at 0."""
        return np.where(self.collapsed, 1.0, np.minimum(self.saturation, 1.0))

    @cached_property
    def optimum(self) -> Float[np.ndarray, "... K"]:
        """``M_k``; exactly 0 for collapsed classes and never rounded down to 0 for living ones."""
        room = np.where(self.collapsed, 0.0, np.maximum(1.0 - self.saturation, np.finfo(np.float64).epsneg))
        return self.form.margins(self.share, room)

    @cached_property
    def scale(self) -> Float[np.ndarray, "... K"]:
        """``sqrt(lambda_W / (lambda_H,k n_k))``, root by root: the ratio of the decays may leave float64's range."""
        problem = self.problem
        decay = np.sqrt(problem.weight_decay)[..., None]
        return decay / np.sqrt(problem.feature_decays) / np.sqrt(problem.counts)

    @cached_property
    def value(self) -> Any:
        """``P*``: a number, or one for each of several problems."""
        problem = self.problem
        price = self.frame * problem.nuclear_weights * np.sqrt(problem.counts)
        return np.vecdot(problem.priors, self.form.value(self.optimum)) + np.vecdot(price, self.optimum)

    @property
    def living(self) -> int:
        """Number of classes that do not collapse."""
        return int(np.count_nonzero(~self.collapsed))

    @property
    def exchangeable(self) -> bool:
        """Whether all classes have the same count, loss and decay, so that they may be permuted freely."""
        parts = (self.problem.counts, self.form.pull, self.problem.feature_decays)
        return all(np.ptp(part) == 0 for part in parts)


def one_by_one(problems: Sequence[Problem], like: ScalarProblems) -> list[ScalarProblems]:
    """Return the scalar problems of every problem, like those of the first; what takes time is found at once."""
    together = dataclasses.replace(like, problem=Problems(problems))
    found = {
        name: getattr(together, name) for name in ("saturation", "collapsed", "optimum", "scale", "value")
    }
    single = [dataclasses.replace(like, problem=problem) for problem in problems]
    for i, scalar in enumerate(single):  # as `cached_property` keeps them
        vars(scalar).update((name, part[i]) for name, part in found.items())
    return single


def symmetric_form(problem: Problem) -> ScalarForm:
    """Return the scalar form of the loss.

    Raises:
        ClosedFormError: if it has none, or is not convex.
    """
    loss, K = problem.loss, problem.num_classes
    form = _form_of(loss, K)
    if form is not None and loss.convex:
        return form
    name = type(loss).__name__
    if form is not None:
        raise not_covered(f"the theorems need a convex loss, and the loss is {name}")
    parameters = loss.softmax_parameters(K)
    if parameters is not None:
        verb = "multiplies" if np.ptp(parameters.scales) > 0 else "adjusts"
        raise not_covered(f"the theorems need plain logits, and the loss {verb} them per class")
    raise not_covered(
        f"the theorems need a loss that is symmetric in its off-target logits, such as cross-entropy or MSE, and for "
        f"{K} classes the loss is {name}"
    )


@lru_cache(maxsize=4)
def _form_of(loss: Loss, num_classes: int) -> ScalarForm | None:
    """Return the scalar form of a loss, which sweeps ask for once for every member; it keeps its pull."""
    return loss.scalar_form(num_classes)
