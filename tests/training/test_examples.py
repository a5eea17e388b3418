"""The examples of notebook 05 for Lightning, TensorBoard and W&B: run with stand-ins that call as these do."""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

import ufm

torch = pytest.importorskip("torch")
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "05_your_own_network.ipynb"
CALLBACK, LOOP = re.findall(
    r"```python\n(.*?)```",
    "\n".join(
        cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown"
    ),
    flags=re.DOTALL,
)


@pytest.fixture
def training():
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.body(x).relu())

    model = Net()
    loader = [(torch.randn(16, 5), torch.arange(16) % 3) for _ in range(4)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    return SimpleNamespace(model=model, loader=loader, optimiser=optimiser)


@pytest.mark.slow
def test_the_callback_logs_every_epoch(training):
    names = {"lightning": SimpleNamespace(Callback=object), "ufm": ufm}
    exec(CALLBACK, names)
    callback, logged = names["Watching"](), []
    module = SimpleNamespace(fc=training.model.fc, log_dict=logged.append)
    callback.on_train_start(None, module)
    for _ in range(2):
        for index, batch in enumerate(training.loader):
            callback.on_train_batch_start(None, module, batch, index)
            training.model(batch[0])
            callback.on_train_batch_end(None, module, None, batch, index)
        callback.on_train_epoch_end(None, module)
    assert [values["samples"] for values in logged] == [64, 64]
    assert not training.model.fc._forward_hooks


def test_the_loop_feeds_both_loggers(training):
    runs, scalars = [], []
    names = vars(training) | {
        "ufm": ufm,
        "epochs": 2,
        "criterion": torch.nn.functional.cross_entropy,
        "run": SimpleNamespace(log=lambda values, step: runs.append((step, values))),
        "writer": SimpleNamespace(add_scalar=lambda *scalar: scalars.append(scalar)),
    }
    exec(LOOP, names)
    assert [step for step, _ in runs] == [0, 1]
    assert scalars[-1][2] == 1
    assert {name for name, *_ in scalars} == set(runs[0][1])
    assert np.isfinite(runs[1][1]["NC1"])
