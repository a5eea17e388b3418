"""How commands end: the exit code is the verdict, every output may fail, every signal gets one sentence."""

import ctypes
import errno
import functools
import itertools
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import ufm
from ufm.cli import main

UFM = [sys.executable, "-m", "ufm"]
SMALL = ["--counts", "45x2,5x2", "--dim", "6"]


def end(command, environment=None, **streams):
    """Exit code and stderr of a process of its own."""
    env = os.environ | (environment or {})
    done = subprocess.run(
        [*UFM, *command], stderr=subprocess.PIPE, text=True, env=env, check=False, **streams
    )
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.returncode, " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_the_exit_code_is_the_verdict_whatever_happens_to_the_output():
    reading, writing = os.pipe()
    os.close(reading)
    assert end(["predict", "--loss", "focal"], stdout=writing) == (1, "")
    assert end(["predict"], stdout=writing) == (0, "")
    assert end(["predict", "--help"], stdout=writing) == (0, "")
    os.close(writing)
    with open("/dev/full", "w") as full:
        code, said = end(["predict"], stdout=full)
    assert (code, said[:37]) == (1, "ufm: standard output cannot be writte")


@pytest.fixture
def layer(tmp_path, monkeypatch):
    """A working directory with a last layer and a sweep to run."""
    monkeypatch.chdir(tmp_path)
    np.savez("layer.npz", features=np.eye(4)[[0, 0, 1, 1]], labels=[0, 0, 1, 1], weight=np.eye(2, 4) - 0.5)
    (tmp_path / "a.toml").write_text(
        '[problem]\ncounts = "9x2,3"\ndim = 3\n[axes]\nnuclear_weight = [1e-3]\n'
    )
    return tmp_path


def injected(number, before=0):
    """A system call that fails but for the first times."""
    calls = itertools.count()

    def call(*arguments, **named):
        if next(calls) >= before:
            raise OSError(number, os.strerror(number))

    return call


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("flag", "number"),
    [
        ("solve --save s.npz", errno.ENOSPC),
        ("solve --checkpoint c.npz", errno.EDQUOT),
        slow("solve --figure f.png", errno.EIO),
        slow("verify layer.npz --figure f.pdf", errno.ENOSPC),
        slow("verify layer.npz --html f.html", errno.EROFS),
    ],
)
def test_a_full_disk_never_costs_the_answer(flag, number, layer, capsys, monkeypatch):
    before = sorted(layer.iterdir())
    quick = ["--counts", "9x2,3", "--dim", "3", *(["--figure", "None"] if "--figure" not in flag else [])]
    command = [*flag.split(), *(quick if flag.startswith("solve") else [])]
    monkeypatch.setattr(os, "fsync", injected(number))
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "property" in out
    assert err.startswith("ufm: ")
    assert os.strerror(number) in " ".join(err.split())
    assert sorted(layer.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1])
