"""Losses, one class each: value, gradient in the logits, convex conjugate, curvature bound.

Logits are rows ``z_i``; the label of the row selects the loss ``loss_{y_i}``. As in `ufm.losses.softmax` the methods
take NumPy or JAX arrays and stay in the namespace (and floating-point type) they were given. To add a loss,
subclass `Loss`: the solver, the certificate and the test matrix use nothing but its methods.
"""

from ufm.losses.base import Loss
from ufm.losses.bce import BinaryCrossEntropy
from ufm.losses.curve import CurveLoss, Focal, Poly1
from ufm.losses.mse import MSE
from ufm.losses.softmax_family import (
    LDAM,
    CrossEntropy,
    LabelSmoothing,
    LogitAdjustment,
    SoftmaxLoss,
    VectorScaling,
    WeightedCrossEntropy,
)

__all__ = [
    "LDAM",
    "MSE",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "CurveLoss",
    "Focal",
    "LabelSmoothing",
    "LogitAdjustment",
    "Loss",
    "Poly1",
    "SoftmaxLoss",
    "VectorScaling",
    "WeightedCrossEntropy",
]
