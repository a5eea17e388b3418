"""Unconstrained-feature models of neural collapse: solve, certify, predict, verify.

The public names below are loaded on first use, so that predictions (pure NumPy) never pay for importing JAX.
"""

import importlib
from typing import Any

_HOME = {
    "Problem": "problem",
    "InputError": "validation",
    "CrossEntropy": "losses",
    "LabelSmoothing": "losses",
    "WeightedCrossEntropy": "losses",
    "LogitAdjustment": "losses",
    "VectorScaling": "losses",
    "MSE": "losses",
    "Focal": "losses",
    "Loss": "losses",
    "Prediction": "theory.prediction",
    "ClosedFormError": "theory.prediction",
    "predict": "theory",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ufm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ufm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
