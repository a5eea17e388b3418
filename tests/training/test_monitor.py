"""Watching a run with arrays: the numbers are those of `ufm.metrics`, epochs begin anew, processes add up."""

import json
import pickle

import numpy as np
import pytest

import ufm
from ufm import metrics
from ufm.inputs.checks import InputError
from ufm.training import METRICS, Monitor
from ufm.training.summary import simplex_distance, thirds

K, D = 6, 9


def layer(seed=0, rows=200):
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, rows, p=np.arange(1, K + 1) / 21)
    centres = rng.random((K, D)) * 3
    return (
        centres[labels] + 0.3 * rng.random((rows, D)),
        labels,
        rng.standard_normal((K, D)),
        rng.standard_normal(K),
    )


def test_an_epoch_agrees_with_the_metrics_of_all_its_rows_at_once():
    features, labels, weight, bias = layer()
    monitor = Monitor(K, D)
    for part in np.array_split(np.arange(200), 7):
        monitor.update(features[part], labels[part], weight, bias)
    epoch = monitor.epoch()
    whole = metrics.measure(features, labels, weight, bias)
    margins = metrics.margins(whole)
    expected = {
        "samples": 200,
        "accuracy": metrics.accuracy(whole),
        "loss": metrics.mean_cross_entropy(whole),
        "margin_min": margins.min(),
        "margin_median": np.median(margins),
        "NC1": metrics.nc1(whole),
        "NC1_ratio": metrics.variance_ratio(whole),
        "NC1_CDNV": metrics.cdnv(whole),
        "Sw_invSb": K * metrics.nc1_unweighted(whole),
        "logit_margin_min": whole.logits.smallest_margin.min(),
    }
    assert {name: epoch[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert np.isnan(epoch["NCC_mismatch"])
    tail = thirds(whole.counts)["tail"]
    assert epoch["margin_min/tail"] == pytest.approx(margins[tail].min())
    assert epoch["feature_norm/tail"] == pytest.approx(metrics.norms(whole.means)[tail].mean())


def test_the_names_of_others_mean_what_their_code_computes():
    """Written out as in the notebook of Papyan, Han, Donoho: means in columns, unbiased deviations."""
    features, labels, weight, bias = layer(1)
    monitor = Monitor(K, D)
    monitor.update(features, labels, weight, bias)
    epoch = monitor.epoch()
    M = np.stack([features[labels == k].mean(axis=0) for k in range(K)], axis=1)
    M_ = M - M.mean(axis=1, keepdims=True)
    Sw = sum(np.outer(h - M[:, y], h - M[:, y]) for h, y in zip(features, labels, strict=True)) / len(labels)
    M_norms, W_norms = np.linalg.norm(M_, axis=0), np.linalg.norm(weight.T, axis=0)

    def coherence(V):
        G = V.T @ V + 1 / (K - 1)
        G -= np.diag(np.diag(G))
        return np.abs(G).sum() / (K * (K - 1))

    distance = np.linalg.norm(weight.T / np.linalg.norm(weight) - M_ / np.linalg.norm(M_)) ** 2
    expected = {
        "Sw_invSb": np.trace(Sw @ np.linalg.pinv(M_ @ M_.T / K, rcond=1e-10)),
        "norm_M_CoV": M_norms.std(ddof=1) / M_norms.mean(),
        "norm_W_CoV": W_norms.std(ddof=1) / W_norms.mean(),
        "cos_M": coherence(M_ / M_norms),
        "cos_W": coherence(weight.T / W_norms),
        "W_M_dist": distance,
    }
    assert {name: epoch[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_every_key_is_documented_and_the_same_every_epoch_and_json():
    features, labels, weight, bias = layer(2)
    problem = ufm.Problem(np.bincount(labels), D, 1e-3, 1e-3)
    monitor = Monitor(K, D, prediction=ufm.predict(problem))
    epochs = []
    for _ in range(2):
        monitor.update(features, labels, weight, bias)
        epochs.append(monitor.epoch())
    assert list(epochs[0]) == list(epochs[1])
    assert {name.split("/")[0] for name in epochs[0]} == set(METRICS)
    assert all(isinstance(value, float) for epoch in epochs for value in epoch.values())
    first, second = ({k: v for k, v in epoch.items() if k != "NCC_mismatch"} for epoch in epochs)
    assert first == second
    json.dumps(epochs[1], allow_nan=False)
    nearest = ((features[:, None] - metrics.measure(features, labels).means) ** 2).sum(axis=2).argmin(axis=1)
    chosen = (features @ weight.T + bias).argmax(axis=1)
    assert epochs[1]["NCC_mismatch"] == pytest.approx(np.mean(nearest != chosen))


def test_an_optimum_is_seen_as_one():
    problem = ufm.Problem([60, 30, 20, 10], 6, 5e-3, 1e-3)
    solution = ufm.solve(problem, level="sample", tol=1e-12)
    monitor = Monitor(4, 6, prediction=ufm.predict(problem))
    monitor.update(solution.features, solution.labels, solution.weight)
    epoch = monitor.epoch()
    assert max(epoch[name] for name in ("NC1", "NC2_H", "NC2_W", "NC2_WWT", "NC3_WH")) < 1e-4
    assert epoch["margin_min"] == pytest.approx(ufm.predict(problem).margins.min(), rel=1e-4)


def test_processes_add_up_to_the_whole():
    features, labels, weight, bias = layer(3)
    whole, first, second = (Monitor(K, D) for _ in range(3))
    whole.update(features, labels, weight, bias)
    first.update(features[:70], labels[:70], weight, bias)
    second.update(features[70:], labels[70:], weight, bias)
    first.merge(pickle.loads(pickle.dumps(second.record())))
    values = {k: v for k, v in whole.epoch().items() if k != "NCC_mismatch"}
    assert {k: v for k, v in first.epoch().items() if k in values} == pytest.approx(values, rel=1e-9)


def test_batches_can_be_sampled_and_bad_rows_are_dropped():
    features, labels, weight, bias = layer(4)
    monitor = Monitor(K, D, every=3)
    for part in np.array_split(np.arange(200), 10):
        monitor.update(features[part], labels[part], weight, bias)
    assert monitor.epoch()["samples"] == 80
    broken, ignored = features.copy(), labels.copy()
    broken[3, 2], ignored[5:9] = np.inf, -100
    monitor.update(broken, ignored, weight, bias)
    epoch = monitor.epoch()
    assert (epoch["samples"], epoch["dropped"]) == (195, 5)
    assert np.isfinite(epoch["loss"])


def test_a_class_without_samples_takes_no_part():
    features, labels, weight, bias = layer(5)
    kept = labels != 0
    monitor = Monitor(K, D, counts=[1000, 5, 4, 3, 2, 1], scatter=False)
    monitor.update(features[kept], labels[kept], weight, bias)
    epoch = monitor.epoch()
    assert "NC1" not in epoch
    assert np.isfinite(epoch["margin_min/head"])  # class 1 is in the head, too
    assert simplex_distance(np.zeros((3, 2))) == 0.5


def test_a_process_that_saw_no_batch_knows_what_it_merged():
    features, labels, weight, bias = layer(3)
    busy, idle = Monitor(K, D), Monitor(K, D)
    busy.update(features, labels, weight, bias)
    idle.merge(pickle.loads(pickle.dumps(busy.record())))
    np.testing.assert_equal(idle.epoch(), busy.epoch())


BAD = [
    (lambda m, f, y, w: m.update(f[:, 1:], y, w), "features must have"),
    (lambda m, f, y, w: m.update(f, y + K, w), "labels must be integers from 0 to 5"),
    (lambda m, f, y, w: m.update(f, y, w.T), "weight must have shape"),
    (lambda m, f, y, w: m.epoch(), "epoch needs at least one batch"),
    (lambda m, f, y, w: m.merge(Monitor(K, D + 1)), "other must have been made with the same shapes"),
    (lambda m, f, y, w: Monitor(K, D, every=0), "every must be"),
    (lambda m, f, y, w: Monitor(K, D, counts=[1, 2]), "counts must have one entry per class"),
    (lambda m, f, y, w: Monitor(2, D, counts=[1, np.nan]), r"counts must be finite .* counts\[1\] = nan"),
    (lambda m, f, y, w: Monitor(2, D, counts=[1, -3]), r"counts must be non-negative, got counts\[1\] = -3"),
    (lambda m, f, y, w: Monitor(2, D, counts=["a", "b"]), "counts must hold real numbers"),
    (
        lambda m, f, y, w: Monitor(K, D, prediction=ufm.predict(ufm.Problem([3, 4], 2, 1e-3, 1e-3))),
        "prediction must be for 6 classes",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_mistakes_are_named(call, message):
    features, labels, weight, _ = layer(6)
    with pytest.raises(InputError, match=message):
        call(Monitor(K, D), features, labels, weight)
