"""An oracle that knows no closed form: KKT residual and duality gap of explicit (W, H, b), in a few lines.

Written from the problem's definition alone, with nothing from `ufm` but the problem and its parameters, so
that a mistake in the package cannot hide itself. `theory/test_oracle.py` makes sure that the oracle can say no.
"""

import numpy as np
import pytest

from ufm.losses import MSE, LabelSmoothing, WeightedCrossEntropy
from ufm.model.problem import Problem


def make(counts, dim, weight_decay, feature_decay, **options):
    """A problem from plain lists (run-time shape checks want arrays)."""
    return Problem(np.array(counts), dim, weight_decay, feature_decay, **options)


def weighted(*class_weights):
    return WeightedCrossEntropy(np.array(class_weights))


def parameters(loss, num_classes):
    """Class weights and target rows of the loss."""
    weights = loss.class_weights if isinstance(loss, WeightedCrossEntropy) else np.ones(num_classes)
    smoothing = loss.smoothing if isinstance(loss, LabelSmoothing) else 0.0
    return weights, (1 - smoothing) * np.eye(num_classes) + smoothing / num_classes


def data_term(problem, logits):
    """Per-class loss and its gradient in the logits."""
    K = problem.num_classes
    if isinstance(problem.loss, MSE):
        residual = logits - np.eye(K)
        return np.sum(residual**2, axis=1) / 2, residual
    weights, targets = parameters(problem.loss, K)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -weights * np.sum(targets * log_p, axis=1), weights[:, None] * (np.exp(log_p) - targets)


def conjugate(problem, dual):
    """Per-class convex conjugate of the loss."""
    K = problem.num_classes
    if isinstance(problem.loss, MSE):
        return np.sum(dual**2, axis=1) / 2 + np.diag(dual)
    weights, targets = parameters(problem.loss, K)
    r = np.maximum(dual / weights[:, None] + targets, 1e-300)
    return weights * np.sum(r * np.log(r), axis=1)


def objective(problem, weight, features, bias=None):
    """P(W, H, b) at class level."""
    shift = np.zeros(problem.num_classes) if bias is None else bias
    losses, _ = data_term(problem, features @ weight.T + shift)
    ridge = problem.weight_decay * np.sum(weight**2)
    ridge += problem.feature_decay * np.sum(problem.counts[:, None] * features**2)
    return np.sum(problem.priors * losses) + ridge / 2 + (problem.bias or 0.0) / 2 * np.sum(shift**2)


def lower_bound(problem, weight, features, bias=None):
    """Fenchel dual value at the scaled loss gradients: no point whatsoever has a smaller objective."""
    shift = np.zeros(problem.num_classes) if bias is None else bias
    _, dual = data_term(problem, features @ weight.T + shift)
    rows = np.sqrt(problem.counts)[:, None] / problem.num_samples * dual
    gram = rows @ rows.T
    if problem.features == "nonnegative":
        gram = np.maximum(gram, 0)
    dual = dual * min(1.0, problem.nuclear_weight / np.sqrt(np.linalg.eigvalsh(gram)[-1]))
    value = -np.sum(problem.priors * conjugate(problem, dual))
    pull = np.sum((problem.priors @ dual) ** 2)
    if problem.bias == 0:
        assert pull < 1e-24, "the dual point must balance when the bias is unregularised"
    elif problem.bias is not None:
        value -= pull / (2 * problem.bias)
    return value


def kkt_residual(problem, weight, features, bias=None):
    """Largest violation of stationarity, in balanced coordinates and relative to the size of the point."""
    shift = np.zeros(problem.num_classes) if bias is None else bias
    _, dual = data_term(problem, features @ weight.T + shift)
    pull = problem.priors[:, None] * dual
    of_weight = (pull.T @ features + problem.weight_decay * weight) / np.sqrt(problem.weight_decay)
    scale = np.sqrt(problem.feature_decay * problem.counts)[:, None]
    of_features = pull @ weight / scale + scale * features
    if problem.features == "nonnegative":
        assert np.all(features >= 0)
        of_features = np.where(features > 0, of_features, np.minimum(of_features, 0))
    size = np.sqrt(problem.nuclear_weight) + np.linalg.norm(scale * features)
    return max(np.abs(of_weight).max(), np.abs(of_features).max()) / size


def relative_gap(problem, weight, features, bias=None):
    primal = objective(problem, weight, features, bias)
    return (primal - lower_bound(problem, weight, features, bias)) / primal


