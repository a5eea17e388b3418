"""Metrics: each against loops over samples and classes, streamed against in memory, and on collapsed data."""

import itertools
import math
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm import metrics
from ufm.inputs.arrays import LARGEST
from ufm.inputs.checks import InputError
from ufm.metrics import batches
from ufm.metrics.batches import BLOCK_ENTRIES
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.metrics.statistics import FeatureStatistics

SETTINGS = settings(max_examples=25)


def layer(seed=0, counts=(9, 5, 3, 1), dim=6, noise=0.4, bias=True, shift=0.0):
    """Features of `counts` samples per class in random order, with a classifier."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.normal(size=(len(counts), dim))
    features = shift + means[labels] + noise * rng.normal(size=(len(labels), dim))
    weight = rng.normal(size=(len(counts), dim))
    return features, labels, weight, rng.normal(size=len(counts)) if bias else None


class Loops:
    """The same quantities as the package, written as sums over samples, with no array algebra to share."""

    def __init__(self, features, labels, weight, bias):
        self.K, (self.N, self.d) = len(weight), features.shape
        self.features, self.labels, self.weight = features, labels, weight
        self.bias = np.zeros(self.K) if bias is None else bias
        self.members = [[i for i in range(self.N) if labels[i] == k] for k in range(self.K)]
        self.means = [[sum(features[i][j] for i in m) / len(m) for j in range(self.d)] for m in self.members]
        self.centre = [sum(features[i][j] for i in range(self.N)) / self.N for j in range(self.d)]

    def distance(self, a, b):
        return sum((a[j] - b[j]) ** 2 for j in range(self.d))

    def within(self):
        total = np.zeros((self.d, self.d))
        for i in range(self.N):
            residual = self.features[i] - np.array(self.means[self.labels[i]])
            total += np.outer(residual, residual)
        return total / self.N

    def between(self):
        total = np.zeros((self.d, self.d))
        for k in range(self.K):
            residual = np.array(self.means[k]) - np.array(self.centre)
            total += np.outer(residual, residual)
        return total / self.K

    def nc1(self):
        return np.trace(self.within() @ np.linalg.pinv(self.between(), rcond=1e-10)) / self.K

    def variance_ratio(self):
        return sum(self.within()[j, j] for j in range(self.d)) / sum(
            self.between()[j, j] for j in range(self.d)
        )

    def cdnv(self):
        spread = [
            sum(self.distance(self.features[i], self.means[k]) for i in m) / len(m)
            for k, m in enumerate(self.members)
        ]
        terms = [
            (spread[k] + spread[m]) / (2 * self.distance(self.means[k], self.means[m]))
            for k in range(self.K)
            for m in range(self.K)
            if k != m
        ]
        return sum(terms) / len(terms)

    def logits(self, x):
        return [sum(self.weight[k][j] * x[j] for j in range(self.d)) + self.bias[k] for k in range(self.K)]

    def probabilities(self, x):
        powers = [math.exp(z) for z in self.logits(x)]
        return [p / sum(powers) for p in powers]

    def margins(self):
        values = []
        for k, m in enumerate(self.members):
            miss = sum(1 - self.probabilities(self.features[i])[k] for i in m) / len(m)
            values.append(math.log((1 - miss) * (self.K - 1) / miss))
        return values

    def nc4(self):
        agreeing = 0
        for x in self.features:
            distances = [self.distance(x, mean) for mean in self.means]
            logits = self.logits(x)
            agreeing += logits.index(max(logits)) == distances.index(min(distances))
        return agreeing / self.N

    def accuracy(self):
        right = 0
        for x, k in zip(self.features, self.labels, strict=True):
            logits = self.logits(x)
            right += all(logits[k] > z for j, z in enumerate(logits) if j != k)
        return right / self.N

    def cross_entropy(self):
        losses = [
            -math.log(self.probabilities(x)[k]) for x, k in zip(self.features, self.labels, strict=True)
        ]
        return sum(losses) / self.N


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bias", [True, False])
def test_sample_metrics_against_loops(seed, bias):
    features, labels, weight, vector = layer(seed, bias=bias)
    loops = Loops(features, labels, weight, vector)
    statistics = metrics.measure(features, labels, weight, vector)
    np.testing.assert_allclose(statistics.means, loops.means, rtol=1e-12)
    np.testing.assert_allclose(statistics.global_mean, loops.centre, rtol=1e-11)
    np.testing.assert_allclose(statistics.within, loops.within(), rtol=1e-11, atol=1e-14)
    assert statistics.within_trace == pytest.approx(np.trace(loops.within()), rel=1e-12)
    assert metrics.between_trace(statistics) == pytest.approx(np.trace(loops.between()), rel=1e-12)
    assert metrics.nc1(statistics) == pytest.approx(loops.nc1(), rel=1e-9)
    assert metrics.variance_ratio(statistics) == pytest.approx(loops.variance_ratio(), rel=1e-11)
    assert metrics.cdnv(statistics) == pytest.approx(loops.cdnv(), rel=1e-11)
    np.testing.assert_allclose(metrics.margins(statistics), loops.margins(), rtol=1e-10, atol=1e-12)
    assert metrics.accuracy(statistics) == loops.accuracy()
    assert metrics.mean_cross_entropy(statistics) == pytest.approx(loops.cross_entropy(), rel=1e-12)
    second = NearestMeanAgreement(statistics)
    second.update(features, labels)
    assert second.agreement == pytest.approx(loops.nc4(), abs=1e-15)


def test_class_metrics_against_loops():
    features, labels, weight, bias = layer(5)
    loops = Loops(features, labels, weight, bias)
    statistics = metrics.measure(features, labels, weight, bias)
    means, K = statistics.means, 4

    def dot(a, b):
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    for k in range(K):
        assert metrics.norms(means)[k] == pytest.approx(math.sqrt(dot(means[k], means[k])))
        aligned = dot(means[k], weight[k]) / math.sqrt(dot(means[k], means[k]) * dot(weight[k], weight[k]))
        assert metrics.paired_cosines(means, weight)[k] == pytest.approx(aligned)
        np.testing.assert_allclose(metrics.class_logits(statistics)[k], loops.logits(means[k]), rtol=1e-12)
        others = [z for j, z in enumerate(loops.logits(means[k])) if j != k]
        assert metrics.logit_margins(metrics.class_logits(statistics))[k] == pytest.approx(
            loops.logits(means[k])[k] - max(others)
        )
        wanted = [
            K * math.sqrt(len(loops.members[k])) * means[k][j]
            - sum(math.sqrt(len(loops.members[m])) * means[m][j] for m in range(K))
            for j in range(6)
        ]
        np.testing.assert_allclose(metrics.classifier_from_means(means, statistics.counts)[k], wanted)
        for m in range(K):
            cosine = dot(means[k], means[m]) / math.sqrt(dot(means[k], means[k]) * dot(means[m], means[m]))
            assert metrics.cosines(means)[k, m] == pytest.approx(cosine)
            assert metrics.gram(means)[k, m] == pytest.approx(dot(means[k], means[m]))
    ratios = metrics.norm_ratios(metrics.norms(weight))
    assert ratios.max() == 1
    np.testing.assert_allclose(ratios * metrics.norms(weight).max(), metrics.norms(weight))


def test_direction_residual_against_loops():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    size_a = math.sqrt(sum(x * x for x in a.ravel()))
    size_b = math.sqrt(sum(x * x for x in b.ravel()))
    expected = math.sqrt(
        sum((x / size_a - y / size_b) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True))
    )
    assert metrics.direction_residual(a, b) == pytest.approx(expected)
    assert metrics.direction_residual(a, 3e7 * a) == pytest.approx(0, abs=1e-15)
    assert metrics.direction_residual(a, -a) == pytest.approx(2)


SUMMARY = (
    metrics.nc1,
    metrics.variance_ratio,
    metrics.cdnv,
    metrics.accuracy,
    metrics.mean_cross_entropy,
    metrics.margins,
    metrics.class_logits,
)


def summary(statistics):
    return [np.asarray(metric(statistics)) for metric in SUMMARY]


@SETTINGS
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 18), max_size=6),
    shift=st.sampled_from([0.0, 1e3, 1e6]),
    merged=st.booleans(),
)
def test_any_split_gives_the_in_memory_metrics(seed, cuts, shift, merged):
    features, labels, weight, bias = layer(seed % 1000, shift=shift)
    whole = metrics.measure(features, labels, weight, bias)
    parts = [FeatureStatistics(weight=weight, bias=bias) for _ in range(2)]
    edges = [0, *sorted(cuts), len(labels)]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        parts[number % 2 if merged else 0].update(features[start:stop], labels[start:stop])
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].rows == whole.rows
    # the means lose the digits that the shift takes, the scatter does not
    precision = 1e-11 * (1 + shift)
    for streamed, memory in zip(summary(parts[0]), summary(whole), strict=True):
        np.testing.assert_allclose(streamed, memory, rtol=precision, atol=precision)


def test_scatter_does_not_cancel_far_from_zero():
    features, labels, _, _ = layer(3, noise=1e-3, bias=False)
    near = metrics.measure(features, labels)
    far = metrics.measure(features + 1e6, labels)
    assert far.within_trace == pytest.approx(near.within_trace, rel=1e-6)


def test_one_large_update_works_in_blocks(monkeypatch):
    features, labels, weight, bias = layer(4)
    whole = metrics.measure(features, labels, weight, bias)
    monkeypatch.setattr("ufm.metrics.batches.BLOCK_ENTRIES", 12)
    for blocked, memory in zip(
        summary(metrics.measure(features, labels, weight, bias)), summary(whole), strict=True
    ):
        np.testing.assert_allclose(blocked, memory, rtol=1e-12)
    assert BLOCK_ENTRIES > 1e6


@pytest.mark.parametrize("classes", [300, 30_000])
def test_small_batches_cost_no_more_products_than_their_rows(monkeypatch, classes):
    """Every addition to the scatter is a d x d product: a loader's batches wait until there are enough for one."""
    rng = np.random.default_rng(0)
    rows, labels = rng.random((3000, 400)), rng.integers(0, classes, 3000)
    products, of_block = [], batches.block_moments

    def counted(rows, *rest):
        products.append(len(rows))
        return of_block(rows, *rest)

    monkeypatch.setattr(batches, "block_moments", counted)
    found = []
    for size in (128, 3000):
        products.clear()
        statistics = FeatureStatistics(num_classes=classes, dim=400)
        for start in range(0, 3000, size):
            statistics.update(rows[start : start + size], labels[start : start + size])
        found.append((statistics.within_trace, statistics.counts.sum(), len(products)))
    assert found[0] == pytest.approx(found[1], rel=1e-12, abs=2)
    assert found[0][2] <= 3000 / 512 + 2


