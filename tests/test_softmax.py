"""Softmax: a smoke test of the test set-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import softmax as sm


def test_residual_is_autodiff_gradient():
    logits = np.random.default_rng(0).normal(size=(3, 4))
    labels = np.array([0, 3, 1])
    with jax.enable_x64(True):
        auto = jax.grad(lambda z: sm.cross_entropy_from_logits(z, jnp.asarray(labels)).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(sm.softmax_residual(logits, labels), auto, rtol=1e-12)
    with pytest.raises(Exception):
        sm.softmax_residual(logits, labels[:2])
