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
            if value != charge.USUAL._asdict()[name] and name != "data"
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


def test_training_descends_the_loss_it_is_told_batches_and_all():
    """The surrogate with the loss's own gradient: one small full step follows the gradient of the objective."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((40, 6)).astype(np.float32), np.arange(40) % 4
    loss = ufm.LDAM(np.array([0.1, 0.2, 0.3, 0.4]))
    setting = usual.Setting(
        depth=1, width=8, batch=None, bias=True, feature_decay=0.1, weight_decay=0.5, length=4
    )
    task = usual.Task(inputs, labels, loss)
    network = usual.initial(setting, task, 4, seed=0)

    def objective(network):
        features = usual.features_of(network, jnp.asarray(inputs))
        weight, bias = usual.classifier_of(network)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(network))
        values = loss.value(features @ weight.T + bias, jnp.asarray(labels))
        return values.mean() + 0.05 * jnp.sum(features**2) / 40 + 0.25 * squares

    before = float(objective(network))
    epochs = [after for _, after in usual.trained(setting, task, 4, 0, looks=(0.25, 1.0))]
    values = [float(objective(after)) for after in epochs]
    assert before > values[0] > values[1]
    steepest = jax.grad(objective)(epochs[1])
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(steepest)) < 0.05


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