def test_pairs_of_means_at_every_distance_are_counted_as_by_the_definition():
    """Distances over many decades: those below a fraction of the largest are one point, wherever that fraction is."""
    rng = np.random.default_rng(1)
    means = np.repeat(rng.standard_normal((6, 3)), 3, axis=0)
    means += np.geomspace(1e-9, 1.0, 18)[:, None] * rng.standard_normal((18, 3))
    labels = np.repeat(np.arange(18), 4)
    statistics = metrics.measure(means[labels] + 1e-3 * rng.standard_normal((72, 3)), labels)
    squares, variances = metrics.squared_distances(statistics), statistics.variances
    ratios = (variances[:, None] + variances) / 2 / np.where(squares > 0, squares, 1.0)
    for rtol in (0.0, 1e-8, 1e-6, 1e-3, 0.1, 0.3, 1.0):
        kept = squares > rtol * squares.max()
        expected = ratios[kept].mean() if kept.any() else 0.0
        assert metrics.cdnv(statistics, rtol) == pytest.approx(expected, rel=1e-9)


def test_multiplicity_is_repetition():
    features, labels, weight, bias = layer(6)
    times = np.random.default_rng(0).integers(1, 4, size=len(labels))
    repeated = metrics.measure(np.repeat(features, times, axis=0), np.repeat(labels, times), weight, bias)
    weighted = metrics.measure(features, labels, weight, bias, multiplicities=times)
    for one, other in zip(summary(weighted), summary(repeated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)


@SETTINGS
@given(seed=st.integers(0, 10**6))
def test_rotation_scale_and_relabelling(seed):
    features, labels, weight, bias = layer(seed % 997)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    order = rng.permutation(4)  # class k becomes order[k]
    inverse = np.argsort(order)
    before = metrics.measure(features, labels, weight, bias)
    after = metrics.measure(features @ rotation, order[labels], (weight @ rotation)[inverse], bias[inverse])
    for metric in (metrics.nc1, metrics.variance_ratio, metrics.cdnv, metrics.mean_cross_entropy):
        assert metric(after) == pytest.approx(metric(before), rel=1e-9)
    np.testing.assert_allclose(metrics.margins(after)[order], metrics.margins(before), rtol=1e-9, atol=1e-12)
    scaled = metrics.measure(7 * features, labels)
    for metric in (metrics.nc1, metrics.variance_ratio, metrics.cdnv):
        assert metric(scaled) == pytest.approx(metric(before), rel=1e-9)


class Tensor:
    """What torch tensors let others do: no buffer until detached and on the host."""

    def __init__(self, array, ready=False):
        self.array, self.ready = np.asarray(array), ready
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __getitem__(self, index):
        return Tensor(self.array[index])

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.array, ready=True)

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise TypeError("cannot convert a tensor that requires grad")
        return self.array if dtype is None else self.array.astype(dtype)


