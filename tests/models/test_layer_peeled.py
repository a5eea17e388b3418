"""The Layer-Peeled Model: its published numbers, its equivalence to penalties, and its certificate."""

import numpy as np
import pytest
from scipy import optimize

import ufm
from ufm.inputs.checks import InputError
from ufm.metrics import cosines
from ufm.models.layer_peeled import BEST_ACCURACY, LayerPeeled, collapse_ratio
from ufm.theory import twin_thresholds

MINORITY = slice(5, 10)


def step_model(ratio, **options):
    return LayerPeeled(np.repeat([ratio, 1.0], 5), 10, **options)


def mean_cosine(rows):
    return cosines(rows)[np.triu_indices(len(rows), 1)].mean()


def test_balanced_classes_form_a_simplex():
    solution = step_model(1.0).solve()
    assert solution.certified
    assert mean_cosine(solution.weight) == pytest.approx(-1 / 9, abs=1e-7)
    assert mean_cosine(solution.weight[MINORITY]) == pytest.approx(-0.111, abs=5e-4)
    margin = 10 * np.sqrt(5) / 9  # (K - 1) M = K sqrt(E_W E_H)
    assert solution.objective == pytest.approx(np.log1p(9 * np.exp(-margin)), rel=1e-8)
    assert solution.nuclear_weight == pytest.approx(1 / (np.exp(margin) + 9), rel=1e-4)


def equations_of_collapse(majority, minority, feature_cap):
    """``R_0`` with no solver: stationarity at the threshold, where the minority is one row, by symmetry.

    With A majority and B minority classes the centred logits are ``a (I - 11'/A)`` within the majority plus a
    matrix of rank one: ``(x, y)`` times ``(1/A, -1/B)``. Their nuclear norm is ``(A - 1) a + s q`` with ``s^2 = A
    x^2 + B y^2`` and ``q^2 = 1/A + 1/B``. So the loss at the price ``l = n_B/N`` has three derivatives to vanish,
    and its nuclear norm is what the caps allow.
    """
    A, B = majority, minority
    q, rise, fall = (
        np.sqrt(1 / A + 1 / B),
        np.array([1 - 1 / A, -1 / A, 0.0]),
        np.array([1 / A, 1 / A, -1 / B]),
    )
    sides = np.array([1 / A, -1 / B])

    def equations(unknowns):
        a, x, y, log_ratio = unknowns
        ratio, s = np.exp(log_ratio), np.sqrt(A * x**2 + B * y**2)
        large = np.array([1, A - 1, B]) * np.exp(a * rise + x * fall)  # own class, other majority, minority
        small = np.array([A, B]) * np.exp(y * sides)
        large, small = large / large.sum(), small / small.sum()
        return [
            A * ratio * (large @ rise - rise[0]) + A - 1,
            A * ratio * (large @ fall - fall[0]) + q * A * x / s,
            B * (small @ sides - sides[1]) + q * B * y / s,
            ((A - 1) * a + s * q) / ((A + B) * np.sqrt(feature_cap)) - 1,
        ]

    return equations


def reference_ratio(majority, minority, feature_cap):
    equations = equations_of_collapse(majority, minority, feature_cap)
    for size in (1.0, 2.0, 4.0, 8.0):
        found = optimize.root(equations, [size, size, -size / 2, size / 2], options={"xtol": 1e-14})
        if np.abs(found.fun).max() < 1e-11:
            return float(np.exp(found.x[3]))
    raise AssertionError(found)


def test_minority_collapse_ratio_of_the_paper():
    """Five majority and five minority classes, E_W = 1, E_H = 5."""
    assert collapse_ratio(5, 5) == pytest.approx(12.192447, abs=1e-5)
    assert reference_ratio(5, 5, 5.0) == pytest.approx(12.19244708, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("majority", "minority", "cap"),
    [
        (5, 5, 5.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(3, 7, 10.0), (7, 3, 5.0), (1, 2, 1.0)]),
    ],
)
def test_collapse_ratio_keeps_the_accuracy_it_states(majority, minority, cap):
    reference = reference_ratio(majority, minority, cap)
    for accuracy in (1e-4, 1e-6, 1e-8, BEST_ACCURACY):
        found = collapse_ratio(majority, minority, feature_cap=cap, accuracy=accuracy)
        assert found == pytest.approx(reference, rel=accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [1e-4, 1e-6])
