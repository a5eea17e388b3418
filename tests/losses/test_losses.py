"""Every loss keeps the contract that the solver and the certificate rely on.

The matrix runs over all concrete subclasses of `Loss` in the package; a new one is picked up by itself, with
positive vectors for parameters given per class and defaults (or 1/2) for the others.
"""

import copy
import dataclasses
import functools
import inspect
import math

import jax
import numpy as np
import pytest
from helpers.losses import CLASSES, K, example, is_vector
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm import losses
from ufm.losses import (
    LDAM,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    Loss,
    Poly1,
    SoftmaxLoss,
    VectorScaling,
    WeightedCrossEntropy,
)

EPS = np.finfo(np.float64).eps
exact = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


LOSSES = [example(cls, np.random.default_rng(7)) for cls in CLASSES]
LOSSES += [
    LabelSmoothing(0.9),
    WeightedCrossEntropy(np.array([1e-6, 1.0, 3.0, 1e3])),
    LogitAdjustment(np.array([-8.0, 0.0, 0.5, 3.0])),
    VectorScaling(np.array([0.01, 1.0, 1.5, 10.0]), np.array([-1.0, 2.0, 0.0, 0.3])),
    Focal(0.0),
    Focal(1.0),
    Focal(5.0),
    Focal(0.3),
    Poly1(0.0),
    Poly1(0.7),
    Poly1(4.0),
    LDAM(np.array([-1.0, 0.0, 2.0, 0.3]), 3.0),
]
IDS = [f"{type(loss).__name__}-{number}" for number, loss in enumerate(LOSSES)]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=IDS)
convex_loss = pytest.mark.parametrize(
    "loss", [x for x in LOSSES if x.convex], ids=[i for x, i in zip(LOSSES, IDS, strict=True) if x.convex]
)


def points(seed=0, rows=8, scale=2.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(rows, K)), rng.integers(0, K, size=rows)


def fenchel_young_gap(loss, logits, dual, labels):
    """``loss(z) + loss*(Q) - <Q, z>``, never negative, and its rounding error."""
    value, conjugate = loss.value(logits, labels), loss.conjugate(dual, labels)
    pairing = np.abs(dual * logits).sum(axis=1)
    rounding = 200 * EPS * (1e-300 + np.abs(value) + np.abs(conjugate) + pairing + np.abs(dual).sum(axis=1))
    return value + conjugate - (dual * logits).sum(axis=1), rounding


def test_matrix_covers_every_loss_of_the_package():
    assert {CrossEntropy, LabelSmoothing, WeightedCrossEntropy, LogitAdjustment} < set(CLASSES)
    assert {VectorScaling, MSE, Focal, LDAM, Poly1, BinaryCrossEntropy} < set(CLASSES)
    public = [x for x in vars(losses).values() if inspect.isclass(x) and issubclass(x, Loss)]
    assert {x for x in public if not inspect.isabstract(x)} == set(CLASSES)


# Value and gradient


def plain_softmax_loss(loss, logits, labels):
    """The definition of the softmax family, written without any care for rounding."""
    scores = loss.scales * logits + loss.offsets
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    target = (1 - loss.label_smoothing) * np.eye(K)[labels] + loss.label_smoothing / K
    return np.broadcast_to(loss.weights, (K,))[labels] * -(target * log_p).sum(axis=1)


def plain_focal_loss(loss, logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    hit = p[np.arange(len(labels)), labels]
    return -((1 - hit) ** loss.gamma) * np.log(hit)


def plain_poly1_loss(loss, logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    hit = p[np.arange(len(labels)), labels]
    return -np.log(hit) + loss.epsilon * (1 - hit)


def plain_ldam_loss(loss, logits, labels):
    moved = logits - np.eye(K)[labels] * loss.margins
    p = np.exp(loss.scale * moved) / np.exp(loss.scale * moved).sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels])


def plain_bce(loss, logits, labels):
    p, own = 1 / (1 + np.exp(-logits)), np.eye(K)[labels]
    return -(own * np.log(p) + (1 - own) * np.log(1 - p)).sum(axis=1)


def plain_mse(loss, logits, labels):
    return ((logits - np.eye(K)[labels]) ** 2).sum(axis=1) / 2