@pytest.mark.parametrize("convert", [jnp.asarray, Tensor, np.ndarray.tolist, np.asfortranarray])
def test_arrays_of_other_libraries(convert):
    features, labels, weight, bias = layer(7)
    features = features.astype(np.float32).astype(np.float64)  # what JAX keeps by default
    weight, bias = weight.astype(np.float32).astype(np.float64), bias.astype(np.float32).astype(np.float64)
    memory = metrics.measure(features, labels, weight, bias)
    other = metrics.measure(convert(features), convert(labels), convert(weight), convert(bias))
    for one, expected in zip(summary(other), summary(memory), strict=True):
        np.testing.assert_array_equal(one, expected)


def test_narrow_types_are_summed_in_float64():
    features, labels, _, _ = layer(8)
    for kind in (np.float16, np.float32, jnp.bfloat16):
        narrow = jnp.asarray(features).astype(kind) if kind is jnp.bfloat16 else features.astype(kind)
        statistics = metrics.measure(narrow, labels.astype(np.float32))
        assert statistics.means.dtype == np.float64
        assert metrics.nc1(statistics) == pytest.approx(
            metrics.nc1(metrics.measure(features, labels)), rel=0.1
        )


def everything(statistics, features, labels):
    """All metrics as one vector."""
    second = NearestMeanAgreement(statistics)
    second.update(features, labels)
    weight, _ = statistics.classifier
    values = [np.ravel(value) for value in summary(statistics)]
    values += [np.ravel(f(statistics.means)) for f in (metrics.norms, metrics.cosines, metrics.gram)]
    values += [
        metrics.norm_ratios(metrics.norms(statistics.means)),
        metrics.paired_cosines(statistics.means, weight),
    ]
    wanted = metrics.classifier_from_means(statistics.means, statistics.counts)
    values.append(np.array([metrics.direction_residual(weight, wanted), second.agreement]))
    return np.concatenate(values)


