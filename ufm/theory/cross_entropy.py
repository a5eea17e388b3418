r"""Cross-entropy, weighted cross-entropy and label smoothing with non-negative features: orthogonal frames.

In balanced coordinates ``G = sqrt(lambda_H n_k) h_k`` and ``V = sqrt(lambda_W) W`` the optimum is the same
for the whole family, whatever the class weights and the smoothing:

    ``<g_k, g_l> = a_k [k = l]``,   ``v_k = sqrt(K/(K-1)) (g_k - mean_j g_j)``,
    ``a_k = sqrt(lambda_W lambda_H n_k (K-1)/K) M_k``.

Proof. The classifier is stationary when ``V = -A'G`` with rows ``A_k = Q_k sqrt(n_k) / (N sqrt(lambda_W
lambda_H))`` of the scaled loss gradients ``Q_k = -c_k K rho_k (onehot_k - 1/K)``, where ``rho_k = q_k -
e/K``. For a living class ``rho_k = delta_k`` and the factor in front of the centred one-hot is
``sqrt(K/(K-1))``, free of ``c_k``, ``e`` and ``n_k``; a collapsed class has ``g_k = 0``. Only the margins
``M_k`` know the loss.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import Float

from ufm.model.problem import Problem
from ufm.theory.assumptions import collapse_rule, collapsed_classes, saturation, slack, softmax_targets
from ufm.theory.prediction import Prediction, not_covered

SOURCE = (
    "Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), main theorem, "
    "extended to class weights and label smoothing: general orthogonal frame"
)


def predict_nonnegative(problem: Problem) -> Prediction:
    r"""Return the optimum of the cross-entropy family with non-negative features.

    With ``x_k = N sqrt(lambda_W lambda_H K / ((K-1) n_k)) / (c_k (1-e))`` class k collapses if and only if
    ``x_k >= 1``; otherwise the off-target probability is ``q_k = (e + (1-e) x_k) / K`` and

        ``M_k = log(1/q_k - (K-1))``,   ``|h_k|^2 = M_k sqrt((K-1) lambda_W / (K lambda_H n_k))``,
        ``W h_k = M_k (onehot_k - 1/K)``,   ``P* = sum_k (n_k/N) c_k Entropy(p_k)``.

    Args:
        problem: non-negative features, a loss of the cross-entropy family, ``dim`` at least the number of
            living classes (each needs a coordinate of its own), and either no bias or gradients that
            balance at zero bias (for instance equal counts and weights).

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), main theorem, extended above.

    Example:
        >>> prediction = predict_nonnegative(Problem([500, 50], 2, weight_decay=5e-3, feature_decay=1e-5))
        >>> prediction.margins.round(4).tolist(), prediction.num_collapsed
        ([5.5457, 4.3859], 0)
    """
    weights, smoothing = softmax_targets(problem)
    rule = collapse_rule(problem)
    collapsed = collapsed_classes(problem, rule)
    room = slack(saturation(problem, rule), collapsed)
    filled = np.where(collapsed, 1.0, np.minimum(saturation(problem, rule), 1.0))
    _require_dimension(problem, int(np.sum(~collapsed)))
    _require_zero_bias(problem, (1 - smoothing) * problem.counts * weights * filled, bool(np.all(collapsed)))
    margins = softmax_margins(filled, room, smoothing, problem.num_classes)
    objective = softmax_objective(problem, filled, weights, smoothing)
    return _orthogonal_frame(problem, margins, collapsed, objective)


def softmax_margins(
    filled: Float[np.ndarray, " K"], room: Float[np.ndarray, " K"], smoothing: float, num_classes: int
) -> Float[np.ndarray, " K"]:
    """Return ``M = log(1/q - (K-1))`` for ``q = (e + (1-e) x) / K``, as ``log1p`` of what exceeds one.

    ``filled`` is ``x`` and ``room`` is ``1 - x``: near ``x = 1`` only the textbook form cancels.
    """
    return np.log1p(num_classes * (1 - smoothing) * room / (smoothing + (1 - smoothing) * filled))


def softmax_objective(
    problem: Problem, filled: Float[np.ndarray, " K"], weights: Float[np.ndarray, " K"], smoothing: float
) -> float:
    """Return ``sum_k (n_k/N) c_k H(p_k)`` for ``q_k = (e + (1-e) x_k)/K`` off target, tiny or not."""
    K = problem.num_classes
    q = (smoothing + (1 - smoothing) * filled) / K
    rest = (K - 1) * q
    entropy = -rest * np.log(q) - (1 - rest) * np.log1p(-rest)
    return float(np.sum(problem.priors * weights * entropy))


def _require_dimension(problem: Problem, living: int) -> None:
    if problem.dim < living:
        raise not_covered(
            f"each of the {living} classes that do not collapse needs a feature coordinate of its own, "
            f"and dim is {problem.dim}"
        )


def _require_zero_bias(problem: Problem, pull: Float[np.ndarray, " K"], all_collapsed: bool) -> None:
    """Raise unless the predicted optimum without bias stays optimal, and unique, with one.

    The data term's gradient in the bias is ``sum_k (n_k/N) Q_k``, which vanishes if and only if all
    ``pull_k`` proportional to ``n_k c_k rho_k`` agree; the certificate of the problem without bias then
    holds with one. Two classes with an unregularised bias can shift it against their features for free: no
    unique optimum.
    """
    if problem.bias is None:
        return
    if np.ptp(pull) > 1e-12 * np.max(pull):
        raise not_covered("with a bias the theorem needs equal counts; these classes pull the bias from zero")
    if problem.num_classes == 2 and problem.bias == 0 and not all_collapsed:
        raise not_covered("two classes with an unregularised bias have a continuum of optima")


def _orthogonal_frame(
    problem: Problem, margins: Float[np.ndarray, " K"], collapsed: np.ndarray, objective: float
) -> Prediction:
    K = problem.num_classes
    ratio = np.sqrt(problem.weight_decay) / np.sqrt(problem.feature_decay)
    squared_norms = margins * np.sqrt((K - 1) / (K * problem.counts)) * ratio
    energies = margins * np.sqrt(problem.counts * ((K - 1) / K)) / ratio
    squared_weights = (energies * (1 - 2 / K) + np.mean(energies) / K) * (K / (K - 1))
    return Prediction(
        problem=problem,
        theorem=SOURCE,
        norms=np.sqrt(squared_norms),
        weight_norms=np.sqrt(squared_weights),
        margins=margins,
        collapsed=collapsed,
        objective=objective,
        _gram_features=partial(np.diag, squared_norms),
        _gram_weights=partial(_classifier_gram, energies),
        _logits=partial(centred_logits, margins),
        bias=None if problem.bias is None else np.zeros(K),
    )


def _classifier_gram(energies: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K K"]:
    """``K/(K-1) C diag(a/lambda_W) C`` with ``C = I - 11'/K``, the Gram of centred orthogonal rows."""
    K = len(energies)
    shared = energies / K
    gram = np.mean(energies) / K - shared[:, None] - shared[None, :]
    gram[np.diag_indices(K)] += energies
    return gram * (K / (K - 1))


def centred_logits(margins: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K K"]:
    """Return logits whose row k is ``M_k (onehot_k - 1/K)``."""
    return np.diag(margins) - margins[:, None] / len(margins)
