"""The experiments on the family: published series reproduced, predicted thresholds found, models compared."""

import dataclasses
import json

import numpy as np
import pytest

import ufm
from experiments.common import Outputs
from experiments.figures import focal, frames, geometries, hong_ling, layer_peeled
from ufm.theory import total_collapse_weight


def run(module, out, capsys, **options):
    """Run an experiment; return its exit code, what it printed and what it saved."""
    code = module.main(outputs=Outputs(out), **options)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    name = module.__name__.rpartition(".")[2]
    assert (out / f"{name}.png").stat().st_size > 10_000
    return code, printed, json.loads((out / f"{name}.json").read_text())


# Layer-Peeled Model


@pytest.mark.slow
def test_quick_curve_of_the_layer_peeled_model(tmp_path, capsys):
    code, printed, saved = run(layer_peeled, tmp_path, capsys, quick=True)
    assert code == 0
    assert "minority collapse at R_0 = 12.19245\n" in printed
    ratios = [record["R"] for record in saved["curve"]]
    np.testing.assert_allclose(ratios, 10 ** (0.5 * np.arange(9)), rtol=1e-12)
    cosines = np.array([record["cosine minority"] for record in saved["curve"]])
    assert cosines[0] == pytest.approx(-1 / 9, abs=1e-6)
    np.testing.assert_array_equal(cosines > 1 - 1e-6, np.array(ratios) > 12.19)
    for record in saved["curve"]:
        assert record["certified"]
        assert (record["price"] > record["threshold"]) == (record["R"] > 12.19)


@pytest.mark.slow
def test_published_curve_of_the_layer_peeled_model(tmp_path, capsys):
    code, _, saved = run(layer_peeled, tmp_path, capsys)
    assert code == 0
    assert len(saved["curve"]) == 41
    cosines = np.array([record["cosine minority"] for record in saved["curve"]])
    assert cosines[0] == pytest.approx(-0.111, abs=5e-4)
    assert np.all(np.diff(cosines) > -1e-6)
    assert np.argmax(cosines > 1 - 1e-4) == 11  # 10^1.0 = 10 < R_0 = 12.19 < 10^1.1
    assert saved["R_0"] == pytest.approx(12.192447, rel=1e-6)
    assert len(saved["others"]) == 9


# Hong and Ling


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False])
def test_hong_and_ling(tmp_path, capsys, quick):
    code, _, saved = run(hong_ling, tmp_path, capsys, quick=quick, sizes=(20,))
    assert code == 0
    series = saved["by weight"] + saved["by majority"]
    assert len(series) == (4 + 5 if quick else 10 + 14)
    for record in series:
        for group, count in (("majority", record["n_A"]), ("minority", 100)):
            expected = max(0.0, 1 - record["l"] * record["N"] / np.sqrt(count))
            assert record["contrasts"][group] == pytest.approx(expected, abs=1e-6)
        assert record["block error"] < 1e-5
    accuracy = 1e-2 if quick else 5e-5
    found = {(row["group"], row["parameter"]): row["found"] for row in saved["thresholds"]}
    assert found["minority", "l"] == pytest.approx(0.003333, rel=accuracy + 1e-4)
    assert found["majority", "l"] == pytest.approx(0.007454, rel=accuracy + 1e-4)
    assert found["minority", "n_A"] == 300
    assert found["majority", "n_A"] == 1393
    assert found["a lone majority", "l"] == pytest.approx(0.017326, rel=accuracy + 1e-4)
    assert (
        found["a lone majority", "l"] < 0.8 * np.sqrt(500) / 1000
    )  # two majority classes would last until here


def test_published_settings_of_hong_and_ling():
    assert hong_ling.WEIGHTS == (
        0.0027,
        0.0030,
        0.0033,
        0.0039,
        0.0045,
        0.0051,
        0.0057,
        0.0063,
        0.0069,
        0.0075,
    )
    assert list(hong_ling.MAJORITIES) == list(range(100, 1401, 100))
    problem = hong_ling.problem_of(500, 0.0027)
    assert problem.counts.tolist() == [500] * 5 + [100] * 5
    assert (problem.bias, problem.features, problem.nuclear_weight) == (0.01, "free", 0.0027)
    assert total_collapse_weight(problem) == pytest.approx(np.sqrt(500) / 3000, rel=1e-12)


def test_block_error_sees_any_entry_out_of_its_block():
    matrix = np.kron([[2.0, -1.0], [-1.0, 0.5]], np.ones((3, 3))) + np.diag([4.0] * 3 + [1.0] * 3)
    assert hong_ling.block_error(matrix) == 0
    for place in ((0, 0), (0, 1), (0, 4), (4, 4), (4, 5)):
        spoiled = matrix.copy()
        spoiled[place] += 0.6
        assert hong_ling.block_error(spoiled) == pytest.approx(0.1, rel=0.15)


def test_thresholds_are_not_drawn_from_what_is_not_certified(monkeypatch):
    real = ufm.solve
    monkeypatch.setattr(ufm, "solve", lambda problem: real(problem, max_steps=3))
    with pytest.raises(RuntimeError, match="max_steps"):
        hong_ling.optimum(hong_ling.problem_of(500, 0.003))


# Geometries


FIXED = [case for case in geometries.MODELS if case.decay is None]


def model(name):
    return next(candidate for candidate in geometries.MODELS if candidate.name == name)


def same_as_predicted(record):
    for key, value in (record["predicted"] or {}).items():
        if key != "gap":
            wanted = pytest.approx(value, rel=1e-6, nan_ok=True)
            assert record["solved"][key] == wanted, (record["model"], key)


