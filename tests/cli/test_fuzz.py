"""Command lines put together at random: right values, wrong ones, and ones that are right only elsewhere.

Every value is marked. With a wrong one the answer is one sentence, exit code 2, and nothing else; without, the exit
code is the verdict that the printed JSON gives. Nothing takes long, nothing takes much memory.
"""

import contextlib
import io
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from ufm.cli import main

SOUND, WRONG = True, False
NUMBERS_WRONG = ["-1", "0", "nan", "inf", "-inf", "1e400", "abc", "", "1,2", "0x1p-3", "--", "None", "٣x"]
INTEGERS_WRONG = ["-1", "0", "1e3", "2.5", "abc", "", "nan", "1" + "0" * 19, "9" * 5000]
COUNTS = ["9x2,3x2", "20,9,3", "step:K=3,n_max=20,ratio=4", "counts.csv"]
COUNTS_WRONG = [
    *[
        "",
        ",",
        "5",
        "0,5",
        "-5,5",
        "5x",
        "x5",
        "5y5",
        "exp",
        "exp:K=0",
        "exp:K=3",
        "step:K=3,n_max=inf,ratio=2",
    ],
    *[
        "imagenet",
        "missing.csv",
        "folder",
        "layer.npz",
        "10x99999999999999",
        "1e400,5",
        "5.5.5,1",
        "\x00",
        "a" * 4000,
    ],
    *[
        "pareto:K=1000000000000,N=5,n_max=3,n_min=1",
        "balanced:K=3,n=1" + "0" * 30,
        "damaged.json",
        "/dev/zero",
    ],
]
LOSSES = ["ce", "smoothing:0.1", "mse", "bce", "focal:2", "ldam:0.5", "poly1:1", "weighted:0.5"]
LOSSES_WRONG = [
    "hinge",
    "",
    ":",
    "smoothing:",
    "smoothing:1.5",
    "smoothing:nan",
    "focal:-1",
    "weighted:inf",
    "ldam:x",
]
PLACES_WRONG = ["folder", "missing/x.npz", "x" * 300, "a\x00b", "/proc/x.npz"]
DECAYS = ["5e-2", "1e-2", "2.5e-3", "1e-3"]
#: Right, but beyond what can be computed with: any exit code, and one sentence.
EXTREME = [
    "1e-300",
    "1e-160",
    "1e-60",
    "1e60",
    "1e160",
    "1e300",
    "weighted:1e300",
    "ldam:1e300",
    "smoothing:1e-300",
]

