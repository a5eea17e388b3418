"""Soft targets: contexts and logits are told apart, labels and smoothing are special cases, free features certify."""

import numpy as np
import pytest
from helpers.groups import reduced
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

import ufm
from ufm.inputs.checks import InputError
from ufm.losses import (
    LDAM,
    MSE,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    VectorScaling,
    WeightedCrossEntropy,
)
from ufm.losses.soft_targets import SoftTargets, twins, with_targets
from ufm.model.groups import groups_of
from ufm.model.problem import Problem
from ufm.solvers.compiled import chunk_of_one

C, K, D = 7, 4, 6
COUNTS = np.array([400, 200, 90, 50, 30, 12, 5])
TARGETS = np.random.default_rng(3).dirichlet(np.full(K, 0.3), C)


def make(targets=TARGETS, counts=COUNTS, **changes):
    given = {"dim": D, "weight_decay": 5e-3, "feature_decay": 2e-5, "features": "free", **changes}
    return Problem(counts, targets=targets, **given)


def nuclear_value(problem):
    """The convex problem over all logits, free features, from its definition: a lower bound by L-BFGS on factors."""
    T, n, lam_w, lam_h = problem.targets, problem.counts, problem.weight_decay, problem.feature_decay
    rng = np.random.default_rng(0)

    def value(x):
        W, H = x[: K * D].reshape(K, D), x[K * D :].reshape(C, D)
        Z = H @ W.T
        peak = Z.max(axis=1, keepdims=True)
        log_p = Z - peak - np.log(np.exp(Z - peak).sum(axis=1, keepdims=True))
        R = (n / n.sum())[:, None] * (np.exp(log_p) - T)
        data = -(n / n.sum()) @ (T * log_p).sum(axis=1)
        decay = lam_w * np.sum(W**2) + lam_h * n @ np.sum(H**2, axis=1)
        return data + decay / 2, np.concatenate(
            [(R.T @ H + lam_w * W).ravel(), (R @ W + lam_h * n[:, None] * H).ravel()]
        )

    ends = [
        minimize(value, rng.standard_normal((K + C) * D), jac=True, options={"gtol": 1e-11, "maxiter": 20000})
        for _ in range(2)
    ]
    return min(end.fun for end in ends)


# The loss


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_value_gradient_and_conjugate_agree(seed):
    """Against the definition; Fenchel-Young with equality at the gradient, an inequality elsewhere."""
    rng = np.random.default_rng(seed)
    T = rng.dirichlet(np.full(K, 0.2), C)
    loss = SoftTargets(T, rng.uniform(0.5, 2, C), rng.uniform(0.5, 2, K), rng.standard_normal(K))
    labels, logits = rng.integers(0, C, 9), 3 * rng.standard_normal((9, K))
    scores = loss.scales * logits + loss.offsets
    log_p = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
    weights = loss.weights[labels]
    np.testing.assert_allclose(loss.value(logits, labels), -weights * (T[labels] * log_p).sum(1), atol=1e-12)
    gradient = loss.gradient(logits, labels)
    expected = weights[:, None] * loss.scales * (np.exp(log_p) - T[labels])
    np.testing.assert_allclose(gradient, expected, atol=1e-14)
    pairing = (gradient * logits).sum(axis=1)
    np.testing.assert_allclose(
        loss.value(logits, labels) + loss.conjugate(gradient, labels), pairing, atol=1e-11
    )
    dual = loss.into_domain(rng.standard_normal((9, K)), labels)
    other = loss.value(logits, labels) + loss.conjugate(dual, labels) - (dual * logits).sum(axis=1)
    assert other.min() >= -1e-12


