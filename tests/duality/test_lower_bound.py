"""Lower bounds: valid at any point whatsoever, exact to second order near the optimum, never an exception."""

import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.losses import BIASES, CLASSES, EVERYDAY, made_for
from helpers.objective import objective_value
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.duality.certificate import class_means
from ufm.duality.faces import onto_cone_face, onto_spectral_face
from ufm.duality.lower_bound import best_lower_bound, dual_scales, dual_value, feasible_value
from ufm.duality.polar import DENSE_LIMIT, perron_bound, polar_bound
from ufm.losses.softmax import entropy, softmax
from ufm.losses.tilt import tilted_residual
from ufm.model.problem import FEATURE_SETS

EPS = np.finfo(np.float64).eps
CONVEX = [cls for cls in CLASSES if cls.convex]
MODELS = list(itertools.product(CONVEX, FEATURE_SETS, BIASES))
every_model = pytest.mark.parametrize(
    ("cls", "features", "bias"),
    few_daily(MODELS, range(0, len(MODELS), 4)),  # every loss, feature set and bias
    ids=lambda value: getattr(value, "__name__", str(value)),
)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=5)


def random_problem(rng, cls, features, bias):
    K = int(rng.integers(2, 6))
    counts = rng.integers(1, 200, size=K)
    decays = 10.0 ** rng.uniform(-5, 0, size=2)
    loss = made_for(cls, counts)
    return ufm.Problem(counts, int(rng.integers(1, 7)), *decays, loss=loss, features=features, bias=bias)


def random_point(rng, problem):
    """``(W, H, b)`` on a random scale, feasible."""
    size = 10.0 ** rng.uniform(-2, 1)
    weight = size * rng.normal(size=(problem.num_classes, problem.dim))
    features = rng.normal(size=(problem.num_classes, problem.dim))
    features = np.abs(features) if problem.features == "nonnegative" else features
    bias = None if problem.bias is None else rng.normal(size=problem.num_classes)
    return weight, features, bias


def value_at(problem, weight, features, bias):
    return objective_value(problem, weight, features, np.arange(problem.num_classes), bias)


@every_model
@few
@given(seed=seeds)
def test_weak_duality(cls, features, bias, seed):
    """The bound from one random point is below the objective of any other, for every model."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, cls, features, bias)
    weight, rows, shift = random_point(rng, problem)
    labels = np.arange(problem.num_classes)
    certificate = ufm.certify(problem, weight, rows, labels, shift)
    assert np.isfinite(certificate.lower_bound)
    for _ in range(4):
        other = value_at(problem, *random_point(rng, problem))
        assert certificate.lower_bound <= other * (1 + 1e-12)


@every_model
@few
@given(seed=seeds)
def test_any_matrix_gives_a_valid_bound(cls, features, bias, seed):
    """Not only gradients: every dual candidate is made feasible or refused."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, cls, features, bias)
    dual = 10.0 ** rng.uniform(-3, 2) * rng.normal(size=2 * (problem.num_classes,))
    bound = feasible_value(problem, dual)
    assert not bound > value_at(problem, *random_point(rng, problem)) * (1 + 1e-12)