def factors(prediction):
    """Explicit (W, H) with the predicted Grams; ``dim`` columns are enough, one per living class."""
    problem = prediction.problem
    K = problem.num_classes
    if problem.features == "nonnegative" and not isinstance(problem.loss, MSE):
        features = np.diag(prediction.norms)[:, ~prediction.collapsed]
        stretched = np.sqrt(problem.counts)[:, None] * features
        ratio = problem.feature_decay / problem.weight_decay * K / (K - 1)
        weight = np.sqrt(ratio) * (stretched - stretched.mean(axis=0))
        padding = ((0, 0), (0, max(0, problem.dim - features.shape[1])))
        return np.pad(weight, padding), np.pad(features, padding)
    if isinstance(problem.loss, MSE):
        return np.diag(prediction.weight_norms), np.diag(prediction.norms)
    frame = np.eye(K) - 1 / K
    return prediction.weight_norms[0] * frame / np.linalg.norm(frame[0]), (
        prediction.norms[0] * frame / np.linalg.norm(frame[0])
    )


def assert_optimal(prediction, tol=1e-9):
    """The predicted Grams, logits and value belong to a point that satisfies KKT and has no duality gap."""
    weight, features = factors(prediction)
    problem, bias = prediction.problem, prediction.bias
    assert features.shape[1] <= max(problem.dim, problem.num_classes)
    shift = 0.0 if bias is None else bias
    size = 1e-11 * (1 + np.abs(prediction.logits).max())
    np.testing.assert_allclose(features @ weight.T + shift, prediction.logits, atol=size)
    np.testing.assert_allclose(features @ features.T, prediction.gram_features, rtol=1e-11, atol=1e-300)
    top = np.abs(prediction.gram_weights).max()
    np.testing.assert_allclose(weight @ weight.T, prediction.gram_weights, atol=1e-12 * top + 1e-300)
    np.testing.assert_allclose(np.diag(prediction.gram_features), prediction.norms**2, rtol=1e-12)
    np.testing.assert_allclose(
        np.diag(prediction.gram_weights), prediction.weight_norms**2, atol=1e-12 * top + 1e-300
    )
    assert objective(problem, weight, features, bias) == pytest.approx(prediction.objective, rel=tol)
    assert abs(relative_gap(problem, weight, features, bias)) < tol
    assert kkt_residual(problem, weight, features, bias) < tol


def nuclear_solution(problem, steps=4000):
    """Logits and bias of the convex program (free features): accelerated proximal gradient with restarts."""
    K, rows = problem.num_classes, np.sqrt(problem.counts)[:, None]
    step, slope = problem.num_samples, 2.0 + (problem.bias or 0.0)
    point, ahead, t = (np.zeros((K, K)), np.zeros(K)), (np.zeros((K, K)), np.zeros(K)), 1.0
    for count in range(steps):
        if count % 100 == 99 and abs(nuclear_gap(problem, point[0] / rows, point[1])) < 1e-15:
            break
        _, dual = data_term(problem, ahead[0] / rows + ahead[1])
        left, values, right = np.linalg.svd(ahead[0] - rows * dual, full_matrices=False)
        scores = (left * np.maximum(values - step * problem.nuclear_weight, 0)) @ right
        push = problem.priors @ dual + (problem.bias or 0.0) * ahead[1]
        new = (scores, ahead[1] - push / slope if problem.bias is not None else ahead[1])
        uphill = np.sum((ahead[0] - new[0]) * (new[0] - point[0])) / step
        uphill += slope * np.sum((ahead[1] - new[1]) * (new[1] - point[1]))
        t, rate = (1.0, 0.0) if uphill > 0 else ((1 + np.sqrt(1 + 4 * t * t)) / 2, t)
        rate = (rate - 1) / t if rate else 0.0
        ahead = tuple(now + rate * (now - before) for now, before in zip(new, point, strict=True))
        point = new
    return point[0] / rows, point[1]


def nuclear_gap(problem, logits, bias):
    """Relative duality gap of the convex program, to know that `nuclear_solution` has converged."""
    losses, dual = data_term(problem, logits + bias)
    rows = np.sqrt(problem.counts)[:, None]
    primal = problem.priors @ losses + problem.nuclear_weight * np.linalg.norm(rows * logits, "nuc")
    dual = dual * min(1.0, problem.nuclear_weight / np.linalg.norm(rows * dual / problem.num_samples, 2))
    bound = -problem.priors @ conjugate(problem, dual)
    if problem.bias:
        primal += problem.bias / 2 * np.sum(bias**2)
        bound -= np.sum((problem.priors @ dual) ** 2) / (2 * problem.bias)
    return (primal - bound) / primal
