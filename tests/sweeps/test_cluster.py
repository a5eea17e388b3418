"""Sweeps on workers of `dask.distributed`, real processes here: the data set of one process, whoever dies."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

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
axes = { nuclear_weight = { start = 1e-3, stop = 1e-1, num = 960, spacing = "log" } }
sweep = { batch_size = 8 }
"""


class Here:
    """A client whose workers are this process, which does the tasks when it is asked what they returned."""

    def __init__(self):
        self.cancelled = 0

    def submit(self, function, *arguments, pure, workers=("a", "b", "c", "d"), **options):
        return Promise(self, function, arguments, workers[0])

    def nthreads(self):
        return dict.fromkeys(("a", "b", "c", "d"), 1)

    def cancel(self, futures):
        self.cancelled += len(futures)


class Promise:
    def __init__(self, client, *work):
        self.client, self.work = client, work

    def result(self):
        function, arguments, worker = self.work
        given = [each.result() if isinstance(each, Promise) else each for each in arguments]
        self.client.worker = worker
        return function(*given)


class Ends(list):
    add = list.append


@pytest.fixture
def here(monkeypatch):
    """Tasks are done in this process, in the order in which workers would begin them."""
    import distributed

    client = Here()
    monkeypatch.setattr(distributed, "as_completed", Ends)
    monkeypatch.setattr(distributed, "get_worker", lambda: types.SimpleNamespace(address=client.worker))
    return client


@pytest.fixture(scope="module")
def alone():
    return ufm.sweep(FIXED, AXES, **BATCHES)


@pytest.mark.slow
def test_tasks_give_the_data_set_of_one_process(alone, here, tmp_path):
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=here, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    xr.testing.assert_identical(ufm.sweep(FIXED, AXES, client=here, **BATCHES), alone)
    assert here.cancelled == 2  # nothing is left but the grid
    (tmp_path / "out" / "batches" / "00003.npz").unlink()
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=here, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    with pytest.raises(ufm.InputError, match="process_count must be 1 where a client"):
        ufm.sweep(FIXED, AXES, client=here, process_count=2)


def test_the_longest_begin_first(here, monkeypatch):
    begun = []
    grid = make_grid({"counts": "9x4", "nuclear_weight": 1e-3}, {"dim": [4, 40, 9]})

    def do(task, grid):
        begun.append(task.number)
        return task.number, None, []

    monkeypatch.setattr(Work, "do", do)
    tasks = [Work(number, batch, False, None, "") for number, batch in enumerate(plan(grid, 4).batches)]
    cluster.run_on(here, grid, tasks, lambda *_: None)
    assert begun == [1, 2, 0]


@pytest.mark.parametrize(("bad", "tries"), [("a", "ab"), ("ab", "abc"), ("abc", "abc")])
def test_what_fails_on_a_worker_is_tried_on_two_others(here, bad, tries, monkeypatch):
    seen, told, done = [], [], []
    grid = make_grid({"counts": "9x4", "dim": 4, "nuclear_weight": 1e-3}, {})

    def do(task, grid):
        seen.append(here.worker)
        if here.worker in bad:
            raise OSError(f"disk of {here.worker} is full")
        return task.number, None, []

    monkeypatch.setattr(Work, "do", do)
    work = Work(7, plan(grid, 4).batches[0], False, None, "")
    with pytest.raises(OSError, match="disk of c is full") if bad == "abc" else contextlib.nullcontext():
        cluster.run_on(here, grid, [work], lambda number, *_: done.append(number), told.append)
    assert "".join(seen) == tries
    assert done == [7] * (bad != "abc")
    assert told == [f"{who} failed, others try instead: disk of {who} is full" for who in tries[:-1]]
    assert here.cancelled == 1


def test_a_worker_of_another_version_is_refused(here):
    grid = make_grid({"counts": "9x4", "dim": 4, "nuclear_weight": 1e-3}, {})
    work = Work(0, plan(grid, 4).batches[0], False, None, "other")
    with pytest.raises(ufm.InputError, match=r"has ufm .* and the client other; install the same"):
        cluster.run_on(here, grid, [work], lambda *_: None)


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
    with connected(4, None) as client:
        client.wait_for_workers(4)
        yield client


def one_of(client):
    return [min(client.nthreads())]


def another_version():
    import ufm.sweeps.cluster as there

    metadata = types.SimpleNamespace(version=lambda name: "0.0.1")
    there.importlib = types.SimpleNamespace(metadata=metadata)


def the_same_version():
    import importlib

    import ufm.sweeps.cluster as there

    there.importlib = importlib


def full_disk():
    import ufm.inputs.files as there

    def fsync(file):
        raise OSError(28, "No space left on device")

    there.os = types.SimpleNamespace(**vars(os) | {"fsync": fsync})


def empty_disk():
    import ufm.inputs.files as there

    there.os = os


def death_before_renaming():
    import ufm.inputs.files as there

    there.os = types.SimpleNamespace(
        **vars(os) | {"fsync": lambda file: os.kill(os.getpid(), signal.SIGKILL)}
    )


