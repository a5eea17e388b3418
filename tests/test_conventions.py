"""Conversions of regularisation strengths: against the objectives they stand for, and there and back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm import conventions
from ufm.conventions import (
    Decays,
    from_icml2024_code,
    from_nuclear,
    from_training,
    to_icml2024_code,
    to_nuclear,
    to_training,
    trace_caps,
)
from ufm.inputs.checks import InputError
from ufm.losses import CrossEntropy
from ufm.model.problem import Problem

exact = settings(max_examples=100)
strengths = st.floats(1e-12, 1e3)
EPS = np.finfo(np.float64).eps


def training_epoch(weight, features, labels, batches, a, b, *, reduction, loss_scale):
    """Mean over the batches of what a training step minimises, written out from its definition."""
    total = 0.0
    for batch in batches:
        h = features[batch]
        loss = CrossEntropy().value(h @ weight.T, labels[batch]).mean()
        norms = np.sum(h**2, axis=1)
        total += loss_scale * loss + a / 2 * np.sum(weight**2) + b / 2 * getattr(norms, reduction)()
    return total / len(batches)


def ours(weight, features, labels, decays):
    loss = CrossEntropy().value(features @ weight.T, labels).mean()
    return loss + decays.weight_decay / 2 * np.sum(weight**2) + decays.feature_decay / 2 * np.sum(features**2)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("batch_size", [1, 4, 12])
@pytest.mark.parametrize("loss_scale", [1.0, 0.5, 3])
def test_converted_problem_is_what_training_minimises(reduction, batch_size, loss_scale):
    rng = np.random.default_rng(0)
    weight, features, labels = rng.normal(size=(3, 5)), rng.normal(size=(12, 5)), np.arange(12) % 3
    batches = rng.permutation(12).reshape(-1, batch_size)
    a, b = 0.3, 0.02
    epoch = training_epoch(
        weight, features, labels, batches, a, b, reduction=reduction, loss_scale=loss_scale
    )
    decays = from_training(
        a, b, num_samples=12, batch_size=batch_size, reduction=reduction, loss_scale=loss_scale
    )
    assert ours(weight, features, labels, decays) == pytest.approx(epoch / loss_scale, rel=20 * EPS)


def test_full_batch_is_the_default():
    assert from_training(0.3, 0.02, num_samples=12) == Decays(0.3, 0.02)
    assert from_training(0.3, 0.02, num_samples=12, reduction="mean").feature_decay == pytest.approx(
        0.02 / 12
    )


def test_icml2024_code():
    rng = np.random.default_rng(1)
    weight, features, labels = rng.normal(size=(3, 5)), rng.normal(size=(12, 5)), np.arange(12) % 3
    batches = np.arange(12).reshape(3, 4)
    a, b = 1e-2, 1e-3
    epoch = training_epoch(weight, features, labels, batches, a, b, reduction="sum", loss_scale=0.5)
    decays = from_icml2024_code(a, b, num_samples=12, batch_size=4)
    assert ours(weight, features, labels, decays) == pytest.approx(2 * epoch, rel=20 * EPS)
    published = from_icml2024_code(1e-4, 1e-5, num_samples=30_000)
    assert published.weight_decay == pytest.approx(2e-4)
    assert published.feature_decay == pytest.approx(2 * 1e-5 * 256 / 30_000)


@exact
@given(
    decays=st.builds(Decays, strengths, strengths),
    num_samples=st.integers(1, 10**7),
    share=st.floats(0, 1),
    reduction=st.sampled_from(["sum", "mean"]),
    loss_scale=st.floats(1e-2, 1e2),
)
def test_training_round_trip(decays, num_samples, share, reduction, loss_scale):
    batch_size = max(1, int(share * num_samples))
    setting = {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "reduction": reduction,
        "loss_scale": loss_scale,
    }
    back = from_training(*to_training(decays, **setting), **setting)
    np.testing.assert_allclose([*back], [*decays], rtol=8 * EPS)
    code = from_icml2024_code(*to_icml2024_code(decays, num_samples, batch_size), num_samples, batch_size)
    np.testing.assert_allclose([*code], [*decays], rtol=8 * EPS)


@exact
@given(weight=strengths, ratio=st.floats(1e-8, 1e8), num_samples=st.integers(2, 10**6))
def test_nuclear_round_trip(weight, ratio, num_samples):
    decays = from_nuclear(weight, ratio)
    np.testing.assert_allclose(to_nuclear(decays), [weight, ratio], rtol=8 * EPS)
    problem = Problem(np.array([1, num_samples]), 2, *decays)
    assert problem.nuclear_weight == pytest.approx(weight, rel=8 * EPS)


def test_nuclear_weight_is_the_least_penalty_of_a_factorisation():
    rng = np.random.default_rng(2)
    logits, counts = rng.normal(size=(4, 3)), np.array([5, 2, 1])
    decays = from_nuclear(0.07, ratio=9.0)
    u, s, vt = np.linalg.svd(logits * np.sqrt(counts), full_matrices=False)
    balance = (decays.feature_decay / decays.weight_decay) ** 0.25
    weight, columns = u * np.sqrt(s) * balance, np.sqrt(s)[:, None] * vt / balance
    features = columns / np.sqrt(counts)
    np.testing.assert_allclose(weight @ features, logits, atol=100 * EPS)

    def penalty(w, h):
        return decays.weight_decay / 2 * np.sum(w**2) + decays.feature_decay / 2 * np.sum(counts * h**2)

    assert penalty(weight, features) == pytest.approx(0.07 * s.sum(), rel=20 * EPS)
    for _ in range(20):  # any other factorisation costs more
        mix = rng.normal(size=(3, 3)) + 2 * np.eye(3)
        assert penalty(weight @ mix, np.linalg.solve(mix, features)) > 0.07 * s.sum()


def test_trace_caps_by_hand():
    weight = np.array([[3.0, 0.0], [0.0, 1.0]])
    features = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    caps = trace_caps(weight, features, np.array([0, 0, 1]))
    assert caps.weight == (9 + 1) / 2
    assert caps.features == (1 + 1 + 25) / 2  # the mean of class 0 is (1, 1)


def test_trace_caps_ignore_how_often_a_row_is_repeated():
    rng = np.random.default_rng(3)
    weight, means = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    labels = np.repeat(np.arange(4), [1, 5, 2, 9])
    one_row, all_rows = (trace_caps(weight, means[y], y) for y in (np.arange(4), labels))
    assert all_rows.features == pytest.approx(one_row.features, rel=20 * EPS)
    assert one_row.features == pytest.approx(np.sum(means**2) / 4)


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 1, 3], [-1, 1, 2], [0, 1, 1]])
def test_trace_caps_need_every_class(labels):
    with pytest.raises(InputError, match=r"labels must (name every class|be integers) from 0 to 2"):
        trace_caps(np.ones((3, 2)), np.ones((3, 2)), np.array(labels))


def test_decays_unpack_into_a_problem():
    decays = Decays(1e-3, 1e-5)
    problem = Problem(np.array([5, 5]), 2, *decays)
    assert (problem.weight_decay, problem.feature_decay) == (1e-3, 1e-5)
    assert hash(decays) == hash(Decays(1e-3, 1e-5))


GOOD = {"num_samples": 10, "batch_size": 5}
BAD_SETTINGS = [
    ((0.0, 1.0), GOOD, "weight_penalty .*0"),
    ((-1.0, 1.0), GOOD, "weight_penalty .*-1"),
    ((1.0, math.nan), GOOD, "feature_penalty .*nan"),
    ((1.0, math.inf), GOOD, "feature_penalty .*inf"),
    ((1.0, 1.0), {"num_samples": 0}, "num_samples .*0"),
    ((1.0, 1.0), {"num_samples": 10, "batch_size": 0}, "batch_size .*0"),
    (
        (1.0, 1.0),
        {"num_samples": 10, "batch_size": 11},
        "batch_size must be at most num_samples = 10, got 11",
    ),
    ((1.0, 1.0), {**GOOD, "loss_scale": 0.0}, "loss_scale .*0"),
]


@pytest.mark.parametrize(("penalties", "setting", "told"), BAD_SETTINGS)
def test_bad_training_settings(penalties, setting, told):
    with pytest.raises(InputError, match=told):
        from_training(*penalties, **setting)


def test_bad_strengths():
    with pytest.raises(InputError, match=r"weight must be .*0"):
        from_nuclear(0.0)
    with pytest.raises(InputError, match=r"ratio must be .*-2"):
        from_nuclear(1.0, -2.0)
    with pytest.raises(InputError, match=r"feature_decay must be .*nan"):
        Decays(1.0, math.nan)
    with pytest.raises(InputError, match=r"weight_decay must be .*0"):
        Decays(0.0, 1.0)


def test_torch_weighted_mean_is_the_mean_with_these_weights():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    counts, weights = np.array([5, 9, 2]), np.array([1.0, 0.2, 7.0])
    labels, logits = np.repeat(np.arange(3), counts), rng.standard_normal((16, 3))
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), weight=torch.tensor(weights)
    )
    each = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(16), labels]
    ours = np.mean(conventions.from_torch_weights(weights, counts)[labels] * each)
    assert ours == pytest.approx(float(theirs))
    with pytest.raises(InputError, match="class_weights must have one entry per class, 3, got 2"):
        conventions.from_torch_weights([1, 2], counts)