ZERO, LABELS = np.zeros((6, 3)), np.array([0, 0, 1, 1, 2, 2])
SPREAD = np.random.default_rng(1).normal(size=(6, 3))


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (ZERO, LABELS),  # everything collapsed to the origin
        (ZERO + 1.0, LABELS),  # all means equal, no variability
        (SPREAD, np.array([0, 1, 2, 0, 1, 2])),
        (np.eye(3)[[0, 0, 1, 1, 1, 1]], LABELS),  # two classes share their mean
        (np.eye(3)[[0, 0, 1, 1, 2, 2]] * 1e-150, LABELS),  # squares underflow
        (SPREAD[:3], np.array([0, 1, 2])),  # one sample per class
        (SPREAD, np.array([0, 0, 0, 2, 2, 2])),  # a class without samples
        (SPREAD[:1], np.array([1])),  # a single sample
    ],
)
@pytest.mark.parametrize("weight", [np.zeros((3, 3)), np.eye(3), np.ones((3, 3)), 1e4 * np.eye(3)])
def test_never_nan(features, labels, weight):
    statistics = metrics.measure(features, labels, weight)
    values = everything(statistics, features, labels)
    assert not np.any(np.isnan(values))


def test_conventions_for_collapsed_data():
    same = metrics.measure(ZERO + 1.0, LABELS, np.zeros((3, 3)))
    assert metrics.nc1(same) == metrics.variance_ratio(same) == metrics.cdnv(same) == 0
    np.testing.assert_allclose(metrics.margins(same), 0, atol=1e-15)
    merged = metrics.measure(np.array([[1.0], [-1.0]] * 3), LABELS)
    assert metrics.nc1(merged) == metrics.cdnv(merged) == 0
    assert metrics.variance_ratio(merged) == math.inf
    assert metrics.direction_residual(np.zeros((2, 2)), np.eye(2)) == pytest.approx(1)
    assert metrics.direction_residual(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    pair = metrics.measure(
        np.array([[0.0], [0.0], [1.0], [1.0]]), [0, 1, 2, 2], np.array([[-1.0], [-1.0], [1.0]])
    )
    second = NearestMeanAgreement(pair)
    second.update([[0.0], [0.0], [1.0], [1.0]], [0, 1, 2, 2])
    assert second.agreement == 1  # classes 0 and 1 are tied on both sides


def test_classes_without_samples_take_no_part():
    features, labels, weight, bias = layer(9, counts=(5, 4, 3))
    padded = metrics.measure(
        features, labels + (labels > 0), np.insert(weight, 1, 0, axis=0), np.insert(bias, 1, -50)
    )
    plain = metrics.measure(features, labels, weight, bias)
    assert padded.present.tolist() == [True, False, True, True]
    for metric in (metrics.nc1, metrics.variance_ratio, metrics.cdnv, metrics.accuracy):
        assert metric(padded) == pytest.approx(metric(plain), rel=1e-12)
    assert metrics.margins(padded)[1] == 0


def test_extreme_logits_stay_finite():
    statistics = metrics.measure([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(metrics.margins(statistics), 1e4)
    wrong = metrics.measure([[1.0, 0.0], [0.0, 1.0]], [1, 0], [[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(metrics.margins(wrong), -1e4)
    assert metrics.accuracy(wrong) == 0


BAD = [
    ({"features": np.zeros(3)}, "features must be a matrix"),
    ({"features": [[1.0, math.nan]] * 4}, r"features must be finite .*features\[0, 1\] = nan"),
    ({"features": [[1.0, 10 * LARGEST]] * 4}, "features must be finite"),
    ({"features": np.full((4, 2), "x")}, "features must hold real numbers"),
    ({"features": np.ones((4, 2)) * 1j}, "features must hold real numbers"),
    ({"labels": [0, 1, 2, 3]}, r"labels must be integers from 0 to 2, got labels\[3\] = 3"),
    ({"labels": [0, 1, 2, -1]}, r"labels\[3\] = -1"),
    ({"labels": [0, 1, 0.5, 1]}, r"labels\[2\] = 0.5"),
    ({"labels": [0, 1, math.nan, 1]}, r"labels\[2\] = nan"),
    ({"labels": ["a", "b", "c", "d"]}, "labels must be integers"),
    ({"labels": [0, 1, 2]}, r"labels must have one entry per row of features \(4\), got 3"),
    ({"labels": [[0], [1], [2], [0]]}, "labels must be a vector"),
    ({"weight": np.zeros((3, 5))}, "dim must agree with weight"),
    ({"weight": np.zeros(3)}, "weight must be a matrix"),
    ({"weight": np.zeros((1, 2))}, "weight must have one row per class"),
    ({"weight": [[math.inf, 0.0]] * 3}, "weight must be finite"),
    ({"bias": np.zeros(2)}, r"bias must have one entry per row of weight \(3\), got 2"),
    ({"multiplicities": [1, 1, 1]}, "multiplicities must have one entry per row"),
    ({"multiplicities": [1, 1, 1, 0]}, r"multiplicities must be above 0, got multiplicities\[3\]"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(changes, message):
    good = {
        "features": np.ones((4, 2)),
        "labels": [0, 1, 2, 0],
        "weight": np.ones((3, 2)),
        "bias": np.ones(3),
    }
    with pytest.raises(InputError, match=message):
        metrics.measure(**(good | changes))


def test_bad_use_of_the_accumulator():
    with pytest.raises(InputError, match="num_classes must be given"):
        FeatureStatistics(dim=2)
    plain = FeatureStatistics(3, 2, scatter=False)
    plain.update([[1.0, 2.0]], [0])
    for needs in (metrics.margins, metrics.class_logits, NearestMeanAgreement):
        with pytest.raises(InputError, match="weight must be given"):
            needs(plain)
    with pytest.raises(InputError, match="scatter must be True"):
        metrics.nc1(plain)
    with pytest.raises(InputError, match="other must have been made with the same"):
        plain.merge(FeatureStatistics(3, 2))
    with pytest.raises(InputError, match="other must have been made with the same"):
        FeatureStatistics(weight=np.ones((3, 2))).merge(FeatureStatistics(weight=np.eye(3, 2)))
    with pytest.raises(InputError, match=r"features must be non-negative .* got features\[1, 0\] = -1.0"):
        FeatureStatistics(3, 2, nonnegative=True).update([[0.0, 1.0], [-1.0, 0.0]], [0, 1])
    with pytest.raises(InputError, match="labels must be"):
        plain.update([[1.0, 2.0]], [7])
    assert plain.rows == 1
