"""Separability: the bounds are theorems about the computed probability, which brute force confirms."""

import inspect
import json
import math
import subprocess
import sys
from decimal import Decimal, localcontext

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ufm.inputs.checks import InputError
from ufm.metrics.separability import CONFIDENCE, centred, mean_loss_bound, separability

WEIGHTINGS = ("pairs", "classes")
KINDS = ("random", "trained", "collapsed", "grid", "line", "constant", "overconfident")
#: Every day, and with the slow tests.
FEW, MANY = settings(max_examples=100), settings(max_examples=1000)
#: More than the rounding in sums of at most a few thousand probabilities.
SUMS = 1e-11


def draw_case(kind, seed):
    """Features, labels, weight, bias of one random case; every kind stresses another part of the proof."""
    rng = np.random.default_rng(seed)
    num_classes, dim = rng.integers(2, 6), rng.integers(1, 6)
    counts = rng.integers(1, 7, num_classes)
    counts[rng.integers(num_classes)] += rng.integers(1, 12)
    y = rng.permutation(np.repeat(np.arange(num_classes), counts))
    x = rng.normal(size=(len(y), dim))
    w = rng.normal(size=(num_classes, dim)) * 10.0 ** rng.uniform(-2, 1.5)
    b = rng.normal(size=num_classes) * rng.choice([1, 1e3])
    if kind in ("trained", "overconfident"):
        means = rng.normal(size=(num_classes, dim))
        x = means[y] + x * 10.0 ** rng.uniform(-4, 0)
        w = 2 * means * 10.0 ** (rng.uniform(3, 6) if kind == "overconfident" else rng.uniform(-1, 1.5))
        b = -np.sum(means * w, axis=1) / 2
    elif kind == "collapsed":
        x = (rng.normal(size=(num_classes, dim)) * rng.integers(0, 2, (num_classes, 1)))[y]
        w[rng.integers(num_classes)] = w[rng.integers(num_classes)]
        w = w * rng.integers(0, 2)
    elif kind == "grid":
        x, w = rng.integers(-2, 3, x.shape) * 1.0, rng.integers(-2, 3, w.shape) * 1.0
    elif kind == "line":
        x = np.outer(rng.integers(0, 4, len(y)) + 2.0 * y * rng.integers(0, 3), np.eye(dim)[0])
        w = np.outer(np.arange(num_classes) * rng.uniform(0.1, 20), np.eye(dim)[0])
        b = -(np.arange(num_classes) ** 2) * rng.uniform(0, 20)
    elif kind == "constant":
        x[:] = x[0]
    scale = 10.0 ** rng.integers(-30, 30)
    return x * scale, y, w / scale, None if rng.random() < 0.3 else b


def log_odds_of(logits, label):
    others = [z for k, z in enumerate(logits) if k != label]
    return logits[label] - max(others) - math.log(math.fsum(math.exp(z - max(others)) for z in others))


