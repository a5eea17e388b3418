"""Fixed prototypes: solved and certified on the one engine, against closed forms and direct optimisation."""

import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from scipy.optimize import brentq, minimize

import ufm
from ufm.theory.prototypes import predict_fixed_simplex

COUNTS = np.array([200, 30, 5, 1])
K, N = len(COUNTS), COUNTS.sum()


def problem(frame, features, **changes):
    return ufm.Problem(COUNTS, frame.shape[1], 1.0, 2e-3, features=features, classifier=frame, **changes)


def test_frames_have_their_angles():
    for dim in (3, 4, 9):
        gram = ufm.simplex_etf(4, dim, 3.0) @ ufm.simplex_etf(4, dim, 3.0).T
        np.testing.assert_allclose(gram, 12 * (np.eye(4) - 0.25), atol=1e-12)
    np.testing.assert_array_equal(
        ufm.orthogonal_frame(4, 6, 2.0) @ ufm.orthogonal_frame(4, 6, 2.0).T, 4 * np.eye(4)
    )
    for build, dim in ((ufm.simplex_etf, 2), (ufm.orthogonal_frame, 3)):
        with pytest.raises(ufm.InputError, match="dim must be at least"):
            build(4, dim)


FRAMES = [(ufm.simplex_etf(K, 5, 2.0), "free"), (ufm.orthogonal_frame(K, 5, 2.0), "nonnegative")]


@pytest.mark.parametrize(("frame", "features"), FRAMES, ids=["etf", "orthogonal"])
def test_closed_forms_are_the_scalar_equations_of_the_design(frame, features):
    prediction = ufm.predict(problem(frame, features))
    factor = {"free": K**2 / (K - 1), "nonnegative": K - 1}[features] * 4 / (N * 2e-3)
    margin = brentq(lambda M: M - factor / (K - 1 + np.exp(M)), 0, factor, xtol=1e-15, rtol=1e-15)
    np.testing.assert_allclose(prediction.margins, margin, rtol=1e-13)
    assert not prediction.collapsed.any()  # the class of one sample lives like the others


