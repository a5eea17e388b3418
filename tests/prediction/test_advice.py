"""Advice: every statement is checked by changing the problem accordingly and predicting again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.conventions import charged
from ufm.inputs.checks import InputError
from ufm.losses import CrossEntropy, WeightedCrossEntropy
from ufm.model.problem import Problem
from ufm.prediction.advice import advise
from ufm.theory import predict

exact = settings(max_examples=20)


def flat(advice):
    return " ".join(str(advice).split())


def collapsed(counts, product, **options):
    return predict(Problem(np.array(counts), len(counts), 1.0, float(product), **options)).collapsed


@pytest.mark.slow
@exact
@given(st.lists(st.integers(1, 2000), min_size=2, max_size=12), st.floats(0.01, 30))
def test_every_statement_holds(counts, level):
    product = level * min(counts) / sum(counts) ** 2
    advice = advise(counts, 1.0, product)
    dead = collapsed(counts, product)
    np.testing.assert_array_equal(advice.collapsed, np.flatnonzero(dead))
    assert all(not dead[k] and counts[k] <= 2 * advice.collapse_count for k in advice.endangered)
    near = dead | (np.array(counts) <= 2 * advice.collapse_count)
    assert len(advice.collapsed) + len(advice.endangered) == near.sum()
    assert not collapsed(counts, product / advice.reduction * (1 - 1e-9)).any()
    assert collapsed(counts, product / advice.reduction * (1 + 1e-9)).any()
    weights = WeightedCrossEntropy(advice.class_weights)
    assert collapsed(counts, product, loss=weights).sum() == advice.weighted.num_collapsed
    assert set(advice.extra_samples) == set(advice.collapsed.tolist())
    for k, extra in advice.extra_samples.items():
        _check_extra(counts, product, k, extra)


@pytest.mark.slow
@exact
@given(
    st.lists(st.integers(1, 2000), min_size=2, max_size=8),
    st.floats(0.05, 20),
    st.sampled_from([0.5, 1, 1.3]),
)
def test_every_statement_holds_whoever_pays_for_features(counts, level, charge):
    counts = np.array(counts)
    product = level * counts.min() / counts.sum() ** 2

    def problem(n, scale=1.0, loss=None):
        decays = charged(product * scale, n, charge)
        return Problem(n, len(n), 1.0, decays, loss=loss or CrossEntropy())

    advice = advise(counts, 1.0, product, charge)
    dead = predict(problem(counts)).collapsed
    np.testing.assert_array_equal(advice.collapsed, np.flatnonzero(dead))
    far = np.abs(counts / advice.collapse_count - 1) > 1e-9
    np.testing.assert_array_equal(dead[far], (counts < advice.collapse_count)[far])
    assert not predict(problem(counts, (1 - 1e-9) / advice.reduction)).collapsed.any()
    assert predict(problem(counts, (1 + 1e-9) / advice.reduction)).collapsed.any()
    assert advice.largest_product == pytest.approx(product / advice.reduction)
    weighted = predict(problem(counts, loss=WeightedCrossEntropy(advice.class_weights))).margins
    np.testing.assert_allclose(weighted, weighted[0], rtol=1e-6, atol=1e-6)
    for k, extra in advice.extra_samples.items():
        if extra is not None:
            more = counts + extra * (np.arange(len(counts)) == k)
            decays = charged(product, more, charge)
            assert not predict(Problem(more, len(more), 1.0, decays)).collapsed[k]


def test_remedies_are_predictions_of_changed_problems():
    counts = [500] * 5 + [50] * 5
    table = {remedy.name: remedy.prediction for remedy in advise(counts, 5e-3, 2e-3, solve=False).remedies}
    assert table["logit adjustment"] is None
    assert table["as it is"].num_collapsed == 5
    assert table["weights n^-1/2"].num_collapsed == 0
    balanced = predict(Problem([275] * 10, 10, 5e-3, 2e-3)).margins
    np.testing.assert_allclose(table["balanced sampler"].margins, balanced)
    for charge, equal in (
        (0, ["weights n^-1/2", "balanced sampler", "fixed ETF"]),
        (1, ["weights 1/n", "balanced sampler"]),
    ):
        found = {
            r.name: r.prediction.margins for r in advise(counts, 5e-3, 1e-4, charge).remedies if r.prediction
        }
        assert [name for name, margins in found.items() if np.ptp(margins) < 1e-9] == equal


def test_a_fixed_frame_of_the_usual_length_keeps_every_class():
    table = {
        remedy.name: remedy.prediction for remedy in advise([500] * 3 + [5] * 3, 5e-3, 2e-3, 0.7).remedies
    }
    assert table["as it is"].num_collapsed == 3
    frame, plain = table["fixed ETF"], table["as it is"]
    assert frame.num_collapsed == 0
    assert frame.margins.min() > 0
    np.testing.assert_allclose(frame.weight_norms**2, np.mean(plain.weight_norms**2))
    # nothing says how long a frame should be where everything collapses
    assert advise([50, 5], 1.0, 1.0).remedies[-1].prediction is None


def test_remedies_without_a_closed_form_are_solved():
    text = advise([60, 60, 10], 5e-3, 2e-4)
    adjusted = next(remedy for remedy in text.remedies if remedy.name == "logit adjustment").prediction
    assert adjusted.source.startswith("solved")
    assert adjusted.margins[2] > adjusted.margins[0]
    assert "No closed form" not in text.table()
    assert max(map(len, text.table().splitlines())) <= 80


def _check_extra(counts, product, k, extra):
    def dead(more):
        return collapsed([n + more * (j == k) for j, n in enumerate(counts)], product)[k]

    if extra is None:
        assert all(dead(more) for more in (1, 10, 100, 1000, 10_000))
    else:
        assert not dead(extra)
        assert dead(extra - 1)


@exact
@given(st.lists(st.integers(1, 2000), min_size=2, max_size=40), st.floats(0.01, 300))
def test_text_fits_80_columns_and_the_dictionary_is_json(counts, level):
    advice = advise(counts, 1.0, level * min(counts) / sum(counts) ** 2)
    assert all(0 < len(line) <= 80 for line in advice.lines())
    assert str(advice) == "\n".join(advice.lines())
    again = json.loads(json.dumps(advice.to_dict(), allow_nan=False))
    assert again["counts"] == counts
    assert again["collapsed"] == advice.collapsed.tolist()


def test_text_of_a_training_set_with_collapsed_and_endangered_classes():
    text = flat(advise([500] * 5 + [100] * 5 + [50] * 5, 1e-4, 0.055))
    assert "5 of 15 classes collapse (10-14)" in text
    assert "within a factor of two of that: 5-9" in text
    assert "rescue every class" in text
    assert "- 10-14: " in text


def test_text_when_nothing_or_everything_collapses():
    healthy = flat(advise([500, 400], 1e-4, 1e-4))
    assert "No class collapses" in healthy
    assert "it may still grow by any factor below" in healthy
    hopeless = flat(advise([5, 5], 1.0, 1.0))
    assert "All 2 classes collapse (0-1)" in hopeless
    assert "would not help" in hopeless
    assert "no number is enough" in hopeless


@pytest.mark.slow
def test_many_groups_are_summarised():
    text = str(advise(list(range(1, 120, 2)), 1.0, 5e-6))
    assert "more groups of classes" in text
    assert len(text.splitlines()) < 25


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="counts"):
        advise([5], 1.0, 1.0)
    with pytest.raises(InputError, match="weight_decay"):
        advise([5, 5], -1.0, 1.0)
