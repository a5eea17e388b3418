"""A point at group level is judged as the same point with one row per class, and nothing of size K x K is formed."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from helpers.cases import few_daily

import ufm
from ufm.losses import MSE, LogitAdjustment
from ufm.model.problem import Problem
from ufm.profiles import parse_counts
from ufm.verification.representatives import Representatives

COUNTS = np.repeat([100, 10, 1], [3, 3, 14])


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    few_daily(
        [
            ({}, None),
            ({}, 0.1),
            ({"loss": MSE(), "features": "free"}, None),
            ({"features": "free", "bias": 0.05}, None),
            ({"loss": LogitAdjustment(np.log(COUNTS / COUNTS.sum()))}, None),
        ],
        (0, 2),
    ),
)
def test_every_row_is_that_of_the_class_level(settings, tolerance):
    """The rows of a point expanded to one row per class, by the formulas for a layer of which nothing is known."""
    problem = Problem(COUNTS, 22, 1e-3, 1e-4, **settings)
    solution = ufm.solve(problem, level="group")
    grouped = ufm.verify(solution, tolerance=tolerance)
    expanded = dataclasses.replace(solution, level="class", point=solution.group.variables)
    whole = ufm.verify(expanded, tolerance=tolerance)
    assert grouped.passed
    assert whole.passed
    names = {row.name for row in grouped.rows} & {row.name for row in whole.rows}
    assert len(names) >= 8
    for name in names - {"NC1"}:
        mine, other = grouped[name], whole[name]
        assert mine.verdict == other.verdict, name
        assert mine.where.split()[:1] == other.where.split()[:1], name
        if mine.tolerance and np.isfinite(mine.tolerance) and mine.name != "alignment":
            # the multiplier of groups that share directions is simpler, hence looser
            shared = isinstance(problem.loss, LogitAdjustment)
            assert mine.tolerance >= 0.98 * other.tolerance, name
            assert shared or mine.tolerance <= 1.02 * other.tolerance, name
    for vector in ("norms", "weight_norms", "margins"):
        seen, wanted = getattr(grouped.measured, vector), getattr(whole.measured, vector)
        np.testing.assert_allclose(seen, wanted, atol=1e-9 * wanted.max())
    for matrix in ("gram_features", "gram_weights", "logits"):
        seen, wanted = getattr(grouped.measured, matrix), getattr(whole.measured, matrix)
        np.testing.assert_allclose(seen, wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("wrong", ["weight", "features"])
def test_a_wrong_point_fails(wrong):
    solution = ufm.solve(Problem(COUNTS, 20, 1e-3, 1e-4), level="group")
    point = solution.group.point
    changed = point._replace(**{wrong: 1.01 * getattr(point, wrong)})
    group = dataclasses.replace(solution.group, point=changed)
    report = ufm.verify(dataclasses.replace(solution, point=group))
    assert not report.passed
    assert report["duality gap"].verdict == "fail"
    assert report["reported objective"].verdict == "fail"
    assert report["NC2_H"].verdict == "pass"  # scale is not direction


def test_rows_know_how_many_classes_they_stand_for():
    rng = np.random.default_rng(0)
    classes = Representatives(ufm.solve(Problem(COUNTS, 20, 1e-3, 1e-4), level="group").group.groups)
    left, right = (
        classes.groups.expand(rng.standard_normal((3, 4)) * classes.groups.algebra.roots) for _ in range(2)
    )
    rows, others = left[classes.first], right[classes.first]
    np.testing.assert_allclose(classes.product(rows, others), (left @ right)[classes.first], atol=1e-12)
    np.testing.assert_allclose(classes.transpose(rows), left.T[classes.first])
    np.testing.assert_allclose(classes.norm(rows), np.linalg.norm(left))
    gram = left @ left.T
    top = np.linalg.eigvalsh(gram)[-1]
    np.testing.assert_allclose(classes.largest_eigenvalue(gram[classes.first]), top)


@pytest.mark.slow
def test_eight_thousand_classes_without_a_matrix_over_pairs_of_classes():
    counts = parse_counts("inaturalist")
    solution = ufm.solve(Problem(counts, len(counts), 1e-5, 1e-6))
    assert solution.level == "group"
    tracemalloc.start()
    report = ufm.verify(solution)
    report.plot()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.passed
    assert len(report.table().splitlines()) < 40
    assert peak < 2 * 8 * len(counts) ** 2  # dozens of such matrices on the class level