def double_loop(x, y, w, b, weighting):
    """The definitions, one pair at a time; of the distributions of |C W (x_i - x_j)|^2 only the means."""
    sizes, b = np.bincount(y, minlength=len(w)), np.zeros(len(w)) if b is None else b
    odds = [
        log_odds_of([math.fsum(row * v) + o for v, o in zip(w, b, strict=True)], k)
        for row, k in zip(x, y, strict=True)
    ]
    losses = [max(-g, 0) + math.log1p(math.exp(-abs(g))) for g in odds]
    intra, inter = [], []
    for i in range(len(y)):
        for j in range(i):
            k, m = y[i], y[j]
            ways = sizes[k] * (sizes[k] - 1) / 2 if k == m else sizes[k] * sizes[m]
            view = [math.fsum(v * (x[i] - x[j])) for v in w]
            seen = math.fsum((v - math.fsum(view) / len(view)) ** 2 for v in view)
            pair = (math.dist(x[i], x[j]), 1.0 if weighting == "pairs" else 1 / ways, seen, i, j)
            (intra if k == m else inter).append(pair)
    total_intra, total_inter = (math.fsum(v[1] for v in side) for side in (intra, inter))
    square = math.fsum(v[1] * v[0] ** 2 for v in intra) / total_intra
    profile = 0.0
    for _, weight, _, i, j in inter:
        if odds[i] + odds[j] > 0:
            ratio = square * math.dist(w[y[i]], w[y[j]]) ** 2 / (odds[i] + odds[j]) ** 2
            profile += weight * max(0.0, 1 - ratio) / total_inter
    above = math.fsum(v[1] * u[1] for v in inter for u in intra if v[0] > u[0])
    return {
        "probability": above / total_intra / total_inter,
        "profile_bound": profile,
        "mean_loss": math.fsum(losses) / len(y),
        "pair_loss": math.fsum(v[1] * (losses[v[3]] + losses[v[4]]) / 2 for v in inter) / total_inter,
        "intra_rms": math.sqrt(square),
        "intra": math.fsum(v[1] * v[2] for v in intra) / total_intra,
        "inter": math.fsum(v[1] * v[2] for v in inter) / total_inter,
    }


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_double_loop(seed, weighting):
    case = draw_case("trained" if seed % 2 else "random", seed)
    result, expected = separability(*case, weighting=weighting).to_dict(), double_loop(*case, weighting)
    for name, value in expected.items():
        measured = result[name]["mean"] if name in ("intra", "inter") else result[name]
        assert measured == pytest.approx(value, rel=1e-8, abs=1e-10), name


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@FEW
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
@example(kind="collapsed", seed=508)  # the bound is attained: only its margin keeps rounding below
@example(kind="collapsed", seed=1047)
def test_bounds_hold_and_are_nested(weighting, kind, seed):
    assert_nested(separability(*draw_case(kind, seed), weighting=weighting))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@MANY
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_bounds_hold_and_are_nested_in_many_cases(weighting, kind, seed):
    assert_nested(separability(*draw_case(kind, seed), weighting=weighting))


def assert_nested(result):
    assert 0 <= result.profile_bound <= result.probability <= 1
    assert 0 <= result.class_bound <= min(result.profile_bound + SUMS, result.probability)
    assert 0 <= result.mean_bound <= min(result.class_bound + SUMS, result.probability)


@pytest.mark.parametrize("seed", range(12))
def test_losses_are_never_rounded_down(seed):
    """Against 60 digits, also where the logits cancel: an underestimated loss would make a bound too good."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(6, 50)) + 10.0 ** rng.integers(0, 6), rng.normal(size=(4, 50))
    b, y = -w.sum(axis=1) * x.mean() + rng.normal(size=4), np.array([0, 0, 1, 1, 2, 3])
    total = Decimal(0)
    with localcontext() as context:
        context.prec = 60
        for row, label in zip(x.tolist(), y, strict=True):
            terms = [zip(row, v, strict=True) for v in w.tolist()]
            logits = [
                sum(Decimal(p) * Decimal(q) for p, q in pairs) + Decimal(o)
                for pairs, o in zip(terms, b.tolist(), strict=True)
            ]
            total += sum((z - logits[label]).exp() for z in logits).ln()
    measured = separability(x, y, w, b).mean_loss
    assert Decimal(measured) >= total / 6
    assert measured == pytest.approx(float(total / 6), rel=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(40))
def test_no_threshold_beats_the_bounds(seed, weighting):
    """For every t, P(least length > t) (1 - R^2/t^2) is at most (1), and from the mean loss at most (2)."""
    x, y, w, b = draw_case("trained", seed)
    result = separability(x, y, w, b, weighting=weighting)
    sizes, b = np.bincount(y), np.zeros(len(w)) if b is None else b
    odds = np.array([log_odds_of(row, k) for row, k in zip((x @ w.T + b).tolist(), y, strict=True)])
    i, j = np.triu_indices(len(y), 1)
    i, j = i[y[i] != y[j]], j[y[i] != y[j]]
    chance = np.ones(len(i)) if weighting == "pairs" else 1 / (sizes[y[i]] * sizes[y[j]])
    gaps = np.linalg.norm(w[y[i]] - w[y[j]], axis=1)
    for t in result.intra_rms * np.geomspace(1.001, 1e3, 200):
        markov = 1 - (result.intra_rms / t) ** 2
        further = chance[odds[i] + odds[j] > t * gaps].sum() / chance.sum()
        assert further * markov <= result.profile_bound + SUMS
        largest = math.log1p(math.exp(-min(t * result.classifier_distance / 2, 700)))
        assert (1 - result.pair_loss / largest) * markov <= result.class_bound + SUMS


def test_planted_value_is_attained():
    """On a line only Markov's inequality is strict: distances 1, 1, 2 against 0, 1, 1 and R^2 = 2/3."""
    x, y = np.array([[-0.5], [0.5], [0.5], [1.5]]), np.array([0, 1, 1, 1])
    result = separability(x, y, np.array([[-30.0], [30.0]]))
    assert result.probability == pytest.approx(5 / 9, abs=1e-15)  # ties do not count
    assert result.profile_bound == pytest.approx(2 / 3 * (1 - 2 / 3) + 1 / 3 * (1 - 1 / 6), abs=1e-11)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_neural_collapse_is_seen_through_the_loss(num_classes):
    """Orthogonal frame with margin M: (1) knows the inter distance up to a factor 1 - log(K-1)/M."""
    margin, spread = 20.0, 1e-2
    labels = np.repeat(np.arange(num_classes), 4)
    weight = margin * (np.eye(num_classes) - 1 / num_classes)
    noise = spread * np.random.default_rng(0).normal(size=(len(labels), num_classes))
    exact = separability(np.eye(num_classes)[labels], labels, weight)
    assert exact.probability == 1
    assert exact.profile_bound == pytest.approx(1, abs=1e-11)
    assert exact.intra.mean == pytest.approx(0, abs=1e-20)
    assert exact.inter.mean == pytest.approx(2 * margin**2)
    noisy = separability(np.eye(num_classes)[labels] + noise, labels, weight)
    least = (2 * margin - 2 * math.log(num_classes - 1)) / (margin * math.sqrt(2))
    assert noisy.profile_bound == pytest.approx(1 - (noisy.intra_rms / least) ** 2, abs=1e-4)
    assert noisy.probability == 1


