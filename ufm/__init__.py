"""Unconstrained-feature models of neural collapse: solve, certify, predict, verify.

The public names below are loaded on first use, so that predictions (pure NumPy) never pay for importing JAX.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_HOME` means to a type checker; a test holds the two together
    from ufm.accumulator import FeatureStatistics as FeatureStatistics
    from ufm.advice import advise as advise
    from ufm.certificate import Certificate as Certificate
    from ufm.certificate import certify as certify
    from ufm.losses import MSE as MSE
    from ufm.losses import CrossEntropy as CrossEntropy
    from ufm.losses import Focal as Focal
    from ufm.losses import LabelSmoothing as LabelSmoothing
    from ufm.losses import LogitAdjustment as LogitAdjustment
    from ufm.losses import Loss as Loss
    from ufm.losses import VectorScaling as VectorScaling
    from ufm.losses import WeightedCrossEntropy as WeightedCrossEntropy
    from ufm.observer import collapse_observer as collapse_observer
    from ufm.problem import Problem as Problem
    from ufm.report import Report as Report
    from ufm.separability import Separability as Separability
    from ufm.separability import separability as separability
    from ufm.solution import Solution as Solution
    from ufm.solvers import solve as solve
    from ufm.solvers.accelerated import Accelerated as Accelerated
    from ufm.solvers.projected_gradient import ProjectedGradient as ProjectedGradient
    from ufm.status import Status as Status
    from ufm.sweep import sweep as sweep
    from ufm.theory import predict as predict
    from ufm.theory.prediction import ClosedFormError as ClosedFormError
    from ufm.theory.prediction import Prediction as Prediction
    from ufm.validation import InputError as InputError
    from ufm.verify import verify as verify

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
