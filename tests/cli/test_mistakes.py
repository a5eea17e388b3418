"""What a newcomer gets wrong: every mistake ends in one sentence that says what to do next, before any work."""

import sys

import numpy as np
import pytest

from ufm.cli import main

LAYER = {
    "features": np.eye(4, 3) + 0.5,
    "labels": np.array([0, 0, 1, 1]),
    "weight": np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]),
}
SWEEP = '[problem]\ncounts = "50x2,5x2"\ndim = 6\n[axes]\nnuclear_weight = [1e-3, 2e-3]\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with a few files that are nearly right."""
    monkeypatch.chdir(tmp_path)
    np.savez("names.npz", x=LAYER["features"], y=LAYER["labels"])
    np.savez("transposed.npz", **(LAYER | {"features": np.ones((4, 2)), "weight": np.ones((3, 2)).T + 1.0}))
    np.savez("onehot.npz", **(LAYER | {"labels": np.eye(2)[LAYER["labels"]]}))
    np.savez("from-one.npz", **(LAYER | {"labels": LAYER["labels"] + 1}))
    np.savez("layer.npz", **LAYER)
    np.savez("turned.npz", **(LAYER | {"features": np.ones((4, 2))}))
    (tmp_path / "notes.txt").write_text("features: see the other file")
    (tmp_path / "ratios.toml").write_text(SWEEP)
    (tmp_path / "misspelt.toml").write_text(SWEEP.replace("nuclear_weight", "nuclear_wieght"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "important.txt").write_text("not a sweep")
    return tmp_path


MISTAKES = {
    "misspelt profile": ("predict --counts cifar10-lt-10O", "nearest: cifar10-lt-10,"),
    "profile without parameters": ("predict --counts exp", "need K, n_max, ratio"),
    "wrong count": ("predict --counts 5000y5", "as in '5000x5,50x5'"),
    "negative decay": ("solve --weight-decay -1", "above 0"),
    "no dimension": ("solve --dim 0", "at least 1"),
    "unknown loss": ("solve --loss hinge", "must be one of ce, smoothing"),
    "loss with an equals sign": ("predict --loss smoothing=0.1", "as in smoothing:0.1"),
    "loss without its number": ("solve --loss smoothing:", "needs a number after the colon"),
    "unknown step rule": ("solve --solver newton", "must be one of accelerated"),
    "unknown picture format": ("solve --figure out.jpg", "must end in .png, .pdf, .svg"),
    "picture in no folder": ("solve --figure pictures/out.png", "create pictures first"),
    "solution in no folder": ("solve --save runs/out.npz", "create runs first"),
    "solution over a folder": ("solve --save taken", "choose another place"),
    "resume from nowhere": ("solve --resume", "resume needs checkpoint"),
    "resume without a file": ("solve --checkpoint run.npz --resume", "leave out resume to begin"),
    "no resume, over something else": ("solve --checkpoint notes.txt", "exists; resume from it"),
    "length of steps that are chosen": ("solve --learning-rate 0.1", "accelerated chooses its own step"),
    "one process of none": ("solve --num-processes 2", "need --distributed"),
    "no file": ("verify missing.npz", "ufm solve --save missing.npz"),
    "no archive": ("verify notes.txt", "numpy.savez(FILE, features="),
    "other names": ("verify names.npz", "it holds x, y"),
    "one-hot labels": ("verify onehot.npz", "take the argmax"),
    "labels from one": ("verify from-one.npz", "subtract 1"),
    "features of another width": ("verify turned.npz", "transpose it"),
    "one decay": ("verify layer.npz --weight-decay 1e-3", "both left out to be estimated"),
    "other counts": (
        "verify layer.npz --counts 2,3 --weight-decay 1e-3 --feature-decay 1e-3",
        "or one row per class",
    ),
    "no sweep": ("sweep missing.toml --out out", "No such file"),
    "misspelt field": ("sweep misspelt.toml --out out", "did you mean nuclear_weight?"),
    "folder of something else": ("sweep ratios.toml --out taken", "taken"),
    "a gap that proves nothing": (
        "verify layer.npz --weight-decay 1e-3 --feature-decay 1e-3 --tol 10",
        "tol must be below 1",
    ),
    "counts without decays": ("verify missing.npz --counts 5,3", "need weight_decay and feature_decay"),
    "bias without decays": ("verify layer.npz --bias 0", "need weight_decay and feature_decay"),
    "features without decays": ("verify layer.npz --features free", "need weight_decay and feature_decay"),
    "no folder to draw": ("figures out", "`ufm sweep CONFIG.toml --out FOLDER` wrote"),
    "folder without a sweep": ("figures taken", "holds no sweep"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_with_the_next_step(name, folder, capsys, monkeypatch):
    command, hint = MISTAKES[name]
    if "resume" not in name:  # which need the loop to find out
        monkeypatch.setattr(
            "ufm.solvers.solve.solve", lambda *_, **__: pytest.fail("worked before it looked")
        )
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(len(line) <= 80 for line in err.splitlines())
    said = " ".join(err.split())
    assert said.startswith("ufm: ")
    assert hint in said


def test_a_finished_sweep_is_not_overwritten(folder, capsys):
    command = ["sweep", "ratios.toml", "--out", "out"]
    assert main(command) == 0
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


def test_a_missing_extra_says_what_to_install(folder, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "xarray" or "ufm.sweeps." in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "xarray", None)
    assert main(["sweep", "ratios.toml", "--out", "out"]) == 2
    assert "pip install xarray" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 1 TB"), RuntimeError("RESOURCE_EXHAUSTED: full")]
)
def test_too_large_a_problem_says_how_to_make_it_smaller(error, folder, capsys, monkeypatch):
    def give_up(*_, **__):
        raise error

    monkeypatch.setattr("ufm.solvers.solve.solve", give_up)
    assert main(["solve", "--figure", "None"]) == 1
    assert "--level class" in capsys.readouterr().err


def test_other_failures_are_not_hidden(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ufm.solvers.solve.solve", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["solve", "--figure", "None"])
