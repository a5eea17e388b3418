"""Softmax, entropies and cross-entropy: identities, derivatives, convexity, and accuracy at the extremes."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ufm
from ufm.losses import softmax as sm

EPS = np.finfo(np.float64).eps
STEP = EPS ** (1 / 3)  # of central differences, whose error is then of order EPS^(2/3)
exact = settings(max_examples=60)


def logits_of(rows=4, classes=5, scale=3.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(rows, classes))


def central_difference(function, point):
    """Derivatives of ``function`` (any output) along every entry of ``point``, in a trailing axis."""
    steps = STEP * np.eye(point.size).reshape(-1, *point.shape)
    return np.stack([(function(point + e) - function(point - e)) / (2 * STEP) for e in steps], axis=-1)


def exact_loss(logits, label):
    """Cross-entropy of one row in 60-digit arithmetic."""
    with decimal.localcontext(prec=60):
        z = [decimal.Decimal(float(x)) for x in logits]
        rest = sum((z[j] - z[label]).exp() for j in range(len(z)) if j != label)
        return float((1 + rest).ln()) if rest > decimal.Decimal("1e-25") else float(rest - rest**2 / 2)


@st.composite
def distributions(draw, number=1):
    """Distributions over 2 to 6 classes, some of whose probabilities are zero or tiny."""
    size = draw(st.integers(2, 6))
    found = []
    for _ in range(number):
        weights = draw(hnp.arrays(np.float64, size, elements=st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0])))
        weights[draw(st.integers(0, size - 1))] += draw(st.floats(0.1, 1))
        found.append(weights / weights.sum())
    return found[0] if number == 1 else found


# Identities


@exact
@given(distributions(number=2))
def test_cross_entropy_is_entropy_plus_divergence(pair):
    p, q = pair
    split = sm.entropy(p) + sm.kl_divergence(p, q)
    np.testing.assert_allclose(sm.cross_entropy(p, q), split, rtol=100 * EPS, atol=10 * EPS)
    assert np.isinf(sm.cross_entropy(p, q)) == np.any((p > 0) & (q == 0))
    assert sm.kl_divergence(p, q) >= 0
    assert sm.kl_divergence(p, p) == 0


@exact
@given(distributions())
def test_entropy_lies_between_certain_and_uniform(p):
    assert -10 * EPS <= sm.entropy(p) <= math.log(len(p)) + 10 * EPS
    for label in range(len(p)):
        rest = np.where(np.arange(len(p)) == label, 0.0, p)
        np.testing.assert_allclose(sm.entropy_of_rest(rest), sm.entropy(p), rtol=50 * EPS, atol=50 * EPS)


def test_entropy_attains_its_extremes():
    assert sm.entropy(np.array([0.0, 1.0, 0.0])) == 0
    assert sm.entropy(np.full(8, 1 / 8)) == pytest.approx(math.log(8), rel=4 * EPS)
    assert sm.entropy_of_rest(np.array([0.0, 1.0, 0.0])) == 0
    assert sm.entropy_of_rest(np.zeros(3)) == 0


@pytest.mark.parametrize("rest", [1e-3, 1e-12, 1e-100, 1e-300])
def test_entropy_of_rest_is_relatively_accurate_when_tiny(rest):
    with decimal.localcontext(prec=700):
        x = decimal.Decimal(rest)
        truth = -(2 * x * x.ln()) - (1 - 2 * x) * (1 - 2 * x).ln()
    assert sm.entropy_of_rest(np.array([rest, 0.0, rest])) == pytest.approx(float(truth), rel=8 * EPS, abs=0)


@pytest.mark.parametrize("xp", [np, jnp])
def test_softmax_is_a_distribution_and_ignores_shifts(xp):
    with jax.enable_x64(True):
        z = xp.asarray(logits_of())
        p = sm.softmax(z)
        np.testing.assert_allclose(p, np.exp(z) / np.exp(z).sum(-1, keepdims=True), rtol=20 * EPS)
        np.testing.assert_allclose(sm.softmax(z + 100.0), p, rtol=1e3 * EPS)
        np.testing.assert_allclose(np.exp(sm.log_softmax(z)), p, rtol=50 * EPS)
        labels = xp.asarray([0, 4, 2, 2])
        loss = sm.cross_entropy_from_logits(z, labels)
        np.testing.assert_allclose(loss, -np.asarray(sm.log_softmax(z))[np.arange(4), labels], rtol=50 * EPS)


def test_label_mask_is_one_hot():
    np.testing.assert_array_equal(sm.label_mask(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])


def every_result(z, labels):
    p = sm.softmax(z)
    results = [p, sm.log_softmax(z), sm.entropy(p), sm.kl_divergence(p, p), sm.cross_entropy(p, p)]
    results += [sm.entropy_of_rest(p[:, 1:]), sm.cross_entropy_from_logits(z, labels)]
    return [
        *results,
        sm.softmax_residual(z, labels),
        sm.softmax_jacobian(p),
        sm.weight_gradient(p, z, z.mT @ z, 0.1),
        sm.feature_gradient(p, z.mT @ z, z, 0.1),
    ]


@pytest.mark.parametrize("trace", [lambda function, *args: function(*args), jax.eval_shape])
def test_every_function_keeps_precision_and_can_be_traced(trace):
    results = trace(every_result, logits_of().astype(np.float32), np.array([0, 4, 2, 2]))
    assert all(result.dtype == np.float32 for result in results)


# Derivatives


def test_jacobian_is_the_derivative_of_softmax():
    z = logits_of()[0]
    jacobian = sm.softmax_jacobian(sm.softmax(z))
    with jax.enable_x64(True):
        np.testing.assert_allclose(jacobian, jax.jit(jax.jacfwd(sm.softmax))(jnp.asarray(z)), atol=10 * EPS)
    np.testing.assert_allclose(jacobian, central_difference(sm.softmax, z), atol=100 * STEP**2)


def test_residual_is_the_gradient_of_cross_entropy():
    z, labels = logits_of(), np.array([0, 4, 2, 2])
    residual = sm.softmax_residual(z, labels)
    with jax.enable_x64(True):
        auto = jax.jit(jax.grad(lambda x: sm.cross_entropy_from_logits(x, jnp.asarray(labels)).sum()))
        np.testing.assert_allclose(residual, auto(jnp.asarray(z)), atol=10 * EPS)
    numeric = central_difference(lambda x: sm.cross_entropy_from_logits(x, labels).sum(), z)
    np.testing.assert_allclose(residual.ravel(), numeric, atol=100 * STEP**2)
    np.testing.assert_allclose(residual.sum(axis=1), 0, atol=4 * EPS)


def test_jacobian_is_the_hessian_of_cross_entropy_for_every_label():
    z = logits_of()[0]
    hessian = sm.softmax_jacobian(sm.softmax(z))
    with jax.enable_x64(True):
        auto = jax.jit(jax.hessian(lambda x, y: sm.cross_entropy_from_logits(x[None], y[None])[0]))
        for label in range(len(z)):
            np.testing.assert_allclose(hessian, auto(jnp.asarray(z), jnp.asarray(label)), atol=20 * EPS)


def regularised(weight, features, labels, weighting, decays):
    """Weighted cross-entropy plus decays, in whatever namespace the arguments are."""
    loss = (weighting * sm.cross_entropy_from_logits(features @ weight.T, labels)).sum()
    return loss + decays[0] / 2 * (weight**2).sum() + (decays[1] / 2 * (features**2).sum(axis=1)).sum()


def test_gradients_in_classifier_and_features():
    rng = np.random.default_rng(2)
    weight, features = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    labels, weighting = rng.integers(0, 5, size=7), rng.uniform(0.1, 1, size=7)
    decays = (0.3, rng.uniform(0.1, 1, size=7))
    residual = weighting[:, None] * sm.softmax_residual(features @ weight.T, labels)
    in_weight = sm.weight_gradient(residual, features, weight, decays[0])
    in_features = sm.feature_gradient(residual, weight, features, decays[1][:, None])
    with jax.enable_x64(True):
        auto = jax.jit(jax.grad(regularised, argnums=(0, 1)))(
            jnp.asarray(weight), jnp.asarray(features), jnp.asarray(labels), weighting, decays
        )
        np.testing.assert_allclose(in_weight, auto[0], atol=50 * EPS)
        np.testing.assert_allclose(in_features, auto[1], atol=50 * EPS)
    numeric = central_difference(lambda w: regularised(w, features, labels, weighting, decays), weight)
    np.testing.assert_allclose(in_weight.ravel(), numeric, atol=1000 * STEP**2)


# Convexity


def test_hessian_eigenvalues_lie_within_the_bounds_and_attain_them():
    low, high = sm.HESSIAN_BOUNDS
    for scale in (0.1, 1.0, 10.0, 100.0):
        spectrum = np.linalg.eigvalsh(sm.softmax_jacobian(sm.softmax(logits_of(50, 6, scale))))
        assert spectrum.min() >= low - 10 * EPS
        assert spectrum.max() <= high + 10 * EPS
        np.testing.assert_allclose(np.min(np.abs(spectrum), axis=-1), 0, atol=10 * EPS)  # along the ones
    spectrum = np.linalg.eigvalsh(sm.softmax_jacobian(np.array([0.5, 0.5, 0.0])))
    assert spectrum[0] == pytest.approx(low, abs=4 * EPS)
    assert spectrum[-1] == pytest.approx(high, rel=4 * EPS)


def jensen(function, first, second, shares=(0.1, 0.5, 0.8)):
    """Assert that ``function`` is convex along the segment from ``first`` to ``second``."""
    ends = function(first), function(second)
    slack = 100 * EPS * (1 + abs(ends[0]) + abs(ends[1]))
    for share in shares:
        assert (
            function((1 - share) * first + share * second) <= (1 - share) * ends[0] + share * ends[1] + slack
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_convex_in_logits_and_in_either_factor(seed, scale):
    rng = np.random.default_rng(seed)
    labels, decays = rng.integers(0, 4, size=6), (1e-3, np.full(6, 1e-2))
    w = scale * rng.normal(size=(2, 4, 3))
    h = scale * rng.normal(size=(2, 6, 3))
    jensen(lambda z: sm.cross_entropy_from_logits(z, labels).sum(), *(h @ w.mT))
    jensen(lambda x: regularised(x, h[0], labels, 1.0, decays), *w)
    jensen(lambda x: regularised(w[0], x, labels, 1.0, decays), *h)


@exact
@given(distributions(number=3))
def test_convex_in_the_predicted_distribution(triple):
    target, *ends = triple
    if not any(np.any((target > 0) & (q == 0)) for q in ends):
        jensen(lambda q: float(sm.cross_entropy(target, q)), *ends)


def test_witness_shows_that_the_product_is_not_jointly_convex():
    decay = 1e-2
    witness = sm.joint_convexity_witness(decay)
    (first, second), labels = witness.points, np.arange(2)
    values = [
        float(sm.cross_entropy_from_logits(h @ w.T, labels).mean())
        + decay / 2 * ((w**2).sum() + (h**2).sum())
        for w, h in (first, second, [(a + b) / 2 for a, b in zip(first, second, strict=True)])
    ]
    np.testing.assert_allclose(values, [witness.first, witness.second, witness.midpoint], rtol=10 * EPS)
    assert min(first[1].min(), second[1].min()) >= 0
    assert witness.midpoint > (witness.first + witness.second) / 2 + 0.1


# Extremes


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_huge_logits_give_finite_losses_and_gradients(xp, label):
    with jax.enable_x64(True):
        z, labels = xp.asarray([[1e4, -1e4, 0.0]]), xp.asarray([label])
        loss, residual = sm.cross_entropy_from_logits(z, labels), sm.softmax_residual(z, labels)
        np.testing.assert_allclose(loss, [[0.0, 2e4, 1e4][label]], rtol=4 * EPS)
        np.testing.assert_allclose(residual, [[1.0, 0.0, 0.0] - np.eye(3)[label]], atol=EPS)
        assert np.all(np.isfinite(sm.log_softmax(z)))
        auto = jax.jit(jax.grad(lambda x: sm.cross_entropy_from_logits(x, jnp.asarray([label]))[0]))
        np.testing.assert_allclose(auto(jnp.asarray(z)), residual, atol=EPS)


@pytest.mark.parametrize("xp", [np, jnp])
def test_zero_probabilities(xp):
    p, q = xp.asarray([0.0, 1.0, 0.0]), xp.asarray([0.0, 0.5, 0.5])
    assert float(sm.entropy(p)) == 0
    assert float(sm.kl_divergence(p, q)) == pytest.approx(math.log(2))
    assert float(sm.cross_entropy(p, q)) == pytest.approx(math.log(2))
    assert float(sm.kl_divergence(q, p)) == math.inf
    assert float(sm.cross_entropy(q, p)) == math.inf
    np.testing.assert_array_equal(sm.softmax_jacobian(p), np.zeros((3, 3)))


def test_gradient_in_the_prediction_is_finite_where_both_probabilities_vanish():
    p, q = jnp.asarray([0.0, 1.0, 0.0]), jnp.asarray([0.0, 0.5, 0.5])
    np.testing.assert_allclose(jax.grad(sm.cross_entropy, argnums=1)(p, q), [0.0, -2.0, 0.0])


@pytest.mark.parametrize("margin", [0.0, 1.0, 20.0, 40.0, 300.0, 690.0, -30.0, -1e4])
def test_losses_of_every_size_are_relatively_accurate(margin):
    logits = np.array([[margin, 0.0, -0.5, 0.25]])
    truth = exact_loss(logits[0], 0)
    rounding = 4 * EPS * max(1.0, abs(margin))  # of the exponent, hence relative in the loss
    assert sm.cross_entropy_from_logits(logits, np.array([0]))[0] == pytest.approx(truth, rel=rounding, abs=0)
    with jax.enable_x64(True):
        jitted = jax.jit(sm.cross_entropy_from_logits)(jnp.asarray(logits), jnp.array([0]))
        assert float(jitted[0]) == pytest.approx(truth, rel=2 * rounding, abs=0)


@pytest.mark.parametrize("margin", [20.0, 100.0, 690.0])
def test_residuals_of_fitted_rows_are_relatively_accurate(margin):
    logits = np.array([[margin, 0.0, -0.5]])
    residual = sm.softmax_residual(logits, np.array([0]))[0]
    truth = [-(1 + math.exp(-0.5)) * math.exp(-margin), math.exp(-margin), math.exp(-0.5 - margin)]
    correction = 1 + (1 + math.exp(-0.5)) * math.exp(-margin)
    np.testing.assert_allclose(residual, np.array(truth) / correction, rtol=4 * EPS * margin, atol=0)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("logits", "loss"),
    [
        ([0.0, -np.inf], 0.0),
        ([-np.inf, 0.0, 1.0], np.inf),
        ([-np.inf, 0.0], np.inf),
        ([1e308, -1e308], 0.0),
        ([-1e308, 1e308], np.inf),
        ([np.inf, 0.0], 0.0),
    ],
)
def test_infinite_odds_have_a_loss(xp, logits, loss):
    with jax.enable_x64(True):
        rows, labels = xp.asarray([logits]), xp.asarray([0])
        assert sm.cross_entropy_from_logits(rows, labels).tolist() == [loss]
        assert ufm.CrossEntropy().value(rows, labels).tolist() == [loss]
        if max(logits) < np.inf:
            assert (-sm.log_softmax(rows))[0, 0] == loss
            assert sm.softmax_residual(rows, labels)[0, 0] == (0.0 if loss == 0 else -1.0)


def test_the_logarithm_of_a_probability_near_one_keeps_its_digits():
    for distance in (1.0, 20.0, 60.5, 300.0):
        loss = sm.cross_entropy_from_logits(np.array([[distance, 0.0]]), np.array([0]))
        np.testing.assert_allclose(-sm.log_softmax(np.array([distance, 0.0]))[0], loss[0], rtol=4 * EPS)


@exact
@given(distributions(), st.integers(0, 2**32 - 1), st.sampled_from([1e-15, 1e-12, 1e-8, 1e-3]))
def test_a_divergence_is_never_negative_and_keeps_its_digits(p, seed, size):
    """Of distributions whose difference is known exactly: mass is moved from the largest entry to others."""
    moved = np.where(p > 0, p * size * np.random.default_rng(seed).uniform(-1, 1, len(p)), 0.0)
    moved[np.argmax(p)] -= moved.sum()
    q = p + moved
    found = float(sm.kl_divergence(p, q))
    assert found >= 0
    quadratic = float(np.sum(np.divide((q - p) ** 2, 2 * p, where=p > 0, out=np.zeros_like(p))))
    assert found == pytest.approx(quadratic, rel=10 * size + 1e-9, abs=1e-300)