def test_the_residual_of_a_well_fitted_label_keeps_its_digits():
    loss = SoftTargets(np.eye(3), 1.0, 1.0, 0.0)
    logits = np.array([[60.0, 0.0, 0.0]])
    hard = CrossEntropy()
    for method in ("value", "gradient"):
        found, expected = (getattr(each, method)(logits, np.array([0])) for each in (loss, hard))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_labels_or_smoothing_say_stays_what_it_is():
    assert with_targets(CrossEntropy(), np.eye(K)) == CrossEntropy()
    assert with_targets(WeightedCrossEntropy([1, 2, 3, 4]), np.eye(K)) == WeightedCrossEntropy([1, 2, 3, 4])
    noise = 0.3
    targets = (1 - noise) * np.eye(K) + noise / (K - 1) * (1 - np.eye(K))
    smoothed = with_targets(CrossEntropy(), targets)
    assert isinstance(smoothed, LabelSmoothing)
    assert smoothed.smoothing == pytest.approx(noise * K / (K - 1), abs=1e-13)
    np.testing.assert_allclose(smoothed.targets(np.arange(K), K), targets, atol=1e-15)
    assert make(np.eye(K), COUNTS[:K]) == Problem(COUNTS[:K], D, 5e-3, 2e-5, features="free")
    plain = Problem(COUNTS[:K], D, 5e-3, 2e-5, smoothed)
    assert Problem(COUNTS[:K], D, 5e-3, 2e-5, targets=targets) == plain
    assert ufm.predict(make(targets, COUNTS[:K], features="nonnegative")).source.startswith("theorem")
    weighted = with_targets(WeightedCrossEntropy([1, 2, 3, 4]), targets)
    np.testing.assert_allclose(weighted.weights, targets @ [1, 2, 3, 4])


@pytest.mark.parametrize("targets", [TARGETS, 0.8 * np.eye(K) + 0.05], ids=["any", "symmetric noise"])
def test_class_weights_tilt_targets_as_in_torch(targets):
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    loss = with_targets(WeightedCrossEntropy(weights), targets)
    logits = np.random.default_rng(0).standard_normal(targets.shape)
    log_p = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    expected = -(weights * targets * log_p).sum(axis=1)
    np.testing.assert_allclose(loss.value(logits, np.arange(len(targets))), expected)


@pytest.mark.parametrize(
    "loss",
    [MSE(), Focal(2.0), LDAM(np.full(K, 0.3)), LabelSmoothing(0.1), ufm.BinaryCrossEntropy(), ufm.Poly1(1.0)],
)
def test_other_losses_say_that_they_need_labels(loss):
    with pytest.raises(InputError, match=f"targets go with .*{type(loss).__name__} needs labels"):
        make(loss=loss)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TARGETS[:-1], "one row per entry of counts"),
        (2 * TARGETS, "sum to one"),
        (TARGETS - 0.5 * np.eye(C, K), "non-negative"),
        (np.where(np.eye(C, K) > 0, np.nan, TARGETS), "non-negative"),
        (np.ones((C, 1)), "two columns"),
        ("text", "targets must be"),
    ],
)
def test_bad_targets_are_named(targets, message):
    with pytest.raises(InputError, match=message):
        make(targets)


# The problem


def test_contexts_and_logits_are_told_apart():
    problem = make()
    assert (problem.num_classes, problem.num_logits) == (C, K)
    assert "C = 7 contexts, K = 4 logits" in str(problem)
    assert make(sparse.csr_matrix(TARGETS)) == problem
    assert problem.replace(dim=9).replace(dim=D) == problem
    assert hash(problem) == hash(make())
    assert problem != make(TARGETS[:, ::-1])
    assert problem.entropy == pytest.approx(
        -(COUNTS / COUNTS.sum()) @ (TARGETS * np.log(TARGETS)).sum(axis=1), rel=1e-12
    )
    assert Problem([5, 3], 2, 1e-3, 1e-3).entropy == 0
    with pytest.raises(InputError, match="targets"):
        problem.replace(counts=COUNTS[:-1])
    with pytest.raises(InputError, match="targets go with"):
        problem.replace(counts=[*COUNTS, 3], targets=TARGETS[[*range(C), 0]])