def test_a_full_disk_leaves_a_sweep_that_goes_on_or_nothing(before, layer, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", injected(errno.ENOSPC, before))
        assert main(["sweep", "a.toml", "--out", "out"]) == 1
    assert "No space left on device; batches" in " ".join(capsys.readouterr().err.split())
    assert (layer / "out").exists() == bool(before)
    assert not list(layer.rglob("*.partial"))
    assert main(["sweep", "a.toml", "--out", "out", *["--resume"][:before]]) == 0


@pytest.mark.parametrize("command", ["sweep a.toml --out out", "solve --checkpoint c.npz --figure None"])
def test_a_claim_that_cannot_be_written_is_found_first_and_leaves_nothing(
    command, layer, capsys, monkeypatch
):
    before = sorted(layer.iterdir())
    monkeypatch.setattr(os, "pwrite", injected(errno.ENOSPC))
    assert main(command.split()) == 2
    assert "No space left" in " ".join(capsys.readouterr().err.split())
    assert sorted(layer.iterdir()) == before


@pytest.fixture
def ordinary(monkeypatch):
    """A user whom modes bind: root is one, too, without two of its capabilities (of this thread)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("capabilities are Linux's")
    system, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert system.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~0b110  # to override modes, and to read whatever there is
    assert system.capset(header, sets) == 0
    monkeypatch.setattr(
        os, "access", functools.partial(os.access, effective_ids=True)
    )  # those of the process: root's
    yield
    sets[0] = effective
    assert system.capset(header, sets) == 0


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A stored sweep."""
    folder = tmp_path_factory.mktemp("sweeps")
    ufm.sweep({"counts": "9x2,3", "dim": 3}, {"nuclear_weight": [1e-3]}, out=folder / "out")
    return folder / "out"


#: Command, what its mode is taken from, and what is said; "." is where the command runs.
PERMISSIONS = {
    "verify layer.npz": ("layer.npz", "layer.npz may not be read: its permissions"),
    "advise --measured layer.npz": ("layer.npz", "layer.npz may not be read: its permissions"),
    "predict --targets layer.npz": ("layer.npz", "Permission denied"),
    "predict --counts counts.csv": ("counts.csv", "counts file counts.csv cannot be read"),
    "sweep a.toml --out new": ("a.toml", "a.toml cannot be read: Permission denied"),
    "sweep a.toml --out folder/new": ("folder", "folder/new cannot be a folder to write to"),
    "sweep a.toml --out folder": ("folder", "folder cannot be a folder to write to"),
    "sweep a.toml --out out --resume": ("out/claim.json", "claim.json cannot be written: Permission denied"),
    "figures out": ("out/sweep.json", "sweep.json cannot be read: Permission denied"),
    "figures out ": ("out/batches/00000.npz", "00000.npz cannot be read: Permission denied"),
    "figures out  ": ("out/batches", "batches cannot be read: Permission denied"),
    "solve --save folder/s.npz": ("folder", "folder/s.npz cannot be written there"),
    "solve --save layer.npz": ("layer.npz", "layer.npz cannot be written there"),
    "solve --figure folder/f.png": ("folder", "folder/f.png cannot be written there"),
    "solve --checkpoint folder/c.npz --figure None": ("folder", "c.npz.claim cannot be written: Permission"),
    "solve --checkpoint layer.npz --resume --figure None": ("layer.npz", "layer.npz may not be read"),
    "verify layer.npz --html folder/f.html": ("folder", "folder/f.html cannot be written there"),
    "verify layer.npz --figure folder/f.svg": ("folder", "folder/f.svg cannot be written there"),
}


@pytest.mark.parametrize("command", PERMISSIONS)
def test_what_may_not_be_used_is_not_called_damaged(command, sweeps, layer, ordinary, capsys):
    closed, hint = PERMISSIONS[command]
    shutil.copytree(sweeps, layer / "out")
    (layer / "folder").mkdir()
    (layer / "counts.csv").write_text("9\n3\n")
    before, mode = sorted(layer.rglob("*")), (layer / closed).stat().st_mode
    (layer / closed).chmod(0o500 if closed == "folder" else 0)
    try:
        assert main(command.split()) == 2
    finally:
        (layer / closed).chmod(mode)
    out, err = capsys.readouterr()
    said = " ".join(err.split())
    assert (out, said[:5]) == ("", "ufm: ")
    assert hint in said
    assert not re.search("damaged|delete|[.] .*[.]$", said)
    assert sorted(layer.rglob("*")) == before


@pytest.mark.parametrize(
    ("environment", "command", "hint"),
    [
        ({"JAX_PLATFORMS": "foo"}, ["solve", *SMALL, "--figure", "None"], "JAX_PLATFORMS must name devices"),
        ({"MPLBACKEND": "nonsense"}, ["solve", *SMALL], "MPLBACKEND must be a backend"),
        slow(
            {},
            [
                "solve",
                "--distributed",
                "--coordinator",
                "nohost",
                "--num-processes",
                "2",
                "--process-id",
                "0",
            ],
            "coordinator must be HOST:PORT of a machine that is found",
        ),
    ],
)
def test_what_the_environment_says_is_looked_at_first(environment, command, hint):
    code, said = end(command, environment)
    assert code == 2
    assert hint in said


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("predict --dim 1e3", "--dim must be an integer, got '1e3'"),
        ("predict --bias abc", "--bias must be {None}|FLOAT, got 'abc'"),
        ("predict --foo", "unrecognized options: --foo; see ufm predict --help"),
        ("frobnicate", "Available subcommands: predict, solve"),
        ("verify", "missing from ufm verify: PATH file (required)"),
        ("", "expected one of {predict"),
    ],
)
def test_the_parser_speaks_one_sentence(command, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert hint in " ".join(err.split())
    assert err.startswith("ufm: ")
    assert max(map(len, err.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["solve", "--dim", "10" + "0" * 18], "dim must be at most"),
        (["solve", "--dim", "2000000000", "--figure", "None"], "GB, and this machine has"),
        (["solve", "--counts", "1000000000000,5", "--level", "sample"], "try --level class"),
        (["solve", "--save", "x" * 300], "File name too long"),
        (["sweep", "a.toml", "--out", "y" * 300], "File name too long"),
        (["sweep", "a.toml", "--out", "file"], "cannot be a folder"),
        (["verify", "pipe"], "a pipe or a device"),
        (["verify", "bomb.npz"], "declares 8,000,000,000 bytes and has"),
        (["verify", "numbers.npz"], "features must be an array"),
        (["predict", "--targets", "bomb.npz"], "declares 8,000,000,000 bytes and has"),
        (["solve", "--counts", "balanced:K=1000000,n=3", "--figure", "None"], "1,000,000 logits need 8,00"),
        (["predict", "--counts", "balanced:K=1000000,n=3", "--noise", "0.1"], "contexts need 8,000 GB"),
        (["solve", "--checkpoint", "bomb.npz", "--resume"], "is not a whole checkpoint"),
        (["solve", "--checkpoint", "numbers.npz", "--resume"], "is not a whole checkpoint"),
        (["predict", "--counts", "missing.csv"], "there is no file missing.csv"),
        (["predict", "--counts", "file.txt"], "one count a line"),
    ],
)
def test_bad_places_sizes_and_files_are_found_first(command, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "file.txt").write_text("neither counts\nnor a list at all\n")
    (tmp_path / "a.toml").write_text("")
    os.mkfifo("pipe")
    np.savez(
        "numbers.npz", features=np.array(3.0), labels=np.array(1), weight=np.array(2.0), about=np.array(1)
    )
    with zipfile.ZipFile("bomb.npz", "w") as bomb, bomb.open("features.npy", "w") as array:
        form = {"descr": "<f8", "fortran_order": False, "shape": (10**9,)}
        np.lib.format.write_array_header_1_0(array, form)
    for name in ("labels", "weight"):
        with zipfile.ZipFile("bomb.npz", "a") as bomb:
            bomb.writestr(f"{name}.npy", bomb.read("features.npy"))
    assert main(command) == 2
    assert hint in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.toml",
        "bomb.npz",
        "file",
        "file.txt",
        "numbers.npz",
        "pipe",
    ]


