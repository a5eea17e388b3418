"""A network that lost a class which the optimum keeps: said once."""

import numpy as np
import pytest

import ufm

COUNTS = np.array([60, 60, 60, 20])


def lost(factor=1.0):
    """The optimum of a problem in which the last class's features cost too much, seen by one in which they do not."""
    decays = np.array([1e-4, 1e-4, 1e-4, 1.0])
    solution = ufm.solve(ufm.Problem(COUNTS, 6, 5e-3, decays), level="sample", tol=1e-12)
    assert np.all(solution.features[solution.labels == 3] == 0)
    problem = ufm.Problem(COUNTS, 6, 5e-3, 1e-4)
    assert ufm.predict(problem).num_collapsed == 0
    return ufm.verify(
        features=factor * solution.features, labels=solution.labels, weight=solution.weight, problem=problem
    )


def test_a_stuck_point_is_one_failure_with_its_excess():
    report = lost()
    failed = [row.name for row in report.rows if row.verdict == "fail"]
    assert failed == ["collapsed classes"]
    [note] = [note for note in report.notes if note.startswith("Stuck point: class 3 lost")]
    assert f"{report['objective'].measured / report.prediction.objective - 1:.2%} above the optimum" in note
    assert not report.passed


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_point_that_moves_is_not_stuck(factor):
    report = lost(factor)
    assert not any(note.startswith("Stuck") for note in report.notes)
    assert report.counts()["fail"] > 3
