"""Verification with soft targets: what a duality gap says of contexts, which have no label to be right about.

For a point with gap ``eps``: the objective less its optimum is at most eps, so none of the things that would lower it
by a known amount may be worth more. In balanced coordinates V, G (`ufm.verification.resolution`):

* Balancing a coordinate (``v^j`` times a, ``g^j`` over a) saves ``(|v^j| - |g^j|)^2 / 2``; giving rows of one target
  their mean feature saves what their spread is charged (Jensen).
* Free features: taking the factors of ``X = G V' = U S R'`` from its singular values saves
  ``(|G|^2 + |V|^2)/2 - tr S >= |G - U R' V|^2 / 2``, so that ``|G G' - U S U'| <= sqrt(2 eps) |G|_2``: the logits say
  what the Gram matrix of the features is, and likewise that of the classifier.
* Logits: with the dual point Q of a reference, whose probabilities are r, Fenchel-Young gives
  ``sum_c (n_c/N) c_c KL(r_c || p_c) <= P - D(Q)`` for the point and for the reference itself, and by Pinsker's
  inequality the probabilities of both are within ``sqrt(2 (eps + eps')) + sqrt(2 eps')`` of each other, in the mean
  square over samples of ``sqrt(c_c) |p_c - p'_c|_1``. Logits of tokens that hardly occur are not pinned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.duality.certificate import Certificate, class_means
from ufm.model.problem import Problem
from ufm.solvers.solve import solve
from ufm.targets import equal_rows
from ufm.verification.checks import info_row, scalar_row
from ufm.verification.report import Row

#: Features closer than this share of the longest count as the same.
COINCIDE = 1e-3
#: Contexts times logits up to which a problem is solved again, from another start, as the reference.
REFERENCE_SIZE, REFERENCE_SEED = 50_000, 1


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredContexts:
    """What is measured of contexts and tokens.

    Attributes:
        counts: samples of every context.
        norms: (C,), ``|h_c|``. weight_norms: (K,), ``|w_k|``.
        divergences: (C,), ``KL(t_c || p_c)``, in nats: what the logits leave of the target.
        entropies: (C,), of the targets.
        spectra: singular values of the logits weighted by ``sqrt(n_c/N)``, of ``sqrt(lambda_H n_c) h_c`` and of
            ``sqrt(lambda_W) W``, by name; free features share the last two.
        frames: ``|G G' - U S U'| / |G G'|`` of the features, the same of the classifier, and what bounds them.
    """

    counts: Int[np.ndarray, " C"] | Float[np.ndarray, " C"]
    norms: Float[np.ndarray, " C"]
    weight_norms: Float[np.ndarray, " K"]
    divergences: Float[np.ndarray, " C"]
    entropies: Float[np.ndarray, " C"]
    spectra: dict[str, Float[np.ndarray, " values"]]
    frames: dict[str, tuple[float, float]]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What a table by count shows."""
        return {"|h|": self.norms, "KL(t|p)": self.divergences, "entropy": self.entropies}

    def to_dict(self) -> dict[str, Any]:
        """Return what fits into JSON."""
        named = {**self.columns, "count": self.counts, "|w|": self.weight_norms}
        return {name: values.tolist() for name, values in named.items()}


def measured_contexts(
    problem: Problem, weight: np.ndarray, means: np.ndarray, bias: np.ndarray | None
) -> MeasuredContexts:
    """Return what is measured of the mean features of contexts."""
    contexts = np.arange(problem.num_classes)
    logits = _logits(weight, means, bias)
    nats = -problem.loss.conjugate(np.zeros_like(logits), contexts)  # the weighted entropy
    left: Any = np.linalg.qr(means * np.sqrt(problem.priors)[:, None], mode="r")
    right: Any = np.linalg.qr(weight, mode="r")
    parts = {
        "features": means * np.sqrt(problem.feature_decays * problem.counts)[:, None],
        "classifier": weight * math.sqrt(problem.weight_decay),
        "logits": left @ right.T,
    }
    return MeasuredContexts(
        problem.counts,
        np.linalg.norm(means, axis=1),
        np.linalg.norm(weight, axis=1),
        problem.loss.value(logits, contexts) - nats,
        nats,
        {name: np.linalg.svd(part, compute_uv=False) for name, part in parts.items()},
        _frames(parts["features"], parts["classifier"]),
    )


