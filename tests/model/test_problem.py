"""The problem: what it derives, that it is immutable, and that every bad input is named."""

import collections
import copy
import dataclasses
import inspect
import math
import pickle
import re
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm.inputs.checks import InputError
from ufm.losses import CrossEntropy, LabelSmoothing, LogitAdjustment, VectorScaling, WeightedCrossEntropy
from ufm.model.problem import Problem, row_labels, row_multiplicities

GOOD = {"counts": (500, 50, 5), "dim": 8, "weight_decay": 5e-3, "feature_decay": 1e-5}


def make(**changes):
    return Problem(**{**GOOD, **changes})


def test_derived_quantities():
    problem = make()
    assert (problem.num_classes, problem.num_samples) == (3, 555)
    np.testing.assert_allclose(problem.priors, [500 / 555, 50 / 555, 5 / 555])
    assert problem.nuclear_weight == pytest.approx(math.sqrt(5e-8))
    assert problem.strength == pytest.approx(555**2 * 5e-8)


def test_defaults_are_the_main_case():
    problem = make()
    assert problem.loss == CrossEntropy()
    assert (problem.features, problem.bias) == ("nonnegative", None)


@pytest.mark.parametrize(
    "counts",
    [
        [500, 50, 5],
        np.array([500, 50, 5], dtype=np.uint16),
        np.array([500.0, 50.0, 5.0]),
        jnp.array([500, 50, 5]),
        (n for n in (500, 50, 5)),
        [500.0, np.int64(50), 5],
    ],
    ids=["list", "uint16", "float", "jax", "generator", "mixed"],
)
def test_whatever_holds_integers_is_taken_as_counts(counts):
    problem = make(counts=counts)
    assert problem == make()
    assert problem.counts.dtype == np.int64


@pytest.mark.parametrize("number", [1, np.float32(1), Fraction(1), Decimal(1), np.array(1.0), jnp.float32(1)])
def test_whatever_is_a_real_number_is_taken_as_decay(number):
    problem = make(weight_decay=number, feature_decay=number, bias=number)
    assert [type(x) for x in (problem.weight_decay, problem.feature_decay, problem.bias)] == [float] * 3
    assert problem.nuclear_weight == 1


