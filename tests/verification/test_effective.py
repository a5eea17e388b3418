"""Effective decays and who pays for features: planted optima of the whole family are recognised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.conventions import charged
from ufm.inputs.checks import InputError
from ufm.losses.by_name import parse_loss
from ufm.verification.effective import estimate_decays

COUNTS = np.array([60, 40, 25, 15, 10])


def layer(counts, exponent, loss=None, weight_decay=2e-3, feature_decay=1e-3):
    """The optimum of (T), a sample for every count, in coordinates of one class each."""
    decays = charged(feature_decay, counts, exponent) if exponent else feature_decay
    problem = ufm.Problem(counts, len(counts), weight_decay, decays, loss=loss or ufm.CrossEntropy())
    prediction = ufm.predict(problem)
    features = np.diag(prediction.norms)
    living = ~prediction.collapsed
    weight = np.zeros_like(features)
    weight[:, living] = prediction.logits.T[:, living] / prediction.norms[living]
    labels = np.repeat(np.arange(len(counts)), counts)
    return problem, {"features": features[labels], "labels": labels, "weight": weight}


@pytest.mark.parametrize("exponent", [0, 0.7, 1])
@pytest.mark.parametrize("name", ["ce", "weighted:1", "smoothing:0.1", "ldam:0.5", "poly1:1"])
def test_a_planted_family_is_recognised(exponent, name):
    loss = parse_loss(name, COUNTS)
    problem, arrays = layer(COUNTS, exponent, loss)
    report = ufm.verify(**arrays, loss=loss)
    found = report.estimate
    assert report.passed
    for key in ("charge", "charge_from_margins", "charge_from_norms"):
        assert found[key] == pytest.approx(exponent, abs=1e-6)
    assert (found["spread"], found["constancy"]) == pytest.approx((1, 1), abs=1e-6)
    assert found["weight_decay"] == pytest.approx(2e-3, rel=1e-6)
    assert found["feature_decay"] == pytest.approx(1e-3, rel=1e-6)
    np.testing.assert_allclose(report.problem.feature_decays, problem.feature_decays, rtol=1e-6)
    assert found["deviating"] == []
    assert any("Charge exponent" in note for note in report.notes)


def test_class_weights_that_are_not_told_look_like_another_charge():
    """Weights 1/n move the exponent of the margins by -2, and not that of the norms: the constancy test sees it."""
    _, arrays = layer(COUNTS, 1, parse_loss("weighted:1", COUNTS))
    estimate = ufm.verify(**arrays).estimate
    assert estimate["charge_from_margins"] == pytest.approx(-1, abs=1e-6)
    assert estimate["charge_from_norms"] == pytest.approx(1, abs=1e-6)
    assert estimate["constancy"] > 1.5


def test_the_charge_can_be_told():
    _, arrays = layer(COUNTS, 1)
    told = ufm.verify(**arrays, charge=0)
    assert told.estimate["charge"] == 0
    assert told.estimate["charge_from_margins"] is None
    assert not told.passed
    assert ufm.verify(**arrays, charge=1).passed


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 500), min_size=3, max_size=9),
    st.floats(0, 1.5),
    st.floats(1e-7, 1e-4),
)
def test_margins_and_norms_name_the_exponent_of_any_profile(counts, exponent, product):
    counts = np.array(counts)
    decays = charged(product / counts.sum(), counts, exponent)
    prediction = ufm.predict(ufm.Problem(counts, len(counts), 1.0, decays))
    energies = counts * prediction.norms**2
    found = estimate_decays(
        prediction.margins,
        counts.astype(float),
        float((prediction.weight_norms**2).sum()),
        energies,
        norms=prediction.norms,
    )
    if found is None or found.charge_from_margins is None:
        return
    assert found.charge_from_margins == pytest.approx(exponent, abs=1e-5)
    assert found.charge_from_norms == pytest.approx(exponent, abs=1e-5)
    assert found.nuclear_weight == pytest.approx((product / counts.sum()) ** 0.5, rel=1e-5)


def test_deviating_classes_are_named():
    _, arrays = layer(np.array([50] * 6), 0)
    arrays["features"][arrays["labels"] == 4] *= 0.8
    report = ufm.verify(**arrays)
    assert report.estimate["deviating"] == [4]
    assert any("factor 1.5 off: class 4" in note for note in report.notes)
    assert not any("Charge exponent" in note for note in report.notes)


def test_mistakes_are_named():
    problem, arrays = layer(COUNTS, 0)
    with pytest.raises(InputError, match="loss and charge must be omitted with a problem"):
        ufm.verify(**arrays, problem=problem, charge=1)
    with pytest.raises(InputError, match=r"loss must be a ufm\.Loss, got str"):
        ufm.verify(**arrays, loss="ce")
    with pytest.raises(InputError, match="charge must be"):
        ufm.verify(**arrays, charge=-1)
    unfit = ufm.verify(**arrays, loss=ufm.Focal(2.0))
    assert unfit.estimate is None
    assert any(note.startswith("No decays estimated") for note in unfit.notes)


@pytest.mark.parametrize(
    ("changes", "exponent"),
    [
        ({"features": "free"}, 0.0),
        ({"features": "free", "bias": 0.02}, 1.0),
        ({"bias": 0.0}, 0.0),
        pytest.param({"loss": "adjustment:1"}, 0.5, marks=pytest.mark.slow),
    ],
    ids=["free", "free with a decayed bias", "bias", "adjustment"],
)
def test_solved_optima_are_recognised(changes, exponent):
    """Where (T) does not apply stationarity gives the decays, and the solved optimum judges the rest."""
    decays = charged(1e-3, COUNTS, exponent) if exponent else 1e-3
    problem = ufm.Problem(COUNTS, 5, 2e-3, decays, **changes)
    solution = ufm.solve(problem, seed=2, tol=1e-10)
    arrays = {"features": solution.features, "weight": solution.weight, "bias": solution.bias}
    labels = np.repeat(np.arange(5), COUNTS)
    arrays["features"] = arrays["features"][labels]
    report = ufm.verify(**arrays, labels=labels, loss=problem.loss)
    found = report.estimate
    assert report.passed, str(report)
    assert found["charge"] == pytest.approx(exponent, abs=1e-3)
    assert found["weight_decay"] == pytest.approx(2e-3, rel=1e-3)
    assert found["feature_decay"] == pytest.approx(1e-3, rel=1e-3)
    assert report.problem.bias == (None if problem.bias is None else pytest.approx(problem.bias, rel=1e-2))
    assert report["NC2_H"].verdict == report["alignment"].verdict == "pass"
    told = ufm.verify(**arrays, labels=labels, loss=problem.loss, charge=exponent + 1.0)
    assert told.estimate["spread"] > 1.05


def test_a_fit_says_what_it_is_made_of():
    """Free features with uneven counts: stationarity, which looks at neither margins nor the ratio of norms."""
    for features, words in (("nonnegative", "from the ratio of norms"), ("free", "stationarity")):
        problem = ufm.Problem([30, 20, 10], 3, weight_decay=1e-2, feature_decay=1e-3, features=features)
        s = ufm.solve(problem, level="sample")
        report = ufm.verify(features=s.features, labels=s.labels, weight=s.weight)
        (said,) = (note for note in report.notes if note.startswith("Effective"))
        assert words in said
        assert ("margin" in said) == (features == "nonnegative")
