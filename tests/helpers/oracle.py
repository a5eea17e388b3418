"""The oracle of `helpers.oracle` can say no, and its formulas are what they claim."""

import numpy as np
import pytest
from helpers.oracle import (
    data_term,
    factors,
    kkt_residual,
    lower_bound,
    make,
    objective,
    relative_gap,
    weighted,
)

from ufm.losses import MSE, CrossEntropy, LabelSmoothing
