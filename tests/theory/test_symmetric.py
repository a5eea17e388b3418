"""Theorem (T) beyond cross-entropy: check values, direct optimisation, certificates, decays by class, charges."""

import numpy as np
import pytest
from helpers.cases import few_daily
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

import ufm
from ufm.conventions import charged
from ufm.losses import (
    LDAM,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    Poly1,
    WeightedCrossEntropy,
)
from ufm.theory import (
    collapse_counts,
    critical_imbalance_ratio,
    equalising_weights,
    extra_samples_to_live,
    predict,
    weak_decay_limit,
)
from ufm.theory.scalar import ScalarProblems

COUNTS = np.array([200, 100, 50, 20, 5])
LEVEL = 0.8 / 375
few = settings(deadline=None, derandomize=True, max_examples=15)


def problem(loss, counts=COUNTS, level=LEVEL, decays=1.0, **changes):
    return ufm.Problem(
        counts, len(counts) + 2, 2e-3, level**2 / 2e-3 * np.asarray(decays), loss=loss, **changes
    )


def direct(given, seeds=3):
    """The least objective found by L-BFGS-B in balanced coordinates, and its classifier and features."""
    K, d, n, loss = given.num_classes, given.dim, given.counts, given.loss
    units = 1 / (np.sqrt(n) * given.nuclear_weights)
    labels = np.arange(K)

    def evaluate(x):
        V, G = x[: K * d].reshape(K, d), x[K * d :].reshape(K, d)
        Z = (G @ V.T) * units[:, None]
        value = given.priors @ loss.value(Z, labels) + (x @ x) / 2
        R = (given.priors * units)[:, None] * loss.gradient(Z, labels)
        return value, np.concatenate([(R.T @ G + V).ravel(), (R @ V + G).ravel()])

    low = 0 if given.features == "nonnegative" else None
    bounds = [(None, None)] * (K * d) + [(low, None)] * (K * d)
    found = []
    for seed in range(seeds):
        start = 0.3 * np.random.default_rng(seed).normal(size=2 * K * d)
        start[K * d :] = np.abs(start[K * d :])
        options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-10}
        found.append(minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options))
    best = min(found, key=lambda result: result.fun)
    scale = np.sqrt(given.feature_decays * n)[:, None]
    return (
        best.fun,
        best.x[: K * d].reshape(K, d) / np.sqrt(given.weight_decay),
        best.x[K * d :].reshape(K, d) / scale,
    )


@pytest.mark.parametrize(
    ("loss", "value"),
    [(LDAM(0.5 * (COUNTS / 5) ** -0.25), 0.370144105), (Poly1(1.0), 0.402388809)],
)
def test_check_values(loss, value):
    assert predict(problem(loss)).objective == pytest.approx(value, abs=5e-10)


def test_check_value_of_focals_scalar_problem():
    given = problem(Focal(2.0))
    form = given.loss.scalar_form(5)
    price = given.nuclear_weight * np.sqrt(COUNTS * 0.8)
    total = 0.0
    for k in range(5):  # not convex: the least of the stationary point and of collapse
        one = lambda m, k=k: (given.priors * form.value(np.full(5, m)))[k] + price[k] * m  # noqa: E731
        total += min(
            minimize_scalar(one, bounds=(0, 60), method="bounded", options={"xatol": 1e-12}).fun, one(0.0)
        )
    assert total == pytest.approx(0.189571173, abs=5e-10)
    with pytest.raises(ufm.ClosedFormError, match="convex"):
        predict(given)


DECAYS = np.array([0.3, 1.0, 2.0, 5.0, 0.7])
LOSSES = [
    CrossEntropy(),
    LabelSmoothing(0.2),
    WeightedCrossEntropy([0.5, 1.0, 1.0, 2.0, 3.0]),
    LDAM([0.1, 0.2, 0.3, 0.4, 0.5], 2.0),
    Poly1(0.4),
    MSE(),
]


