"""Closed forms of the global optimum, in pure NumPy: `predict` picks the theorem, one module per family."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ufm.model.problem import Problem, a_problem
from ufm.theory import free_mse, prototypes, simplex_etf, symmetric
from ufm.theory.deep_head import DeepHead, deep_linear_head
from ufm.theory.free_thresholds import (
    TwinThreshold,
    minority_collapse_weight,
    total_collapse_weight,
    twin_thresholds,
)
from ufm.theory.prediction import ClosedFormError, Prediction, or_none
from ufm.theory.seli import SELI, WeakDecayLimit, seli, weak_decay_limit
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
    "DeepHead",
    "Prediction",
    "Theorem",
    "TwinThreshold",
    "WeakDecayLimit",
    "collapse_counts",
    "collapse_nuclear_weights",
    "count_collapsed",
    "critical_imbalance_ratio",
    "deep_linear_head",
    "equalising_weights",
    "extra_samples_to_live",
    "largest_decay_product",
    "largest_nuclear_weight",
    "minority_collapse_weight",
    "predict",
    "predict_each",
    "seli",
    "total_collapse_weight",
    "twin_thresholds",
    "weak_decay_limit",
]


class Theorem(NamedTuple):
    """A theorem: whether it is the one for a problem's loss, features and bias, and the prediction it makes.

    Where ``several`` is given it makes those of problems of equal shape that share a loss and kind of bias, at once.
    """

    applies: Callable[[Problem], bool]
    build: Callable[[Problem], Prediction]
    several: Callable[[Sequence[Problem]], list[Prediction | None]] | None = None


#: Tried in order: the first that applies makes the prediction, or says which of its assumptions fails.
THEOREMS = (
    Theorem(lambda problem: problem.classifier is not None, prototypes.predict_prototypes),
    Theorem(free_mse.covers, free_mse.predict_mse_with_bias),
    Theorem(symmetric.covers, symmetric.predict_symmetric, symmetric.predict_several),
    Theorem(lambda problem: problem.features == "free", simplex_etf.predict_simplex),
)


def predict(problem: Problem | Any) -> Prediction:
    r"""Return the geometry of the global optimum of ``problem`` in closed form, in O(K).

    ===================================================  ===========  ==========================================
    loss                                                 features     covered
    ===================================================  ===========  ==========================================
    cross-entropy (weighted, smoothed, LDAM), Poly-1     nonnegative  any counts, decays by class; a bias if it is
                                                                      provably zero
    the same                                             free         equal counts, weights and decays, any bias;
                                                                      else total collapse without bias
    MSE                                                  both         any counts, no bias; with free features also
                                                                      an unregularised one
    binary cross-entropy, at most 4 classes              nonnegative  any counts, no bias
    any of these with a fixed frame (`Problem.classifier`)  both      simplex ETF, orthogonal rows; no bias
    ===================================================  ===========  ==========================================

    Accuracy: margins 1e-13 of one plus themselves, the objective 1e-13 of itself; who collapses is exact (squared
    error with a free bias: as a singular value decomposition leaves it, relative to the largest).

    Raises:
        InputError: if it is no problem.
        ClosedFormError: one sentence that says which assumption of the theorems fails; the certified solver's
            answer (`ufm.solve`) is then the prediction.

    Source: `ufm.theory.symmetric`, `ufm.theory.simplex_etf`, `ufm.theory.free_mse`.

    Example:
        >>> prediction = predict(Problem([500] * 5 + [50] * 5, 10, weight_decay=5e-3, feature_decay=1e-6))
        >>> round(prediction.objective, 12)
        0.076129240854
    """
    a_problem(problem)
    return _theorem_for(problem).build(problem)


def predict_each(problems: Sequence[Problem]) -> list[Prediction | None]:
    """Return the predictions of problems of equal shape, None where no theorem covers one; alike ones at once."""
    found: list[Prediction | None] = [None] * len(problems)
    alike = collections.defaultdict(list)
    for i, problem in enumerate(problems):
        alike[_theorem_for(problem), problem.loss, problem.bias is None].append(i)
    for (theorem, *_), places in alike.items():
        own = [problems[i] for i in places]
        several = theorem.several(own) if theorem.several else [or_none(theorem.build, each) for each in own]
        for i, prediction in zip(places, several, strict=True):
            found[i] = prediction
    return found


def _theorem_for(problem: Problem) -> Theorem:
    return next(theorem for theorem in THEOREMS if theorem.applies(problem))