def test_counts_are_copied_and_read_only():
    counts = np.array([3, 2])
    problem = make(counts=counts)
    counts[0] = 7
    assert problem.counts.tolist() == [3, 2]
    with pytest.raises(ValueError, match="read-only"):
        problem.counts[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.dim = 3


CHANGES = {
    "counts": [500, 50, 6],
    "dim": 9,
    "weight_decay": 6e-3,
    "feature_decay": 2e-5,
    "loss": LabelSmoothing(0.1),
    "features": "free",
    "bias": 0.0,
}


def test_equality_and_hash_see_every_field():
    problem = make()
    assert problem == make()
    assert hash(problem) == hash(make())
    assert problem != "a problem"
    # targets are in the loss: test_soft_targets.py
    changes = CHANGES | {"classifier": np.ones((3, problem.dim))}
    assert set(changes) | {"targets"} == {field.name for field in dataclasses.fields(Problem)}
    variants = [problem.replace(**{name: value}) for name, value in changes.items()]
    assert len({problem, *variants}) == 1 + len(variants)
    for name, variant in zip(changes, variants, strict=True):
        assert variant != problem
        kept = [field for field in CHANGES if field != name]
        assert all(np.array_equal(getattr(variant, field), getattr(problem, field)) for field in kept)


def test_copies_and_pickles_are_equal():
    problem = make(loss=WeightedCrossEntropy(np.array([1.0, 2.0, 3.0])), bias=0.1)
    for twin in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert twin == problem
        assert hash(twin) == hash(problem)


def test_replacing_checks_again():
    with pytest.raises(InputError, match=r"dim .*0"):
        make().replace(dim=0)
    weighted = make(loss=WeightedCrossEntropy(np.ones(3)))
    with pytest.raises(InputError, match=r"class_weights .*one entry per class"):
        weighted.replace(counts=[5, 5])


@pytest.mark.parametrize(
    ("level", "labels", "multiplicities"),
    [("class", [0, 1], [2, 3]), ("sample", [0, 0, 1, 1, 1], [1, 1, 1, 1, 1])],
)
def test_levels_stand_for_the_same_samples(level, labels, multiplicities):
    problem = make(counts=[2, 3])
    assert row_labels(problem, level).tolist() == labels
    assert row_multiplicities(problem, level).tolist() == multiplicities


@pytest.mark.parametrize(
    "counts",
    [
        collections.Counter({1: 500, 2: 50, 3: 5}),
        {2: 5, 0: 500, 1: 50},
        {"cat": 500, "dog": 50, "emu": 5},
        {"10": 5, "2": 50, "1": 500},
    ],
)
def test_a_mapping_is_taken_by_sorted_label(counts):
    assert make(counts=counts) == make(counts=[500, 50, 5])


def test_counts_may_be_real_and_decays_differ_by_class():
    problem = make(counts=[0.5, 0.3, 0.25], feature_decay=[1e-3, 4e-3, 1e-3])
    assert problem.counts.dtype == np.float64
    assert problem.num_samples == pytest.approx(1.05)
    np.testing.assert_allclose(problem.nuclear_weights**2, 5e-3 * np.array([1e-3, 4e-3, 1e-3]))
    mean = (0.75 * 1e-3 + 0.3 * 4e-3) / 1.05
    assert problem.nuclear_weight == pytest.approx(np.sqrt(5e-3 * mean))
    assert "0.001 to 0.004 by class" in " ".join(str(problem).split())
    assert make(feature_decay=[1e-5] * 3) == make()
    assert problem != problem.replace(feature_decay=[1e-3, 4e-3, 2e-3])


BAD = [  # argument, value, what the message says of the value
    ("counts", [], "empty"),
    ("counts", [0, 5], r"counts\[0\] = 0"),
    ("counts", [5, -3], r"counts\[1\] = -3"),
    ("counts", [5, -2.5], "-2.5"),
    ("feature_decay", [1e-3, 1e-3], r"one per class \(3\), got 2"),
    ("feature_decay", [1e-3, 0.0, 1.0], r"\[1\] = 0"),
    ("counts", [5, math.nan], "nan"),
    ("counts", [5, math.inf], "inf"),
    ("counts", [5, "5"], "'5'"),
    ("counts", [5, None], "None"),
    ("counts", [5, 1j], "1j"),
    ("counts", [True, False], "True"),
    ("counts", [5], "one class of 5 samples"),
    ("counts", 5, "got 5"),
    ("counts", None, "None"),
    ("counts", "5,x", "'x'"),
    ("counts", b"55", "b'55'"),
    ("counts", [[5, 5], [5, 5]], r"\(2, 2\)"),
    ("counts", [[5], [5, 5]], r"\[\[5\], \[5, 5\]\]"),
    ("counts", np.array(5), r"shape \(\)"),
    ("counts", np.array(["5", "6"]), "'5'"),
    ("counts", [2**62, 2**62], "9.22337e"),
    ("counts", [10**40, 5], "1" + "0" * 40),
    ("counts", [1e300, 5], r"1e\+300"),
    ("counts", [-1e300, 5], r"-1e\+300"),
    ("dim", 0, "got 0"),
    ("dim", -1, "got -1"),
    ("dim", 2.0, "got 2.0"),
    ("dim", True, "got True"),
    ("dim", "2", "got '2'"),
    ("dim", None, "got None"),
    ("weight_decay", 0, "got 0"),
    ("weight_decay", -1e-3, "got -0.001"),
    ("weight_decay", math.nan, "got nan"),
    ("weight_decay", math.inf, "got inf"),
    ("weight_decay", "1e-3", "got '1e-3'"),
    ("weight_decay", None, "got None"),
    ("weight_decay", True, "got True"),
    ("weight_decay", 1j, "got 1j"),
    ("weight_decay", [1e-3], r"got \[0.001\]"),
    ("weight_decay", 10**400, "got 1000"),
    ("weight_decay", np.array("abc"), "abc"),
    ("feature_decay", 0.0, "got 0"),
    ("feature_decay", -1.0, "got -1"),
    ("feature_decay", math.nan, "got nan"),
    ("feature_decay", -math.inf, "got -inf"),
    ("loss", "cee", "got 'cee'"),
    ("loss", None, "got None"),
    ("loss", CrossEntropy, "CrossEntropy"),
    ("features", "gelu", "nonnegative, free; got 'gelu'"),
    ("features", None, "nonnegative, free; got None"),
    ("features", np.array(["free", "free"]), "nonnegative, free; got array"),
    ("bias", -1.0, "got -1"),
    ("bias", math.nan, "got nan"),
    ("bias", math.inf, "got inf"),
    ("bias", True, "got True"),
    ("bias", "yes", "got 'yes'"),
]


@pytest.mark.parametrize(("name", "value", "told"), BAD, ids=[f"{row[0]}={row[1]!r:.30}" for row in BAD])
def test_bad_input_is_named_with_its_value(name, value, told):
    with pytest.raises(InputError, match=f"^{name} must .*{told}") as caught:
        make(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [WeightedCrossEntropy(np.ones(2)), LogitAdjustment(np.zeros(4)), VectorScaling(np.ones(2))],
    ids=lambda loss: type(loss).__name__,
)
def test_parameters_per_class_must_match_the_counts(loss):
    length = len(getattr(loss, dataclasses.fields(loss)[0].name))
    told = rf"{dataclasses.fields(loss)[0].name} of {type(loss).__name__} .*\(3\), got {length}"
    with pytest.raises(InputError, match=told):
        make(loss=loss)


@pytest.mark.parametrize("decay", [1e-320, 1e200])
def test_decays_whose_product_leaves_floating_point(decay):
    with pytest.raises(InputError, match=rf"weight_decay times feature_decay .*{re.escape(str(decay))}"):
        make(weight_decay=decay, feature_decay=decay)


def test_tiny_and_huge_decays_may_balance():
    assert make(weight_decay=1e-200, feature_decay=1e200).nuclear_weight == pytest.approx(1)


@pytest.mark.parametrize("function", [row_labels, row_multiplicities])
def test_unknown_level(function):
    with pytest.raises(InputError, match="level must be one of class, group, sample; got 'row'"):
        inspect.unwrap(function)(make(), "row")  # as users call it, without the type checks of the tests


def test_words_that_people_use():
    problem = Problem("cifar10-lt-100", 8, 1e-3, 1e-5, loss="smoothing:0.2", features="relu")
    assert (problem.num_samples, problem.features) == (12_406, "nonnegative")
    assert problem.loss == LabelSmoothing(0.2)
    fixed = Problem("30x2,20", 3, 1e-3, 1e-3, classifier=np.eye(3))
    assert fixed.classifier.shape == (3, 3)
    assert problem.replace(dim=9).counts.tolist() == problem.counts.tolist()


@pytest.mark.parametrize("ask", [ufm.solve, ufm.predict, ufm.collapse_observer])
def test_counts_in_place_of_a_problem(ask):
    made = r"problem must be a ufm.Problem\(counts, dim, weight_decay, feature_decay\), got list"
    with pytest.raises(InputError, match=made):
        ask([10, 5])
