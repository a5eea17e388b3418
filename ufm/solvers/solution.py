"""What the solver returns: the point, what is known about it, and how it got there."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.duality.certificate import Certificate
from ufm.inputs.files import replacing
from ufm.model.groups import GroupPoint
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem, row_labels
from ufm.solvers.finish import DENSE, least_curvature
from ufm.solvers.status import Status
from ufm.text import Readable, wrapped


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Solution(Readable):
    """A point of the model with its certificate; all arrays are float64 NumPy whatever the solver ran in.

    Attributes:
        problem: the problem solved.
        level: ``"class"`` (one feature row per class), ``"sample"`` (one per sample) or ``"group"`` (solved in
            numbers that stand for groups of classes; rows are one per class, made when they are first asked for).
        point: the point in the form of its level.
        status: why the solver stopped; ``status.sentence`` says what to do next.
        certificate: objective, lower bound and residual at this very point.
        tol: the relative gap that was asked for.
        steps: number of steps taken.
        history: one record per check of the loop: ``step``, ``objective``, ``lower_bound``, ``relative_gap``,
            ``residual``, ``seconds``, ``event`` (an escape move in words, or None), and what observers added.

    Source: `ufm.solve`.

    Example:
        >>> import ufm
        >>> solution = ufm.solve(Problem([30, 20], dim=4, weight_decay=1e-2, feature_decay=1e-3))
        >>> solution.weight.shape, solution.features.shape, solution.labels.tolist(), solution.certified
        ((2, 4), (2, 4), [0, 1], True)
    """

    problem: Problem
    level: Level
    point: Variables | GroupPoint
    status: Status
    certificate: Certificate
    tol: float
    steps: int
    history: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        bound, gap = self.certificate.lower_bound, self.certificate.relative_gap
        lines = [
            str(self.problem),
            "",
            wrapped(f"Status: {self.status} after {self.steps} steps. {self.status.sentence}{self._kind}"),
            f"Objective   {self.objective:.14g}",
            f"Lower bound {bound:.14g} (relative gap {gap:.1e})",
        ]
        return "\n".join(lines)

    @property
    def _kind(self) -> str:
        """What a stalled point is to second order, where that takes no time."""
        if self.status is not Status.STALLED or not self.problem.loss.convex:
            return ""  # and no entries of a grouped point are written out
        if self._variables.weight.size + self._variables.features.size > DENSE:
            return ""
        kind = "a local minimum" if self.least_curvature > -1e-6 else "a saddle"
        least = f"{self.least_curvature:.0e}"
        return f" To second order it is {kind} of the coordinates in use (least curvature {least})."

    @property
    def group(self) -> GroupPoint | None:
        """The point as entries between groups, if it was solved so."""
        return self.point if isinstance(self.point, GroupPoint) else None

    @property
    def _variables(self) -> Variables:
        return self.point.variables if isinstance(self.point, GroupPoint) else self.point

    @property
    def weight(self) -> Float[np.ndarray, "K d"]:
        """Classifier ``W``."""
        return self._variables.weight

    @property
    def features(self) -> Float[np.ndarray, "rows d"]:
        """Features ``H``."""
        return self._variables.features

    @property
    def labels(self) -> Int[np.ndarray, " rows"]:
        """Class of every feature row."""
        return row_labels(self.problem, self.level)

    @property
    def bias(self) -> Float[np.ndarray, " K"] | None:
        """``b``, or None for a problem without one."""
        return self._variables.bias

    @property
    def objective(self) -> float:
        """The objective ``P`` at the point."""
        return self.certificate.objective

    @functools.cached_property
    def least_curvature(self) -> float:
        """Least curvature of the objective at the point, where the regulariser's is 1; that of a saddle is negative.

        In balanced coordinates, among the directions that features at zero leave; by differences of gradients, to
        about 1e-6. It says what kind of point it is where ``dim < K`` leaves the gap open.

        Example:
            >>> import ufm
            >>> solution = ufm.solve(Problem([30, 20, 10], dim=2, weight_decay=1e-3, feature_decay=1e-4))
            >>> str(solution.status), solution.least_curvature > -1e-6
            ('stalled', True)
        """
        return least_curvature(self.problem, self.level, self._variables)

    @property
    def excess(self) -> float:
        """The objective less the entropy of the targets, which no point can save (`Problem.entropy`)."""
        return self.objective - self.problem.entropy

    @property
    def certified(self) -> bool:
        """Whether the point is certified to relative gap ``tol``."""
        return self.status is Status.CERTIFIED

    def to_dict(self) -> dict[str, Any]:
        """Return what fits into JSON: everything but the large arrays."""
        return {
            "status": str(self.status),
            "status_sentence": self.status.sentence,
            "objective": self.objective,
            "lower_bound": self.certificate.lower_bound,
            "relative_gap": self.certificate.relative_gap,
            "residual": self.certificate.residual,
            "tol": self.tol,
            "steps": self.steps,
            "level": self.level,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write features, labels, weight, bias and the record of the run to an npz file, atomically."""
        path = Path(path)
        arrays: dict[str, Any] = {"features": self.features, "labels": self.labels, "weight": self.weight}
        if self.bias is not None:
            arrays["bias"] = self.bias
        with replacing(path) as stream:
            np.savez(stream, run=json.dumps(self.to_dict()), **arrays)