@pytest.mark.parametrize(
    ("axis", "hint"),
    [
        ("nuclear_weight = {start=1e-3, stop=1e-2, num=1000000000}", "num must be at most 10000000"),
        (
            "nuclear_weight = {start=1e-3, stop=1e-2, num=3000000}\n"
            "seed = {start=1, stop=3000000, num=3000000, integer=true}",
            "axes must span at most 10000000 members",
        ),
        ("nuclear_weight = [1e-3]\nlearning_rate = [0.1, 0.2]", "accelerated chooses its own step"),
        ("nuclear_weight = {start=1e-3, stop=inf, num=3}", "finite numbers as start and stop"),
        ('"status" = [{seed=1},{seed=2}]', "the data set uses it itself"),
        ('"objective" = [{seed=1},{seed=2}]', "the data set uses it itself"),
        ('"" = [{seed=1},{seed=2}]', "axis must have a name"),
        ('".." = [{seed=1},{seed=2}]', "axis must have a name"),
        ('"a\\u0000b" = [{seed=1},{seed=2}]', "axis must have a name"),
        (f'"{"a" * 300}" = [{{seed=1}},{{seed=2}}]', "axis must have a name"),
        ("seed = [1, 99999999999999999999999]", "below 2^63"),
        (f"seed = {'[' * 3000}{']' * 3000}", "nested"),
    ],
)
def test_axes_that_cannot_be(axis, hint, capsys, tmp_path):
    config = tmp_path / "a.toml"
    config.write_text(f'[problem]\ncounts = "50x2,5x2"\ndim = 6\n[axes]\n{axis}\n')
    assert main(["sweep", str(config), "--out", str(tmp_path / "out")]) == 2
    assert hint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


