"""The experiments with networks trained the usual way: what they vary, what they minimise, and that they run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from experiments.common import Outputs
from experiments.network import charge, remedies, usual
from ufm.verification.effective import EffectiveDecays


def test_the_grid_changes_one_thing_at_a_time_but_for_the_length_of_weighted_training():
    for setting in charge.GRID:
        changed = {
            name
            for name, value in setting._asdict().items()
            if value != charge.USUAL._asdict()[name] and name not in ("data", "networks")
        }
        assert len(changed) <= 1 or changed == {"power", "length"}
    assert len(set(charge.GRID)) == len(charge.GRID)
    assert len({(setting.data, charge.label(setting)) for setting in charge.GRID}) == len(charge.GRID)


def test_the_exponents_of_an_optimum_are_those_of_its_problem():
    """Planted: features paid by classes to the power 0.6, weights n^-1/2, and a solved optimum."""
    counts = charge.COUNTS
    decays = ufm.conventions.charged(2e-5, counts, 0.6)
    loss = ufm.WeightedCrossEntropy(counts**-0.5 * 5)
    solution = ufm.solve(ufm.Problem(counts, 12, 2e-3, decays, loss=loss), level="class", tol=1e-12)
    statistics = ufm.metrics.measure(
        solution.features, solution.labels, solution.weight, multiplicities=counts.astype(float)
    )
    found = charge.exponents(charge.measured_geometry(statistics, loss), counts.astype(float), loss)
    assert found[:2] == pytest.approx([0.6, 0.6], abs=1e-4)


def test_training_follows_the_gradient_of_the_loss_that_it_is_told():
    rng = np.random.default_rng(0)
    inputs, labels = jnp.asarray(rng.standard_normal((40, 6)), jnp.float32), jnp.arange(40) % 4
    loss, rows = ufm.LDAM(np.array([0.1, 0.2, 0.3, 0.4])), jnp.arange(3, 27)
    setting = usual.Setting(depth=2, width=8, bias=True, normalised=True, feature_decay=0.3)
    network = usual.initial(setting, usual.Task(inputs, labels, loss), 4, seed=0)

    def objective(network):
        features = usual.features_of(network, inputs[rows])
        weight, bias = usual.classifier_of(network)
        values = loss.value(features @ weight.T + bias, labels[rows])
        return values.mean() + 0.15 * jnp.mean(jnp.sum(features**2, axis=1))

    wanted = jax.jit(jax.grad(objective))(network)
    arrays = (inputs, labels, None, None)
    found = jax.jit(jax.grad(lambda net: usual.surrogate(net, setting, loss, arrays, rows)))(network)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_a_fixed_frame_loses_no_class_and_its_margins_are_stationary():
    found = EffectiveDecays(1e-4, 1.0, np.ones(10), 2e-3, 5e-6, charge=0.7)
    counts = charge.COUNTS.astype(float)
    margins = remedies.fixed_margins(found, counts, length=1.5)
    assert (margins > 0).all()
    K, N = 10, counts.sum()
    costs = 5e-6 * (N / (K * counts)) ** 0.7
    for M, n, cost in zip(margins, counts, costs, strict=True):
        squared = M**2 * (K - 1) ** 2 / (K**2 * 1.5**2)  # |h|^2 along a row of length 1.5

        def own(t, n=n, cost=cost, M=M, squared=squared):
            return n / N * np.log1p((K - 1) * np.exp(-t * M)) + cost * n / 2 * t**2 * squared

        assert (own(1 + 1e-4) - own(1 - 1e-4)) / 2e-4 == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_quick_variants_run(tmp_path, capsys):
    assert charge.main(quick=True, outputs=Outputs(tmp_path)) == 0
    rows = json.loads((tmp_path / "charge.json").read_text())
    assert len(rows) == len(charge.QUICK)
    assert all(np.isfinite(row["exponents"]).all() and row["accuracy"] > 0.8 for row in rows)
    assert remedies.main(quick=True, outputs=Outputs(tmp_path)) == 0
    found = json.loads((tmp_path / "remedies.json").read_text())["digits"]
    assert np.max(np.abs(np.subtract(found["measured"], found["predicted"])[:2])) < 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