@pytest.mark.parametrize("loss", few_daily(LOSSES, (3,)), ids=lambda loss: type(loss).__name__)
def test_decays_by_class_against_direct_optimisation(loss):
    given = problem(loss, level=LEVEL / 2, decays=DECAYS)
    prediction = predict(given)
    value, weight, features = direct(given)
    assert prediction.objective == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(
        features @ features.T, prediction.gram_features, atol=2e-4 * prediction.norms.max() ** 2
    )
    top = prediction.weight_norms.max()
    np.testing.assert_allclose(weight @ weight.T, prediction.gram_weights, atol=2e-4 * top**2)
    np.testing.assert_allclose(features @ weight.T, prediction.logits, atol=1e-3)


@pytest.mark.parametrize("K", few_daily([2, 3, 4], (1,)))
def test_binary_cross_entropy_of_few_classes(K):
    given = problem(BinaryCrossEntropy(), counts=COUNTS[:K], level=2e-3)
    prediction = predict(given)
    assert prediction.objective == pytest.approx(direct(given)[0], rel=1e-9)
    assert predict(given.replace(feature_decay=1e3)).objective == pytest.approx(K * np.log(2), rel=1e-14)
    solution = ufm.solve(given)
    assert solution.certified
    assert ufm.verify(solution).passed


def test_five_classes_of_binary_cross_entropy_share_directions():
    with pytest.raises(ufm.ClosedFormError, match="5 classes the loss is BinaryCrossEntropy"):
        predict(problem(BinaryCrossEntropy()))


SMALL = [LDAM([0.5, 0.3, 0.2, -0.1], 1.5), Poly1(1.0), Poly1(0.2), LabelSmoothing(0.3), CrossEntropy()]


@few
@given(
    number=st.integers(0, len(SMALL) - 1),
    counts=st.lists(st.integers(1, 200), min_size=4, max_size=4),
    level=st.floats(0.01, 1.3),
)
def test_the_certified_optimum_is_the_prediction(number, counts, level):
    counts = np.array(counts)
    given = problem(SMALL[number], counts, level * np.sqrt(counts.max()) / counts.sum())
    solution = ufm.solve(given)
    assert solution.certificate.relative_gap <= 1e-8
    assert predict(given).objective == pytest.approx(solution.objective, rel=2e-8)


@pytest.mark.parametrize(
    "loss", few_daily([Poly1(0.6), LDAM([0.3] * 4), LabelSmoothing(0.1)], (0,)), ids=repr
)
def test_simplex_etf_of_every_symmetric_loss(loss):
    given = problem(loss, np.full(4, 25), 0.02, features="free")
    solution = ufm.solve(given)
    assert solution.certified
    assert predict(given).objective == pytest.approx(solution.objective, rel=1e-8)
    np.testing.assert_allclose(solution.features @ solution.weight.T, predict(given).logits, atol=1e-3)


def test_mse_with_free_features_and_a_free_bias():
    given = ufm.Problem([60, 60, 20, 7], 5, 3e-3, 2e-3, loss=MSE(), features="free", bias=0)
    prediction = predict(given)
    assert prediction.objective == pytest.approx(0.0374299194, abs=5e-11)
    solution = ufm.solve(given)
    assert solution.certified
    assert solution.objective == pytest.approx(prediction.objective, rel=1e-8)
    np.testing.assert_allclose(solution.features @ solution.features.T, prediction.gram_features, atol=1e-3)
    np.testing.assert_allclose(
        solution.features @ solution.weight.T + solution.bias, prediction.logits, atol=1e-4
    )


def test_layer_peeled_charges_are_class_weights_of_single_samples():
    """Charge exponent 1 is the Layer-Peeled Model: one sample of every class and class weights ``K n_k/N``."""
    decay, K, N = 2e-4, 5, COUNTS.sum()
    classes = ufm.Problem(COUNTS, 6, 1e-2, charged(decay, COUNTS, 1))
    peeled = ufm.Problem([1] * K, 6, 1e-2, decay * N / K, loss=WeightedCrossEntropy(K * COUNTS / N))
    first, second = predict(classes), predict(peeled)
    assert first.objective == pytest.approx(second.objective, rel=1e-13)
    np.testing.assert_allclose(first.margins, second.margins, rtol=1e-12)
    np.testing.assert_allclose(first.norms, second.norms, rtol=1e-12)


