"""MSE, simplex ETF and SELI: optimality by the oracle, limits, dimensions, refusals."""

import numpy as np
import pytest
from helpers.oracle import assert_optimal, make, nuclear_gap, nuclear_solution, relative_gap, weighted
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ufm.inputs.checks import InputError
from ufm.losses import MSE, CrossEntropy, LabelSmoothing, WeightedCrossEntropy
from ufm.theory import ClosedFormError, predict, seli

exact = settings(max_examples=30)
counts_lists = st.lists(st.integers(1, 1000), min_size=2, max_size=7)
ratios = st.integers(-4, 4).map(lambda power: 10.0**power)


@exact
@given(counts_lists, st.floats(1e-5, 1.2), ratios, st.sampled_from(["nonnegative", "free"]))
def test_mse_prediction_is_the_global_optimum(counts, level, ratio, features):
    root = np.sqrt(level * max(counts)) / sum(counts)
    problem = make(counts, len(counts), root * ratio, root / ratio, loss=MSE(), features=features)
    prediction = predict(problem)
    assert_optimal(prediction)
    np.testing.assert_array_equal(prediction.collapsed, prediction.margins == 0)


def test_mse_numbers_and_refusals():
    problem = make([200, 100, 50, 50], 64, 5e-4, 5e-4, loss=MSE())
    prediction = predict(problem)
    np.testing.assert_allclose(prediction.margins, 1 - 400 * 5e-4 / np.sqrt([200, 100, 50, 50]), rtol=1e-14)
    everything = predict(problem.replace(weight_decay=1.0, feature_decay=1.0))
    assert everything.collapsed.all()
    assert everything.objective == 0.5
    with pytest.raises(ClosedFormError, match="without bias"):
        predict(problem.replace(bias=0.0))
    with pytest.raises(ClosedFormError, match="dimension of its own"):
        predict(problem.replace(dim=3))


def test_mse_threshold_is_the_count_itself():
    at = make([4, 60], 2, 2.0**-5, 2.0**-5, loss=MSE())  # N^2 lambda_W lambda_H = 4
    assert predict(at).collapsed.tolist() == [True, False]
    assert not predict(at.replace(weight_decay=float(np.nextafter(2.0**-5, 0)))).collapsed.any()


@exact
@given(
    st.integers(2, 8),
    st.integers(1, 500),
    st.floats(1e-5, 1.2),
    st.floats(0, 0.8),
    ratios,
    st.sampled_from([None, 0.0, 0.5]),
)
def test_simplex_etf_is_the_global_optimum(K, count, level, smoothing, ratio, bias):
    assume(abs(level - 1) > 1e-9)
    root = (1 - smoothing) * np.sqrt(level / count) / K
    loss = LabelSmoothing(smoothing) if smoothing else weighted(*[1.0] * K)
    problem = make([count] * K, K, root * ratio, root / ratio, loss=loss, features="free", bias=bias)
    prediction = predict(problem)
    assert_optimal(prediction)
    assert prediction.num_collapsed == (K if level >= 1 else 0)


def test_simplex_etf_agrees_with_the_convex_program():
    problem = make([20] * 4, 4, 2e-2, 1e-2, features="free", bias=0.1)
    logits, bias = nuclear_solution(problem)
    assert abs(nuclear_gap(problem, logits, bias)) < 1e-12
    np.testing.assert_allclose(logits, predict(problem).logits, atol=1e-6)
    np.testing.assert_allclose(bias, 0, atol=1e-9)


def test_simplex_etf_geometry_and_dimension():
    problem = make([50] * 4, 3, 1e-3, 1e-4, features="free")
    prediction = predict(problem)
    cosine = prediction.gram_features[0, 1] / prediction.norms[0] ** 2
    assert cosine == pytest.approx(-1 / 3, rel=1e-12)
    assert np.linalg.matrix_rank(prediction.gram_features, tol=1e-9) == 3
    with pytest.raises(ClosedFormError, match="dim >= 3"):
        predict(problem.replace(dim=2))
    assert predict(problem.replace(dim=1, weight_decay=100.0)).collapsed.all()


def test_equal_weights_scale_the_simplex_etf():
    problem = make([30, 30, 30], 3, 3e-3, 2e-3, loss=weighted(3.0, 3.0, 3.0), features="free")
    assert_optimal(predict(problem))
    plain = predict(make([30, 30, 30], 3, 1e-3, 2e-3 / 3, features="free"))
    np.testing.assert_allclose(predict(problem).gram_weights, plain.gram_weights, rtol=1e-12)


def test_free_features_bind_margins_less_than_nonnegative_ones():
    problem = make([50] * 5, 5, 1e-3, 1e-3)
    assert predict(problem.replace(features="free")).objective < predict(problem).objective