@pytest.mark.parametrize("charge", [0.0, 0.7])
def test_a_simplex_that_is_not_formed_has_the_prediction_of_the_one_that_is(charge):
    decays = ufm.conventions.charged(2e-3, COUNTS, charge)
    loss = ufm.WeightedCrossEntropy([1.0, 2.0, 3.0, 4.0])
    plain = ufm.Problem(COUNTS, 5, 1.0, decays, loss=loss)
    whole = ufm.predict(plain.replace(classifier=ufm.simplex_etf(K, 5, 1.5), features="free"))
    found = predict_fixed_simplex(plain, 1.5)
    for name in ("norms", "weight_norms", "margins", "objective", "gram_features", "gram_weights", "logits"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    with pytest.raises(ufm.InputError, match="length must be"):
        predict_fixed_simplex(plain, 0.0)


ALL_KINDS = [ufm.CrossEntropy(), ufm.MSE(), ufm.BinaryCrossEntropy()]
LOSSES = [
    ufm.CrossEntropy(),
    ufm.LabelSmoothing(0.1),
    ufm.WeightedCrossEntropy([1.0, 2.0, 3.0, 4.0]),
    ufm.LDAM([0.1, 0.2, 0.3, 0.4]),
    ufm.Poly1(0.7),
]


@pytest.mark.parametrize("loss", few_daily(LOSSES, (3,)), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(("frame", "features"), FRAMES, ids=["etf", "orthogonal"])
def test_the_certified_optimum_is_the_prediction(frame, features, loss):
    given = problem(frame, features, loss=loss)
    prediction, solution = ufm.predict(given), ufm.solve(given, tol=1e-10)
    assert solution.certified
    assert solution.objective == pytest.approx(prediction.objective, rel=1e-10)
    np.testing.assert_allclose(np.linalg.norm(solution.features, axis=1), prediction.norms, rtol=1e-5)
    np.testing.assert_allclose(solution.features @ frame.T, prediction.logits, atol=1e-5)
    np.testing.assert_array_equal(solution.weight, frame)


MODELS = list(itertools.product(ALL_KINDS, [None, 0.05, 0.0], ["nonnegative", "free"]))


@pytest.mark.parametrize(("loss", "bias", "features"), few_daily(MODELS, (9, 16)), ids=repr)
def test_any_classifier_is_certified_against_direct_optimisation(loss, bias, features):
    frame = np.random.default_rng(3).normal(size=(K, 6))
    given = problem(frame, features, bias=bias, loss=loss)
    solution = ufm.solve(given)
    assert solution.certified

    def value(x):
        h, b = x[: 6 * K].reshape(K, 6), x[6 * K :]
        logits, charges = h @ frame.T + (0 if bias is None else b), 2e-3 * COUNTS[:, None]
        slopes = given.priors[:, None] * loss.gradient(logits, np.arange(K))
        data = given.priors @ loss.value(logits, np.arange(K))
        in_bias = np.zeros(K) if bias is None else slopes.sum(axis=0) + bias * b
        total = data + np.sum(charges * h**2) / 2 + (bias or 0) / 2 * (b @ b)
        return total, np.concatenate([(slopes @ frame + charges * h).ravel(), in_bias])

    bounds = [(0 if features == "nonnegative" else None, None)] * (6 * K) + [(None, None)] * K
    start = np.append(np.full(6 * K, 0.1), np.zeros(K))
    options = {"maxiter": 5000, "maxfun": 10**5, "ftol": 0, "gtol": 1e-10}
    found = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    assert solution.objective == pytest.approx(found.fun, rel=1e-7)
    assert solution.certificate.lower_bound <= found.fun * (1 + 1e-12)
    with pytest.raises(ufm.ClosedFormError):
        ufm.predict(given)


def test_bounds_hold_everywhere_and_another_classifier_certifies_nothing():
    frame, features = FRAMES[1]
    given, rng = problem(frame, features), np.random.default_rng(0)
    best = ufm.predict(given).objective
    for _ in range(20):
        rows = np.abs(rng.normal(size=(K, 5))) * rng.uniform(0, 5)
        found = ufm.certify(given, frame, rows, np.arange(K))
        assert found.lower_bound <= best * (1 + 1e-12) <= found.objective * (1 + 2e-12)
    assert ufm.certify(given, 2 * frame, rows, np.arange(K)).lower_bound == -np.inf


@pytest.mark.slow
def test_levels_precisions_and_rules_keep_the_classifier():
    frame, features = FRAMES[1]
    given = problem(frame, features)
    best = ufm.predict(given).objective
    for options in (
        {"level": "sample"},
        {"precision": "float32", "tol": 1e-5},
        {"solver": "momentum", "tol": 1e-6},
    ):
        solution = ufm.solve(given, **options)
        assert solution.certified
        np.testing.assert_array_equal(solution.weight, frame)
        assert solution.objective == pytest.approx(best, rel=2e-5)
    with pytest.raises(ufm.InputError, match="fixed"):
        ufm.solve(given, start=(2 * frame, np.ones((K, 5))))
    with pytest.raises(ufm.InputError, match="classifier must be a finite matrix of shape"):
        problem(frame, features).replace(dim=7)
    with pytest.raises(ufm.InputError, match="classifier is fixed"):
        ufm.solve(given, level="group")
    assert "fixed classifier" in " ".join(str(given).split())
    assert given != given.replace(classifier=2 * frame)
    assert hash(given) == hash(problem(frame.copy(), features))


def test_gap_objective_and_stationarity_are_verified():
    frame, features = FRAMES[0]
    report = ufm.verify(ufm.solve(problem(frame, features)))
    judged = {row.name for row in report.rows if row.verdict == "pass"}
    assert report.passed
    assert judged >= {"duality gap", "objective", "KKT residual"}
