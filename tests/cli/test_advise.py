"""``ufm advise`` for people who have a training script: no decay is assumed in silence."""

import json

import numpy as np
import pytest

import ufm
from ufm.cli import main
from ufm.conventions import charged

COUNTS = np.array([150] * 3 + [30] * 3)


def run(capsys, *words):
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """A planted optimum for which classes pay."""
    problem = ufm.Problem(COUNTS, 6, 5e-4, charged(1e-6, COUNTS, 1))
    prediction = ufm.predict(problem)
    labels = np.repeat(np.arange(6), COUNTS)
    path = tmp_path_factory.mktemp("layer") / "layer.npz"
    weight = prediction.logits.T / prediction.norms
    np.savez(path, features=np.diag(prediction.norms)[labels], labels=labels, weight=weight)
    return str(path)


def test_a_missing_feature_decay_is_asked_for(capsys):
    for flag in ("--weight-decay", "--torch-weight-decay"):
        code, out, err = run(capsys, "advise", "--counts", "150x5,15x5", flag, "5e-4")
        assert (code, out) == (2, "")
        assert "feature_decay must be given" in err
        assert "--measured layer.npz" in " ".join(err.split())


def test_both_decays_are_printed_and_defaults_called_so(capsys):
    _, out, _ = run(capsys, "advise")
    assert "At lambda_W = 0.005 and lambda_H = 0.0002." in out
    assert "which is a default for show" in out
    _, out, _ = run(
        capsys, "advise", "--counts", "150x5,15x5", "--weight-decay", "5e-4", "--feature-decay", "1e-6"
    )
    assert "At lambda_W = 0.0005 and lambda_H = 1e-06." in out
    assert "default" not in out
    assert "if lambda_W alone is" in " ".join(out.split())


def test_a_measured_layer_tells_the_decays_and_who_pays(capsys, layer):
    code, out, _ = run(capsys, "advise", "--measured", layer, "--torch-weight-decay", "5e-4", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["weight_decay"] == 5e-4
    assert data["feature_decay"] == pytest.approx(1e-6, rel=1e-6)
    assert data["charge"] == pytest.approx(1, abs=1e-6)
    expected = ufm.advise(COUNTS, 5e-4, 1e-6, 1).to_dict()
    assert data["largest_weight_decay"] == pytest.approx(expected["largest_weight_decay"], rel=1e-5)
    _, out, _ = run(capsys, "advise", "--measured", layer, "--counts", "300x3,60x3", "--json")
    assert json.loads(out)["feature_decay"] == pytest.approx(5e-7, rel=1e-6)
    _, out, _ = run(capsys, "advise", "--measured", layer)
    assert max(map(len, out.splitlines())) <= 80
    assert "Charge exponent" in out


def test_a_layer_that_no_pair_of_decays_explains_is_warned_of(capsys, layer, tmp_path):
    arrays = dict(np.load(layer))
    for scale, wide in ((1.0, False), (2.0, True)):
        arrays["features"][np.isin(arrays["labels"], (1, 4))] *= scale
        np.savez(tmp_path / "other.npz", **arrays)
        _, out, _ = run(capsys, "advise", "--like", str(tmp_path / "other.npz"))
        assert ("WARNING: single classes deviate by a factor" in out) == wide


def test_a_penalty_in_a_batch_is_converted(capsys):
    words = "--counts 150x5,15x5 --torch-weight-decay 5e-4 --feature-decay 1e-4 --batch-size 165 --json"
    _, out, _ = run(capsys, "advise", *words.split())
    data = json.loads(out)
    assert (data["feature_decay"], data["charge"]) == (pytest.approx(2e-5), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--feature-decay 1e-4", "weight_decay (or torch_weight_decay) must be given"),
        ("--weight-decay 1 --torch-weight-decay 1 --feature-decay 1", "must not be given both"),
        ("--charge everybody", "charge must be sample, class or a number"),
        ("--charge=-1", "charge must be"),
        ("--measured none.npz", "none.npz"),
        ("--measured none.npz --feature-decay 1e-4", "must be left out with measured"),
    ],
)
def test_mistakes_are_named(capsys, words, message):
    code, _, err = run(capsys, "advise", *words.split())
    assert code == 2
    assert message in " ".join(err.split())
