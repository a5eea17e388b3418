"""What holds for every closed form: cost, imports, pickling, documented examples."""

import pickle
import pkgutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.oracle import make

from ufm import theory
from ufm.inputs.checks import InputError
from ufm.theory import predict


def test_a_million_classes_are_quick_and_large_matrices_are_refused():
    K = 10**6
    counts = np.random.default_rng(0).integers(1, 1000, K)
    start = time.perf_counter()
    prediction = predict(make(counts, K, 1e-6, 1e-9))
    assert time.perf_counter() - start < 10
    assert 0 < prediction.num_collapsed < K
    for name in ("gram_features", "gram_weights", "logits"):
        with pytest.raises(InputError, match=r"1,000,000 x 1,000,000"):
            getattr(prediction, name)


def test_theory_does_not_import_jax():
    code = "import sys, ufm, ufm.prediction.advice; ufm.predict, ufm.LayerPeeled, ufm.SupervisedContrastive; "
    code += "assert not {'jax', 'jaxlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predictions_can_be_pickled():
    prediction = predict(make([500] * 5 + [50] * 5, 10, 5e-3, 1e-6))
    again = pickle.loads(pickle.dumps(prediction))
    np.testing.assert_array_equal(again.gram_weights, prediction.gram_weights)
    assert again.problem == prediction.problem


@pytest.mark.slow
def test_docstring_examples():
    names = "prediction.advice theory " + " ".join(
        f"theory.{module.name}" for module in pkgutil.iter_modules(theory.__path__)
    )
    code = "import doctest, importlib, sys\nfor name in sys.argv[1].split():\n"
    code += "    assert not doctest.testmod(importlib.import_module(f'ufm.{name}')).failed"
    subprocess.run([sys.executable, "-c", code, names], check=True)
