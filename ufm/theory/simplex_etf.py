r"""Cross-entropy with free features and exchangeable classes: the simplex equiangular tight frame.

With counts n and ``C = I - 11'/K`` the problem in the logits ``Z`` (one row per class) is the nuclear-norm
problem ``min (1/K) sum_k loss_k(Z_k) + sqrt(lambda_W lambda_H n) |Z|_*``. On ``Z = M C``, where ``|Z|_* =
(K-1) M``, it is stationary at ``q - e/K = sqrt(lambda_W lambda_H n) / c_1``; there the scaled gradient has
every singular value equal to ``sqrt(lambda_W lambda_H)`` on the range of C, so the duality gap is zero and
Z is the global optimum. Any ``dim >= K - 1`` attains it. The gradient also sums to zero over classes, so a
bias, if there is one, is zero.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Float

from ufm.model.problem import Problem
from ufm.theory.assumptions import (
    collapse_rule,
    collapsed_classes,
    exchangeable,
    saturation,
    slack,
    softmax_targets,
)
from ufm.theory.cross_entropy import centred_logits, softmax_margins, softmax_objective
from ufm.theory.free_thresholds import total_collapse_weight
from ufm.theory.prediction import ClosedFormError, Prediction, not_covered

SOURCE = "Zhu et al., NeurIPS 2021 (arXiv:2105.02375), Theorem 3.1, with lengths at finite decay: simplex ETF"
COLLAPSE_SOURCE = "first-order condition at the origin of the nuclear-norm problem: total collapse"


def predict_free(problem: Problem) -> Prediction:
    r"""Return the optimum of the cross-entropy family with free features.

    Equal counts n and weights ``c_1`` (simplex ETF), ``x = sqrt(c/n) / (c_1 (1-e))``, all collapsed iff ``x
    >= 1``:

        ``q = (e + (1-e) x) / K``,   ``M = log(1/q - (K-1))``,   ``W h_k = M (onehot_k - 1/K)``,
        ``<h_k, h_l> = M sqrt(lambda_W / (lambda_H n)) ([k=l] - 1/K)``,
        ``<w_k, w_l> = M sqrt(lambda_H n / lambda_W) ([k=l] - 1/K)``,   ``P* = c_1 Entropy(p)``.

    Other counts or weights, no bias: only total collapse (`ufm.theory.total_collapse_weight`) has a closed
    form.

    Args:
        problem: free features, a loss of the cross-entropy family, ``dim >= K - 1``.

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Papyan, Han, Donoho, PNAS 2020; Zhu et al., NeurIPS 2021 (arXiv:2105.02375), Theorem 3.1.

    Example:
        >>> problem = Problem([50, 50, 50], 3, 1e-3, 1e-5, features="free")
        >>> prediction = predict_free(problem)
        >>> prediction.gram_features.round(3).tolist()[0], round(prediction.objective, 6)
        ([6.838, -3.419, -3.419], 0.011672)
    """
    weights, smoothing = softmax_targets(problem)
    K = problem.num_classes
    if not exchangeable(problem, weights):
        return _total_collapse(problem, weights, smoothing)
    rule = collapse_rule(problem)
    collapsed = collapsed_classes(problem, rule)
    if problem.dim < K - 1 and not np.all(collapsed):
        raise not_covered(f"a simplex ETF of {K} classes needs dim >= {K - 1}, and dim is {problem.dim}")
    room = slack(saturation(problem, rule), collapsed)
    filled = np.where(collapsed, 1.0, np.minimum(saturation(problem, rule), 1.0))
    margins = softmax_margins(filled, room, smoothing, K)
    return _frame(problem, SOURCE, margins, collapsed, softmax_objective(problem, filled, weights, smoothing))


def _total_collapse(problem: Problem, weights: Float[np.ndarray, " K"], smoothing: float) -> Prediction:
    reason = "cross-entropy with free features needs equal counts and equal class weights"
    if problem.bias is not None:
        raise not_covered(reason)
    try:
        threshold = total_collapse_weight(problem)
    except ClosedFormError:
        raise not_covered(reason) from None
    if problem.nuclear_weight < threshold:
        raise not_covered(f"{reason}, or total collapse at sqrt(lambda_W lambda_H) >= {threshold:.6g}")
    everyone = np.ones(problem.num_classes, dtype=bool)
    objective = softmax_objective(problem, np.ones(problem.num_classes), weights, smoothing)
    return _frame(problem, COLLAPSE_SOURCE, np.zeros(problem.num_classes), everyone, objective)


def _frame(
    problem: Problem, theorem: str, margins: Float[np.ndarray, " K"], collapsed: np.ndarray, objective: float
) -> Prediction:
    K = problem.num_classes
    ratio = np.sqrt(problem.weight_decay) / np.sqrt(problem.feature_decay)
    features = margins[0] * ratio / np.sqrt(problem.counts[0])
    classifier = margins[0] / ratio * np.sqrt(problem.counts[0])
    return Prediction(
        problem=problem,
        theorem=theorem,
        norms=np.full(K, np.sqrt(features * (1 - 1 / K))),
        weight_norms=np.full(K, np.sqrt(classifier * (1 - 1 / K))),
        margins=margins,
        collapsed=collapsed,
        objective=objective,
        _gram_features=partial(simplex, K, float(features)),
        _gram_weights=partial(simplex, K, float(classifier)),
        _logits=partial(centred_logits, margins),
        bias=None if problem.bias is None else np.zeros(K),
    )


def simplex(num_classes: int, scale: float = 1.0) -> Float[np.ndarray, "K K"]:
    """Return ``scale (I - 11'/K)``, the Gram matrix of a simplex ETF."""
    return scale * (np.eye(num_classes) - 1 / num_classes)