@pytest.mark.slow
def test_quick_table_of_geometries(tmp_path, capsys):
    """Every third model; the next test has the others."""
    code, printed, saved = run(geometries, tmp_path, capsys, quick=True)
    assert code == 0
    assert "R_0 = 12.19" in printed
    assert len(saved["models"]) == len(geometries.MODELS[1::3]) + 2
    for record in saved["models"]:
        assert record["relative gap"] < 1e-8
        if record["model"] != geometries.LPM:
            assert ("gap" in record["predicted"]) == (record["model"] in WITHOUT_CLOSED_FORM)
        same_as_predicted(record)
        if "threshold" in record:
            assert record["threshold"]["found"] == pytest.approx(record["threshold"]["predicted"], rel=1e-2)


#: With a closed form and without.
EVERYDAY = ("UFM+ MSE", "UFM+ CDT 0.1")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.name in EVERYDAY else pytest.mark.slow, id=case.name)
        for case in FIXED
        if case not in geometries.MODELS[1::3]
    ],
)
def test_every_model_agrees_with_its_closed_form(case):
    record = geometries.compare(dataclasses.replace(case, decay=0.3), 0.3, 1.0)
    assert record["sound"]
    assert ("gap" in record["predicted"]) == (case.name in WITHOUT_CLOSED_FORM)
    same_as_predicted(record)


def test_seli_is_where_vanishing_decays_lead():
    """Logits grow like L = log(1/decay), corrections to them do not: the geometry is limit + a/(L + b) + O(1/L^2).

    No decay that float64 holds is near enough for a comparison to two digits, but three of them give the limit.
    """
    case = next(case for case in geometries.MODELS if case.decay == geometries.VANISHING)
    records = [
        geometries.compare(dataclasses.replace(case, decay=decay), 0.3, 1.0)
        for decay in (1e-12, 1e-24, 1e-48)
    ]
    assert all(record["sound"] for record in records)
    logs = np.log(10) * np.array([12, 24, 48])
    for key, value in geometries.predicted(case, case.decay).items():
        solved = np.array([record["solved"][key] for record in records])
        errors = np.abs(solved - value)
        np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.25)  # as L doubles
        slopes = np.diff(logs) / np.diff(solved)
        limit = solved[1] + (logs[2] - logs[0]) / (slopes[1] - slopes[0])
        assert limit == pytest.approx(value, rel=1 / logs[1] ** 2), key


WITHOUT_CLOSED_FORM = {"free, CE", "UFM+ adjusted logits", "UFM+ CDT 0.1", "UFM+ BCE", "UFM+ focal 2"}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in FIXED if not case.fixed], ids=lambda case: case.name)
def test_every_threshold_is_found_where_it_is_predicted(case):
    found, sound = geometries.found_threshold(case, 1e-4)
    assert sound
    assert found == pytest.approx(geometries.predicted_threshold(case), rel=3e-4)


def test_what_losses_do_to_margins_and_thresholds():
    thresholds = {case.name: geometries.predicted_threshold(case) for case in geometries.MODELS}
    plain = thresholds["UFM+ CE"]
    assert plain == pytest.approx(np.sqrt(0.9), rel=1e-12)
    assert thresholds["UFM+ smoothing 0.1"] == pytest.approx(0.9 * plain, rel=1e-12)
    assert thresholds["UFM+ adjusted logits"] == pytest.approx(1.0, rel=1e-12)
    assert (
        thresholds["UFM+ CDT 0.1"]
        < plain
        < thresholds["UFM+ weights n^-1/2"]
        < thresholds["UFM+ weights 1/n"]
    )
    margins = {
        case.name: geometries.predicted(case, 0.3)["margin"]
        for case in geometries.MODELS
        if case.name not in WITHOUT_CLOSED_FORM
    }
    assert margins["UFM+ weights n^-1/2"] == pytest.approx(1.0, rel=1e-9)
    assert margins["UFM+ CE"] < 0.7 < 1.3 < margins["UFM+ weights 1/n"]


def test_adjusted_logits_let_small_classes_share_a_direction():
    """Below the threshold neither dead nor orthogonal; at it one, and still alive."""
    case = model("UFM+ adjusted logits")
    for decay, cosine in ((0.5, (0.1, 0.9)), (1.02, (1 - 1e-9, 1 + 1e-9))):
        solution = ufm.solve(case.problem(decay))
        assert solution.certified
        first, second = solution.features[-2:]
        assert np.linalg.norm(first) > 0.1
        assert cosine[0] < first @ second / np.linalg.norm(first) / np.linalg.norm(second) < cosine[1]


# Focal loss, frames


def test_the_margin_of_focal_loss_jumps():
    """A hundred classes lose a margin of 2.4 at once; five lose theirs little by little."""
    assert focal.jump(2.0, 100) == pytest.approx((1.0414, 2.373), abs=2e-3)
    at, top = focal.jump(2.0, 5)
    assert (at, top < focal.jump(2.0, 20)[1]) == (pytest.approx(1.0, abs=0.1), True)


@pytest.mark.slow
@pytest.mark.parametrize("module", [focal, frames])
def test_quick_experiments_find_what_is_predicted(module, tmp_path, capsys):
    code, printed, saved = run(module, tmp_path, capsys, quick=True)
    assert code == 0
    if module is frames:
        assert saved["classifiers"][-1]["predicted"][0] == 0 < saved["classifiers"][-1]["solved"][1]
        assert all(row["cosine"] < 1e-3 for row in saved["contrastive"])
    else:
        assert "the margin jumps from 2.373 to 0" in printed
