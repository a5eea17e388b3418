"""The Layer-Peeled Model: its published numbers, its equivalence to penalties, and its certificate."""

import numpy as np
import pytest

from ufm.inputs.checks import InputError
from ufm.metrics import cosines
from ufm.models.layer_peeled import LayerPeeled, collapse_ratio, solve_layer_peeled
from ufm.models.root import Root
from ufm.theory import twin_thresholds

MINORITY = slice(5, 10)


def step_model(ratio, **options):
    return LayerPeeled(np.repeat([ratio, 1.0], 5), 10, **options)


def mean_cosine(rows):
    return cosines(rows)[np.triu_indices(len(rows), 1)].mean()


def test_balanced_classes_form_a_simplex():
    solution = solve_layer_peeled(step_model(1.0))
    assert solution.certified
    assert mean_cosine(solution.weight) == pytest.approx(-1 / 9, abs=1e-7)
    assert mean_cosine(solution.weight[MINORITY]) == pytest.approx(-0.111, abs=5e-4)
    margin = 10 * np.sqrt(5) / 9  # (K - 1) M = K sqrt(E_W E_H)
    assert solution.objective == pytest.approx(np.log1p(9 * np.exp(-margin)), rel=1e-8)
    assert solution.nuclear_weight == pytest.approx(1 / (np.exp(margin) + 9), rel=1e-4)


def test_minority_collapse_ratio_of_the_paper():
    """Five majority and five minority classes, E_W = 1, E_H = 5."""
    assert collapse_ratio(5, 5) == pytest.approx(12.192, abs=1e-3)


@pytest.mark.parametrize(("ratio", "collapsed"), [(11.9, False), (12.5, True)])
def test_minority_classifiers_merge_at_that_ratio(ratio, collapsed):
    solution = solve_layer_peeled(step_model(ratio), tol=1e-10)
    assert solution.certified
    assert (1 - mean_cosine(solution.weight[MINORITY]) < 1e-6) == collapsed
    threshold = twin_thresholds(solution.model.penalised(1.0))[0]
    assert threshold.classes.tolist() == list(range(5, 10))
    assert (solution.nuclear_weight > threshold.nuclear_weight) == collapsed


@pytest.mark.parametrize(("ratio", "collapsed"), [(12.19, False), (12.193, True)])
def test_solutions_on_either_side_bracket_the_ratio_to_four_digits(ratio, collapsed):
    """By solving alone, no criterion: the minority rows are one row exactly from R_0 on."""
    solution = solve_layer_peeled(step_model(ratio), tol=1e-10)
    assert solution.certified
    apart = 1 - mean_cosine(solution.weight[MINORITY])
    assert apart < 1e-12 if collapsed else apart > 5e-4


def test_a_start_in_which_classes_have_merged_lets_them_part_again():
    together = solve_layer_peeled(step_model(12.5))
    apart = solve_layer_peeled(step_model(11.9), start=together)
    assert apart.certified
    assert 1 - mean_cosine(apart.weight[MINORITY]) == pytest.approx(0.0888, abs=1e-3)


@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_caps_are_met_and_no_random_point_within_them_is_below_the_bound(features):
    model = LayerPeeled(
        np.array([40.0, 10.0, 4.0, 1.0]), 5, weight_cap=0.7, feature_cap=3.0, features=features
    )
    solution = solve_layer_peeled(model)
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


def test_only_ratios_of_counts_and_the_product_of_caps_matter_for_the_loss():
    first = solve_layer_peeled(
        LayerPeeled(np.array([8.0, 8.0, 1.0, 1.0]), 4, weight_cap=1.0, feature_cap=6.0)
    )
    second = solve_layer_peeled(
        LayerPeeled(np.array([80.0, 80.0, 10.0, 10.0]), 4, weight_cap=2.0, feature_cap=3.0)
    )
    assert second.objective == pytest.approx(first.objective, rel=1e-7)
    assert second.nuclear_weight == pytest.approx(first.nuclear_weight, rel=1e-3)


def test_a_neighbouring_solution_is_a_good_start():
    cold = solve_layer_peeled(step_model(5.0))
    near = solve_layer_peeled(step_model(5.2))
    warm = solve_layer_peeled(step_model(5.2), start=cold)
    assert warm.certified
    assert warm.objective == pytest.approx(near.objective, rel=1e-7)


def test_larger_caps_cost_less():
    losses = [
        solve_layer_peeled(step_model(10.0, feature_cap=cap), tol=1e-6).objective for cap in (0.1, 1.0, 10.0)
    ]
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


# The scalar search


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda x: x**3 - 2, 2 ** (1 / 3)),
        (lambda x: np.expm1(5 * (x - 7)), 7.0),
        (lambda x: x - 1e6, 1e6),
        (lambda x: (1 if x > 0.3 else 1e-3) * (x - 0.3), 0.3),  # a kink, as where classes collapse
        (lambda x: np.tanh(50 * (x + 4)), -4.0),
        (lambda x: x - 0.5, 0.5),  # zero exactly, met on the way
    ],
)
def test_root_is_found_with_few_evaluations(function, answer):
    root = Root(first=1.0, step=0.5)
    while root.evaluations < 60 and not abs(root.last) < 1e-13 and not root.finished:
        root.tell(float(function(root.next)))
    assert root.next == pytest.approx(answer, rel=1e-9)
    assert root.evaluations <= 40