def test_collapse_ratio_is_bracketed_by_the_criterion(accuracy):
    """The price of the caps reaches ``n_B/N`` between ``R_0`` less and ``R_0`` plus its accuracy."""
    ratio = collapse_ratio(5, 5, accuracy=accuracy)
    for side in (-1, 1):
        solution = step_model(ratio * (1 + side * accuracy)).solve(tol=1e-13)
        threshold = 1 / solution.model.counts.sum()
        assert np.sign(solution.nuclear_weight - threshold) == side


def test_an_accuracy_that_float64_cannot_keep_is_refused():
    with pytest.raises(InputError, match="accuracy must be at least 1e-09, got 1e-12"):
        collapse_ratio(5, 5, accuracy=1e-12)


@pytest.mark.parametrize(
    ("ratio", "tol"),
    [
        (12.1924, 1e-12),
        *(
            pytest.param(ratio, tol, marks=pytest.mark.slow)
            for ratio in (1.0, 11.9, 12.19, 12.19244, 12.193, 12.4, 100.0, 1e4)
            for tol in (1e-6, 1e-10, 1e-12)
        ),
    ],
)
def test_the_gap_asked_for_is_reached_with_few_solves(ratio, tol):
    """Also where classes are about to merge, and the norm of a penalised solution is least certain."""
    solution = step_model(ratio).solve(tol=tol)
    assert solution.certified
    assert solution.solves <= 25


@pytest.mark.slow
@pytest.mark.parametrize("cap", [1e-6, 1.0, 1e4])
def test_prices_far_from_the_first_guess_are_found(cap):
    """Caps of eleven decades: the optimum barely off zero, and losses down to ``exp(-1000)``."""
    solution = LayerPeeled(np.array([9.0, 3.0, 1.0]), 3, feature_cap=cap).solve()
    assert solution.certified
    assert solution.solves <= 40


@pytest.mark.parametrize(("ratio", "collapsed"), [(11.9, False), (12.5, True)])
def test_minority_classifiers_merge_at_that_ratio(ratio, collapsed):
    solution = step_model(ratio).solve(tol=1e-10)
    assert solution.certified
    assert (1 - mean_cosine(solution.weight[MINORITY]) < 1e-6) == collapsed
    threshold = twin_thresholds(solution.model.penalised(1.0))[0]
    assert threshold.classes.tolist() == list(range(5, 10))
    assert (solution.nuclear_weight > threshold.nuclear_weight) == collapsed


@pytest.mark.parametrize(("ratio", "collapsed"), [(12.19, False), (12.193, True)])
def test_solutions_on_either_side_bracket_the_ratio_to_four_digits(ratio, collapsed):
    """By solving alone, no criterion: the minority rows are one row exactly from R_0 on."""
    solution = step_model(ratio).solve(tol=1e-10)
    assert solution.certified
    apart = 1 - mean_cosine(solution.weight[MINORITY])
    assert apart < 1e-12 if collapsed else apart > 5e-4


def test_a_start_in_which_classes_have_merged_lets_them_part_again():
    together = step_model(12.5).solve()
    apart = step_model(11.9).solve(start=together)
    assert apart.certified
    assert 1 - mean_cosine(apart.weight[MINORITY]) == pytest.approx(0.0888, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_caps_are_met_and_no_random_point_within_them_is_below_the_bound(features):
    model = LayerPeeled(
        np.array([40.0, 10.0, 4.0, 1.0]), 5, weight_cap=0.7, feature_cap=3.0, features=features
    )
    solution = model.solve()
    assert solution.certified
    assert np.mean(np.sum(solution.weight**2, axis=1)) == pytest.approx(0.7, rel=1e-12)
    assert np.mean(np.sum(solution.features**2, axis=1)) == pytest.approx(3.0, rel=1e-12)
    assert features == "free" or solution.features.min() >= 0
    rng = np.random.default_rng(0)
    for size in (1.0, 0.1, 0.01):
        for _ in range(20):
            weight = solution.weight + size * rng.normal(size=(4, 5))
            rows = solution.features + size * rng.normal(size=(4, 5))
            rows = rows if features == "free" else np.maximum(rows, 0)
            weight *= np.sqrt(4 * 0.7) / np.linalg.norm(weight)
            rows *= np.sqrt(4 * 3.0) / np.linalg.norm(rows)
            assert model.data_loss(weight, rows) >= solution.lower_bound


def test_data_loss_is_the_mean_over_samples():
    """Against the definition, sample by sample, with 3, 2 and 1 samples."""
    counts = np.array([3.0, 2.0, 1.0])
    rng = np.random.default_rng(1)
    weight, rows = rng.normal(size=(2, 3, 4))
    labels = np.repeat(np.arange(3), [3, 2, 1])
    logits = rows[labels] @ weight.T
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), labels]
    assert LayerPeeled(counts, 4).data_loss(weight, rows) == pytest.approx(losses.mean(), rel=1e-14)