# The solver


@pytest.mark.parametrize(
    "bias", [None, *(pytest.param(bias, marks=pytest.mark.slow) for bias in (0.0, 0.02))]
)
def test_free_features_are_certified(bias):
    loss = VectorScaling([1.0, 0.8, 1.2, 1.0], [0.1, 0.0, -0.2, 0.3]) if bias else CrossEntropy()
    problem = make(bias=bias, loss=loss)
    solution = ufm.solve(problem)
    assert solution.certified
    assert (solution.weight.shape, solution.features.shape) == ((K, D), (C, D))
    assert 0 < solution.excess < solution.objective
    if bias is None:
        value = nuclear_value(problem)
        assert solution.objective == pytest.approx(value, rel=1e-7)
        assert solution.certificate.lower_bound <= value * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(K, 9), (9, K), (5, 5)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("loss", [CrossEntropy(), "weighted", "adjusted"])
def test_five_seeds_of_five(shape, loss):
    rng = np.random.default_rng(sum(shape))
    contexts, logits = shape
    counts = np.exp(rng.uniform(1, 6, contexts)).round()
    if loss == "weighted":
        loss = WeightedCrossEntropy(rng.uniform(0.5, 2, logits))
    elif loss == "adjusted":
        loss = LogitAdjustment(rng.standard_normal(logits))
    targets = rng.dirichlet(np.full(logits, 0.2), contexts)
    strength = 0.3 * np.sqrt(np.median(counts)) / counts.sum()
    problem = Problem(counts, 12, strength, strength, loss, "free", targets=targets)
    solutions = [ufm.solve(problem, seed=seed) for seed in range(5)]
    assert all(solution.certified for solution in solutions)
    assert all(solution.certificate.relative_gap <= 1e-8 for solution in solutions)


@pytest.mark.slow
def test_the_sample_level_has_the_same_optimum():
    problem = make(counts=np.array([9, 8, 6, 5, 4, 2, 1]), feature_decay=1e-3)
    by_class, by_sample = (ufm.solve(problem, level=level) for level in ("class", "sample"))
    assert by_class.certified
    assert by_sample.certified
    assert by_sample.objective == pytest.approx(by_class.objective, rel=2e-8)


def test_contexts_that_are_alike_are_solved_as_one():
    """Jensen: a context split in two takes the very steps of the whole, and both halves have the same feature."""
    split = make(TARGETS[[0, 0, *range(1, C)]], np.array([150, 250, *COUNTS[1:]]))
    whole, halves = ufm.solve(make()), ufm.solve(split)
    assert (halves.steps, halves.objective) == (whole.steps, whole.objective)
    np.testing.assert_array_equal(halves.features, whole.features[[0, 0, *range(1, C)]])
    again = ufm.certify(split, halves.weight, halves.features, halves.labels)
    assert again.relative_gap <= 1e-8
    assert again.residual == pytest.approx(halves.certificate.residual, rel=1e-6)


@pytest.mark.slow
def test_a_noisy_table_of_classes_agrees_with_label_smoothing():
    """A table that differs from smoothing in one part in a million goes the general way, to the same end."""
    targets = 0.7 * np.eye(K) + 0.3 / K
    targets[0, :2] += np.array([-1e-7, 1e-7])
    general = make(targets, COUNTS[:K], features="nonnegative")
    assert isinstance(general.loss, SoftTargets)
    special = make(0.7 * np.eye(K) + 0.3 / K, COUNTS[:K], features="nonnegative")
    first, second = ufm.solve(general), ufm.solve(special)
    assert second.certified
    assert first.objective == pytest.approx(second.objective, rel=1e-6)
    assert first.certificate.relative_gap < 1e-5


@pytest.mark.slow
def test_non_negative_features_are_certified_by_looking_at_all_sets_of_few_contexts():
    solution = ufm.solve(make(features="nonnegative", dim=12))
    assert solution.certified


