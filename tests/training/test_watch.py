"""Watching a torch layer: the same numbers as from arrays, without a trace in the model."""

import copy
import subprocess
import sys

import numpy as np
import pytest

import ufm
from ufm.inputs.checks import InputError
from ufm.training import Monitor

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.ReLU())
        self.fc = torch.nn.Linear(12, 4, bias=bias)

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batches(number=5, rows=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(rows, 5, generator=generator),
            torch.randint(0, 4, (rows,), generator=generator),
        )
        for _ in range(number)
    ]


def both(net, data, epochs=2, **options):
    """Epochs as watched, and as a `Monitor` of the same arrays sees them."""
    watch, monitor = ufm.training.watch(net.fc, **options), Monitor(4, 12, **options)
    seen = []
    for _ in range(epochs):
        for x, y in data:
            with watch(y):
                net(x)
            monitor.update(net.body(x), y, net.fc.weight, net.fc.bias)
        seen.append((watch.epoch(), monitor.epoch()))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_those_of_the_arrays(net, dtype):
    net = net.to(dtype)
    data = [(x.to(dtype), y) for x, y in batches()]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for watched, expected in both(net, data):
        assert list(watched) == list(expected)
        assert watched == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True)


def test_training_is_not_disturbed_and_moves_what_is_seen(net):
    other = copy.deepcopy(net)
    watch = ufm.training.watch(net.fc)
    for model in (net, other):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(20):
            optimiser.zero_grad()
            if model is net:
                with watch(y):
                    out = model(x)
            else:
                out = model(x)
            torch.nn.functional.cross_entropy(out, y).backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert not net.fc._forward_hooks
    assert watch.epoch()["samples"] == 320
    copy.deepcopy(net)


def test_mixed_precision_ignored_labels_and_overflow(net):
    watch = ufm.training.watch(net.fc)
    (x, y), (other, labels) = batches(2, rows=64)
    with torch.autocast("cpu", dtype=torch.bfloat16), watch(y):
        net(x)
    epoch = watch.epoch()
    exact = both(net, [(x, y)], epochs=1)[0][1]
    assert epoch["NC1"] == pytest.approx(exact["NC1"], rel=0.05)
    assert epoch["loss"] == pytest.approx(exact["loss"], rel=0.02)
    x, labels = other.clone(), labels.clone()
    x[7], labels[:3] = torch.inf, -100
    with watch(labels), torch.no_grad():
        net(x)
    epoch = watch.epoch()
    assert (epoch["samples"], epoch["dropped"]) == (60, 4)
    assert all(np.isfinite(value) for value in epoch.values())


def test_sequences_are_rows(net):
    watch = ufm.training.watch(net.fc, every=2)
    x, y = torch.randn(3, 7, 5), torch.randint(0, 4, (3, 7))
    for _ in range(3):
        with watch(y):
            net(x)
    assert watch.epoch()["samples"] == 42


def test_processes_add_up_to_the_whole(net):
    data = batches(6)
    whole, first, second = (ufm.training.watch(net.fc) for _ in range(3))
    for _ in range(2):  # the second epoch is held against the means of both
        for number, (x, y) in enumerate(data):
            with whole(y), (first, second)[number % 2](y):
                net(x)
        records = first.record(), second.record()
        first.merge(records[1])
        second.merge(records[0])
        expected = whole.epoch()
        for part in (first, second):
            assert part.epoch() == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True)


def test_mistakes_are_named(net):
    watch = ufm.training.watch(net.fc)
    x, y = batches(1)[0]
    with pytest.raises(InputError, match="layer must be called within"), watch(y):
        net.body(x)
    with pytest.raises(InputError, match="labels must be a tensor of 16 integers"), watch(y[:-1]):
        net(x)
    with pytest.raises(InputError, match="labels must be a tensor"), watch(y.float()):
        net(x)
    with pytest.raises(InputError, match="layer must be a torch layer"):
        ufm.training.watch(torch.nn.ReLU())
    with pytest.raises(InputError, match="Monitor for arrays"):
        watch.update(None, None, None)
    with pytest.raises(InputError, match="at least one batch"):
        watch.epoch()
    assert not net.fc._forward_hooks


def test_watching_modules_do_not_import_torch():
    script = "import sys, ufm.training.watch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_a_trained_network_is_seen_to_collapse_and_says_who_pays(tmp_path):
    """The road: train the usual way, watch, verify without a problem, ask for advice."""
    torch.manual_seed(0)
    counts = np.array([200] * 2 + [40] * 2)
    labels = torch.tensor(np.repeat(np.arange(4), counts))
    inputs = torch.randn(4, 20)[labels] * 2 + torch.randn(len(labels), 20) * 0.5
    body = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU()
    )
    model = torch.nn.Sequential(body, torch.nn.Linear(32, 4, bias=False))
    watch = ufm.training.watch(model[1], counts=counts)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-3)
    epochs = []
    for _ in range(150):
        for rows in torch.randperm(len(labels)).split(60):
            optimiser.zero_grad()
            with watch(labels[rows]):
                loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            loss.backward()
            optimiser.step()
        epochs.append(watch.epoch())
    assert epochs[-1]["NC1"] < 0.1 * epochs[0]["NC1"]
    assert epochs[-1]["accuracy"] > 0.99
    assert epochs[-1]["margin_median/head"] > epochs[-1]["margin_median/tail"]
    found = ufm.verify(features=body(inputs), labels=labels, weight=model[1].weight).estimate
    assert found["charge_from_margins"] > 0.3
    assert found["weight_decay"] == pytest.approx(2e-3, rel=0.5)
