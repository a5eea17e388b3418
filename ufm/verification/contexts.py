"""Verification with soft targets: what a duality gap says of contexts, which have no label to be right about.

For a point with gap ``eps``: the objective less its optimum is at most eps, so none of the things that would lower it
by a known amount may be worth more. Balancing a coordinate (``w^j`` times a, ``h^j`` over a) saves
``(|v^j| - |g^j|)^2 / 2``, in balanced coordinates; giving rows of one target their mean feature saves what their
spread is charged (Jensen).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.duality.certificate import Certificate
from ufm.losses.softmax import softmax
from ufm.model.problem import Problem
from ufm.targets import merged
from ufm.verification.checks import info_row, scalar_row
from ufm.verification.report import Row

#: Features closer than this share of the longest count as the same.
COINCIDE = 1e-3


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
        gram_features: (C, C), ``<h_c, h_d>``, of the first few hundred contexts.
    """

    counts: Int[np.ndarray, " C"] | Float[np.ndarray, " C"]
    norms: Float[np.ndarray, " C"]
    weight_norms: Float[np.ndarray, " K"]
    divergences: Float[np.ndarray, " C"]
    entropies: Float[np.ndarray, " C"]
    spectra: dict[str, Float[np.ndarray, " values"]]
    gram_features: Float[np.ndarray, "some some"]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What a table by count shows."""
        return {"|h|": self.norms, "KL(t|p)": self.divergences, "entropy": self.entropies}

    def to_dict(self) -> dict[str, Any]:
        """Return what fits into JSON."""
        named = {**self.columns, "count": self.counts, "|w|": self.weight_norms}
        return {name: values.tolist() for name, values in named.items()}


def context_means(problem: Problem, features: Any, labels: Int[np.ndarray, " rows"]) -> np.ndarray:
    """Return the mean feature of every context."""
    rows = np.bincount(labels, minlength=problem.num_classes)
    sums = np.zeros((problem.num_classes, np.shape(features)[1]))
    np.add.at(sums, labels, np.asarray(features, np.float64))
    return sums / rows[:, None]


def measured_contexts(
    problem: Problem, weight: np.ndarray, means: np.ndarray, bias: np.ndarray | None
) -> MeasuredContexts:
    """Return what is measured of the mean features of contexts."""
    contexts = np.arange(problem.num_classes)
    logits = means @ weight.T if bias is None else means @ weight.T + bias
    nats = -problem.loss.conjugate(np.zeros_like(logits), contexts)  # the weighted entropy
    left: Any = np.linalg.qr(means * np.sqrt(problem.priors)[:, None], mode="r")
    right: Any = np.linalg.qr(weight, mode="r")
    parts = {
        "features": means * np.sqrt(problem.feature_decays * problem.counts)[:, None],
        "classifier": weight * math.sqrt(problem.weight_decay),
        "logits": left @ right.T,
    }
    few = means[:200]
    return MeasuredContexts(
        problem.counts,
        np.linalg.norm(means, axis=1),
        np.linalg.norm(weight, axis=1),
        problem.loss.value(logits, contexts) - nats,
        nats,
        {name: np.linalg.svd(part, compute_uv=False) for name, part in parts.items()},
        few @ few.T,
    )


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
    means = context_means(problem, features, labels)
    measured = measured_contexts(problem, weight, means, bias)
    scale = math.sqrt(2 * certificate.objective)
    rows_of = np.bincount(labels, minlength=problem.num_classes)
    charges = (problem.feature_decays * problem.counts / rows_of)[labels]
    columns = np.sqrt(charges @ np.asarray(features, np.float64) ** 2)
    balance = np.linalg.norm(columns - math.sqrt(problem.weight_decay) * np.linalg.norm(weight, axis=0))
    alike = merged(np.ones(problem.num_classes, np.int64), problem.targets).of[labels]
    totals = np.bincount(alike, weights=charges)
    centres = np.zeros((len(totals), means.shape[1]))
    np.add.at(centres, alike, charges[:, None] * features)
    spread = charges @ np.sum((features - (centres / totals[:, None])[alike]) ** 2, axis=1)
    judged: list[tuple[str, str, float]] = [
        (
            "balance",
            "norms of a coordinate's classifier and features, balanced, apart: relative",
            float(balance),
        ),
        ("alike contexts", "spread of the features of equal targets, balanced: relative", math.sqrt(spread)),
    ]
    tolerance = None if eps is None else math.sqrt(2 * eps) / scale
    rows = [
        info_row(name, meaning, value / scale)
        if tolerance is None
        else scalar_row(name, meaning, 0.0, value / scale, tolerance)
        for name, meaning, value in judged
    ]
    longest = max(float(measured.norms.max()), np.finfo(float).tiny)
    distinct = np.unique(np.round(means / (COINCIDE * longest)), axis=0)
    vanished = int(np.sum(measured.norms <= COINCIDE * longest))
    excess = certificate.objective - problem.entropy
    rank = int(np.sum(measured.spectra["logits"] > COINCIDE * measured.spectra["logits"].max(initial=0.0)))
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
            "accuracy",
            "samples whose most probable token is the target's",
            _accuracy(problem, weight, means, bias),
        ),
    ], measured


def _accuracy(problem: Problem, weight: np.ndarray, means: np.ndarray, bias: np.ndarray | None) -> float:
    logits = means @ weight.T if bias is None else means @ weight.T + bias
    hit = np.argmax(softmax(logits), axis=1) == np.argmax(np.asarray(problem.targets), axis=1)
    return float(problem.priors @ hit)
