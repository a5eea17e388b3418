"""Every problem has a prediction: solved where no theorem applies, the same record, and the same where one does."""

import subprocess
import sys

import numpy as np
import pytest

import ufm
from ufm.cli import main
from ufm.prediction import solved


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": 0.02},
        {"loss": ufm.BinaryCrossEntropy()},
        {"loss": ufm.LogitAdjustment([0.0, -0.5, -1.0])},
    ],
    ids=["free", "bias", "bce", "adjustment"],
)
def test_problems_without_a_theorem_are_solved(changes):
    problem = ufm.Problem([30, 20, 10], 4, 1e-2, 1e-3, features="free").replace(**changes)
    with pytest.raises(ufm.ClosedFormError, match=r"solve=True"):
        ufm.predict(problem)
    prediction = ufm.predict(problem, solve=True)
    solution = ufm.solve(problem, tol=1e-10, seed=3)
    assert prediction.source.startswith("solved, relative gap")
    assert prediction.relative_gap <= 1e-10
    assert prediction.objective == pytest.approx(solution.objective, rel=1e-9)
    np.testing.assert_allclose(prediction.gram_features, solution.features @ solution.features.T, atol=1e-3)
    np.testing.assert_allclose(prediction.norms**2, np.diagonal(prediction.gram_features))
    assert not prediction.collapsed.any()
    assert ufm.predict(problem, solve=True) is prediction


def test_solved_and_closed_form_agree():
    problem = ufm.Problem([90, 60, 40, 20, 8, 3], 9, 2e-2, 2e-2)
    theorem, found = ufm.predict(problem, solve=True), solved._solved(problem)
    assert theorem.source.startswith("theorem: Dang")
    assert found.collapsed.tolist() == theorem.collapsed.tolist()
    assert found.objective == pytest.approx(theorem.objective, rel=1e-10)
    np.testing.assert_allclose(found.margins, theorem.margins, atol=1e-4)
    np.testing.assert_allclose(found.logits, theorem.logits, atol=1e-4)


def test_the_command_line_solves_when_asked(capsys):
    given = ["predict", "--counts", "30,20,10", "--dim", "4", "--features", "free"]
    assert main(given) == 1
    assert "--solve" in capsys.readouterr().out
    assert main([*given, "--solve"]) == 0
    assert "solved, relative gap" in capsys.readouterr().out


def test_closed_forms_stay_free_of_jax():
    script = (
        "import sys, ufm; ufm.predict(ufm.Problem([9, 3], 4, 1e-3, 1e-3), solve=True); "
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
