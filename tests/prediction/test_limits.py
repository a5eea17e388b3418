"""Hard-margin geometries by continuation: closed forms where there are some, direct optimisation where not."""

import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from ufm.theory import seli, weak_decay_limit

COUNTS = np.array([40, 20, 10])
SCALES = (COUNTS / 40) ** 0.3


def limit(loss="ce", features="free"):
    return ufm.hard_margin_limit(ufm.Problem(COUNTS, 3, 1e-2, 1e-2, loss=loss, features=features))


def distance(found, wanted):
    names = ("gram_features", "gram_weights", "logits")
    return max(np.linalg.norm(getattr(found, name) - getattr(wanted, name)) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["free", pytest.param("nonnegative", marks=pytest.mark.slow)])
def test_without_scales_it_is_the_limit_that_is_known(features):
    wanted = seli(COUNTS) if features == "free" else weak_decay_limit(COUNTS)
    found = limit(features=features)
    assert distance(found, wanted) <= found.error < 1e-4
    assert found.relative_gap <= 1e-10
    if features == "free":  # offsets stop to matter, slowly
        adjusted = limit(ufm.LogitAdjustment([0.0, -0.3, -0.6]))
        assert distance(adjusted, wanted) <= adjusted.error < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_with_scales_it_is_the_shortest_point_with_these_margins(features):
    """``min |V|^2 + |G|^2`` subject to ``a_y z_y - a_j z_j >= 1`` with ``Z = diag(n^-1/2) G V'``, by SLSQP."""
    found = limit(ufm.VectorScaling(SCALES), features)
    apart = ~np.eye(3, dtype=bool)

    def margins(x):
        scaled = (x[9:].reshape(3, 3) @ x[:9].reshape(3, 3).T) / np.sqrt(COUNTS)[:, None] * SCALES
        return (np.diagonal(scaled)[:, None] - scaled)[apart] - 1

    low = [(None, None)] * 9 + [(0 if features == "nonnegative" else None, None)] * 9
    ends = []
    for seed in range(6):
        start = np.abs(np.random.default_rng(seed).normal(size=18)) * 3
        ends.append(
            minimize(
                lambda x: (x @ x, 2 * x),
                start,
                jac=True,
                bounds=low,
                constraints={"type": "ineq", "fun": margins},
                method="SLSQP",
                options={"maxiter": 1000, "ftol": 1e-13},
            )
        )
    best = min((end for end in ends if margins(end.x).min() > -1e-8), key=lambda end: end.fun).x
    V, G = best[:9].reshape(3, 3), best[9:].reshape(3, 3) / np.sqrt(COUNTS)[:, None]
    matrices = (G @ G.T, V @ V.T, G @ V.T)
    for name, matrix in zip(("gram_features", "gram_weights", "logits"), matrices, strict=True):
        off = np.linalg.norm(getattr(found, name) - matrix / np.linalg.norm(matrix))
        assert off <= found.error + 1e-4, name


def test_problems_without_such_a_limit_are_refused():
    with pytest.raises(ufm.InputError, match="no bias"):
        ufm.hard_margin_limit(ufm.Problem(COUNTS, 3, 1e-2, 1e-2, bias=0.0))