@pytest.mark.slow
def test_only_ratios_of_counts_and_the_product_of_caps_matter_for_the_loss():
    first = LayerPeeled(np.array([8.0, 8.0, 1.0, 1.0]), 4, weight_cap=1.0, feature_cap=6.0).solve()
    second = LayerPeeled(np.array([80.0, 80.0, 10.0, 10.0]), 4, weight_cap=2.0, feature_cap=3.0).solve()
    assert second.objective == pytest.approx(first.objective, rel=1e-7)
    assert second.nuclear_weight == pytest.approx(first.nuclear_weight, rel=1e-3)


def test_a_neighbouring_solution_is_a_good_start():
    cold = step_model(5.0).solve()
    near = step_model(5.2).solve()
    warm = step_model(5.2).solve(start=cold)
    assert warm.certified
    assert warm.objective == pytest.approx(near.objective, rel=1e-7)


def test_larger_caps_cost_less():
    losses = [step_model(10.0, feature_cap=cap).solve(tol=1e-6).objective for cap in (0.1, 1.0, 10.0)]
    assert losses[0] > losses[1] > losses[2] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [1.0, -1.0]}, "counts"),
        ({"dim": 0}, "dim"),
        ({"weight_cap": 0.0}, "weight_cap"),
        ({"feature_cap": np.inf}, "feature_cap"),
    ],
)
def test_bad_models_are_named(options, message):
    given = {"counts": np.array([2.0, 1.0]), "dim": 2} | options
    with pytest.raises(InputError, match=message):
        LayerPeeled(**given | {"counts": np.asarray(given["counts"])})


def test_a_single_minority_class_has_no_twin():
    with pytest.raises(InputError, match="num_minority"):
        collapse_ratio(5, 1)


@pytest.mark.parametrize(
    ("counts", "features", "cap"),
    [
        ([40, 10, 4, 1], "nonnegative", 3.0),
        ([40, 10, 4, 1], "nonnegative", 0.3),
        ([7, 7, 7], "free", 5.0),
        ([500] * 3 + [1] * 2, "nonnegative", 20.0),
    ],
)
def test_the_closed_form_meets_the_caps_and_the_certified_optimum(counts, features, cap):
    model = LayerPeeled(counts, len(counts), weight_cap=0.7, feature_cap=cap, features=features)
    prediction, solution = model.predict(), model.solve(tol=1e-10)
    assert np.mean(prediction.weight_norms**2) == pytest.approx(0.7, rel=1e-9)
    assert np.mean(prediction.norms**2) == pytest.approx(cap, rel=1e-9)
    price = prediction.problem.nuclear_weight
    assert prediction.objective - price * model.reach == pytest.approx(solution.objective, rel=1e-9)
    np.testing.assert_allclose(prediction.norms, np.linalg.norm(solution.features, axis=1), atol=1e-4)
    np.testing.assert_allclose(prediction.logits, solution.features @ solution.weight.T, atol=1e-3)


def test_without_a_closed_form_the_prediction_says_why():
    with pytest.raises(ufm.ClosedFormError, match="equal"):
        step_model(5.0).predict()


@pytest.mark.parametrize("act", ["predict", "solve"])
def test_caps_too_large_for_floating_point_are_named(act):
    with pytest.raises(InputError, match="weight_cap and feature_cap must leave margins"):
        getattr(LayerPeeled([10, 1], 2, feature_cap=1e6, features="nonnegative"), act)()