@pytest.mark.slow
def test_an_open_gap_is_said_soon_and_honestly():
    rng = np.random.default_rng(0)
    problem = Problem(rng.integers(5, 100, 20), 30, 5e-3, 1e-3, targets=rng.dirichlet(np.full(10, 0.3), 20))
    solutions = [ufm.solve(problem, seed=seed) for seed in range(2)]
    bound = max(solution.certificate.lower_bound for solution in solutions)
    for solution in solutions:
        assert (str(solution.status), solution.steps < 5000) == ("stalled", True)
        assert bound <= solution.objective * (1 + 1e-10)
    assert 1e-4 < max(solution.certificate.relative_gap for solution in solutions) < 3e-3


# Groups


def noise_by_frequency(counts, flip):
    """A wrong label is another class by its frequency: no smoothing, but alike for classes of equal counts."""
    return (1 - flip) * np.eye(len(counts)) + flip * np.asarray(counts) / np.sum(counts)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_twins_are_the_classes_whose_exchange_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, 7)
    table = rng.integers(0, 2, (3, 3))[kinds][:, kinds] + np.diag(rng.integers(0, 2, 3)[kinds] * 1.0)
    found = twins(table / 8)
    for j in range(7):
        for k in range(j):
            order = np.arange(7)
            order[[j, k]] = k, j
            assert (found[j] == found[k]) == np.array_equal(table[order][:, order], table)


def test_the_loss_of_groups_is_that_of_the_logits_written_out():
    counts = np.repeat([90, 9, 4], [3, 1, 2])
    problem = make(noise_by_frequency(counts, 0.4), counts, loss=WeightedCrossEntropy(counts / 40), dim=9)
    groups = groups_of(problem)
    assert groups.members.tolist() == [3, 1, 2]
    element = reduced(groups, np.random.default_rng(0).standard_normal((6, 6)))
    rows, entries = groups.expand_rows(element), groups.algebra.entries(element)
    few, times = problem.loss.of_columns(groups.places), groups.algebra.times
    np.testing.assert_allclose(
        few.value(entries, groups.labels, times), problem.loss.value(rows, groups.first), rtol=1e-13
    )
    np.testing.assert_allclose(
        few.gradient(entries, groups.labels, times) * (times > 0),
        np.where(
            times > 0, np.take_along_axis(problem.loss.gradient(rows, groups.first), groups.places, 1), 0
        ),
        atol=1e-14,
    )


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, 0.0, 0.01])
@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_groups_have_the_optimum_of_the_classes(features, bias):
    counts = np.repeat([300, 40, 8], [4, 3, 5])
    targets = noise_by_frequency(counts, 0.3)
    problem = Problem(counts, 15, 2e-3, 2e-4, features=features, bias=bias, targets=targets)
    grouped, whole = (ufm.solve(problem, level=level) for level in ("group", "class"))
    assert grouped.certified
    assert whole.certified
    assert grouped.objective == pytest.approx(whole.objective, rel=1e-11)
    logits = [solution.features @ solution.weight.T for solution in (grouped, whole)]
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert ufm.verify(grouped).passed


def test_targets_that_are_not_square_have_no_groups():
    with pytest.raises(InputError, match="targets must be square, got 7 contexts and 4 logits"):
        ufm.solve(make(dim=9), level="group")


@pytest.mark.slow
def test_labels_as_targets_compile_nothing_and_take_the_same_steps():
    labels = Problem(COUNTS[:K], D, 5e-3, 2e-5, features="free")
    solution = ufm.solve(labels, level="class")
    compiled = chunk_of_one._cache_size()
    again = ufm.solve(make(np.eye(K), COUNTS[:K]), level="class")
    assert chunk_of_one._cache_size() == compiled
    assert (again.steps, again.objective) == (solution.steps, solution.objective)