@pytest.mark.parametrize("counts", [[40, 10, 5], [40, 40, 10], [100, 1]])
@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(0.2)])
def test_total_collapse_of_unequal_counts_is_sharp(counts, loss):
    from ufm.theory import total_collapse_weight

    problem = make(counts, len(counts), 1.0, 1.0, loss=loss, features="free")
    threshold = total_collapse_weight(problem)
    zero = np.zeros((len(counts), len(counts)))
    above = problem.replace(weight_decay=threshold * 1.0001, feature_decay=threshold * 1.0001)
    prediction = predict(above)
    assert prediction.objective == pytest.approx(np.log(len(counts)), rel=1e-14)
    assert prediction.collapsed.all()
    assert abs(relative_gap(above, zero, zero)) < 1e-13
    below = problem.replace(weight_decay=threshold * 0.999, feature_decay=threshold * 0.999)
    with pytest.raises(ClosedFormError, match="total collapse at"):
        predict(below)
    logits, _ = nuclear_solution(below)
    assert np.abs(logits).max() > 1e-4


@pytest.mark.parametrize(
    "changes", [{"bias": 0.1}, {"loss": weighted(1.0, 2.0, 1.0), "counts": np.array([9, 9, 9])}]
)
def test_free_features_need_exchangeable_classes(changes):
    problem = make([30, 20, 10], 3, 1e-3, 1e-3, features="free").replace(**changes)
    with pytest.raises(ClosedFormError, match="equal counts and equal class weights"):
        predict(problem)


def test_seli_of_balanced_counts_is_the_simplex_etf():
    geometry = seli([7] * 5)
    etf = predict(make([7] * 5, 5, 1e-3, 1e-3, features="free"))
    for name in ("gram_features", "gram_weights"):
        expected = getattr(etf, name) / np.linalg.norm(getattr(etf, name))
        np.testing.assert_allclose(getattr(geometry, name), expected, atol=1e-14)


@exact
@given(counts_lists)
def test_seli_factors_interpolate_simplex_labels(counts):
    """Both Grams are the positive semidefinite square roots that they should be."""
    geometry = seli(counts)
    roots = np.sqrt(counts)
    encoded = (np.eye(len(counts)) - 1 / len(counts)) * roots
    scaled = geometry.gram_features * np.outer(roots, roots)
    for gram, target in [(geometry.gram_weights, encoded @ encoded.T), (scaled, encoded.T @ encoded)]:
        np.testing.assert_allclose(gram @ gram / np.trace(gram @ gram), target / np.trace(target), atol=1e-12)
        assert np.linalg.eigvalsh(gram)[0] > -1e-12 * np.trace(gram)
    np.testing.assert_allclose(np.sum(geometry.singular_values**2), np.sum(encoded**2), rtol=1e-12)


@exact
@given(counts_lists)
def test_seli_is_the_maximum_margin_solution(counts):
    """KKT of min |Z|_* subject to unit margins at Z = I - 11'/K: the polar factor has multipliers >= 0."""
    K = len(counts)
    encoded = (np.eye(K) - 1 / K) * np.sqrt(counts)
    left, _, right = np.linalg.svd(encoded)
    polar = left[:, : K - 1] @ right[: K - 1]
    np.testing.assert_allclose(polar.sum(axis=0), 0, atol=1e-12)
    assert np.all(polar[~np.eye(K, dtype=bool)] < 1e-12)


def test_seli_is_the_limit_of_vanishing_regularisation():
    """With smoothing the limit is reached at finite logits, so that the convex program can be run near it."""
    counts = np.array([60, 30, 10])
    distances = []
    for decay in (1e-3, 1e-4):
        problem = make(counts, 3, decay, decay, loss=LabelSmoothing(0.3), features="free")
        logits, bias = nuclear_solution(problem)
        assert abs(nuclear_gap(problem, logits, bias)) < 1e-9
        left, values, _ = np.linalg.svd((np.sqrt(counts)[:, None] * logits).T)
        gram = (left * values) @ left.T
        distances.append(np.linalg.norm(gram / np.linalg.norm(gram) - seli(counts).gram_weights))
    assert distances[0] > 3 * distances[1]
    assert distances[1] < 1e-2


def test_seli_refuses_what_it_cannot_form():
    with pytest.raises(InputError, match="20,001 x 20,001"):
        seli(np.ones(20_001, dtype=int))
    with pytest.raises(InputError, match="positive integers"):
        seli([3, 0])


def test_unequal_weights_of_the_right_size_do_not_fool_the_simplex_theorem():
    problem = make([30, 30], 2, 1e-3, 1e-3, loss=WeightedCrossEntropy(np.array([1.0, 1.0 + 1e-15])))
    assert predict(problem).num_collapsed == 0
    with pytest.raises(ClosedFormError):
        predict(problem.replace(features="free"))
