"""What the processes of a distributed run agree on is what the first one found, to the last digit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ufm.model.processes import agreed


@pytest.fixture
def in_float32(monkeypatch):
    """Two processes of a float32 solve, of which this is the first: what is shared passes through JAX's types."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils,
        "broadcast_one_to_all",
        lambda tree: jax.tree.map(lambda part: np.asarray(jnp.asarray(part)), tree),
    )
    with jax.enable_x64(False):
        yield


def test_no_digit_is_lost_between_processes_that_solve_in_float32(in_float32):
    objective, lower_bound, steps = 1.0, 1.0 - 3e-8, 2**40 + 1  # in float32 the gap would be zero
    found = agreed({"bound": (objective, lower_bound, -np.inf), "steps": steps, "escape": True})
    assert found == {"bound": (objective, lower_bound, -np.inf), "steps": steps, "escape": True}
    assert [type(part) for part in jax.tree.leaves(found)] == [float, float, float, bool, int]


def test_arrays_keep_shape_type_and_digits(in_float32):
    features, decision = np.random.default_rng(0).normal(size=(3, 2)), np.bool_(True)
    shared = agreed((features, None, decision))
    assert shared[0].dtype == np.float64
    np.testing.assert_array_equal(shared[0], features)
    assert shared[1] is None
    assert bool(shared[2])