@every_loss
def test_value_is_its_definition(loss):
    plain = {LDAM: plain_ldam_loss, SoftmaxLoss: plain_softmax_loss, MSE: plain_mse}
    plain |= {Focal: plain_focal_loss, Poly1: plain_poly1_loss, BinaryCrossEntropy: plain_bce}
    definition = next((plain[base] for base in plain if isinstance(loss, base)), None)
    if definition is None:
        pytest.skip("no independent definition of this loss here")
    logits, labels = points()
    np.testing.assert_allclose(
        loss.value(logits, labels), definition(loss, logits, labels), rtol=1e4 * EPS, atol=1e4 * EPS
    )


def test_parameters_reach_the_loss():
    z, y = np.zeros((1, 2)), np.array([1])
    assert CrossEntropy().value(z, y)[0] == pytest.approx(math.log(2))
    assert WeightedCrossEntropy(np.array([1.0, 3.0])).value(z, y)[0] == pytest.approx(3 * math.log(2))
    assert LogitAdjustment(np.array([math.log(3), 0.0])).value(z, y)[0] == pytest.approx(math.log(4))
    tilted = np.array([[math.log(3), 0.0]])
    assert VectorScaling(np.array([2.0, 1.0])).value(tilted, y)[0] == pytest.approx(math.log(10))
    smooth = -0.25 * math.log(3 / 4) - 0.75 * math.log(1 / 4)
    assert LabelSmoothing(0.5).value(tilted, y)[0] == pytest.approx(smooth)
    assert Focal(2.0).value(tilted, y)[0] == pytest.approx(9 / 16 * math.log(4))
    assert MSE().value(np.array([[2.0, 0.0]]), y)[0] == pytest.approx(2.5)


def everything(loss, logits, labels):
    """Value, autodiff's gradient, gradient and autodiff's Hessian for one row."""

    def gradient(z):
        return 2 * (loss.gradient(z[None], labels[None])[0],)

    value, auto = jax.value_and_grad(lambda z: loss.value(z[None], labels[None])[0])(logits)
    hessian, gradient_here = jax.jacfwd(gradient, has_aux=True)(logits)
    return value, auto, gradient_here, hessian


@functools.cache
def traced(loss):
    """`everything` in float64 under vmap, once per loss, at points of several scales."""
    logits, labels = points(rows=300, scale=np.repeat([[0.3], [2.0], [6.0]], 100, axis=0))
    with jax.enable_x64(True):
        results = jax.vmap(functools.partial(everything, loss))(logits, labels)
        return logits, labels, *(np.asarray(result) for result in results)


def assert_rows_close(actual, expected, factor):
    """Compare vectors up to rounding errors of their largest entry."""
    size = np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(actual - expected) <= factor * size)


@every_loss
def test_gradient_is_autodiff_and_numpy_equals_jax(loss):
    logits, labels, value, auto, gradient, _ = traced(loss)
    np.testing.assert_allclose(value, loss.value(logits, labels), rtol=1e3 * EPS)
    assert_rows_close(gradient, loss.gradient(logits, labels), 1e3 * EPS)
    assert_rows_close(auto, gradient, 1e4 * EPS)


@pytest.mark.parametrize("loss", LOSSES[: len(CLASSES)], ids=IDS[: len(CLASSES)])
def test_single_precision_stays_single_even_where_double_is_enabled(loss):
    logits, labels = points()
    single = logits.astype(np.float32)

    def results(z, y):
        return loss.value(z, y), loss.gradient(z, y)

    assert all(array.dtype == np.float32 for array in jax.eval_shape(results, single, labels))
    with jax.enable_x64(True):
        *compiled, curvature = jax.jit(lambda z, y: (*results(z, y), loss.curvature(y)))(single, labels)
    for value, gradient in (compiled, results(single, labels)):
        assert value.dtype == gradient.dtype == np.float32
        np.testing.assert_allclose(value, loss.value(logits, labels), rtol=1e-4)
        assert_rows_close(np.asarray(gradient), loss.gradient(logits, labels), 1e-4)
    np.testing.assert_allclose(curvature, loss.curvature(labels), rtol=1e-5)


@every_loss
@pytest.mark.parametrize("largest", [0, 1])
def test_huge_logits_stay_finite(loss, largest):
    logits = np.array([[1e4, -1e4, 0.0, 1e4][largest:] + [0.0] * largest])
    for label in range(K):
        labels = np.array([label])
        assert np.all(np.isfinite(loss.value(logits, labels)))
        assert np.all(np.isfinite(loss.gradient(logits, labels)))


# Conjugate: what the certificate rests on


