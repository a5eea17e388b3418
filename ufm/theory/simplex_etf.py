r"""Free features and exchangeable classes: the simplex equiangular tight frame, for every symmetric loss.

With counts n and ``C = I - 11'/K`` the problem in the logits ``Z`` (one row per class) is the nuclear-norm problem
``min (1/K) sum_k loss_k(Z_k) + l sqrt(n) |Z|_*``. On ``Z = M C``, where ``|Z|_* = (K-1) M``, it is (T) of
`ufm.theory.scalar` with ``a = (K-1)/K``; at its minimiser the scaled gradient is C up to a factor of at most ``l``,
so the duality gap is zero and Z is the global optimum. Any ``dim >= K - 1`` attains it. The gradient also sums to
zero over classes, so a bias, if there is one, is zero.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
from jaxtyping import Float

from ufm.model.problem import Problem
from ufm.theory.free_thresholds import total_collapse_weight
from ufm.theory.prediction import ClosedFormError, Prediction, not_covered
from ufm.theory.scalar import ScalarProblems, symmetric_form
from ufm.theory.symmetric import diagonal, logits_on_rays

SOURCE = "Zhu et al., NeurIPS 2021 (arXiv:2105.02375), Theorem 3.1, with lengths at finite decay: simplex ETF"
COLLAPSE_SOURCE = "first-order condition at the origin of the nuclear-norm problem: total collapse"
_NEEDED = "cross-entropy with free features needs equal counts and equal class weights"


def scalar_problems(problem: Problem) -> ScalarProblems:
    """Return the scalar problems of the simplex ETF.

    Raises:
        ClosedFormError: if the loss is not symmetric, or classes are not exchangeable.
    """
    found = _scalar_problems(problem)
    if not found.exchangeable:
        raise not_covered(_NEEDED)
    return found


def _scalar_problems(problem: Problem) -> ScalarProblems:
    form = symmetric_form(problem)
    if not problem.loss.shift_invariant:
        raise not_covered(f"{type(problem.loss).__name__} with free features has no theorem")
    return ScalarProblems(problem, form, Fraction(problem.num_classes - 1, problem.num_classes) ** 2)


def predict_simplex(problem: Problem) -> Prediction:
    r"""Return the optimum of exchangeable classes with free features: a simplex ETF, or total collapse.

        ``W h_k = M (e_k - 1/K)``,   ``<h_k, h_l> = M sqrt(lambda_W / (lambda_H n)) ([k=l] - 1/K)``,
        ``<w_k, w_l> = M sqrt(lambda_H n / lambda_W) ([k=l] - 1/K)``.

    Other counts or weights, no bias: only total collapse (`ufm.theory.total_collapse_weight`) has a closed form.

    Args:
        problem: free features, a symmetric loss, ``dim >= K - 1``.

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Papyan, Han, Donoho, PNAS 2020; Zhu et al., NeurIPS 2021 (arXiv:2105.02375), Theorem 3.1.

    Example:
        >>> problem = Problem([50, 50, 50], 3, 1e-3, 1e-5, features="free")
        >>> prediction = predict_simplex(problem)
        >>> prediction.gram_features.round(3).tolist()[0], round(prediction.objective, 6)
        ([6.838, -3.419, -3.419], 0.011672)
    """
    scalar, K = _scalar_problems(problem), problem.num_classes
    if not scalar.exchangeable:
        return _total_collapse(scalar)
    if problem.dim < K - 1 and scalar.living:
        raise not_covered(f"a simplex ETF of {K} classes needs dim >= {K - 1}, and dim is {problem.dim}")
    return _frame(scalar, SOURCE, scalar.optimum, scalar.collapsed, float(scalar.value))


def _total_collapse(scalar: ScalarProblems) -> Prediction:
    problem = scalar.problem
    if problem.bias is not None:
        raise not_covered(_NEEDED)
    try:
        threshold = total_collapse_weight(problem)
    except ClosedFormError:
        raise not_covered(_NEEDED) from None
    if problem.nuclear_weight < threshold:
        raise not_covered(f"{_NEEDED}, or total collapse at sqrt(lambda_W lambda_H) >= {threshold:.6g}")
    nothing = np.zeros(problem.num_classes)
    everyone = np.ones(problem.num_classes, dtype=bool)
    return _frame(
        scalar, COLLAPSE_SOURCE, nothing, everyone, float(problem.priors @ scalar.form.value(nothing))
    )


def _frame(
    scalar: ScalarProblems,
    theorem: str,
    margins: Float[np.ndarray, " K"],
    collapsed: np.ndarray,
    objective: float,
) -> Prediction:
    problem, K = scalar.problem, scalar.problem.num_classes
    features, classifier = margins * scalar.scale, margins / scalar.scale
    return Prediction(
        problem=problem,
        theorem=theorem,
        norms=np.sqrt(features * (1 - 1 / K)),
        weight_norms=np.sqrt(classifier * (1 - 1 / K)),
        margins=margins,
        collapsed=collapsed,
        objective=objective,
        _gram_features=partial(simplex, K, float(features[0])),
        _gram_weights=partial(simplex, K, float(classifier[0])),
        _logits=partial(logits_on_rays, scalar.form, margins),
        bias=None if problem.bias is None else np.zeros(K),
    )


def simplex(
    num_classes: int, scale: float = 1.0, rows: slice | np.ndarray = slice(None)
) -> Float[np.ndarray, "rows K"]:
    """Return rows of ``scale (I - 11'/K)``, the Gram matrix of a simplex ETF."""
    return scale * (diagonal(np.ones(num_classes), rows) - 1 / num_classes)
