"""A small network trained on digits, or on anybody's data, ends where the closed form says, collapsed or not."""

import dataclasses
import json

import numpy as np
import pytest

import ufm
from experiments.common import Outputs
from experiments.network import last_layer, separability


def outcomes(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def check(outcome, collapsed, error=0.0):
    """No training error where classes live, residuals of the paper below 0.1, collapse exactly where predicted."""
    assert outcome["living_error"] <= error
    assert max(outcome[name] for name in ("nc2_h", "nc2_w", "nc2_wwt", "nc3_wh")) < 0.1
    assert outcome["predicted_collapsed"] == collapsed
    row = next(row for row in outcome["report"]["rows"] if row["name"] == "collapsed classes")
    assert (row["measured"], row["predicted"], row["verdict"]) == (len(collapsed), len(collapsed), "pass")


@pytest.mark.slow
def test_quick_network_reaches_the_prediction(tmp_path, capsys):
    assert last_layer.main(quick=True, outputs=Outputs(tmp_path)) == 0
    printed = capsys.readouterr().out
    found = outcomes(tmp_path)
    check(found["step"], [], error=0.005)  # without `--quick` it reaches 0
    check(found["step-past"], [5, 6, 7, 8, 9], error=0.005)
    assert printed.count("PASSED") == 2
    assert "NOT PASSED" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert list(tmp_path.glob("*.png"))
    arrays = np.load(tmp_path / "step.npz")  # what `ufm verify` reads
    report = ufm.verify(features=arrays["features"], labels=arrays["labels"], weight=arrays["weight"])
    assert report.passed


@pytest.fixture
def dataset(tmp_path):
    """Small pictures of three kinds with noise, as an npz file of images and labels in no order."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), [60, 60, 20]))
    pictures = rng.normal(size=(3, 4, 4))[labels] + 0.3 * rng.normal(size=(len(labels), 4, 4))
    np.savez(tmp_path / "data.npz", x=pictures, y=labels)
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    ("options", "collapsed"),
    [
        pytest.param({}, [], marks=pytest.mark.slow),
        pytest.param({"level": 1.4}, [2], marks=pytest.mark.slow),
        pytest.param({"counts": "50x2,10", "level": 1.4, "batch_size": 55}, [2], marks=pytest.mark.slow),
    ],
)
def test_any_dataset(tmp_path, dataset, monkeypatch, options, collapsed):
    training = dataclasses.replace(last_layer.QUICK, epochs=2000, batch_size=options.pop("batch_size", None))
    monkeypatch.setattr(last_layer, "QUICK", training)
    last_layer.main(dataset=dataset, outputs=Outputs(tmp_path / "out"), quick=True, **options)
    (outcome,) = outcomes(tmp_path / "out").values()
    assert outcome["counts"] == ([50, 50, 10] if "counts" in options else [60, 60, 20])
    check(outcome, collapsed)


def test_datasets_that_do_not_fit_are_named(tmp_path, dataset):
    with pytest.raises(ufm.InputError, match="at most what the data hold: 20 of class 2, got 30"):
        last_layer.main(dataset=dataset, counts="30x3", outputs=Outputs(tmp_path), quick=True)
    np.savez(tmp_path / "other.npz", inputs=np.zeros((2, 2)))
    with pytest.raises(ufm.InputError, match="lacks x and y"):
        last_layer.main(dataset=tmp_path / "other.npz", outputs=Outputs(tmp_path), quick=True)


@pytest.mark.slow
def test_quick_separability_holds_every_bound(tmp_path, capsys):
    assert separability.main(quick=True, outputs=Outputs(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.count("bounds above the probability: 0 of") == 2
    assert max(map(len, printed.splitlines())) <= 80
    assert (tmp_path / "separability.png").stat().st_size > 10_000
    for course in json.loads((tmp_path / "separability.json").read_text()).values():
        losses = [point["mean_loss"] for point in course]
        assert losses[-1] < 0.1 * losses[0]
        assert course[-1]["probability"] > 0.99 > course[0]["probability"]
        assert course[-1]["profile_bound"] > 0.5  # the bounds follow as the loss falls