@convex_loss
@exact
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 10.0]))
def test_fenchel_young_is_tight_at_the_gradient(loss, seed, scale):
    logits, labels = points(seed, scale=scale)
    gap, rounding = fenchel_young_gap(loss, logits, loss.gradient(logits, labels), labels)
    assert np.all(np.abs(gap) <= rounding)


@convex_loss
@exact
@given(seed=seeds, size=st.sampled_from([1e-6, 1.0, 100.0]))
def test_into_domain_makes_any_vector_feasible(loss, seed, size):
    anything, labels = points(seed, scale=size)
    dual = loss.into_domain(anything, labels)
    assert np.all(np.isfinite(loss.conjugate(dual, labels)))
    np.testing.assert_allclose(
        loss.into_domain(dual, labels), dual, rtol=100 * EPS, atol=100 * EPS * dual.max()
    )
    for scale in (0.1, 3.0, 1e5):  # far away, any vector outside the domain breaks the inequality
        logits, _ = points(seed + 1, scale=scale)
        gap, rounding = fenchel_young_gap(loss, logits, dual, labels)
        assert np.all(gap >= -rounding)


@convex_loss
@exact
@given(seed=seeds, tau=st.floats(0, 1), scale=st.sampled_from([0.1, 2.0, 30.0]))
def test_scaled_gradients_are_in_the_domain_already(loss, seed, tau, scale):
    logits, labels = points(seed, scale=scale)
    dual = tau * loss.gradient(logits, labels)
    size = np.abs(loss.gradient(logits, labels)).max(axis=1, keepdims=True)
    smoothing = getattr(loss, "label_smoothing", 0.0)  # its targets are added and subtracted again
    parameters = getattr(loss, "weights", 1.0) * np.max(getattr(loss, "scales", 1.0))
    slack = 100 * EPS * (size + smoothing * np.max(parameters))
    assert np.all(np.abs(loss.into_domain(dual, labels) - dual) <= slack)


@convex_loss
@exact
@given(seed=seeds, scale=st.sampled_from([0.1, 2.0, 6.0]))
def test_centred_rows_are_feasible_for_a_free_bias(loss, seed, scale):
    labels, rng = np.arange(K), np.random.default_rng(seed)
    logits, priors = scale * rng.normal(size=(K, K)), rng.dirichlet(np.ones(K))
    gradient = loss.gradient(logits, labels)
    dual = loss.centre(gradient, labels, priors)
    assert np.all(np.abs(priors @ dual) <= 100 * EPS * (priors @ np.abs(dual)))
    if tells_its_distributions(loss, gradient, labels):  # else there may be no bias that centres them
        np.testing.assert_allclose(
            loss.into_domain(dual, labels), dual, rtol=0, atol=1e3 * EPS * np.abs(dual).max()
        )


def tells_its_distributions(loss, gradient, labels):
    """Whether no probability behind a gradient is lost to rounding, as those are that were added to a target."""
    if not isinstance(loss, SoftmaxLoss):
        return True
    residual = gradient / (np.broadcast_to(loss.weights, (K,))[labels, None] * loss.scales)
    target = np.eye(K)[labels] * (1 - loss.label_smoothing) + loss.label_smoothing / K
    return np.all(residual + target > np.where(target > 0, K * EPS, 0.0))


@pytest.mark.slow
def test_centring_finds_biases_of_any_size():
    """Logits of a hundred need biases as large: steps of at most 1 would leave most such points without a bound."""
    loss, labels, reached = CrossEntropy(), np.arange(K), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gradient, priors = loss.gradient(60 * rng.normal(size=(K, K)), labels), rng.dirichlet(np.ones(K))
        dual = loss.centre(gradient, labels, priors)
        feasible = np.abs(loss.into_domain(dual, labels) - dual).max() <= 1e3 * EPS * np.abs(dual).max()
        assert feasible or not tells_its_distributions(loss, gradient, labels)
        reached += feasible
    assert reached >= 65  # zeros leave no solution for the others


