r"""The supervised contrastive loss with non-negative features: an orthogonal frame at any imbalance.

Over samples i whose class has another member, summed,

    ``L(H) = sum_i (1/(n_y - 1)) sum_{j != i, y_j = y_i} log sum_{a != i} exp((<h_i, h_a> - <h_i, h_j>)/t)``

subject to ``h_i >= 0`` and ``|h_i| <= r``. A class of one sample has no positive pair: it only repels.

Bound. Let m be the mean of ``<h_i, h_j>/t`` over the positive pairs of i, at most ``r^2/t``. By Jensen they
contribute at least ``n_y - 1`` to ``sum_a exp(<h_i, h_a>/t - m)``, and each other sample at least ``exp(-m)``, hence

    ``L >= sum_{k: n_k >= 2} n_k log(n_k - 1 + (N - n_k) exp(-r^2/t))``,

with equality iff each of these classes is one point of norm r, orthogonal to every other sample.

In batches the loss is the sum over batches of the loss of their samples, and so is the bound, with the counts of
every batch. The frame still attains it. What batching loses is that nothing else does: samples of a class are one
point only if batches tie them together (two of a chain in one batch), and classes are orthogonal only if they meet in
a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ufm.duality.polar import ROUNDING
from ufm.inputs.checks import (
    InputError,
    class_counts,
    fits_memory,
    gap_tolerance,
    nonnegative_integer,
    positive_float,
    positive_integer,
    to_numpy,
)
from ufm.metrics import cosines, measure, nc1
from ufm.solvers.status import Status

#: Largest ``r^2/t``: beyond it exponentials of similarities overflow.
LARGEST_SIMILARITY = 700.0


@dataclasses.dataclass(frozen=True, eq=False)
class ContrastivePrediction:
    """The optimum that the bound predicts.

    Attributes:
        objective: the bound on the loss summed over samples, in nats.
        attained: whether ``dim`` has room for an orthogonal frame, so that the bound is the optimal value.
        norms: norm of every class mean; classes of one sample are not determined (NaN).
        whole: classes whose samples must be one point; others may split where batches do not tie them together.
        apart: pairs of classes that must be orthogonal, as they meet in a batch.
    """

    objective: float
    attained: bool
    norms: Float[np.ndarray, " K"]
    whole: Bool[np.ndarray, " K"]
    apart: Bool[np.ndarray, "K K"]

    @property
    def determined(self) -> bool:
        """Whether only frames attain the bound: every class is whole, and every two of several samples meet."""
        several = ~np.isnan(self.norms)
        pairs = self.apart | np.eye(len(several), dtype=bool)
        return bool(np.all(self.whole[several]) and np.all(pairs[np.ix_(several, several)]))


@dataclasses.dataclass(frozen=True, eq=False)
class ContrastiveSolution:
    """A point and the bound that certifies it.

    Attributes:
        model: the model.
        features: ``H``, samples in the order of their classes.
        objective: the loss, summed over samples, in nats.
        lower_bound: what no feasible point is below.
        status: why the solver stopped.
        steps: number of steps taken.
    """

    model: SupervisedContrastive
    features: Float[np.ndarray, "rows d"]
    objective: float
    lower_bound: float
    status: Status
    steps: int

    @property
    def relative_gap(self) -> float:
        """``(L - bound)/bound``; where the bound is 0, ``L``."""
        return (self.objective - self.lower_bound) / (self.lower_bound or 1.0)

    @property
    def certified(self) -> bool:
        """Whether the bound proves that this is the global optimum to the tolerance asked for."""
        return self.status is Status.CERTIFIED

    @property
    def nc1(self) -> float:
        """NC1 of the classes with a positive pair."""
        several = self.model.counts >= 2
        rows = several[self.model.labels]
        labels = np.unique(self.model.labels[rows], return_inverse=True)[1]
        return nc1(measure(self.features[rows], labels))

    @property
    def largest_cosine(self) -> float:
        """The largest cosine between class means, pairs of classes of one sample left out: 0 in the frame."""
        counts = self.model.counts
        means = np.add.reduceat(self.features, np.cumsum(counts) - counts) / counts[:, None]
        pairs = np.triu((counts >= 2)[:, None] | (counts >= 2), 1)
        return float(cosines(means)[pairs].max())


@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedContrastive:
    """The supervised contrastive loss of unconstrained non-negative features in a ball.

    Args:
        counts: samples per class, whole numbers, at least one of them 2 or more.
        dim: feature dimension ``d``.
        temperature: ``t``, in units of ``radius^2``'s; ``radius^2/t`` is at most 700.
        radius: ``r``, the largest norm of a feature.
        batches: the samples of every batch, by their numbers in class order; a sample may be in several. None: all
            samples together.

    Raises:
        InputError: naming the argument, its value and the requirement.

    Source: Kini, Vakilian, Behnia, Gill, Thrampoulidis, 2023 (arXiv:2306.07960).

    Example:
        >>> prediction = SupervisedContrastive([20, 2], dim=4, temperature=0.5).predict()
        >>> prediction.attained, round(prediction.objective, 6)
        (True, 61.791973)
    """

    counts: Int[np.ndarray, " K"] | Any
    dim: int | Any
    temperature: float | Any
    radius: float | Any = 1.0
    batches: Sequence[Any] | Any | None = None

    def __post_init__(self) -> None:
        """Normalise and check every field."""
        counts = class_counts(self.counts)
        if counts.dtype.kind == "f" or counts.max() < 2:
            raise InputError(
                f"counts must be whole with one of at least 2 (a positive pair), got {self.counts}"
            )
        fields = {
            "counts": counts,
            "dim": positive_integer("dim", self.dim),
            "temperature": positive_float("temperature", self.temperature),
            "radius": positive_float("radius", self.radius),
            "batches": None if self.batches is None else _batches(self.batches, int(counts.sum())),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not self.radius**2 / self.temperature <= LARGEST_SIMILARITY:
            raise InputError(
                f"temperature must be at least radius^2/{LARGEST_SIMILARITY:g}, got {self.temperature:g}"
            )

    @property
    def labels(self) -> Int[np.ndarray, " rows"]:
        """Class of every sample."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def batch_rows(self) -> tuple[Int[np.ndarray, " rows"], ...]:
        """The samples of every batch; one of all where there are none."""
        return (np.arange(self.counts.sum()),) if self.batches is None else tuple(self.batches)

    def predict(self) -> ContrastivePrediction:
        """Return the bound, and what the points that attain it have in common."""
        K, bound, links, meet = len(self.counts), 0.0, [], np.zeros((len(self.counts),) * 2, dtype=bool)
        for rows in self.batch_rows:
            labels = self.labels[rows]
            cells = np.bincount(labels, minlength=K)
            n = cells[cells >= 2]
            crowd = (len(rows) - n) * np.exp(-(self.radius**2) / self.temperature)
            bound += float(n @ (np.log(n - 1) + np.log1p(crowd / (n - 1))))
            meet |= np.outer(cells >= 2, cells > 0) | np.outer(cells > 0, cells >= 2)
            first = rows[np.unique(labels, return_index=True)[1]]
            links.append(np.stack([rows, first[np.searchsorted(np.unique(labels), labels)]]))
        several = self.counts >= 2
        ends = np.concatenate(links, axis=1)
        graph = coo_matrix((np.ones(ends.shape[1]), tuple(ends)), shape=(len(self.labels),) * 2)
        parts = connected_components(graph, directed=False)[1]
        whole = np.array([len(np.unique(parts[self.labels == k])) == 1 for k in range(K)])
        norms = np.where(several, self.radius, np.nan)
        return ContrastivePrediction(
            bound, bool(self.dim >= several.sum()), norms, whole, meet & ~np.eye(K, dtype=bool)
        )

    def solve(self, seed: int = 0, *, tol: float = 1e-8, max_steps: int = 20_000) -> ContrastiveSolution:
        """Descend by projected gradients from random features, and compare with the bound.

        Args:
            seed: of the random start.
            tol: relative gap to certify, below 1.
            max_steps: step limit.

        Raises:
            InputError: naming the argument, its value and the requirement.

        Example:
            >>> solution = SupervisedContrastive([6, 2, 2], dim=4, temperature=0.5).solve()
            >>> solution.certified, solution.largest_cosine < 1e-3
            (True, True)
        """
        from ufm.models.contrastive_descent import Descent  # `predict` needs no JAX

        tol, max_steps = gap_tolerance("tol", tol), positive_integer("max_steps", max_steps)
        seed, samples = nonnegative_integer("seed", seed), int(self.counts.sum())
        fits_memory(f"similarities of {samples:,} samples", samples * (samples + self.dim), "take fewer")
        bound, descent = self.predict().objective, Descent(self)
        best, features = np.inf, descent.start(seed)
        steps, status = 0, Status.MAX_STEPS
        while steps < max_steps:
            features, value, taken = descent.run(features)
            steps += taken
            if not np.isfinite(value):
                status = Status.NONFINITE
                break
            if -ROUNDING * len(features) <= (value - bound) / (bound or 1.0) <= tol:
                status = Status.CERTIFIED
                break
            if not value < best * (1 - tol / 10):
                status = Status.STALLED
                break
            best, features = value, descent.moved(features, value)
        return ContrastiveSolution(self, features, value, bound, status, steps)


def _batches(given: Any, num_samples: int) -> tuple[Int[np.ndarray, " rows"], ...]:
    """Return every batch as distinct numbers of samples."""
    found = tuple(np.unique(to_numpy("batches", batch)) for batch in given)
    for batch in found:
        if batch.dtype.kind not in "iu" or not len(batch) or batch[0] < 0 or batch[-1] >= num_samples:
            raise InputError(f"batches must hold numbers of samples from 0 to {num_samples - 1}, got {batch}")
    if not found:
        raise InputError("batches must be at least one, or None for all samples together, got none")
    return found