#: Of every flag: values that are right, and values that never are.
PROBLEM = {
    "counts": (COUNTS, COUNTS_WRONG),
    "dim": (["4", "6"], INTEGERS_WRONG),
    "weight-decay": ([*DECAYS, *EXTREME[:6]], NUMBERS_WRONG),
    "feature-decay": ([*DECAYS, *EXTREME[:6]], NUMBERS_WRONG),
    "loss": ([*LOSSES, *EXTREME[6:]], LOSSES_WRONG),
    "features": (["nonnegative", "free"], ["gelu", "", "Free", "0"]),
    "bias": (["None", "0", "1e-2"], ["-1", "nan", "inf", "abc", "", "1e400"]),
}
TARGETS_WRONG = [
    "noise",
    "noise:",
    "noise:1",
    "pair:-1",
    "mixup:0",
    "mixup:nan",
    "mixup:1e400",
    "confusion:0.1",
    "",
]
TARGETS_WRONG += ["missing.npz", "layer.npz", "damaged.npz", "/dev/zero", "a\x00b.npz", "folder"]
#: One of them in the place of labels; not with losses that need these.
SOFT = {
    "targets": (["noise:0.2", "pair:0.1", "None"], TARGETS_WRONG),
    "noise": (["0.1", "None"], ["-0.1", "1", "nan", "abc", "", "1e400"]),
}
JSON = {"json": ([None], [])}
SOLVER = {
    "level": (["class", "sample"], ["batch", "", "3"]),
    "seed": (["0", "3"], ["-1", "1e3", "abc", "", "None"]),
    "tol": (["1e-6", "1e-8"], [*NUMBERS_WRONG, "1", "10"]),
    "max-steps": (["1", "500"], INTEGERS_WRONG),
    "solver": (["accelerated"], ["newton", "", "3"]),
    "precision": (["float64"], ["float16", "", "double"]),
    "figure": (["None"], ["x.jpg", "missing/x.png", "folder", "x" * 300 + ".png"]),
    "style": (["paper", "screen"], ["poster", ""]),
    "panel": (["None", "a"], []),
    "save": (["None", "s.npz"], PLACES_WRONG),
    "learning-rate": ([], ["0.1", "-1", "nan", "abc"]),
    "num-processes": ([], ["2", "abc"]),
    "foo": ([], ["1"]),
}
FLAGS = {
    "predict": PROBLEM | SOFT | JSON,
    "solve": PROBLEM | SOFT | SOLVER | JSON,
    "verify": {
        "tol": (["1e-3"], [*NUMBERS_WRONG[:6], "1", "10"]),
        "tolerance": (["0.1", "0.5"], [*NUMBERS_WRONG[2:8], "-1", "1"]),
        "loss": (["ce"], LOSSES_WRONG),
        "figure": (["None"], ["x.jpg", "missing/x.png", "folder"]),
        "html": (["None"], ["x.pdf", "missing/x.html", "folder"]),
        "counts": ([], COUNTS_WRONG),
        "weight-decay": ([], NUMBERS_WRONG),
        "charge": (["0", "1", "0.5"], ["nan", "inf", "abc", "sample"]),
    }
    | JSON,
    "advise": {name: PROBLEM[name] for name in ("counts", "weight-decay", "feature-decay")}
    | {
        "batch-size": ([], INTEGERS_WRONG),
        "loss": ([], LOSSES),
        "measured": ([], ["missing.npz", "folder", "damaged.json"]),
    }
    | JSON,
    "sweep": {
        "process-index": (["0"], ["-1", "1", "abc", "1e3"]),
        "process-count": (["1"], ["-1", "0", "abc", "2.5"]),
        "out": ([], ["damaged.json", "y" * 300, "a\x00b", "/proc/x", "folder"]),
    }
    | JSON,
    "figures": {"format": (["png"], ["jpg", "", "3"])} | JSON,
}
#: What stands where a flag has no name.
FILES = {
    "verify": (["layer.npz"], ["missing.npz", "damaged.json", "folder", "/dev/zero", "a\x00b", "onehot.npz"]),
    "sweep": (
        [],
        ["missing.toml", "damaged.json", "folder", "wrong.toml", "layer.npz", "/dev/zero", "a\x00b"],
    ),
    "figures": ([], ["missing", "folder", "layer.npz", "a\x00b"]),
}
#: The files of the place where commands run: their names above say what is wrong with them.
LAYER = {"features": np.eye(3, 4)[[0, 0, 1, 1, 2]] + 0.1, "labels": np.array([0, 0, 1, 1, 2])}
LAYER |= {"weight": np.eye(3, 4) - 1 / 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "folder").mkdir()
    (folder / "folder" / "important.txt").write_text("not a sweep")
    (folder / "counts.csv").write_text("class,count\ncat,20\ndog,9\nemu,3\n")
    (folder / "damaged.json").write_text('{"a": [1, ')
    (folder / "wrong.toml").write_text('[problem]\ncounts = "9x2"\n[axes]\nnuclear_wieght = [1e-3]\n')
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(folder / "layer.npz", **LAYER)
    np.savez(folder / "onehot.npz", **LAYER | {"labels": np.eye(3)[LAYER["labels"]]})
    return folder