@pytest.mark.slow
def test_workers_give_the_data_set_of_one_process(alone, client, tmp_path):
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    xr.testing.assert_identical(ufm.sweep(FIXED, AXES, client=client, **BATCHES), alone)


@pytest.mark.slow
def test_a_worker_killed_in_mid_batch_is_made_up_for(alone, client, tmp_path):
    (victim,) = one_of(client)
    client.run(death_before_renaming, workers=[victim])
    for _ in range(20):  # until it is dealt a batch: with few and short ones it may come away empty
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, **BATCHES)
        xr.testing.assert_identical(found.load(), alone)
        if victim not in client.nthreads():
            break
    assert len(list((tmp_path / "out").rglob("*.partial"))) == 1  # half a batch of the dead
    client.wait_for_workers(4)
    assert victim not in client.nthreads()
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", client=client, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "mend", "sentence"),
    [
        (full_disk, empty_disk, "No space left on device; batches written before are kept"),
        (another_version, the_same_version, "has ufm 0.0.1 and the client .*; install the same"),
    ],
)
def test_a_fault_of_one_worker_is_overcome_and_of_all_is_said(
    fault, mend, sentence, alone, client, tmp_path, capsys
):
    (faulty,) = one_of(client)
    client.run(fault, workers=[faulty])
    said = ""
    for attempt in range(20):  # until it is dealt a batch
        out = tmp_path / f"out{attempt}"
        found = ufm.sweep(FIXED, AXES, out=out, client=client, progress=True, **BATCHES)
        xr.testing.assert_identical(found.load(), alone)
        said = " ".join(capsys.readouterr().err.split())
        if said.count("failed, others"):
            break
    assert len(re.findall(f"{faulty} failed, others try instead: .*{sentence}", said)) == 1
    client.run(fault)
    with pytest.raises((CheckpointError, ufm.InputError), match=sentence):
        ufm.sweep(FIXED, AXES, out=tmp_path / "other", client=client, **BATCHES)
    client.run(mend)
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "other", client=client, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), alone)


@contextlib.contextmanager
def dask(folder):
    """Yield the address of a scheduler in a process of its own, with four workers; and the processes of both."""
    port = folder / "scheduler.json"
    port.unlink(missing_ok=True)
    where = ["--scheduler-file", str(port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*begin, "--no-dashboard", *where], **silent)
    begin = [sys.executable, "-m", "distributed.cli.dask_worker", "--nworkers", "4", "--nthreads", "1"]
    workers = subprocess.Popen([*begin, "--no-dashboard", *where], **silent, start_new_session=True)
    try:
        while not port.exists():
            time.sleep(0.1)
        yield json.loads(port.read_text())["address"], scheduler, workers
    finally:
        scheduler.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
        scheduler.wait()
        workers.wait()


def begun(command, out, **options):
    """Start a sweep and wait until it has written a few batches."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    while len(list((out / "batches").glob("0*.npz"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    return process


def gone(group):
    """Return whether all processes of a group end by themselves within a minute."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def completed(command, config, out):
    """Resume a sweep; its data set must be that of one process."""
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    xr.testing.assert_identical(open_dataset(out).load(), run_config(config, out.parent / "alone").load())


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_a_killed_scheduler_is_said_and_resumed_and_a_second_client_is_refused(config, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", CLI, "sweep", str(config), "--out", str(out), "--scheduler"]
    with dask(tmp_path) as (address, scheduler, workers):
        first = begun([*command, address], out)
        os.killpg(workers.pid, signal.SIGSTOP)  # however quick they are, something is left to resume
        second = subprocess.run([*command, address, "--resume"], capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"is in use: process {first.pid}" in " ".join(second.stderr.split())
        scheduler.kill()
        said = " ".join(first.communicate()[1].split())
    assert first.returncode == 1
    assert said.endswith("the scheduler was lost; batches written before are kept, go on with --resume")
    before = len(list((out / "batches").glob("0*.npz")))
    with dask(tmp_path) as (address, *_):
        completed([*command, address], config, out)
    assert before < len(list((out / "batches").glob("0*.npz")))


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["killed", "interrupted"])
def test_a_sweep_that_is_ended_with_its_workers_resumes(ended, config, tmp_path):
    """Killed as by a machine that goes down, interrupted as by Ctrl-C, which reaches the workers as well."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", CLI, "sweep", str(config), "--out", str(out), "--workers", "4"]
    first = begun(command, out, start_new_session=True)
    os.killpg(first.pid, signal.SIGKILL if ended == "killed" else signal.SIGINT)
    said = first.communicate()[1]
    if ended == "interrupted":
        assert first.returncode == 130
        assert said.strip() == "ufm: interrupted"
        assert gone(first.pid)
        assert not list(out.rglob("*.partial"))
        assert json.loads((out / "claim.json").read_text())["holders"] == []
    before = len(list((out / "batches").glob("0*.npz")))
    completed(command, config, out)
    assert before < len(list((out / "batches").glob("0*.npz")))
