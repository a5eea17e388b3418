"""How commands end: the exit code is the verdict, every output may fail, every signal gets one sentence."""

import os
import random
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("environment", "command", "hint"),
    [
        ({"JAX_PLATFORMS": "foo"}, ["solve", *SMALL, "--figure", "None"], "JAX_PLATFORMS must name devices"),
        ({"MPLBACKEND": "nonsense"}, ["solve", *SMALL], "MPLBACKEND must be a backend"),
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


def stopped(folder, number, after, command):
    """Exit code, stderr, seconds from the signal to the end, and what is left behind unfinished."""
    process = subprocess.Popen([*UFM, *command], cwd=folder, stdout=-1, stderr=-1, text=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    return process.returncode, said, time.monotonic() - began, list(folder.glob("*.partial"))


LONG = ["solve", "--level", "sample", "--tol", "1e-13", "--counts", "500x50,50x50", "--dim", "128"]
LONG += ["--figure", "None", "--save", "s.npz", "--checkpoint", "c.npz"]


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_in_the_imports_gets_one_sentence(number, word, tmp_path):
    code, said, _, left = stopped(tmp_path, number, 1.0, LONG)
    assert (code, said, left) == (128 + number, f"ufm: {word}\n", [])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_at_any_moment_gets_one_sentence(number, word, tmp_path):
    moments = random.Random(int(number))
    for i in range(100):
        folder = tmp_path / str(i)
        folder.mkdir()
        code, said, seconds, left = stopped(folder, number, moments.uniform(0.4, 5), LONG)
        assert (code, said, left) == (128 + number, f"ufm: {word}\n", [])
        assert seconds < 5