@every_model
@few
@given(seed=seeds)
def test_the_gram_matrix_only_suggests(cls, features, bias, seed):
    """A wrong Gram matrix may weaken the bound; it cannot make it wrong."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, cls, features, bias)
    weight, rows, shift = random_point(rng, problem)
    logits = rows @ weight.T + (0.0 if shift is None else shift)
    raw = problem.loss.gradient(logits, np.arange(problem.num_classes))
    nonsense = rng.normal(size=(problem.num_classes, problem.dim))
    bound, _ = best_lower_bound(problem, raw, nonsense)
    assert bound <= value_at(problem, *random_point(rng, problem)) * (1 + 1e-12)


def test_unregularised_bias_needs_a_balanced_dual_point():
    """Without the balance condition the "bound" is wrong: the reason for `Loss.centre`."""
    problem = ufm.Problem(np.array([90, 10]), 2, 1e-2, 1e-2, bias=0.0)
    unbalanced = np.array([[-0.5, 0.5], [0.5, -0.5]])
    polar = polar_bound(dual_scales(problem)[:, None] * unbalanced, "nonnegative")
    optimum = ufm.solve(problem).objective
    assert dual_value(problem, unbalanced / max(polar, 1.0)) > optimum
    assert feasible_value(problem, unbalanced) <= optimum


#: Some of the cells that `test_family` solves every day: two of them every day here too.
SECOND_ORDER = [
    pytest.param(*cell, marks=[] if number < 2 else pytest.mark.slow)
    for number, cell in enumerate([cell for cell in EVERYDAY if cell[0].convex][::2])
]


@pytest.mark.parametrize(("cls", "features", "bias"), SECOND_ORDER)
def test_bound_is_off_by_the_square_of_the_distance(cls, features, bias):
    counts = np.array([300, 300, 300, 30, 30, 30])
    problem = ufm.Problem(counts, 6, 5e-3, 2e-5, loss=made_for(cls, counts), features=features, bias=bias)
    solution = ufm.solve(problem, tol=1e-12, residual_tol=1e-10)
    rng = np.random.default_rng(0)
    directions = [rng.normal(size=part.shape) * np.abs(part) for part in (solution.weight, solution.features)]
    gaps = []
    for size in (1e-3, 1e-4, 1e-5):
        weight, rows = solution.weight + size * directions[0], solution.features + size * directions[1]
        gaps.append(ufm.certify(problem, weight, rows, solution.labels, solution.bias).relative_gap)
    rates = np.log10(np.array(gaps[:-1]) / gaps[1:])
    assert np.all(rates > 1.7), (gaps, rates)


# The face of the feasible set


def test_cone_face_meets_its_constraints_exactly():
    rng = np.random.default_rng(1)
    problem = ufm.Problem(np.array([5, 4, 3, 2]), 4, 1e-2, 1e-2, bias=0.0)
    direction = np.sqrt(problem.priors)
    basis = np.linalg.qr(np.column_stack([direction, rng.normal(size=(4, 3))]))[0][:, 1:]
    planted = basis @ np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.eye(3, 4)
    lengths = np.linalg.norm(planted, axis=1)
    gram = np.diag(lengths > lengths.min()).astype(float)  # all classes but one are in use
    near = planted / np.maximum(lengths, lengths[lengths > lengths.min()].min())[:, None]
    found = onto_cone_face(problem, near + 1e-4 * rng.normal(size=(4, 4)), gram)
    used = np.diag(gram) > 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=1)[used], 1.0, rtol=1e-12)
    np.testing.assert_allclose(direction @ found, 0.0, atol=1e-12)


def test_spectral_face_lifts_used_directions_only():
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    problem = ufm.Problem(np.array([5, 4, 3, 2]), 4, 1e-2, 1e-2, features="free")
    dual = (left * [1.0001, 0.9999, 0.7, 0.2]) @ right
    means = left * np.sqrt([2.0, 1.0, 0.0, 0.0])
    found = np.linalg.svd(onto_spectral_face(problem, dual, means), compute_uv=False)
    np.testing.assert_allclose(found, [1.0, 1.0, 0.7, 0.2], rtol=1e-12)


# The polar


def polar_by_brute_force(matrix, steps=60):
    """``max |A' u|`` over a fine grid of non-negative unit vectors in three dimensions."""
    theta, phi = np.meshgrid(*2 * [np.linspace(0, np.pi / 2, steps)])
    u = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    return np.linalg.norm(u.reshape(-1, 3) @ matrix, axis=1).max()


@settings(max_examples=50)
@given(seed=seeds)
def test_polar_is_an_upper_bound_and_tight_without_positive_products(seed):
    matrix = np.random.default_rng(seed).normal(size=(3, 3))
    bound, true = polar_bound(matrix, "nonnegative"), polar_by_brute_force(matrix)
    assert bound >= true
    assert polar_bound(matrix, "free") >= bound * (1 - 1e-12) or np.any(matrix @ matrix.T > 0)
    crossed = matrix @ matrix.T
    if np.all(crossed - np.diag(np.diag(crossed)) <= 0):
        assert bound <= true * (1 + 1e-3)


