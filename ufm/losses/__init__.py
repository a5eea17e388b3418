"""Losses, one class each: value, gradient in the logits, convex conjugate, curvature bound.

Logits are rows ``z_i``; the label of the row selects the loss ``loss_{y_i}``. As in `ufm.losses.softmax` the methods
take NumPy or JAX arrays and stay in the namespace (and floating-point type) they were given. To add a loss,
subclass `Loss`: the solver, the certificate and the test matrix use nothing but its methods.
"""

from ufm.losses.base import Loss as Loss
from ufm.losses.bce import BinaryCrossEntropy as BinaryCrossEntropy
from ufm.losses.curve import CurveLoss as CurveLoss
from ufm.losses.curve import Focal as Focal
from ufm.losses.curve import Poly1 as Poly1
from ufm.losses.mse import MSE as MSE
from ufm.losses.softmax_family import LDAM as LDAM
from ufm.losses.softmax_family import CrossEntropy as CrossEntropy
from ufm.losses.softmax_family import LabelSmoothing as LabelSmoothing
from ufm.losses.softmax_family import LogitAdjustment as LogitAdjustment
from ufm.losses.softmax_family import SoftmaxLoss as SoftmaxLoss
from ufm.losses.softmax_family import VectorScaling as VectorScaling
from ufm.losses.softmax_family import WeightedCrossEntropy as WeightedCrossEntropy
