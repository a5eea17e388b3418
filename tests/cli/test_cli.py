"""The command line as a user meets it: output, exit codes, and one clear sentence for every bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.cases import few_daily
from PIL import Image

import ufm
from ufm.cli import main

SMALL = ["--counts", "45x2,5x2", "--dim", "6", "--weight-decay", "5e-3", "--feature-decay", "1e-4"]


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_version_is_the_package_s(capsys):
    assert run(capsys, "--version") == (0, f"ufm {ufm.__version__}\n", "")


def test_predict_prints_the_closed_form(capsys):
    code, out, _ = run(
        capsys, "predict", "--counts", "500x5,50x5", "--weight-decay", "5e-3", "--feature-decay", "1e-6"
    )
    assert code == 0
    assert "0.0761292408537" in out
    assert "6.9865" in out
    assert "5.817" in out
    assert max(map(len, out.splitlines())) <= 80


def test_predict_json_is_one_object_and_nothing_else(capsys):
    code, out, err = run(capsys, "predict", "--json", *SMALL)
    parsed = json.loads(out)
    assert (code, err) == (0, "")
    prediction = ufm.predict(ufm.Problem([45, 45, 5, 5], 6, 5e-3, 1e-4))
    assert parsed["objective"] == prediction.objective
    assert parsed["margins"] == prediction.margins.tolist()
    assert parsed["collapsed"] == prediction.collapsed.tolist()


def test_predict_does_not_import_jax():
    script = "import sys, ufm.cli; code = ufm.cli.main(['predict', '--json']); sys.exit(code or 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_collapsed"] == 3


def test_predict_says_why_there_is_no_closed_form(capsys):
    code, out, _ = run(capsys, "predict", "--features", "free", *SMALL)
    assert code == 1
    assert out.startswith("No closed form: cross-entropy with free features needs equal counts")
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run(capsys, "predict", "--features", "free", "--json", *SMALL)
    assert (code, json.loads(out)["closed_form"]) == (1, None)


def test_starred_columns_are_called_predicted_where_no_theorem_holds(capsys, tmp_path):
    flags = ("--dim", "3", "--weight-decay", "5e-3", "--feature-decay", "1e-4", "--features", "free")
    code, out, _ = run(
        capsys, "solve", "--counts", "60,40,20", *flags, "--figure", str(tmp_path / "figure.png")
    )
    assert code == 0
    assert "Columns with * are predicted." in out
    assert "closed form" not in out.partition("Columns")[2].partition("\n")[0]


def test_solve_certifies_verifies_and_draws(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure, archive = tmp_path / "figure.png", tmp_path / "solution.npz"
    code, out, _ = run(capsys, "solve", *SMALL, "--figure", "figure.png", "--save", "solution.npz")
    assert code == 0
    assert "Status: certified" in out
    assert "PASSED" in out
    assert figure.stat().st_size > 10_000
    assert max(map(len, out.splitlines())) <= 80
    with np.load(archive) as arrays:
        assert arrays["features"].shape == (4, 6)
        assert json.loads(str(arrays["run"]))["status"] == "certified"


def test_a_solution_is_printed_and_saved_where_its_figure_cannot_be_written(capsys, tmp_path, monkeypatch):
    """The folder was there when the work began."""
    monkeypatch.setattr("ufm.cli.solve.check_output", lambda *_: None)
    lost, archive = tmp_path / "gone" / "figure.png", tmp_path / "solution.npz"
    code, out, err = run(capsys, "solve", *SMALL, "--figure", str(lost), "--save", str(archive))
    assert code == 1  # as for everything that fails on the way
    assert "figure.png could not be written" in " ".join(err.split())
    assert "Status: certified" in out
    assert "Solution written to" in out
    assert "Figure written to" not in out
    assert archive.exists()


def test_solve_json_round_trips_the_numbers(capsys):
    code, out, err = run(capsys, "solve", *SMALL, "--json", "--figure", "None", "--level", "sample")
    parsed = json.loads(out)
    assert (code, err) == (0, "")
    assert parsed["status"] == "certified"
    assert parsed["report"]["passed"] is True
    assert parsed["relative_gap"] <= 1e-8
    assert parsed["objective"] == pytest.approx(
        ufm.predict(ufm.Problem([45, 45, 5, 5], 6, 5e-3, 1e-4)).objective
    )


def test_solve_that_is_not_certified_exits_with_1(capsys):
    code, out, _ = run(capsys, "solve", *SMALL, "--figure", "None", "--max-steps", "3")
    assert code == 1
    assert "max_steps" in out
    code, out, _ = run(
        capsys, "solve", "--counts", "40x4", "--dim", "2", "--weight-decay", "1e-3", "--figure", "None"
    )
    assert code == 1
    assert "stalled" in out
    assert "dim" in out


@pytest.mark.parametrize("solver", few_daily(["sgd", "momentum", "adam"], (2,)))
def test_solve_runs_the_fields_optimisers(capsys, solver):
    code, out, _ = run(
        capsys,
        "solve",
        *SMALL,
        "--solver",
        solver,
        "--learning-rate",
        "0.05",
        "--max-steps",
        "50",
        "--figure",
        "None",
        "--json",
    )
    assert code == 1
    assert json.loads(out)["steps"] == 50


def test_verify_accepts_a_saved_solution_and_rejects_a_spoilt_one(capsys, tmp_path):
    archive, spoilt = tmp_path / "solution.npz", tmp_path / "spoilt.npz"
    run(capsys, "solve", *SMALL, "--figure", "None", "--level", "sample", "--save", str(archive))
    decays = ["--weight-decay", "5e-3", "--feature-decay", "1e-4"]
    page = tmp_path / "report.html"
    code, out, _ = run(capsys, "verify", str(archive), *decays, "--html", str(page))
    assert code == 0, out
    assert f"Page written to {page}" in out
    assert page.read_text().startswith("<!doctype html>")
    assert "a relative gap of" in out
    with np.load(archive) as arrays:
        features = arrays["features"].copy()
        features[:45] *= 1.05
        np.savez(spoilt, features=features, labels=arrays["labels"], weight=arrays["weight"])
    code, out, _ = run(capsys, "verify", str(spoilt), *decays, "--json", "--tolerance", "1e-3")
    assert code == 1
    assert json.loads(out)["passed"] is False
    code, out, _ = run(capsys, "verify", str(spoilt), *decays, "--tol", "1e-8")
    assert code == 1
    assert "duality gap fails" in out


def test_verify_without_decays_estimates_them(capsys, tmp_path):
    archive = tmp_path / "solution.npz"
    run(capsys, "solve", *SMALL, "--figure", "None", "--level", "sample", "--save", str(archive))
    code, out, _ = run(capsys, "verify", str(archive), "--json")
    assert code == 0
    estimate = json.loads(out)["estimate"]
    assert any(
        abs(value - 5e-7) < 1e-9 or abs(value - 5e-7**0.5) < 1e-6
        for value in estimate.values()
        if isinstance(value, float)
    ), estimate


def test_advise_says_which_decays_it_used(capsys):
    assert "lambda_H = 0.0002, which is a default" in run(capsys, "advise")[1]
    code, out, _ = run(capsys, "advise", "--feature-decay", "4e-7", "--weight-decay", "3e-4")
    assert (code, out.splitlines()[0]) == (0, "At lambda_W = 0.0003 and lambda_H = 4e-07.")
    used = json.loads(run(capsys, "advise", "--json")[1])
    assert (used["weight_decay"], used["feature_decay"], used["feature_decay_assumed"]) == (5e-3, 2e-4, True)


def test_advise_speaks(capsys):
    code, out, _ = run(capsys, "advise")
    assert code == 0
    assert "3 of 10 classes collapse" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
def test_figures_draws_a_stored_sweep_complete_or_not(capsys, tmp_path):
    fixed = {"counts": "step:K=4,n_max=40,ratio=4", "dim": 6}
    axes = {"nuclear_weight": list(np.geomspace(1e-3, 1e-1, 12))}
    ufm.sweep(fixed, axes, out=tmp_path / "out", batch_size=8, process_index=0, process_count=2)
    code, out, _ = run(capsys, "figures", str(tmp_path / "out"))
    assert code == 0
    assert out.startswith("8 of 12 members computed")
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000
    ufm.sweep(fixed, axes, out=tmp_path / "out", batch_size=8, resume=True)
    code, out, err = run(capsys, "figures", str(tmp_path / "out"), "--format", "pdf", "--json")
    drawn = str(tmp_path / "out" / "sweep.pdf")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"figures": [drawn], "members": 12, "computed": 12}
    assert (tmp_path / "out" / "sweep.pdf").read_bytes().startswith(b"%PDF")
    for flags, width in ((("--style", "screen"), 10.1), (("--panel", "b"), 3.25)):
        assert run(capsys, "figures", str(tmp_path / "out"), *flags)[0] == 0
        with Image.open(tmp_path / "out" / "sweep.png") as image:
            assert image.width / image.info["dpi"][0] == pytest.approx(width, rel=0.05)
    code, _, err = run(capsys, "figures", str(tmp_path / "out"), "--panel", "z")
    assert (code, err.startswith("ufm: panel must be one of a, b, c, d")) == (2, True)


BAD_PROBLEMS = {
    "empty counts": (["--counts", ""], "counts"),
    "zero count": (["--counts", "5,0"], "counts"),
    "negative count": (["--counts=-5,3"], "counts"),
    "fractional count": (["--counts", "5.5,3"], "counts"),
    "one class": (["--counts", "5"], "counts"),
    "malformed": (["--counts", "5x,3"], "counts"),
    "unknown profile": (["--counts", "cifar11"], "counts"),
    "zero decay": (["--weight-decay", "0"], "weight_decay"),
    "negative decay": (["--feature-decay=-1"], "feature_decay"),
    "nan": (["--weight-decay", "nan"], "weight_decay"),
    "inf": (["--feature-decay", "inf"], "feature_decay"),
    "dim": (["--dim", "0"], "dim"),
    "loss": (["--loss", "hinge"], "loss"),
    "loss parameter": (["--loss", "smoothing:x"], "loss"),
    "smoothing": (["--loss", "smoothing:1.5"], "smoothing"),
    "features": (["--features", "complex"], "features"),
    "bias": (["--bias=-1"], "bias"),
}


@pytest.mark.parametrize("command", ["predict", "solve"])
@pytest.mark.parametrize("name", BAD_PROBLEMS)
def test_bad_problems_get_one_sentence_and_exit_2(capsys, command, name):
    flags, word = BAD_PROBLEMS[name]
    code, out, err = run(capsys, command, *flags)
    assert (code, out) == (2, "")
    assert word in " ".join(err.split())
    assert err.count("ufm:") == 1
    assert "Traceback" not in err


def bad_archives(folder):
    rng = np.random.default_rng(0)
    good = {
        "features": np.abs(rng.normal(size=(6, 3))),
        "labels": np.repeat([0, 1], 3),
        "weight": rng.normal(size=(2, 3)),
    }
    cases = {
        "missing array": {k: v for k, v in good.items() if k != "weight"},
        "wrong width": good | {"weight": np.ones((2, 4))},
        "wrong rank": good | {"features": np.ones(6)},
        "too few labels": good | {"labels": np.zeros(5, int)},
        "label out of range": good | {"labels": np.array([0, 0, 0, 1, 1, 2])},
        "negative label": good | {"labels": np.array([0, 0, 0, 1, 1, -1])},
        "labels not integers": good | {"labels": np.linspace(0, 1, 6)},
        "nan": good | {"features": np.full((6, 3), np.nan)},
        "negative features": good | {"features": -good["features"]},
    }
    for name, arrays in cases.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "not a zip.npz").write_text("hello")
    np.savez(folder / "whole.npz", **good)
    whole = (folder / "whole.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "objects.npz", **(good | {"features": np.array([object()])}))
    return [*cases, "not a zip", "truncated", "objects", "not there"]


def test_bad_files_get_one_sentence_and_exit_2(capsys, tmp_path):
    for name in bad_archives(tmp_path):
        code, out, err = run(
            capsys,
            "verify",
            str(tmp_path / f"{name}.npz"),
            "--weight-decay",
            "1e-3",
            "--feature-decay",
            "1e-3",
        )
        assert (code, out) == (2, ""), name
        assert err.count("ufm:") == 1, (name, err)
        assert "Traceback" not in err


def test_other_bad_arguments(capsys, tmp_path):
    assert run(capsys, "solve", *SMALL, "--solver", "newton")[0] == 2
    for tol in ("0", "1", "10"):
        code, out, err = run(capsys, "solve", *SMALL, "--tol", tol, "--figure", "None")
        assert (code, out) == (2, "")
        assert err.startswith("ufm: tol must be ")
    code, _, err = run(capsys, "solve", *SMALL, "--figure", str(tmp_path / "no" / "such" / "folder.png"))
    assert code == 2
    assert "folder.png" in err
    code, _, err = run(capsys, "verify", str(tmp_path / "x.npz"), "--weight-decay", "1e-3")
    assert code == 2
    with pytest.raises(SystemExit) as stop:
        main(["solve", "--no-such-flag"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "command", [[], ["predict"], ["solve"], ["verify"], ["advise"], ["sweep"], ["figures"]]
)
def test_help_fits_80_columns(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    body = out.splitlines()[1:]  # below the usage line, which is never wrapped
    assert max(map(len, body)) <= 80
    assert "Example" in out


def test_counts_that_are_reconstructed_say_so(capsys):
    decays = ["--weight-decay", "1e-4", "--feature-decay", "1e-4"]
    for command in (["predict", "--dim", "365"], ["advise"]):
        code, out, _ = run(capsys, *command, "--counts", "places-lt", *decays)
        assert code == 0
        assert "places-lt is reconstructed by a Pareto law" in " ".join(out.split())


def test_fixed_classifiers_by_name(capsys, tmp_path):
    given = ["--counts", "50x3,5x3", "--dim", "6", "--weight-decay", "5e-3", "--feature-decay", "2e-4"]
    code, out, _ = run(capsys, "predict", *given, "--classifier", "frame:3")
    assert (code, "0 of 6 classes collapse" in out) == (0, True)
    path = tmp_path / "layer.npz"
    prediction = ufm.predict(
        ufm.Problem("50x3,5x3", 6, 5e-3, 2e-4, classifier=ufm.orthogonal_frame(6, 6, 3.0))
    )
    labels = np.repeat(np.arange(6), [50] * 3 + [5] * 3)
    np.savez(path, features=np.diag(prediction.norms)[labels], labels=labels, weight=3 * np.eye(6))
    code, out, _ = run(capsys, "verify", str(path), *given[4:], "--fixed")
    assert (code, "fixed classifier" in out or "PASSED" in out) == (0, True)
    code, _, err = run(capsys, "predict", *given, "--classifier", "cube:3")
    assert (code, "classifier must be etf:LENGTH or frame:LENGTH, got 'cube:3'" in err) == (2, True)
