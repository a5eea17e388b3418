"""Closed forms of the global optimum, in pure NumPy: `predict` picks the theorem, one module per family."""

from ufm.model.problem import Problem
from ufm.theory.cross_entropy import predict_nonnegative
from ufm.theory.free_thresholds import (
    TwinThreshold,
    minority_collapse_weight,
    total_collapse_weight,
    twin_thresholds,
)
from ufm.theory.mse import predict_mse
from ufm.theory.prediction import ClosedFormError, Prediction
from ufm.theory.seli import SELI, seli
from ufm.theory.simplex_etf import predict_free
from ufm.theory.thresholds import (
    collapse_counts,
    collapse_nuclear_weights,
    count_collapsed,
    critical_imbalance_ratio,
    equalising_weights,
    extra_samples_to_live,
    largest_decay_product,
    largest_nuclear_weight,
)

__all__ = [
    "SELI",
    "ClosedFormError",
    "Prediction",
    "TwinThreshold",
    "collapse_counts",
    "collapse_nuclear_weights",
    "count_collapsed",
    "critical_imbalance_ratio",
    "equalising_weights",
    "extra_samples_to_live",
    "largest_decay_product",
    "largest_nuclear_weight",
    "minority_collapse_weight",
    "predict",
    "seli",
    "total_collapse_weight",
    "twin_thresholds",
]


def predict(problem: Problem) -> Prediction:
    r"""Return the geometry of the global optimum of ``problem`` in closed form, in O(K).

    ======================================  ===========  ==========================================
    loss                                    features     covered
    ======================================  ===========  ==========================================
    (weighted, smoothed) cross-entropy      nonnegative  any counts; a bias if it is provably zero
    (weighted, smoothed) cross-entropy      free         equal counts and weights, with any bias;
                                                         else only total collapse without bias
    MSE                                     both         any counts, no bias
    ======================================  ===========  ==========================================

    Raises:
        ClosedFormError: one sentence that says which assumption of the theorems fails; the certified solver's
            answer (`ufm.solve`) is then the prediction.

    Source: see `predict_nonnegative`, `predict_free`, `predict_mse`.

    Example:
        >>> prediction = predict(Problem([500] * 5 + [50] * 5, 10, weight_decay=5e-3, feature_decay=1e-6))
        >>> round(prediction.objective, 12)
        0.076129240854
    """
    if problem.loss.squared:
        return predict_mse(problem)
    if problem.features == "nonnegative":
        return predict_nonnegative(problem)
    return predict_free(problem)
