"""Metrics of neural collapse along a solve: an observer for `ufm.solve`, whose values land in the history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ufm import metrics
from ufm.model.problem import Problem, a_problem
from ufm.prediction.solved import best_known
from ufm.verification.tolerances import dual_directions


def collapse_observer(problem: Problem | Any) -> Callable[[Any, np.ndarray], dict[str, float]]:
    """Return an observer that measures how far a point is from neural collapse.

    Its keys are ``nc1`` (0 at class level, where every class has one row) and, where the optimum is known (in closed
    form, or of a small problem solved here and now), the residuals ``nc2_h``, ``nc2_w``, ``nc2_wwt`` and
    ``nc3_wh`` of `ufm.metrics.direction_residual`.

    Args:
        problem: the problem that is being solved.

    Returns:
        A function of the point (``weight`` (K, d), ``features`` (rows, d), ``bias`` (K,) or None) and the labels of
        its rows, for ``observe`` of `ufm.solve`; all its numbers are ratios.

    Raises:
        InputError: if ``problem`` is none.

    Source: Papyan, Han, Donoho, PNAS 2020 (arXiv:2008.08186); Dang et al., ICML 2024 (arXiv:2401.02058).

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> problem = Problem([20, 10], 2, weight_decay=1e-2, feature_decay=1e-3)
        >>> weight = np.array([[1.0, -1.0], [-1.0, 1.0]])
        >>> point = SimpleNamespace(weight=weight, features=np.eye(2), bias=None)
        >>> sorted(collapse_observer(problem)(point, np.arange(2)))
        ['nc1', 'nc2_h', 'nc2_w', 'nc2_wwt', 'nc3_wh']
    """
    a_problem(problem)
    if not problem.loss.labelled:
        return lambda point, labels: {}
    prediction, _ = best_known(problem)
    costs = problem.counts * problem.feature_decays / problem.feature_decays.max()
    targets: dict[str, np.ndarray] = {}
    if prediction is not None:
        targets = {
            "nc2_h": prediction.gram_features,
            "nc2_wwt": prediction.gram_weights,
            "nc3_wh": prediction.logits,
            "directions": dual_directions(prediction),
        }

    def observe(point: Any, labels: np.ndarray) -> dict[str, float]:
        multiplicities = (problem.counts / np.bincount(labels, minlength=problem.num_classes))[labels]
        statistics = metrics.measure(
            point.features, labels, multiplicities=multiplicities, num_classes=problem.num_classes
        )
        values = {"nc1": metrics.nc1(statistics)}
        if not targets:
            return values
        logits = statistics.means @ point.weight.T
        if point.bias is not None:
            logits = logits + (point.bias - point.bias.mean() * problem.loss.shift_invariant)
        wanted = metrics.classifier_from_means(statistics.means, costs, targets["directions"])
        residual = metrics.direction_residual
        return values | {
            "nc2_h": residual(metrics.gram(statistics.means), targets["nc2_h"]),
            "nc2_w": residual(point.weight, wanted),
            "nc2_wwt": residual(metrics.gram(point.weight), targets["nc2_wwt"]),
            "nc3_wh": residual(logits, targets["nc3_wh"]),
        }

    return observe
