"""The multilayer linear head: depth one is the usual model, and direct optimisation finds nothing better."""

import numpy as np
import pytest
from scipy.optimize import minimize

import ufm
from ufm.inputs.checks import InputError
from ufm.theory.deep_head import deep_linear_head


def test_depth_one_is_the_usual_model():
    problem = ufm.Problem([60, 20, 7], 3, 2e-3, 8e-3, loss=ufm.MSE(), features="free")
    head, usual = deep_linear_head(problem.counts, 1, 2e-3, 8e-3), ufm.predict(problem)
    np.testing.assert_allclose(head.logits, usual.margins, atol=1e-12)
    np.testing.assert_allclose(head.norms, usual.norms, atol=1e-12)
    np.testing.assert_allclose(head.layer_norms, usual.weight_norms, atol=1e-12)
    assert head.objective == pytest.approx(usual.objective, rel=1e-12)


def best_found(counts, depth, decay, start, seed):
    """L-BFGS on all matrices from near ``start`` times the identity, gradients by hand."""
    n, K, rng = np.array(counts, float), len(counts), np.random.default_rng(seed)
    N = n.sum()

    def value(x):
        factors = x.reshape(depth + 1, K, K)  # the last one holds features in its columns
        ahead = [np.eye(K)]
        for factor in factors[::-1]:
            ahead.append(factor @ ahead[-1])  # H, W_1 H, W_2 W_1 H, ...
        slope = (ahead[-1] - np.eye(K)) * n / N
        total = np.sum(n * np.sum((ahead[-1] - np.eye(K)) ** 2, axis=0)) / (2 * N)
        gradients, behind = [], slope
        for factor, inner in zip(factors, ahead[-2::-1], strict=True):
            gradients.append(behind @ inner.T)
            behind = factor.T @ behind
        charge = np.broadcast_to(decay, factors.shape).copy()
        charge[-1] *= n
        total += np.sum(charge * factors**2) / 2
        return total, (np.array(gradients) + charge * factors).ravel()

    first = start * np.tile(np.eye(K), (depth + 1, 1, 1)) + 0.1 * rng.normal(size=(depth + 1, K, K))
    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-16, "gtol": 1e-11}
    return minimize(value, first.ravel(), jac=True, method="L-BFGS-B", options=options).fun


@pytest.mark.parametrize("depth", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("decay", [2e-3, 2e-2])
def test_direct_optimisation_finds_nothing_better(depth, decay):
    """Between the threshold and where the root ends (0.5 and 0.65 at depth 2) starts find either point."""
    counts = [60, 20, 7]
    head = deep_linear_head(counts, depth, decay, decay)
    found = [best_found(counts, depth, decay, start, seed) for start in (0.3, 1.0) for seed in (0,)]
    assert min(found) == pytest.approx(head.objective, rel=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_logit_jumps_where_zero_is_as_good(depth):
    """At the threshold ``b/n = (D-1)^((D-1)/D)/D`` both values agree."""
    n, N, at = 100, 200, (depth - 1) ** ((depth - 1) / depth) / depth
    b = at * n
    product = (b / (depth * N)) ** depth / N  # lambda_W^D lambda_H
    decay = product ** (1 / (depth + 1))
    below, above = (deep_linear_head([n, n], depth, decay * f, decay * f) for f in (1 - 1e-9, 1 + 1e-9))
    np.testing.assert_allclose(below.logits, (depth - 1) / depth, atol=1e-3)
    assert above.collapsed.all()
    assert below.objective == pytest.approx(0.5, rel=1e-6)
    assert above.objective == 0.5


def test_bad_depth():
    with pytest.raises(InputError, match="depth must be"):
        deep_linear_head([3, 2], 0, 1.0, 1.0)
