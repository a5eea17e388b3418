"""What is to be verified, in one form: a solution, somebody's arrays, or streamed statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ufm.inputs.arrays import check_bias, classifier, feature_table, label_array, numbered
from ufm.inputs.checks import InputError
from ufm.metrics.batches import Batch
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.metrics.statistics import FeatureStatistics
from ufm.model.groups import GroupPoint, groups_of
from ufm.model.problem import Problem
from ufm.text import count_range


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A last layer.

    Attributes:
        title: what it is, in a sentence.
        problem: what it is held against, if known.
        statistics: of its features, made with its classifier; None for a point at group level, which has no rows.
        group: a point at group level.
        rows: the features themselves, checked and read block by block, or None if they were streamed.
        second_pass: NC4 of streamed features, or None.
        contexts: classifier and bias of a point whose rows belong to contexts, not classes; then no statistics.
        claims_optimum: whether it says of itself that it is optimal, so that its gap is judged.
        reported: the objective that it reports, to be checked against the recomputed one.
        history: records of the solver.
        names: of the classes, if labels were names.
    """

    title: str
    problem: Problem | None
    statistics: FeatureStatistics | None
    group: GroupPoint | None = None
    rows: Batch | None = None
    second_pass: NearestMeanAgreement | None = None
    contexts: tuple[np.ndarray, np.ndarray | None] | None = None
    claims_optimum: bool = False
    reported: float | None = None
    history: tuple[dict[str, Any], ...] = ()
    names: tuple[str, ...] = ()

    @property
    def classifier(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight and bias."""
        if self.contexts is not None:
            return self.contexts
        assert self.statistics is not None
        return self.statistics.classifier


def subject_of_solution(solution: Any) -> Subject:
    """Return a solver's answer as a subject; nothing that it says about itself is believed.

    Raises:
        InputError: if it is not a solution, or its arrays are not what they should be.
    """
    try:
        problem, status, history = solution.problem, solution.status, tuple(solution.history)
        group: Any = getattr(solution, "group", None) if problem.loss.labelled else None
        if not group:
            features, labels = solution.features, solution.labels
            weight, bias = solution.weight, solution.bias
        reported = float(solution.objective)
    except AttributeError as error:
        raise InputError(
            f"solution must be what ufm.solve returns, got {type(solution).__name__} ({error})"
        ) from None
    if group:  # groups are found anew: the point alone is taken over
        subject = Subject("", problem, None, GroupPoint(problem, groups_of(problem), group.point))
    else:
        subject = subject_of_arrays(features, labels, weight, bias, problem)
    status = getattr(status, "value", status)
    return dataclasses.replace(
        subject,
        title=f"Solution at {solution.level} level, status {status}: {_described(problem)}.",
        claims_optimum=True,
        reported=reported,
        history=history,
    )


def subject_of_arrays(features: Any, labels: Any, weight: Any, bias: Any, problem: Problem | None) -> Subject:
    """Return arrays as a subject.

    Raises:
        InputError: naming the argument, its value and what is required.
    """
    for name, value in (("features", features), ("labels", labels), ("weight", weight)):
        if value is None:
            raise InputError(f"{name} must be given together with the other arrays, got None")
    matrix, vector = classifier(weight, bias)
    classes = len(matrix) if problem is None else problem.num_classes
    table = feature_table(features, matrix.shape[1], classes)
    if table.shape[0] == 0:
        raise InputError("features must have at least one row, got none")
    if problem is not None:
        _check_problem(problem, matrix.shape, vector)
    numbers, names = numbered(labels, classes)
    kept = label_array(numbers, classes, table.shape[0])
    multiplicities = np.ones(len(kept)) if problem is None else _multiplicities(problem, kept)
    rows = Batch(table, kept, multiplicities)
    if problem is not None and not problem.loss.labelled:
        title = f"Last layer with {len(kept)} rows of features: {_described(problem)}."
        return Subject(title, problem, None, rows=rows, contexts=(matrix, vector), names=names)
    nonnegative = problem is not None and problem.features == "nonnegative"
    statistics = FeatureStatistics(weight=matrix, bias=vector, nonnegative=nonnegative)
    statistics.add(rows, check=True)
    title = _title(statistics, problem)
    return Subject(title, problem, statistics, rows=rows, names=names)


def subject_of_statistics(
    statistics: FeatureStatistics, second_pass: NearestMeanAgreement | None, problem: Problem | None
) -> Subject:
    """Return streamed statistics as a subject; what needs the features themselves is not measured.

    Raises:
        InputError: if they do not fit the problem, or it has soft targets.
    """
    weight, bias = statistics.classifier
    if statistics.rows == 0:
        raise InputError("statistics must hold at least one batch, got none")
    if problem is not None:
        if not problem.loss.labelled:
            raise InputError(
                "statistics must be of classes, and the rows of a problem with soft targets belong to contexts: "
                "pass features, labels and weight instead"
            )
        _check_problem(problem, weight.shape, bias)
        if not np.array_equal(statistics.counts, problem.counts):
            raise _wrong_counts(problem, statistics.counts)
    return Subject(_title(statistics, problem), problem, statistics, second_pass=second_pass)


def _check_problem(problem: Problem, shape: tuple[int, ...], bias: np.ndarray | None) -> None:
    if shape != (problem.num_logits, problem.dim):
        raise InputError(
            f"weight must have the problem's shape {(problem.num_logits, problem.dim)}, got {shape}"
        )
    check_bias(problem, bias)


def _multiplicities(problem: Problem, labels: np.ndarray) -> np.ndarray:
    """One row per sample stands for itself; one row per class stands for all of its samples."""
    counts = np.bincount(labels, minlength=problem.num_classes)
    if np.array_equal(counts, problem.counts):
        return np.ones(len(labels))
    if np.all(counts == 1):
        return problem.counts[labels].astype(np.float64)
    raise _wrong_counts(problem, counts)


def _wrong_counts(problem: Problem, counts: np.ndarray) -> InputError:
    k = int(np.argmax(np.asarray(counts) != problem.counts))
    return InputError(
        "labels must have the problem's counts, or one row per class; "
        f"got {counts[k]:g} of class {k}, which has {problem.counts[k]} samples"
    )


def _title(statistics: FeatureStatistics, problem: Problem | None) -> str:
    if problem is not None:
        return f"Last layer with {statistics.rows} rows of features: {_described(problem)}."
    missing = int(np.sum(~statistics.present))
    absent = f" ({missing} of them without samples)" if missing else ""
    return (
        f"Last layer with {statistics.rows} rows of features, {statistics.num_classes} classes{absent}, "
        f"dimension {statistics.dim}, decays unknown."
    )


def _described(problem: Problem) -> str:
    rows = "classes" if problem.loss.labelled else "contexts"
    return (
        f"{problem.num_classes} {rows} of {count_range(problem.counts)} samples, "
        f"dimension {problem.dim}, {type(problem.loss).__name__}, {problem.features} features, "
        f"lambda_W {problem.weight_decay:.4g}, lambda_H {problem.feature_decay:.4g}"
    )
