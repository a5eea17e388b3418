"""The experiments with networks trained the usual way: what they vary, what they minimise, and that they run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import ufm
from experiments.common import Outputs
from experiments.network import charge, remedies, usual
from experiments.network import sharing as sharing_module


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
    assert found[0][:2] == pytest.approx([0.6, 0.6], abs=1e-4)
    assert found[1][0] == pytest.approx(1, abs=1e-4)


def test_a_deep_linear_network_obeys_the_law_of_sharing():
    """Its cost, minimised for each class by itself: g from the margins is 1 - 2c/(L+1) where margins hardly vary."""
    counts = np.array([400.0, 200.0, 100.0])
    for depth, sharing in ((1, 0.8), (3, 0.3), (4, 1.0)):

        def margin(n, depth=depth, sharing=sharing):
            def cost(s):  # classifier and features: M = w s n^(-c/2), w^2 = s^(2/L) by balance
                M = s ** (1 + 1 / depth) * n ** (-sharing / 2)
                return n / 700 * np.logaddexp(0, np.log(9) - M) + 1e-9 / 2 * (1 + depth) * s ** (2 / depth)

            best = minimize_scalar(lambda t: cost(np.exp(t)), (0.0, 3.0), tol=1e-12).x
            return np.exp(best * (1 + 1 / depth)) * n ** (-sharing / 2)

        margins = np.array([margin(n) for n in counts])
        pulls = 9 / (9 + np.exp(margins))
        slope = np.polyfit(np.log(counts), np.log(pulls), 1)[0]
        assert -2 * slope - 1 == pytest.approx(sharing_module.law(np.array(depth), sharing), abs=0.06)


def test_the_law_is_fitted_and_inputs_say_what_they_share():
    depth = np.array([1.0, 2.0, 4.0])
    found = sharing_module.fitted(depth, sharing_module.law(depth, 0.4), np.full(3, 0.1))
    assert found == pytest.approx((0.4, 0.1 / np.sqrt(1 + 4 / 9 + 4 / 25), 0.0))
    counts = charge.COUNTS // 4
    found = []
    for data in ("same", "mixed", "noise"):
        inputs, labels = usual.samples_of(data)
        kept = np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)])
        found.append(sharing_module.sharing_of_inputs(inputs[kept], labels[kept]))
    assert found[0] < 0.2 < found[1] < 0.8 < found[2] < 1


@pytest.mark.slow
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