def test_polar_of_what_is_not_finite_is_infinite():
    for bad in (np.nan, np.inf):
        for features in FEATURE_SETS:
            assert polar_bound(np.array([[1.0, 0.0], [0.0, bad]]), features) == np.inf


def test_collatz_wielandt_bounds_the_eigenvalue_of_large_matrices():
    rng = np.random.default_rng(3)
    K = DENSE_LIMIT + 20
    matrix = np.where(rng.uniform(size=(K, K)) < 0.05, rng.uniform(size=(K, K)), 0.0)
    matrix = matrix + matrix.T
    true = np.linalg.eigvalsh(matrix)[-1]
    assert true * (1 - 1e-12) <= perron_bound(matrix) <= true * (1 + 1e-3)
    assert perron_bound(np.diag(np.arange(1.0, K + 1))) == K


# Tilting


def tilt_of_random_distributions(seed, smoothing, sharpness):
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 7))
    target = np.eye(K) > 0
    rest = np.where(target, 0.0, softmax(sharpness * (rng.normal(size=(K, K)) + 2 * target)))
    weights = rng.uniform(0.01, 1, size=K)
    residual = tilted_residual(rest, np.arange(K), weights, smoothing / K)
    mass = weights @ (np.abs(residual) + smoothing / K)
    np.testing.assert_array_less(np.abs(weights @ residual), 64 * EPS * mass + 1e-300)
    return target, rest, residual + (1 - smoothing) * target + smoothing / K


@settings(max_examples=60)
@given(seed=seeds, smoothing=st.sampled_from([0.0, 0.1, 0.5]), sharpness=st.floats(0.5, 4.0))
def test_tilt_is_a_common_change_of_log_odds(seed, smoothing, sharpness):
    target, rest, r = tilt_of_random_distributions(seed, smoothing, sharpness)
    assert np.all(r > 0)
    before = np.where(target, 1 - rest.sum(axis=1, keepdims=True), rest)
    shifts = np.log(r) - np.log(before)
    shifts = shifts - shifts.mean(axis=1, keepdims=True)
    rounding = (
        8 * EPS / r.min(axis=1)
    )  # r is what is left of sums of numbers up to 1, its logarithm off by that over r
    assert np.all(np.abs(shifts - shifts[0]) <= 1e-6 + (rounding + rounding[0])[:, None])


@settings(max_examples=30)
@given(seed=seeds, smoothing=st.sampled_from([0.0, 0.1]), sharpness=st.floats(10.0, 300.0))
def test_tilt_balances_even_what_it_cannot_tilt(seed, smoothing, sharpness):
    tilt_of_random_distributions(seed, smoothing, sharpness)


def test_tilt_of_distributions_with_zeros_is_refused_not_an_exception():
    problem = ufm.Problem(np.array([3, 2, 1]), 3, 1e-3, 1e-3, bias=0.0)
    for dual in (np.zeros((3, 3)), np.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 1.0, -1.0]])):
        bound = feasible_value(problem, dual)
        assert bound <= entropy(problem.priors) + 1e-12  # the objective at W = H = 0 and the best bias


def test_class_means_of_any_order_and_multiplicity():
    rows = np.array([[1.0], [3.0], [10.0]])
    np.testing.assert_array_equal(class_means(rows, np.array([1, 1, 0]), 2), [[10.0], [2.0]])
    np.testing.assert_array_equal(class_means(rows, np.array([2, 0, 1]), 3), [[3.0], [10.0], [1.0]])


@pytest.mark.slow
@pytest.mark.parametrize("K", [200, 1000])
def test_the_bound_follows_classes_that_share_directions_up_to_many_classes(K):
    counts = np.repeat([1280, 200, 40, 5], K // 4)
    decay = 0.3 * np.sqrt(5) / counts.sum()
    loss = ufm.VectorScaling((counts / 1280) ** 0.3, np.zeros(K))
    problem = ufm.Problem(counts, K, decay, decay, loss=loss)
    found = ufm.solve(problem, "group")
    assert found.certified
    of_classes = ufm.certify(problem, found.weight, found.features, found.labels)
    assert -1e-12 < of_classes.relative_gap < 1e-9
