"""Sweeps on workers of `dask.distributed`, real processes here: the data set of one process, whoever dies."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import ufm
from ufm.inputs.checks import CheckpointError
from ufm.sweeps import cluster, open_dataset, run_config
from ufm.sweeps.cluster import Work, connected
from ufm.sweeps.grid import make_grid
from ufm.sweeps.plan import plan

FIXED = {"counts": "step:K=4,n_max=40", "dim": 6}
AXES = {"counts.ratio": [1.0, 4.0, 10.0], "nuclear_weight": np.geomspace(1e-3, 1e-1, 13).tolist()}
BATCHES = {"batch_size": 4}
CLI = "import sys; from ufm.cli import main; sys.exit(main(sys.argv[1:]))"
CONFIG = """
problem = { counts = "step:K=4,n_max=40,ratio=4", dim = 6 }
axes = { nuclear_weight = { start = 1e-3, stop = 1e-1, num = 1200, spacing = "log" } }
sweep = { batch_size = 8 }
"""


class Here:
    """A client whose workers are this process, which does the tasks when it is asked what they returned."""

    def __init__(self):
        self.cancelled = 0

    def submit(self, function, *arguments, retries, pure):
        return lambda: function(*arguments)

    def cancel(self, futures):
        self.cancelled += len(futures)


@pytest.fixture
def here(monkeypatch):
    """Tasks are done in this process, in the order in which workers would begin them."""
    import distributed

    def as_completed(futures):
        for future in futures:
            yield type("Done", (), {"result": staticmethod(future)})

    monkeypatch.setattr(distributed, "as_completed", as_completed)
    return Here()


@pytest.fixture(scope="module")
def alone():
    return ufm.sweep(FIXED, AXES, **BATCHES)


def test_tasks_give_the_data_set_of_one_process(alone, here, tmp_path):
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=here, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    xr.testing.assert_identical(ufm.sweep(FIXED, AXES, client=here, **BATCHES), alone)
    assert here.cancelled == 20
    (tmp_path / "out" / "batches" / "00003.npz").unlink()
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=here, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    assert here.cancelled == 21
    with pytest.raises(ufm.InputError, match="process_count must be 1 where a client"):
        ufm.sweep(FIXED, AXES, client=here, process_count=2)


def test_the_longest_begin_first(here):
    begun = []
    grid = make_grid({"counts": "9x4", "nuclear_weight": 1e-3}, {"dim": [4, 40, 9]})

    class Watched(Here):
        def submit(self, function, task, **options):
            begun.append(task.number)
            return super().submit(function, task, **options)

    batches = plan(grid, 4).batches
    tasks = [Work(grid, number, batch, False, None, "other") for number, batch in enumerate(batches)]
    with pytest.raises(ufm.InputError, match=r"has ufm .* and the client other; install the same"):
        cluster.run_on(Watched(), tasks, lambda *_: None)
    assert begun == [1, 2, 0]


def test_what_cannot_work_is_said():
    both = pytest.raises(
        ufm.InputError, match="workers = 2 are started here, scheduler = tcp://x has its own"
    )
    with both, connected(2, "tcp://x"):
        pass
    with connected(None, None) as client:
        assert client is None


@pytest.fixture(scope="module")
def client():
    with connected(2, None) as client:
        yield client


@pytest.mark.slow
def test_workers_give_the_data_set_of_one_process(alone, client, tmp_path):
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    xr.testing.assert_identical(ufm.sweep(FIXED, AXES, client=client, **BATCHES), alone)


@pytest.mark.slow
def test_a_killed_worker_s_batches_are_computed_again(alone, client, tmp_path, monkeypatch):
    pids = client.run(os.getpid)
    killed = []
    run_on = cluster.run_on

    def and_kill(client, tasks, done):
        def once(*outcome):
            if not killed:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)
            done(*outcome)

        run_on(client, tasks, once)

    monkeypatch.setattr(cluster, "run_on", and_kill)
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    assert killed
    client.wait_for_workers(2)


@pytest.mark.slow
def test_a_full_disk_on_a_worker_is_said_or_overcome(alone, client, tmp_path):
    def fill(dask_worker, full):
        import ufm.sweeps.sealed as sealed

        def fsync(file):
            raise OSError(28, "No space left on device")

        sealed.os = type(
            "System", (), {"fsync": staticmethod(fsync if full else os.fsync), "fstat": os.fstat}
        )

    client.run(fill, full=True)
    with pytest.raises(CheckpointError, match="No space left on device; batches written before are kept"):
        ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, **BATCHES)
    client.run(fill, full=False)
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)


@pytest.mark.slow
def test_a_killed_cluster_resumes_and_a_second_client_is_refused(tmp_path):
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(CONFIG)
    command = [sys.executable, "-c", CLI, "sweep", str(config), "--out", str(out), "--workers", "2"]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while len(list((out / "batches").glob("0*.npz"))) < 3 and first.poll() is None:
        time.sleep(0.01)
    with pytest.raises(ufm.InputError, match=f"is in use: process {first.pid}"):
        run_config(config, out, resume=True)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert len(list((out / "batches").glob("0*.npz"))) < 150
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    xr.testing.assert_identical(open_dataset(out).load(), run_config(config, tmp_path / "alone").load())