def test_mean_over_samples_says_nothing_about_a_rare_class():
    """Without rho the bound from the mean loss would exceed the probability: here 0.86 against 0."""
    labels = np.append(np.zeros(99, dtype=int), 1)
    result = separability(np.full((100, 1), 5.0), labels, np.array([[1.0], [-1.0]]))
    assert result.probability == 0
    assert mean_loss_bound(result.mean_loss, result.intra_rms, result.classifier_distance) > 0.85
    assert result.mean_bound == result.class_bound == result.profile_bound == 0


def test_intra_pairs_are_two_different_samples():
    """With x = x' allowed R^2 would be half for a class of two, and the bound 0.31 for a probability of 0."""
    x = np.array([[0.425, 0.5], [0.425, -0.5], [-0.425, 0.0]])
    result = separability(x, np.array([0, 0, 1]), np.array([[10.0, 0.0], [-10.0, 0.0]]))
    assert result.intra_rms == pytest.approx(1)
    assert result.probability == result.profile_bound == 0
    assert 1 - result.intra_rms**2 / 2 / 0.85**2 > 0.3


def test_weightings_differ_when_minorities_collapse():
    """Two small classes in one point: 4 of 244 inter pairs, but one of three couples of classes."""
    labels = np.repeat(np.arange(3), [60, 2, 2])
    x = np.eye(2)[np.minimum(labels, 1)]
    weight = 20 * np.array([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]])
    by_pairs, by_classes = (separability(x, labels, weight, weighting=w) for w in WEIGHTINGS)
    assert by_pairs.probability == pytest.approx(240 / 244)
    assert by_classes.probability == pytest.approx(2 / 3)
    assert by_classes.profile_bound == pytest.approx(2 / 3)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_identity_between_features_and_probabilities(biased, scale):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(8, 5)), scale * rng.normal(size=(4, 5))
    logits = x @ w.T + biased * scale * rng.normal(size=4)
    top = logits.max(axis=1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    centring = np.eye(4) - np.ones((4, 4)) / 4
    for i in range(8):
        expected = centring @ w @ (x[i] - x)[..., None]
        view = centred(log_p)
        np.testing.assert_allclose((view[i] - view)[..., None], expected, atol=1e-12 * scale)
        np.testing.assert_allclose(
            centred(x @ w.T)[i] - centred(x @ w.T), expected[..., 0], atol=1e-12 * scale
        )


@pytest.mark.parametrize("r", [1e-8, 0.01, 0.3, 1.0, 2.9, 3.1, 3.3, 6.0, 40.0])
def test_mean_loss_bound_is_the_greatest_convex_minorant(r):
    """Against the lower hull of phi on a grid, which is above the hull of phi by the grid spacing alone."""
    end = math.log1p(math.exp(-r))
    losses = np.concatenate([end * np.geomspace(1e-60, 1, 800), end * np.linspace(1.001, 4, 20)])
    odds = -losses - np.log(-np.expm1(-losses))
    phi = np.where(odds > r, 1 - (r / np.maximum(odds, r)) ** 2, 0.0)
    bound = np.array([mean_loss_bound(value, 2 * r, 1.0) for value in losses])
    hull = [0]
    for k in range(1, len(losses)):
        while len(hull) > 1:
            o, m = hull[-2:]
            if (phi[m] - phi[o]) * (losses[k] - losses[o]) < (phi[k] - phi[o]) * (losses[m] - losses[o]):
                break
            hull.pop()
        hull.append(k)
    assert np.all(bound <= phi)
    assert np.all(np.diff(bound) <= 1e-15)
    chords = np.interp(losses, losses[hull], phi[hull])
    assert np.all(bound <= chords + 1e-12)
    np.testing.assert_allclose(bound, chords, atol=2e-3)


def test_mean_loss_bound_at_the_ends():
    assert mean_loss_bound(0.0, 0.1, 1.0) > 0.999  # losses that underflow are not trusted beyond 1e-300
    assert mean_loss_bound(0.0, 0.1, 1.0) < 1 - (0.05 / 691) ** 2
    assert mean_loss_bound(0.1, 0.0, 1.0) == pytest.approx(1 - 0.1 / math.log(2))
    assert mean_loss_bound(math.log(2), 0.0, 1.0) == 0
    assert mean_loss_bound(0.1, 0.0, 0.0) == pytest.approx(1 - 0.1 / math.log(2))
    for bad in ((math.nan, 1.0, 1.0), (0.1, math.nan, 1.0), (0.1, math.inf, 0.0), (1e-300, 1e9, 1e9)):
        assert mean_loss_bound(*bad) == 0


def test_extreme_losses():
    """A sample with loss 1e4 spoils its own pairs only; a loss of e^-2000 is no division by zero."""
    x, y = np.array([[1.0], [1.001], [0.999], [-1.0], [10.0]]), np.array([0, 0, 0, 1, 1])
    result = separability(x, y, 1000 * np.array([[1.0], [-1.0]]))
    assert result.mean_loss == pytest.approx(20_000 / 5)
    assert result.profile_bound <= result.probability == pytest.approx(3 / 4)
    tight = separability(x[:4], y[:4], 1000 * np.array([[1.0], [-1.0]]))
    assert 0 < tight.mean_loss <= 1e-300
    assert tight.profile_bound == pytest.approx(1 - (tight.intra_rms / 2) ** 2, abs=1e-6)
    assert 0.99 < tight.mean_bound <= tight.class_bound <= tight.profile_bound


def test_degenerate_configurations():
    labels = np.array([0, 0, 3, 4])
    zero = separability(
        np.zeros((4, 2)), labels, np.zeros((6, 2))
    )  # everything collapsed, classes 1, 2, 5 absent
    assert (zero.probability, zero.profile_bound, zero.intra.gamma, zero.inter.mean) == (0, 0, None, 0)
    assert zero.mean_loss == pytest.approx(math.log(6))
    shared = separability(
        np.diag([1.0, 2, 3, 4]), labels, np.ones((6, 4))
    )  # every row of the classifier the same
    assert (shared.profile_bound, shared.mean_bound, shared.classifier_distance) == (0, 0, 0)
    absent = np.full((6, 1), 1e9)
    absent[[0, 3, 4]] = [[1.0], [-1.0], [0.0]]
    assert separability(np.ones((4, 1)), labels, absent).classifier_distance == 2


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_interval_covers_at_its_rate(weighting):
    case = draw_case("random", 3)
    exact = separability(*case, weighting=weighting)
    assert exact.draws is None
    assert exact.interval == (exact.probability, exact.probability)
    assert 0.1 < exact.probability < 0.9
    runs = [separability(*case, weighting=weighting, pairs=90, seed=seed) for seed in range(400)]
    assert {run.draws for run in runs} == {90}
    covered = np.mean([run.interval[0] <= exact.probability <= run.interval[1] for run in runs])
    assert CONFIDENCE - 0.02 < covered < CONFIDENCE + 0.035  # binomial deviation 0.011
    estimates = np.array([run.probability for run in runs])
    deviation = math.sqrt(exact.probability * (1 - exact.probability) / 90)
    assert abs(estimates.mean() - exact.probability) < 4 * deviation / math.sqrt(400)
    assert estimates.std() == pytest.approx(deviation, rel=0.12)
    for name in ("profile_bound", "class_bound", "mean_bound", "mean_loss", "intra_rms"):
        assert {getattr(run, name) for run in runs} == {getattr(exact, name)}  # bounds are not sampled


def test_interval_is_clopper_pearson():
    """Both limits make their tail (1 - CONFIDENCE)/2: exact binomial sums, closed form for all or nothing."""
    tail = (1 - CONFIDENCE) / 2
    x, w = np.array([[5.0], [5.0], [-5.0], [-5.0], [5.1], [-5.2]]), np.array([[1.0], [-1.0]])
    perfect = separability(x, np.array([0, 0, 1, 1, 0, 1]), w, pairs=12)
    assert perfect.probability == 1
    assert perfect.interval == (pytest.approx(tail ** (1 / 12)), 1.0)
    never = separability(np.zeros((6, 1)), np.array([0, 0, 1, 1, 0, 1]), w, pairs=12)
    assert never.interval == (0.0, pytest.approx(1 - tail ** (1 / 12)))
    middle = separability(*draw_case("random", 3), pairs=40)
    low, high = middle.interval
    hits = round(40 * middle.probability)
    assert 0 < hits < 40
    upper = math.fsum(math.comb(40, n) * low**n * (1 - low) ** (40 - n) for n in range(hits, 41))
    lower = math.fsum(math.comb(40, n) * high**n * (1 - high) ** (40 - n) for n in range(hits + 1))
    assert (upper, lower) == (pytest.approx(tail), pytest.approx(tail))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_large_sets_are_sampled_and_grouped(weighting):
    """Beyond 4096 samples bound (1) groups losses: a little below the full double sum, never above."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), [6000, 900, 1])
    means = 3 * np.eye(3)
    x, w = means[labels] + rng.normal(size=(len(labels), 3)) * 0.4, 2 * means
    result = separability(x, labels, w, weighting=weighting, pairs=20_000)
    assert result.draws == 20_000
    logits = x @ w.T
    odds = np.array([log_odds_of(row, k) for row, k in zip(logits.tolist(), labels.tolist(), strict=True)])
    gap, terms = math.dist(w[0], w[1]), {}
    for k, m in ((0, 1), (0, 2), (1, 2)):
        sums = odds[labels == k][:, None] + odds[labels == m]
        value = np.where(
            sums > 0, np.maximum(1 - (result.intra_rms * gap / np.where(sums > 0, sums, 1)) ** 2, 0), 0
        )
        terms[k, m] = (value.mean(), value.size if weighting == "pairs" else 1)
    full = sum(v * n for v, n in terms.values()) / sum(n for _, n in terms.values())
    assert full - 5e-3 < result.profile_bound <= full + SUMS
    assert result.mean_bound <= result.class_bound <= result.profile_bound < result.interval[1]


def test_gamma_has_the_moments_of_the_sample():
    """The squared norm of a Gaussian difference seen by an isometry is gamma with shape (K-1)/2."""
    rng = np.random.default_rng(2)
    labels, weight = np.repeat([0, 1], 500), 10 * np.eye(5)
    result = separability(rng.normal(size=(1000, 5)), labels, weight)
    assert result.intra.gamma == (pytest.approx(2.0, rel=0.1), pytest.approx(400.0, rel=0.1))
    for law in (result.intra, result.inter):
        shape, scale = law.gamma
        assert shape * scale == pytest.approx(law.mean)
        assert shape * scale**2 == pytest.approx(law.variance)
        assert len(law.percentiles) == 101
        assert np.all(np.diff(law.percentiles) >= 0)
    # Median of the gamma law of shape 2 and scale 400: 1.67835 * 400.
    assert result.intra.percentiles[50] == pytest.approx(671.34, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_symmetries(seed):
    """Orders, names, rotations, exchanged scale, shifted features or classifier rows have no effect."""
    x, y, w, b = draw_case("trained", 100 + seed)
    b = np.zeros(len(w)) if b is None else b
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(y)), rng.permutation(len(w))
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]
    shift = rng.normal(size=x.shape[1]) * np.abs(x).max()
    expected = separability(x, y, w, b)
    for case in (
        (x[order], y[order], w, b),
        (x, np.argsort(names)[y], w[names], b[names]),
        (x @ rotation, y, w @ rotation, b),
        (8 * x, y, w / 8, b),
        (x + shift, y, w, b - w @ shift),
        (x, y, w + rng.normal(size=w.shape[1]) * np.abs(w).max(), b + 7),
    ):
        result = separability(*case)
        for name in ("profile_bound", "class_bound", "mean_bound", "probability"):
            assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-6, abs=1e-9), name


class Tensor:
    """Stands for a torch tensor with gradient: to be detached, brought to the host, then converted."""

    def __init__(self, values, stage="graph"):
        self.values, self.stage = np.asarray(values), stage
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def detach(self):
        return Tensor(self.values, "device")

    def cpu(self):
        assert self.stage == "device"
        return Tensor(self.values, "host")

    def __array__(self, dtype=None, copy=None):
        assert self.stage == "host"
        return self.values


@pytest.mark.parametrize(
    "convert", [jnp.asarray, Tensor, lambda v: v.astype("f4" if v.dtype.kind == "f" else "u1")]
)
def test_arrays_of_other_libraries(convert):
    x, y, w, b = draw_case("grid", 12)
    assert b is not None
    x, w, b = (np.float32(v / np.abs(v).max()).astype(np.float64) for v in (x, w, b))
    assert separability(convert(x), convert(y), convert(w), convert(b)) == separability(x, y, w, b)


def test_report_is_plain():
    report = separability(*draw_case("random", 4)).to_dict()
    assert json.loads(json.dumps(report))["intra"]["mean"] == report["intra"]["mean"]
    assert report["weighting"] == "pairs"


X, Y, W = np.eye(3), np.array([0, 0, 1]), np.eye(3)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ((X, np.array([0, 0, 3]), W), "labels must be integers from 0 to 2"),
        ((X, np.array([0, 0, -1]), W), "labels"),
        ((X, np.array([0, 0, 0]), W), "two classes"),
        ((X, np.array([0, 1, 2]), W), "twice"),
        ((X, Y + 0.5, W), "labels must be integers"),
        ((X, Y[:2], W), r"labels must have one entry per row of features \(3\), got 2"),
        ((X[0], Y, W), "features must be a matrix"),
        ((X[:, :0], Y, W[:, :0]), "must fit"),
        ((X[:, :2], Y, W), "must fit"),
        ((X, Y, W[0]), "weight must be a matrix"),
        ((X, Y, W, np.zeros(2)), "must fit"),
        ((X, Y, W, np.array(0.0)), "bias must be a vector"),
        ((X * np.nan, Y, W), "features must be finite"),
        ((X, Y, W + 1e61), "weight must be finite and at most 1e.60"),
        ((X, Y, W, np.array([0, 0, np.inf])), "bias must be finite"),
    ],
)
def test_bad_input_is_named(case, message):
    with pytest.raises(InputError, match=message):
        inspect.unwrap(separability)(*case)  # without the shape checks of the test run


def test_bad_options_are_named():
    with pytest.raises(InputError, match="weighting must be one of pairs, classes; got 'samples'"):
        inspect.unwrap(separability)(X, Y, W, weighting="samples")
    with pytest.raises(InputError, match="pairs must be an integer of at least 1, got 0"):
        separability(X, Y, W, pairs=0)


def test_needs_neither_jax_nor_scipy():
    code = "import sys, ufm.metrics.separability; assert not {'jax', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