def _frames(features: np.ndarray, classifier: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return how far Gram matrices are from what the logits call for, and what that may be per ``sqrt(2 eps)``."""
    left: Any = np.linalg.qr(features, mode="r")
    right: Any = np.linalg.qr(classifier, mode="r")
    u, sizes, v = np.linalg.svd(left @ right.T, full_matrices=False)
    found = {}
    for name, part, axes in (("features", left, u), ("classifier", right, v.T)):
        gram = part @ part.T
        norm = max(float(np.linalg.norm(gram)), np.finfo(float).tiny)
        error = float(np.linalg.norm(gram - (axes * sizes) @ axes.T))
        found[name] = (error / norm, float(np.linalg.norm(part, 2)) / norm)
    return found


def context_rows(
    problem: Problem,
    point: tuple[np.ndarray, Any, Int[np.ndarray, " rows"], np.ndarray | None],
    certificate: Certificate,
    eps: float | None,
) -> tuple[list[Row], MeasuredContexts]:
    """Return rows of a verification beyond optimality itself, and what was measured.

    Args:
        problem: the problem.
        point: weight, features, labels and bias.
        certificate: of the point.
        eps: absolute gap that tolerances follow from; None: nothing is judged.
    """
    weight, features, labels, bias = point
    means = class_means(np.asarray(features, np.float64), labels, problem.num_classes)
    measured = measured_contexts(problem, weight, means, bias)
    root, scale = None if eps is None else math.sqrt(2 * eps), math.sqrt(2 * certificate.objective)
    rows = [
        info_row(name, meaning, value) if root is None else scalar_row(name, meaning, 0.0, value, root * unit)
        for name, meaning, value, unit in _judged(problem, point, measured, scale)
    ]
    if eps is not None and problem.num_classes * problem.num_logits <= REFERENCE_SIZE:
        rows.append(_reference_row(problem, _logits(weight, means, bias), eps))
    longest = max(float(measured.norms.max()), np.finfo(float).tiny)
    distinct = np.unique(np.round(means / (COINCIDE * longest)), axis=0)
    vanished = int(np.sum(measured.norms <= COINCIDE * longest))
    excess = certificate.objective - problem.entropy
    rank = int(np.sum(measured.spectra["logits"] > COINCIDE * measured.spectra["logits"].max(initial=0.0)))
    hit = np.argmax(_logits(weight, means, bias), axis=1) == np.argmax(np.asarray(problem.targets), axis=1)
    return [
        *rows,
        info_row("excess", "the objective less the entropy of the targets, in nats", excess),
        info_row(
            "distinct features",
            f"contexts whose features differ by {COINCIDE:g} of the longest",
            len(distinct),
        ),
        info_row(
            "vanished features", f"contexts whose features are below {COINCIDE:g} of the longest", vanished
        ),
        info_row("rank of the logits", f"singular values above {COINCIDE:g} of the largest", rank),
        info_row(
            "accuracy", "samples whose most probable token is the target's", float(problem.priors @ hit)
        ),
    ], measured


def _judged(
    problem: Problem, point: tuple[Any, ...], measured: MeasuredContexts, scale: float
) -> Iterator[tuple[str, str, float, float]]:
    """Yield name, meaning, measured value and what it may be per ``sqrt(2 eps)``; 0 at the optimum."""
    weight, features, labels, _ = point
    rows_of = np.bincount(labels, minlength=problem.num_classes)
    charges = (problem.feature_decays * problem.counts / rows_of)[labels]
    columns = np.sqrt(charges @ np.asarray(features, np.float64) ** 2)
    balance = np.linalg.norm(columns - math.sqrt(problem.weight_decay) * np.linalg.norm(weight, axis=0))
    meaning = "norms of a coordinate's classifier and features, balanced, apart: relative"
    yield "balance", meaning, float(balance) / scale, 1 / scale
    _, alike = equal_rows(np.asarray(problem.targets))
    alike = alike[labels]
    totals = np.bincount(alike, weights=charges)
    centres = np.zeros((len(totals), features.shape[1]))
    np.add.at(centres, alike, charges[:, None] * features)
    spread = charges @ np.sum((features - (centres / totals[:, None])[alike]) ** 2, axis=1)
    meaning = "spread of the features of equal targets, balanced: relative"
    yield "alike contexts", meaning, math.sqrt(spread) / scale, 1 / scale
    if problem.features == "free":
        for name, (error, unit) in measured.frames.items():
            meaning = f"Gram matrix of the {name}, balanced, against what the logits call for: relative"
            yield f"Gram matrix of {name}", meaning, error, unit


def _reference_row(problem: Problem, logits: np.ndarray, eps: float) -> Row:
    """Compare probabilities with those of another solution of the problem."""
    reference = solve(problem, seed=REFERENCE_SEED)
    name, meaning = "probabilities", "distance from a solution of another start, mean square over samples"
    if not reference.certified:
        return info_row(name, meaning, None, "no reference: its gap is open")
    loss, contexts = problem.loss, np.arange(problem.num_classes)
    others = _logits(reference.weight, reference.features, reference.bias)
    # for the softmax family gradients are weight times scale times probabilities, less what does not depend on them
    parameters: Any = loss
    weights = np.broadcast_to(parameters.weights, contexts.shape)
    apart = (loss.gradient(logits, contexts) - loss.gradient(others, contexts)) / parameters.scales
    squares = np.sum(np.abs(apart), axis=1) ** 2 / weights
    theirs = max(reference.certificate.gap, 1e-13 * reference.objective)
    tolerance = math.sqrt(2 * (eps + theirs)) + math.sqrt(2 * theirs)
    return scalar_row(name, meaning, 0.0, math.sqrt(problem.priors @ squares), tolerance)


def _logits(weight: np.ndarray, means: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return means @ weight.T if bias is None else means @ weight.T + bias
