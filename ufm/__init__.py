"""Unconstrained-feature models of neural collapse: solve, certify, predict, verify.

The public names below are loaded on first use, so that predictions (pure NumPy) never pay for importing JAX.
"""

import importlib
import sys
import types
from typing import Any

_HOME = {
    "Accelerated": "solvers.accelerated",
    "Certificate": "certificate",
    "ClosedFormError": "theory.prediction",
    "CrossEntropy": "losses",
    "FeatureStatistics": "accumulator",
    "Focal": "losses",
    "InputError": "validation",
    "LabelSmoothing": "losses",
    "LogitAdjustment": "losses",
    "Loss": "losses",
    "MSE": "losses",
    "Prediction": "theory.prediction",
    "Problem": "problem",
    "ProjectedGradient": "solvers.projected_gradient",
    "Report": "report",
    "Separability": "separability",
    "Solution": "solution",
    "Status": "status",
    "VectorScaling": "losses",
    "WeightedCrossEntropy": "losses",
    "advise": "advice",
    "certify": "certificate",
    "collapse_observer": "observer",
    "predict": "theory",
    "separability": "separability",
    "solve": "solvers",
    "sweep": "sweep",
    "verify": "verify",
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


class _Package(types.ModuleType):
    """The package, in which a submodule never hides the public function of the same name (`ufm.verify`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
