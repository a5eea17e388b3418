"""Two processes of torch.distributed, each with its share of the batches: every one ends with the whole."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

SCRIPT = """
import json, sys
import torch
import ufm

rank, store = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
x, y = torch.randn(96, 5), torch.arange(96) % 4
watch, whole = ufm.training.watch(model[2]), ufm.training.watch(model[2])
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
for _ in range(2):
    for number, rows in enumerate(torch.arange(96).split(16)):
        if number % 2 == rank:
            with watch(y[rows]):
                model(x[rows])
        with whole(y[rows]):
            model(x[rows])
    watch.gather(torch.distributed)
    print(json.dumps([watch.epoch(), whole.epoch()]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    others = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in others:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        for line in out.splitlines():
            mine, whole = json.loads(line)
            assert mine == pytest.approx(whole, rel=1e-4, abs=1e-4, nan_ok=True)
        assert len(out.splitlines()) == 2