def command_line(draw):
    """A command line, and whether all that it says is right."""
    command = draw.choice([*["solve"] * 3, *FLAGS])
    sound, line = SOUND, [command]
    wanted = draw.random() < 0.4 or command in ("sweep", "figures")  # a right one is wanted
    if command in FILES:
        right, wrong = FILES[command]
        value = draw.choice(right if wanted and right else [*right, *wrong])
        sound, line = value in right, [*line, value]
    names = draw.sample(sorted(FLAGS[command]), draw.randint(0, min(5, len(FLAGS[command]))))
    if command == "solve":  # small ones of two shapes; figures are drawn in tests of their own
        names = sorted({*names, "figure", "counts", "dim"})
    if command == "advise" and {"weight-decay", "feature-decay"} & {*names}:  # one alone is refused
        names = sorted({*names, "weight-decay", "feature-decay"})
    for name in names:
        right, wrong = FLAGS[command][name]
        among = right if wanted or name == "figure" else [*right, *wrong]
        if among:
            value = draw.choice(among)
            sound &= value in right
            line += [f"--{name}"] if value is None else [f"--{name}", value]
    if command == "sweep" and "--out" not in line:
        line += ["--out", "out"]
    return line, sound and goes_together(line)


def goes_together(line):
    """Whether targets are given once, and with a loss that has no use for labels."""
    given = dict(itertools.pairwise(line))
    soft = [given[flag] for flag in ("--targets", "--noise") if given.get(flag, "None") != "None"]
    return not soft or (len(soft) == 1 and given.get("--loss", "ce").startswith(("ce", "weighted")))


def captured(line):
    """Exit code, standard output and standard error of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def check(line, sound, code, out, err):
    """One line, one verdict."""
    shown = [part[:60] for part in line]
    codes = (2,) if not sound else (0, 1, 2) if set(line) & set(EXTREME) else (0, 1)
    assert code in codes, (shown, code, out[:500], err)
    assert "Traceback" not in err, shown
    assert "Warning" not in err, shown
    if code == 2:
        assert out == "", shown
        assert err.startswith("ufm: "), (shown, err)
        assert len(err) < 1500, (shown, err)
        return
    assert out, shown
    if "--json" in line:
        said = json.loads(out, parse_constant=refuse)
        verdict = {
            "solve": lambda: said["status"] == "certified" and said["report"]["passed"],
            "verify": lambda: said["passed"],
            "predict": lambda: "closed_form" not in said,
            "advise": lambda: code == 0,
        }[line[0]]
        assert (code == 0) == verdict(), shown


def run_lines(seeds, place, monkeypatch, run=captured):
    monkeypatch.chdir(place)
    sound_ones = 0
    most = peak_memory()
    for seed in seeds:
        line, sound = command_line(random.Random(seed))
        began = time.process_time()
        check(line, sound, *run(line))
        assert time.process_time() - began < 60, (
            line
        )  # of processor time; the usual is a twentieth of a second
        sound_ones += sound
        (place / "s.npz").unlink(missing_ok=True)
        assert not list(place.glob("*.partial")), line
        assert not (place / "out").exists(), line
    assert 0.2 * len(seeds) < sound_ones < 0.8 * len(seeds)
    assert peak_memory() < 2 * 2**20 + most


def peak_memory():
    """The most that this process has held, in kilobytes: what ran before counts."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_some_command_lines(place, monkeypatch):
    run_lines(range(12), place, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_two_thousand_command_lines(first, place, monkeypatch):
    run_lines(range(first, first + 250), place, monkeypatch)


@pytest.mark.slow
def test_command_lines_as_processes(place, monkeypatch):
    def apart(line):
        with_nul = any("\x00" in part for part in line)
        if with_nul:  # no process can be given one
            return captured(line)
        done = subprocess.run(
            [sys.executable, "-m", "ufm", *line], capture_output=True, text=True, check=False, env=os.environ
        )
        return done.returncode, done.stdout, done.stderr

    run_lines(range(5000, 5030), place, monkeypatch, apart)
