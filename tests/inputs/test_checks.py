"""The checks themselves: what passes is normalised, what does not is named in one sentence."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.inputs.checks import (
    InputError,
    class_counts,
    finite_vector,
    nonnegative_float,
    nonnegative_integer,
    one_of,
    positive_float,
    positive_integer,
)

exact = settings(max_examples=100)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_good_values_are_normalised():
    assert type(positive_integer("n", np.int8(3))) is int
    assert type(positive_float("x", np.float32(0.5))) is float
    assert type(nonnegative_float("x", 0)) is float
    assert one_of("c", "b", ("a", "b")) == "b"
    counts, vector = class_counts(range(1, 4)), finite_vector("v", (1, -2))
    assert (counts.dtype, counts.tolist()) == (np.int64, [1, 2, 3])
    assert (vector.dtype, vector.tolist()) == (np.float64, [1.0, -2.0])
    assert not counts.flags.writeable
    assert not vector.flags.writeable


def test_results_share_no_memory_with_the_input():
    counts, vector = np.array([1, 2]), np.array([1.0, 2.0])
    assert not np.shares_memory(class_counts(counts), counts)
    assert not np.shares_memory(finite_vector("v", vector), vector)
    assert counts.flags.writeable
    assert vector.flags.writeable


def test_limits():
    assert positive_integer("n", 1) == 1
    assert nonnegative_integer("n", 0) == 0
    with pytest.raises(InputError, match="n must be an integer of at least 0, got -1"):
        nonnegative_integer("n", -1)
    assert positive_float("x", math.ulp(0.0)) == math.ulp(0.0)
    assert class_counts([2**53 - 2, 1]).sum() == 2**53 - 1
    with pytest.raises(InputError, match=r"2\^53"):
        class_counts([2**53 - 1, 1])
    assert finite_vector("v", [math.ulp(0.0)], positive=True)[0] > 0
    with pytest.raises(InputError, match=r"v\[0\] = 0"):
        finite_vector("v", [0.0], positive=True)
    assert finite_vector("v", [0.0])[0] == 0


@pytest.mark.parametrize("bad", [-1.0, 0, math.nan, math.inf])
def test_counts_name_the_entry_that_is_not_positive_or_finite(bad):
    """Fractions are allowed: weights of a sampler."""
    with pytest.raises(InputError, match=rf"counts must be positive and finite, got counts\[1\] = {bad:g}$"):
        class_counts([2.5, bad])


@exact
@given(anything)
@pytest.mark.parametrize(
    "check",
    [
        lambda value: positive_integer("counts", value),
        lambda value: nonnegative_integer("counts", value),
        lambda value: positive_float("counts", value),
        lambda value: nonnegative_float("counts", value),
        lambda value: finite_vector("counts", value),
        lambda value: one_of("counts", value, ("a", "b")),
        class_counts,
    ],
    ids=["integer", "nonnegative_integer", "positive", "nonnegative", "vector", "one_of", "counts"],
)
def test_anything_passes_or_raises_input_error(check, value):
    try:
        result = check(value)
    except InputError as error:
        message = str(error)
    else:
        message = "counts"
        assert isinstance(result, str) or np.all(np.isfinite(result))
    assert message.startswith("counts")
