"""Parameters of the losses: immutable, checked at construction, and matched with the classes."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
from helpers.losses import CLASSES, K, example, is_vector

from ufm.inputs.checks import InputError
from ufm.losses import Focal, LabelSmoothing, VectorScaling, WeightedCrossEntropy


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_cannot_be_changed(cls):
    loss = example(cls, np.random.default_rng(0))
    for field in dataclasses.fields(loss):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(loss, field.name, 1.0)
        if is_vector(field):
            with pytest.raises(ValueError, match="read-only"):
                getattr(loss, field.name)[0] = 1.0


def build(cls, **parameters):
    """Construct as users do, without the run-time type checks of the test suite."""
    loss = object.__new__(cls)
    inspect.unwrap(cls.__init__)(loss, **parameters)
    return loss


FIELDS = [(cls, field) for cls in CLASSES for field in dataclasses.fields(cls)]
VECTORS = [(cls, field.name) for cls, field in FIELDS if is_vector(field)]
SCALARS = [(cls, field.name) for cls, field in FIELDS if not is_vector(field)]


def others(cls, name):
    """Good values for the required parameters of ``cls`` except ``name``."""
    good = example(cls, np.random.default_rng(0))
    return {f.name: getattr(good, f.name) for f in dataclasses.fields(cls) if f.name != name}


@pytest.mark.parametrize(("cls", "name"), VECTORS)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1.0, math.nan, 1.0, 1.0], r"\[1\] = nan"),
        ([1.0, 1.0, math.inf, 1.0], r"\[2\] = inf"),
        ([], r"shape \(0,\)"),
        (1.0, r"shape \(\)"),
        ([[1.0] * 4], r"shape \(1, 4\)"),
        (["a"] * 4, "'a'"),
        ([10**400] * 4, "100"),
        ([[1.0], [1.0, 2.0]], "1.0"),
    ],
)
def test_bad_vectors(cls, name, value, told):
    with pytest.raises(InputError, match=f"{name} .*{told}"):
        build(cls, **others(cls, name), **{name: value})


@pytest.mark.parametrize(("cls", "name"), VECTORS)
def test_vectors_must_match_the_classes(cls, name):
    loss = example(cls, np.random.default_rng(0))
    loss.check_classes(K)
    with pytest.raises(InputError, match=rf"of {cls.__name__} must have one entry per class \(5\), got 4"):
        loss.check_classes(K + 1)


@pytest.mark.parametrize(("cls", "name"), SCALARS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, -math.inf, "0.5", None, True, [0.5], 10**400])
def test_bad_scalars(cls, name, value):
    with pytest.raises(InputError, match=f"^{name} must be "):
        build(cls, **others(cls, name), **{name: value})


@pytest.mark.parametrize(
    ("cls", "parameters", "told"),
    [
        (LabelSmoothing, {"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
        (WeightedCrossEntropy, {"class_weights": [1.0, 0.0]}, r"class_weights\[1\] = 0"),
        (WeightedCrossEntropy, {"class_weights": [1.0, -1.0]}, r"class_weights\[1\] = -1"),
        (VectorScaling, {"multipliers": [0.0, 1.0]}, r"multipliers\[0\] = 0"),
        (VectorScaling, {"multipliers": [1.0, 1.0], "adjustments": [0.0]}, r"adjustments .*\(2\), got 1"),
    ],
)
def test_bad_parameters_of_one_loss(cls, parameters, told):
    with pytest.raises(InputError, match=told):
        build(cls, **parameters)


def test_lists_are_accepted():
    assert build(WeightedCrossEntropy, class_weights=[1, 2]) == WeightedCrossEntropy(np.array([1.0, 2.0]))
    assert build(Focal, gamma=2) == Focal(2.0)
    assert build(VectorScaling, multipliers=[1, 2]).adjustments.tolist() == [0.0, 0.0]
