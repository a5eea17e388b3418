"""The oracle of `helpers.oracle` can say no, and its formulas are what they claim."""

import numpy as np
import pytest
from helpers.oracle import (
    data_term,
    factors,
    kkt_residual,
    lower_bound,
    make,
    objective,
    relative_gap,
    weighted,
)

from ufm.losses import MSE, CrossEntropy, LabelSmoothing


def random_problem(loss, features="nonnegative"):
    return make([30, 7, 2], 3, 1e-2, 1e-3, loss=loss, features=features)


@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(0.2), weighted(1.0, 2.0, 4.0), MSE()])
@pytest.mark.parametrize("features", ["nonnegative", "free"])
def test_lower_bound_is_below_every_point(loss, features):
    problem = random_problem(loss, features)
    rng = np.random.default_rng(0)
    points = [(rng.normal(size=(3, 3)), np.abs(rng.normal(size=(3, 3)))) for _ in range(20)]
    best = min(objective(problem, *point) for point in points)
    assert max(lower_bound(problem, *point) for point in points) < best


@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(0.2), MSE()])
def test_gradient_is_the_difference_quotient(loss):
    problem = random_problem(loss)
    logits = np.random.default_rng(1).normal(size=(3, 3))
    _, dual = data_term(problem, logits)
    for j in range(3):
        shift = np.zeros((3, 3))
        shift[:, j] = 1e-6
        slope = (data_term(problem, logits + shift)[0] - data_term(problem, logits - shift)[0]) / 2e-6
        np.testing.assert_allclose(dual[:, j], slope, atol=1e-8)


def test_the_oracle_refuses_points_that_are_almost_optimal():
    from ufm.theory import predict

    prediction = predict(random_problem(CrossEntropy()))
    weight, features = factors(prediction)
    problem = prediction.problem
    assert relative_gap(problem, weight, features) < 1e-12
    assert relative_gap(problem, 1.001 * weight, features) > 1e-7
    assert kkt_residual(problem, 1.001 * weight, features) > 1e-5
    assert relative_gap(problem, weight[::-1], features[::-1]) > 1e-2
