"""The sharper bound where classes share directions: valid whatever it is told, tight where it is told the truth."""

import numpy as np
import pytest
from helpers.cases import few_daily
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
import ufm.duality.polar
from ufm.duality.copositive import largest_on_supports, relaxed_bound, sharing_bound
from ufm.duality.polar import polar_bound
from ufm.losses.by_name import parse_loss
from ufm.profiles import parse_counts


def largest(product, rng, tries=300):
    """``max u' G u`` over many non-negative unit vectors, sparse ones too, improved by projected power steps."""
    u = np.maximum(rng.normal(size=(tries, len(product))), 0) + 1e-9
    shift = np.linalg.norm(product, 2)
    for _ in range(30):
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        u = np.maximum(u @ product + shift * u, 0) + 1e-300
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return np.einsum("ij,jk,ik->i", u, product, u).max()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_gram_matrix_makes_the_bound_too_small(seed):
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 8))
    dual = rng.normal(size=(K, K)) * 10 ** rng.uniform(-3, 3)
    features = np.maximum(rng.normal(size=(K, int(rng.integers(1, 10)))), 0) * rng.choice(
        [0, 1, 1e-9], (K, 1)
    )
    product, gram = dual @ dual.T, features @ features.T
    true = largest(product, rng)
    assert sharing_bound(product, gram) >= true * (1 - 1e-12)
    assert polar_bound(dual, "nonnegative", gram) <= polar_bound(dual, "nonnegative")
    assert polar_bound(dual, "nonnegative", gram) ** 2 >= true * (1 - 1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_maximum_of_few_classes_is_found(seed):
    rng = np.random.default_rng(seed)
    dual = rng.normal(size=(int(rng.integers(1, 8)), 4))
    value, direction = largest_on_supports(dual @ dual.T)
    assert direction.min() >= 0
    assert np.linalg.norm(direction) == pytest.approx(1)
    assert np.sum((direction @ dual) ** 2) == pytest.approx(value, rel=1e-5)
    assert value >= largest(dual @ dual.T, rng) * (1 - 1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_multiplier_is_tight_for_four_classes_and_a_bound_for_all(seed):
    rng = np.random.default_rng(seed)
    dual = rng.normal(size=(int(rng.integers(2, 9)), 4))
    product = dual @ dual.T / np.linalg.norm(dual, 2) ** 2
    true, bound = largest_on_supports(product)[0], relaxed_bound(product, 500)
    assert true * (1 - 1e-9) <= bound <= np.linalg.eigvalsh(np.maximum(product, 0))[-1] * (1 + 1e-3)
    if len(product) <= 4:
        assert bound == pytest.approx(true, rel=1e-3)


def test_what_overflows_stays_a_bound():
    dual = np.random.default_rng(0).normal(size=(4, 4))
    product, gram = dual @ dual.T, np.eye(4) + np.outer([1, 1, 0, 0], [1, 1, 0, 0])
    assert sharing_bound(1e200 * product, gram) >= 1e200 * largest(product, np.random.default_rng(1))
    assert sharing_bound(product, np.full((4, 4), np.inf)) == np.inf


def test_the_polar_is_sharpened_up_to_a_number_of_classes(monkeypatch):
    means = np.kron(np.eye(70), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    dual = means @ np.linalg.pinv(means)
    assert polar_bound(dual, "nonnegative") == pytest.approx(np.sqrt(2 / 3 + np.sqrt(2) / 3))
    assert polar_bound(dual, "nonnegative", means @ means.T) == pytest.approx(1)
    monkeypatch.setattr(ufm.duality.polar, "SHARING_LIMIT", len(dual) - 1)
    assert polar_bound(dual, "nonnegative", means @ means.T) == polar_bound(dual, "nonnegative")


@pytest.mark.parametrize(("form", "sharing"), few_daily([("adjustment:1", True), ("cdt:0.3", False)], ()))
def test_long_tail_is_certified(form, sharing):
    """Adjusted logits put the last classes between all others: cutting off negative products leaves 4e-3 open."""
    counts = parse_counts("cifar10-lt-100")
    solution = ufm.solve(ufm.Problem(counts, 32, 5e-3, 2e-4, loss=parse_loss(form, counts)))
    assert solution.certified
    products = solution.features @ solution.features.T
    assert np.any(products - np.diag(np.diag(products)) > 0.01 * products.max()) == sharing


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adjustment:0.5", "adjustment:1", "cdt:0.3", "ce"])
@pytest.mark.parametrize(
    ("profile", "bias", "decays"),
    [("cifar10-lt-100", 0.01, (1e-3, 1e-5)), ("exp:K=12,n_max=300,ratio=30", None, (5e-3, 2e-4))],
)
def test_every_long_tail_is_certified(profile, bias, decays, form):
    counts = parse_counts(profile)
    problem = ufm.Problem(counts, 32, *decays, loss=parse_loss(form, counts), bias=bias)
    assert ufm.solve(problem).certified


@pytest.mark.parametrize(
    ("form", "bias", "decay"),
    few_daily([("ce", 0.0, 1e-3), ("ce", 0.0, 2e-3), ("smoothing:0.1", 0.0, 1e-3)], (1,)),
)
def test_a_class_without_a_feature_that_the_bias_carries(form, bias, decay):
    """The largest class has no feature, the others share directions: least squares alone left 1e-3 open here."""
    counts = np.array([5000, 1888, 713, 269, 101, 38])
    solution = ufm.solve(ufm.Problem(counts, 8, decay, decay, loss=parse_loss(form, counts), bias=bias))
    assert solution.certified
    assert not np.any(solution.features[0])
    assert solution.certificate.relative_gap < 1e-8


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_planted_multiplier_is_found(seed):
    """With ``G + S = U U' + inner`` for a planted S, sparse where classes occur together, the bound is one."""
    rng = np.random.default_rng(seed)
    K, rank = int(rng.integers(3, 9)), 2
    means = rng.uniform(0.1, 1, (K, rank)) * (rng.integers(0, rank, (K, 1)) == np.arange(rank))
    means[0] = rng.uniform(0.1, 1, rank)  # a class that shares with all, and one that has nothing
    means[1] = 0
    used = np.linalg.qr(means)[0]
    apart = (means @ means.T == 0) & ~np.eye(K, dtype=bool)
    planted = np.where(apart, rng.uniform(0, 1, (K, K)), 0)
    planted = planted + planted.T
    others = np.eye(K) - used @ used.T
    product = used @ used.T + 0.5 * others - planted
    assert sharing_bound(product, means @ means.T) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("form", "bias"),
    few_daily([("adjustment", None), ("adjustment", 1e-3), ("ce", 0.0), ("bce", None)], (1, 2)),
)
def test_the_gap_is_of_second_order_where_classes_share(form, bias):
    """The face is met exactly: with the polar alone sharpened the gap was of the first order in the residual."""
    counts = np.array([5000, 1888, 713, 269, 101, 38])
    problem = ufm.Problem(counts, 8, 1e-3, 1e-5, loss=parse_loss(form, counts), bias=bias)
    rough = ufm.solve(problem, tol=0.1, residual_tol=1e-3)
    found = ufm.certify(problem, rough.weight, rough.features, rough.labels, rough.bias)
    assert found.residual > 1e-6
    assert found.relative_gap <= 100 * found.residual**2