LONG = {
    "solve": "solve --level sample --tol 1e-13 --counts 500x50,50x50 --dim 128 --figure None --save s.npz "
    "--checkpoint c.npz",
    "sweep": "sweep ../long.toml --out out",
    "verify": "verify ../large.npz --figure f.png --html f.html",
}
SIGNALS = {signal.SIGINT: "ufm: interrupted\n", signal.SIGTERM: "ufm: terminated\n"}


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """A folder with a sweep and a layer that keep a command busy for longer than these tests wait."""
    folder, labels = tmp_path_factory.mktemp("signalled"), np.repeat(np.arange(200), 100)
    features = np.abs(np.eye(200, 256)[labels] + 0.1 * np.random.default_rng(0).normal(size=(20_000, 256)))
    np.savez(folder / "large.npz", features=features, labels=labels, weight=np.eye(200, 256) - 1 / 200)
    (folder / "long.toml").write_text(
        '[problem]\ncounts = "50x5,5x5"\ndim = 12\nweight_decay = 5e-3\nfeature_decay = 1e-4\n'
        "[sweep]\nbatch_size = 10\n"
        "[axes]\nseed = {start = 1, stop = 5000, num = 5000, integer = true}\n"
    )
    return folder


def processor_seconds(process):
    """What a process has used, of all its threads; infinite when it has ended."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return math.inf if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def minds_signals(process):
    """Whether the handler of SIGTERM is there: an interpreter that has not come to our first line has none."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def stopped(folder, number, moment, command):
    """Exit code, stderr, processor seconds from the signal to the end, and what is left behind unfinished.

    The signal comes when the process has used ``moment`` seconds of processor: on a busy machine, too, at any moment.
    """
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    process = subprocess.Popen([*UFM, *command.split()], cwd=folder, stdout=-1, stderr=-1, text=True)
    while (used := processor_seconds(process)) < moment or not minds_signals(process):
        time.sleep(0.003)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before - used
    left = [path for path in folder.rglob("*") if path.suffix in (".partial", ".claim")]
    return process.returncode, said, seconds, left


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="moments are counted in processor time")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_imports_gets_one_sentence(number, tmp_path):
    code, said, _, left = stopped(tmp_path, number, 0.4, LONG["solve"])
    assert (code, said, left) == (128 + number, SIGNALS[number], [])


#: Of each signal and command; by hand more: `MOMENTS=50 pytest -m slow -k any_moment`.
MOMENTS = int(os.environ.get("MOMENTS", "6"))


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="moments are counted in processor time")
@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", LONG)
def test_a_signal_at_any_moment_gets_one_sentence(command, number, signalled):
    moments = random.Random(f"{command} {int(number)}")
    for i in range(MOMENTS):
        folder = signalled / f"{command}-{int(number)}-{i}"
        folder.mkdir()
        code, said, seconds, left = stopped(folder, number, moments.uniform(0, 4), LONG[command])
        assert (code, said, left) == (128 + number, SIGNALS[number], [])
        assert seconds < 2
