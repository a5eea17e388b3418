"""Theorem (T) against the certified solver on 504 random problems: symmetric losses, decays by class, charges."""

import numpy as np
import pytest

import ufm
from ufm.conventions import charged
from ufm.losses import (
    LDAM,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    LabelSmoothing,
    Poly1,
    WeightedCrossEntropy,
)
from ufm.solvers.engine import solve_many
from ufm.solvers.rules import step_rule
from ufm.solvers.settings import SETTINGS, check_settings, limits
from ufm.solvers.task import Setup, Task

#: Number of classes and a random loss of each kind.
KINDS = {
    "ce": (6, lambda rng: CrossEntropy()),
    "smoothing": (5, lambda rng: LabelSmoothing(rng.uniform(0, 0.5))),
    "weighted": (7, lambda rng: WeightedCrossEntropy(rng.uniform(0.3, 3, 7))),
    "ldam": (5, lambda rng: LDAM(rng.uniform(-0.2, 1, 5), rng.uniform(0.5, 3))),
    "poly1": (8, lambda rng: Poly1(rng.uniform(0, 1))),
    "mse": (4, lambda rng: MSE()),
    "bce": (4, lambda rng: BinaryCrossEntropy()),
}
EACH = 72


def random_problem(rng, K, loss):
    """Counts over three decades, g from 0 to 1.5, decays off that by up to a factor 3, many beyond a threshold."""
    counts = np.ceil(10 ** rng.uniform(0, 3, K)).astype(int)
    decays = charged(1.0, counts, rng.uniform(0, 1.5)) * 3 ** rng.uniform(-1, 1, K)
    level = 10 ** rng.uniform(-2, 0.1) * np.sqrt(counts.max() / decays.min()) / counts.sum()
    return ufm.Problem(counts, K + 2, 1e-2, level**2 / 1e-2 * decays, loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_theorem_is_the_certified_optimum(kind):
    rng, (K, loss) = np.random.default_rng(list(kind.encode())), KINDS[kind]
    problems = [random_problem(rng, K, loss(rng)) for _ in range(EACH)]
    asked = limits(check_settings({"tol": 1e-10, "max_steps": 20_000, "precision": "float64"}))
    rule = step_rule(SETTINGS["solver"].default, {})
    ends = solve_many([Task(problem, asked) for problem in problems], Setup("class", rule, "float64"), EACH)
    predictions = [ufm.predict(problem) for problem in problems]
    assert min(end.certificate.objective - end.certificate.lower_bound for end in ends) >= -1e-12
    for problem, end, prediction in zip(problems, ends, predictions, strict=True):
        assert end.certificate.relative_gap <= 1e-8, problem
        assert end.certificate.objective == pytest.approx(prediction.objective, rel=1e-8)
        squares = np.sum(end.variables.features**2, axis=1)
        np.testing.assert_allclose(
            squares, prediction.norms**2, atol=1e-2 * max(prediction.norms.max() ** 2, 1e-9)
        )
    dead = np.concatenate([prediction.collapsed for prediction in predictions])
    assert 0.05 < dead.mean() < 0.95
