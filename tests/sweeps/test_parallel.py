"""Sweeps on several devices and in several processes give the data set of one device in one process."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from helpers.devices import with_devices

import ufm
from ufm.sweeps import open_dataset, run_config

FIXED = {"counts": "step:K=4,n_max=40", "dim": 6}
AXES = {"counts.ratio": [1.0, 4.0, 10.0], "nuclear_weight": np.geomspace(1e-3, 1e-1, 13).tolist()}
SHARDED = """
import sys
import jax
import ufm
from ufm.solvers.batch import Many
spread = set()
advance = Many.advance
def watched(self, steps):
    spread.add((len(self.points.weight.sharding.device_set), len(self.points.weight) % 4))
    advance(self, steps)
Many.advance = watched
ufm.sweep({fixed!r}, {axes!r}, out=sys.argv[1])
assert len(jax.devices()) == 4 and spread == {{(4, 0)}}, spread
"""
CONFIG = """
problem = { counts = "step:K=4,n_max=40", dim = 6 }
axes = { "counts.ratio" = [1, 4, 10], nuclear_weight = { start = 1e-3, stop = 1e-1, num = 8, spacing = "log" } }
sweep = { batch_size = 4 }
"""
CLI = "import sys; from ufm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def alone():
    return ufm.sweep(FIXED, AXES)


@pytest.mark.slow
def test_four_devices_give_the_data_set_of_one(alone, tmp_path):
    script = SHARDED.format(fixed=FIXED, axes=AXES)
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(command, env=with_devices(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = open_dataset(tmp_path / "out").load()
    assert found.certified.values.all()
    assert found.sizes == alone.sizes
    for name, mine in found.data_vars.items():
        if mine.dtype.kind in "biuO":  # statuses, steps, escapes, who has collapsed
            np.testing.assert_array_equal(mine, alone[name], err_msg=name)
    for name in ("objective", "lower_bound", "predicted_margins"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-12, err_msg=name)
    for name in ("norms", "weight_norms", "margins"):
        np.testing.assert_allclose(found[name], alone[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_at_once_fill_one_data_set(tmp_path):
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(CONFIG)
    command = [sys.executable, "-c", CLI, "sweep", str(config), "--out", str(out), "--process-count", "2"]
    processes = [
        subprocess.Popen([*command, "--process-index", str(index)], env=with_devices(1)) for index in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    found = open_dataset(out).load()
    assert not np.any(found.status == "missing")
    xr.testing.assert_identical(found, run_config(config, tmp_path / "alone").load())
