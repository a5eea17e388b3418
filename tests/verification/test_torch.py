"""Real torch tensors, where torch is installed: everything that takes NumPy arrays takes them, and agrees."""

import numpy as np
import pytest

import ufm

torch = pytest.importorskip("torch")

PROBLEM = ufm.Problem([60, 60, 10, 10], 8, 5e-3, 1e-4)


@pytest.fixture(scope="module")
def solution():
    return ufm.solve(PROBLEM, level="sample")


def tensors(solution, dtype):
    """Features, labels and weight as torch hands them over: strided, with gradients, labels of any integer type."""
    features = torch.tensor(solution.features.T.copy(), dtype=dtype).T.requires_grad_()
    return (
        features,
        torch.tensor(solution.labels, dtype=torch.int32),
        torch.nn.Parameter(torch.tensor(solution.weight, dtype=dtype)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_verify_agrees_with_numpy_in_every_precision(solution, name, tolerance):
    features, labels, weight = tensors(solution, getattr(torch, name))
    given = ufm.verify(features=features, labels=labels, weight=weight, problem=PROBLEM, tolerance=0.1)
    plain = ufm.verify(
        features=solution.features,
        labels=solution.labels,
        weight=solution.weight,
        problem=PROBLEM,
        tolerance=0.1,
    )
    assert given.passed
    assert [row.name for row in given.rows] == [row.name for row in plain.rows]
    for quantity in ("margins", "norms", "weight_norms", "gram_features", "gram_weights"):
        expected = getattr(plain.measured, quantity)
        np.testing.assert_allclose(
            getattr(given.measured, quantity), expected, rtol=0, atol=tolerance * np.abs(expected).max()
        )


def test_a_layer_with_bias_and_without_decays(solution):
    features, labels, weight = tensors(solution, torch.float64)
    layer = torch.nn.Linear(8, 4).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    report = ufm.verify(features=features, labels=labels, weight=layer.weight, bias=layer.bias)
    assert report.passed


def test_batches_of_a_loader_add_up_to_the_whole(solution):
    features, labels, weight = tensors(solution, torch.float32)
    data = torch.utils.data.TensorDataset(features.detach(), labels.long())
    statistics = ufm.FeatureStatistics(weight=weight)
    for batch in torch.utils.data.DataLoader(data, batch_size=17, shuffle=True):
        statistics.update(*batch)
    streamed = ufm.verify(statistics=statistics, problem=PROBLEM, tolerance=0.1)
    whole = ufm.verify(features=features, labels=labels, weight=weight, problem=PROBLEM, tolerance=0.1)
    np.testing.assert_allclose(streamed.measured.margins, whole.measured.margins, rtol=1e-12)


def test_separability_takes_tensors(solution):
    assert ufm.separability(*tensors(solution, torch.float64)).probability == 1.0


@pytest.mark.parametrize("spoil", ["to_sparse", "imag", "meta"])
def test_tensors_without_numbers_to_copy_are_named(solution, spoil):
    features, labels, weight = tensors(solution, torch.float64)
    features = features.detach()
    bad = {
        "to_sparse": features.to_sparse,
        "imag": lambda: torch.complex(features, features).conj(),
        "meta": lambda: features.to("meta"),
    }[spoil]()
    with pytest.raises(ufm.InputError, match="features must"):
        ufm.verify(features=bad, labels=labels, weight=weight, problem=PROBLEM)


@pytest.mark.slow
def test_a_classifier_trained_in_torch_is_verified():
    """torch's own losses and ``weight_decay``: our convention for W; the features' penalty is per sample."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(PROBLEM.counts))
    raw = torch.rand(len(labels), 8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 8, generator=generator, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.SGD(
        [
            {"params": [weight], "lr": 1.0, "weight_decay": PROBLEM.weight_decay},
            {"params": [raw], "lr": PROBLEM.weight_decay / PROBLEM.feature_decay},
        ],
        momentum=0.9,
    )
    for _ in range(4000):
        optimiser.zero_grad()
        features = torch.relu(raw)
        loss = torch.nn.functional.cross_entropy(features @ weight.T, labels)
        (loss + PROBLEM.feature_decay / 2 * features.square().sum()).backward()
        optimiser.step()
    report = ufm.verify(
        features=torch.relu(raw), labels=labels, weight=weight, problem=PROBLEM, tolerance=1e-3
    )
    assert report.passed, report.table()
