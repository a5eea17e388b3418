r"""MSE with free features and an unregularised bias: singular values, soft-thresholded.

The best bias is the mean residual, ``b = sum_k (n_k/N) (e_k - Z_k)``. What is left is, in the scaled logits
``X = diag(sqrt n) Z`` (one row per class), ``min |P (T - X)|_F^2 / (2N) + l |X|_*`` with ``T = diag(sqrt n)`` and
the projection ``P`` off ``sqrt(n)``. Some optimum has ``X = P X``: ``P T`` with singular values reduced by ``N l``.
"""

from __future__ import annotations

import numpy as np

from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction, not_covered, require_matrix_size

SOURCE = "singular value thresholding of the centred targets: MSE with free features and a free bias"


def covers(problem: Problem) -> bool:
    """Whether this is the theorem for the problem: squared error (an MSE form), free features, bias decay 0."""
    if problem.features != "free" or problem.bias != 0:
        return False
    form = problem.loss.scalar_form(problem.num_classes)
    return form is not None and form.overlap == 0


def predict_mse_with_bias(problem: Problem) -> Prediction:
    r"""Return the optimum of ``|W h + b - onehot|^2 / 2`` with free features and an unregularised bias.

    Raises:
        ClosedFormError: if dim is too small, or feature decays differ by class.

    Source: soft thresholding of singular values (Cai, Candes, Shen 2010), applied as in the module's docstring.

    Example:
        >>> from ufm.losses import MSE
        >>> problem = Problem([60, 60, 20, 7], 4, 3e-3, 2e-3, loss=MSE(), features="free", bias=0)
        >>> round(predict_mse_with_bias(problem).objective, 10)
        0.0374299194
    """
    require_matrix_size("the optimum", problem.num_classes)
    if np.ptp(problem.feature_decays) > 0:
        raise not_covered("MSE with free features and a bias needs one feature decay for all classes")
    roots, N, K = np.sqrt(problem.counts), problem.num_samples, problem.num_classes
    centred = np.diag(roots) - np.outer(roots, problem.priors)
    left, values, right = np.linalg.svd(centred)
    kept = np.maximum(values - N * problem.nuclear_weight, 0.0)
    if problem.dim < np.sum(kept > 0):
        alive = np.sum(kept > 0)
        raise not_covered(
            f"the {alive} directions that do not collapse need as large a dim, got {problem.dim}"
        )
    balance = np.sqrt(problem.weight_decay) / np.sqrt(problem.feature_decays[0])  # their ratio may overflow
    features = (left * kept) @ left.T * balance / np.outer(roots, roots)
    weights = (right.T * kept) @ right / balance
    plain = (left * kept) @ right / roots[:, None]
    bias = problem.priors - problem.priors @ plain
    logits = plain + bias
    others = np.where(np.eye(K, dtype=bool), -np.inf, logits)
    norms = np.sqrt(np.maximum(np.diagonal(features), 0.0))
    return Prediction(
        problem=problem,
        theorem=SOURCE,
        norms=norms,
        weight_norms=np.sqrt(np.maximum(np.diagonal(weights), 0.0)),
        margins=np.diagonal(logits) - others.max(axis=1),
        collapsed=norms <= 1e-7 * max(float(norms.max()), np.finfo(np.float64).tiny),
        objective=float(np.sum((values - kept) ** 2) / (2 * N) + problem.nuclear_weight * np.sum(kept)),
        _gram_features=features.__getitem__,
        _gram_weights=weights.__getitem__,
        _logits=logits.__getitem__,
        bias=bias,
    )