@few
@given(charge=st.floats(0, 1.5), level=st.floats(0.05, 1.2))
def test_charges(charge, level):
    """Thresholds, equalising weights and extra samples agree with the prediction."""
    base = (level * 0.02) ** 2 / 1e-2
    given = ufm.Problem(COUNTS, 6, 1e-2, charged(base, COUNTS, charge))
    prediction = predict(given)
    np.testing.assert_array_equal(collapse_counts(given) >= COUNTS, prediction.collapsed)
    weights = equalising_weights(COUNTS, charge)
    assert weights @ COUNTS == pytest.approx(COUNTS.sum())
    equal = predict(given.replace(loss=WeightedCrossEntropy(weights)))
    assert np.ptp(equal.margins) <= 1e-9
    need = extra_samples_to_live(given, 4, charge)

    def lives(extra):
        counts = COUNTS + np.array([0, 0, 0, 0, extra])
        decays = base * (counts.sum() / (5 * counts)) ** charge
        return not predict(ufm.Problem(counts, 6, 1e-2, decays)).collapsed[4]

    if need is None:
        assert not any(lives(extra) for extra in (0, 10, 100, 300, 1000))
    else:
        assert lives(need)
        assert need == 0 or not lives(need - 1)


@pytest.mark.parametrize("fixed", ["minority", "majority", "total"])
@pytest.mark.parametrize("charge", [0.0, 0.5, 1.0])
def test_critical_ratio_for_every_charge(fixed, charge):
    A, B, size = 3, 2, 100.0 if fixed != "total" else 1000.0
    ratio = critical_imbalance_ratio(A, B, 1e-2, 2e-4, fixed=fixed, size=size, charge=charge)
    assert ratio > 1
    for factor, collapsed in ((1 - 1e-6, False), (1 + 1e-6, True)):
        R = ratio * factor
        n = {"minority": size, "majority": size / R, "total": size / (A * R + B)}[fixed]
        counts = np.repeat([R * n, n], [A, B])
        found = predict(ufm.Problem(counts, A + B, 1e-2, charged(2e-4, counts, charge)))
        assert found.collapsed[-1] == collapsed


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_weak_decays(charge):
    limit = weak_decay_limit(COUNTS, charge)
    prediction = predict(ufm.Problem(COUNTS, 6, 1e-40, charged(1e-40, COUNTS, charge)))
    for name in ("gram_features", "gram_weights", "logits"):
        found = getattr(prediction, name) / np.linalg.norm(getattr(prediction, name))
        np.testing.assert_allclose(found, getattr(limit, name), atol=0.02)


def test_real_counts_are_frequencies():
    """Only the ratios matter when N l is kept: counts of a sampler."""
    whole = problem(CrossEntropy())
    real = ufm.Problem(COUNTS / 7.0, 7, whole.weight_decay, whole.feature_decay * 7.0)
    assert real.counts.dtype == np.float64
    assert predict(real).objective == pytest.approx(predict(whole).objective, rel=1e-13)
    solution = ufm.solve(real)
    assert solution.certified
    with pytest.raises(ufm.InputError, match="whole counts"):
        ufm.solve(real, level="sample")


def test_slope_of_the_scalar_form_is_its_derivative():
    for loss in [*LOSSES, Focal(2.0), BinaryCrossEntropy()]:
        form = loss.scalar_form(5 if not isinstance(loss, BinaryCrossEntropy) else 4)
        at = np.linspace(0.2, 3.0, form.num_classes)
        step = 1e-6
        difference = (form.value(at + step) - form.value(at - step)) / (2 * step)
        np.testing.assert_allclose(form.slope(at), difference, rtol=1e-7)
        if loss.convex:
            share = form.slope(at) / -form.pull
            inside = (share < 1) & (share > 0)
            found = form.margins(np.where(inside, share, 1.0), np.where(inside, 1 - share, 0.0))
            np.testing.assert_allclose(found[inside], at[inside], rtol=1e-8)
    assert (
        ScalarProblems(problem(MSE()), MSE().scalar_form(5), MSE().scalar_form(5).squared_length).frame == 1
    )
