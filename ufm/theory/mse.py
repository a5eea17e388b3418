r"""Mean squared error: general orthogonal frames, the same for non-negative and for free features.

The optimal logits are diagonal, so the problem splits into one scalar problem per class:
``min_z (n_k/N) (1 - z)^2 / 2 + sqrt(lambda_W lambda_H n_k) z`` over ``z >= 0``.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ufm.model.problem import Problem
from ufm.theory.assumptions import collapse_rule, collapsed_classes, saturation, slack
from ufm.theory.prediction import Prediction, not_covered

SOURCE = "Dang et al., ICML 2023 (arXiv:2301.00437), imbalanced MSE without bias: general orthogonal frame"


def predict_mse(problem: Problem) -> Prediction:
    r"""Return the optimum of ``|W h - onehot|^2 / 2``.

        ``z_k = max(0, 1 - sqrt(c/n_k))``,   ``|h_k|^2 = z_k sqrt(lambda_W / (lambda_H n_k))``,
        ``|w_k|^2 = z_k sqrt(lambda_H n_k / lambda_W)``,   ``w_k`` parallel to ``h_k``,   ``W h_k = z_k
        onehot_k``, ``P* = sum_k (n_k/N) (1 - z_k^2) / 2``.

    Args:
        problem: MSE, no bias, ``dim`` at least the number of living classes; either feature set.

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Dang et al., ICML 2023 (arXiv:2301.00437), theorem on imbalanced data (MSE, no bias).

    Example:
        >>> from ufm.losses import MSE
        >>> prediction = predict_mse(Problem([200, 50], 2, 1e-3, 1e-3, loss=MSE()))
        >>> prediction.margins.round(4).tolist()
        [0.9823, 0.9646]
    """
    if problem.bias is not None:
        raise not_covered("the MSE theorem needs a model without bias")
    rule = collapse_rule(problem)
    collapsed = collapsed_classes(problem, rule)
    fit = slack(saturation(problem, rule), collapsed)
    if problem.dim < np.sum(~collapsed):
        raise not_covered(
            f"each of the {np.sum(~collapsed)} classes that do not collapse needs a dimension of its own, "
            f"and dim is {problem.dim}"
        )
    miss = np.where(collapsed, 1.0, np.minimum(saturation(problem, rule), 1.0))
    scale = np.sqrt(problem.weight_decay) / np.sqrt(problem.feature_decay) / np.sqrt(problem.counts)
    return Prediction(
        problem=problem,
        theorem=SOURCE,
        norms=np.sqrt(fit * scale),
        weight_norms=np.sqrt(fit / scale),
        margins=fit,
        collapsed=collapsed,
        objective=float(np.sum(problem.priors * miss * (2 - miss)) / 2),
        _gram_features=partial(np.diag, fit * scale),
        _gram_weights=partial(np.diag, fit / scale),
        _logits=partial(np.diag, fit),
    )