@pytest.mark.parametrize(
    "loss", [Focal(0.3), Focal(1.0), Focal(2.0), Focal(5.0), Poly1(1.5), Poly1(4.0)], ids=repr
)
@exact
@given(seed=seeds, size=st.sampled_from([1e-6, 0.3, 1.0, 3.0]), scale=st.sampled_from([1e-3, 1.0, 10.0]))
def test_a_loss_that_is_not_convex_is_bounded_all_the_same(loss, seed, size, scale):
    """Fenchel-Young at any logits for any dual point, and with equality somewhere: the conjugate is no larger."""
    logits, labels = points(seed, rows=40, scale=scale)
    far, _ = points(seed + 1, rows=40, scale=scale)
    dual = loss.into_domain(size * loss.gradient(far, labels), labels)
    gap, rounding = fenchel_young_gap(loss, logits, dual, labels)
    assert np.all(gap >= -rounding)
    rest = np.where(np.eye(K, dtype=bool)[labels], 0.0, dual)
    pull = rest.sum(axis=1, keepdims=True)
    odds = -np.log(np.expm1(loss.surprise_at(pull)))  # where the supremum is attained
    best = np.where(np.eye(K, dtype=bool)[labels], odds, np.log(np.where(rest > 0, rest / pull, 1.0)))
    gap, rounding = fenchel_young_gap(loss, best, dual, labels)
    inside = pull[:, 0] < 1 - 1e-9  # at 1 it is a limit
    assert np.all(np.abs(gap)[inside] <= 10 * rounding[inside])


# Curvature


@every_loss
def test_curvature_bounds_the_hessian(loss):
    _, labels, _, _, _, hessians = traced(loss)
    np.testing.assert_allclose(hessians, hessians.mT, atol=1e3 * EPS * np.abs(hessians).max())
    spectrum = np.linalg.eigvalsh(hessians)
    bound = loss.curvature(labels)
    assert bound.shape == labels.shape
    assert np.all(np.abs(spectrum) <= bound[:, None] * (1 + 100 * EPS))
    if loss.convex:
        assert np.all(spectrum >= -100 * EPS * bound[:, None])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropy(), [0.5, 0.5]),
        (LabelSmoothing(0.3), [0.5, 0.5]),
        (WeightedCrossEntropy(np.array([3.0, 0.1])), [1.5, 0.05]),
        (VectorScaling(np.array([3.0, 1.0])), [4.5, 4.5]),
        (MSE(), [1.0, 1.0]),
        (BinaryCrossEntropy(), [0.25, 0.25]),
        (LDAM(np.array([3.0, 1.0]), 3.0), [4.5, 4.5]),
        (Poly1(0.5), [0.75, 0.75]),
        (Focal(0.0), [0.5, 0.5]),
    ],
)
def test_curvature_is_no_larger_than_it_needs_to_be(loss, expected):
    np.testing.assert_allclose(loss.curvature(np.arange(2)), expected)


# Symmetry and identity


@every_loss
def test_relabelling_classes_changes_nothing(loss):
    logits, labels = points()
    order = np.random.default_rng(5).permutation(K)
    vectors = [f.name for f in dataclasses.fields(loss) if is_vector(f)]
    relabelled = dataclasses.replace(loss, **{name: getattr(loss, name)[order] for name in vectors})
    new_labels = np.argsort(order)[labels]
    np.testing.assert_allclose(
        relabelled.value(logits[:, order], new_labels), loss.value(logits, labels), rtol=1e3 * EPS
    )
    np.testing.assert_allclose(
        relabelled.gradient(logits[:, order], new_labels),
        loss.gradient(logits, labels)[:, order],
        rtol=1e3 * EPS,
        atol=10 * EPS,
    )
    np.testing.assert_array_equal(relabelled.curvature(new_labels), loss.curvature(labels))


@every_loss
def test_equality_is_by_type_and_parameters(loss):
    twin = copy.deepcopy(loss)
    assert twin is not loss
    assert twin == loss
    assert hash(twin) == hash(loss)
    assert [other for other in LOSSES if other == loss] == [loss]
    assert loss != "a loss"
    for field in dataclasses.fields(loss):
        before = getattr(loss, field.name)
        after = before * 0.5 + 0.125 if is_vector(field) else 0.25 * before if before < 1 else 1.5 * before
        if np.any(before != after):
            assert dataclasses.replace(loss, **{field.name: after}) != loss


@every_loss
def test_margins_that_cannot_be_told_from_zero_are_those_of_every_member_alone(loss):
    divergence = np.random.default_rng(3).uniform(1e-9, 1e-2, size=(3, K))
    together = loss.zero_margins(divergence)
    alone = [loss.zero_margins(own) for own in divergence]
    if together is None:
        assert alone == [None, None, None]
    else:
        np.testing.assert_allclose(together, alone, rtol=1e-9)
