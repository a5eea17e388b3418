r"""Separability of classes against the loss: are two classes further apart than one class is wide?

**Populations.** An *intra* pair is two different samples of one class, k with probability ``a_k``; an *inter*
pair is two samples of two classes, k and m with probability ``c_km``; within classes uniformly. All pairs are
alike under ``weighting="pairs"`` (``a_k ~ n_k (n_k - 1)``, ``c_km ~ n_k n_m``: large classes dominate), all
classes under ``"classes"`` (``a_k ~ [n_k >= 2]``, ``c_km ~ 1``: minority collapse shows). The inter and the
intra pair are drawn independently, so that P(inter > intra) is a finite sum.

**Theorem.** Let ``l_i`` be the cross-entropy of sample i, L its mean over samples, ``g(l) = -log(e^l - 1)``,
``R^2 = E|x - x'|^2`` over intra pairs and ``D = max |w_k - w_m|`` over the classes present. Then

    P(inter > intra) >= E_inter [1 - R^2 |w_k - w_m|^2 / (g(l_i) + g(l_j))_+^2]_+                 (1)
                     >= convex(phi)(E_inter (l_i + l_j)/2),  phi(l) = [1 - (R D / 2 g(l)_+)^2]_+  (2)
                     >= convex(phi)(rho L),  rho = max_k e_k N/n_k >= 1,  e_k = sum_m c_km / 2    (3)

where pairs with ``g(l_i) + g(l_j) <= 0`` add nothing, convex(phi) is the greatest convex function below phi,
and ``e_k`` is the frequency of class k in inter pairs (``rho = 1`` for balanced counts).

*Proof.* (a) With ``z = W x + b``, ``e^{l_i} - 1 = sum_{r != k} exp(z_ir - z_ik) >= exp(z_im - z_ik)``, so
``g(l_i) <= z_ik - z_im`` and ``g(l_j) <= z_jm - z_jk``. The biases cancel in the sum: ``g(l_i) + g(l_j) <=
<w_k - w_m, x_i - x_j> <= |w_k - w_m| |x_i - x_j|``. (b) An intra pair reaches a length ``s > 0`` with
probability at most ``R^2/s^2`` (Markov); for s take, given the inter pair, its least length by (a): (1).
(c) g falls and is convex: ``g(l_i) + g(l_j) >= 2 g((l_i + l_j)/2)``; Jensen gives (2). (d) convex(phi) falls,
and ``E_inter (l_i + l_j)/2 = sum_k e_k L_k <= rho sum_k (n_k/N) L_k = rho L``, ``L_k`` class means: (3). []

No threshold is left to choose: (1) is at least ``P(least length > t) (1 - R^2/t^2)`` for every t; (2) is the
best that (a)-(c) and a mean loss allow. Without rho (3) is false: a mean over samples hides a rare class.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.arrays import float_array, label_array
from ufm.inputs.checks import InputError, nonnegative_integer, one_of, positive_integer

Weighting = Literal["pairs", "classes"]
_Array: TypeAlias = np.ndarray
_Pairs: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # first sample, second sample, probability
CONFIDENCE = 0.95
_MARGIN = 1e-12  # bounds are lowered by it: more than their rounding, given the log-odds
_LARGEST = 1e60  # larger entries are refused: squared distances behind a positive bound must fit float64
_GROUPS = 4096  # beyond this many samples bound (1) groups samples of similar loss


@dataclasses.dataclass(frozen=True)
class SquaredNorms:
    """Law of ``|C W (x_i - x_j)|^2`` over pairs, and the gamma law of equal moments (if any)."""

    mean: float
    variance: float
    gamma: tuple[float, float] | None  # shape mean^2 / variance, scale variance / mean
    percentiles: tuple[float, ...] = dataclasses.field(repr=False)  # at 0, 1, ..., 100 per cent


@dataclasses.dataclass(frozen=True)
class Separability:
    """What `separability` returns, in the terms of the theorem in `ufm.metrics.separability`.

    Attributes:
        probability: ``P(inter > intra)``, strictly.
        interval: Clopper-Pearson interval at `CONFIDENCE`; a point if all pairs were compared.
        draws: number of couples drawn; None if all pairs were compared.
        weighting: whether pairs or classes count alike.
        profile_bound: (1), from every loss; all three bound the exact probability, sampled or not.
        class_bound: (2), from the mean loss of every class.
        mean_bound: (3), from the mean loss alone.
        mean_loss: ``L`` in nats.
        pair_loss: ``E_inter (l_i + l_j)/2`` in nats.
        intra_rms: ``R``, in the unit of the features.
        classifier_distance: ``D``.
        intra: law of ``|C W (x_i - x_j)|^2`` (nats squared) over pairs of one class.
        inter: the same over pairs of two classes.

    Source: the module docstring, with proofs.

    Example:
        >>> found = separability(np.eye(2).repeat(2, axis=0), [0, 0, 1, 1], 3 * np.eye(2))
        >>> found.probability, found.intra_rms, found.mean_bound <= found.probability
        (1.0, 0.0, True)
    """

    probability: float
    interval: tuple[float, float]
    draws: int | None
    weighting: Weighting
    profile_bound: float
    class_bound: float
    mean_bound: float
    mean_loss: float
    pair_loss: float
    intra_rms: float
    classifier_distance: float
    intra: SquaredNorms
    inter: SquaredNorms

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, tuples and dictionaries, fit for JSON."""
        return dataclasses.asdict(self)


def separability(
    features: Float[np.ndarray, "N d"] | Any,
    labels: Int[np.ndarray, " N"] | Any,
    weight: Float[np.ndarray, "K d"] | Any,
    bias: Float[np.ndarray, " K"] | Any | None = None,
    *,
    weighting: Weighting | Any = "pairs",
    pairs: int | Any = 1_000_000,
    seed: int | Any = 0,
) -> Separability:
    """Measure P(inter-class distance > intra-class distance) of features and bound it by the cross-entropy.

    Args:
        features: last-layer features ``x_i``, one row per sample (NumPy, JAX or torch).
        labels: classes in ``0..K-1``; a class may be absent or have one sample.
        weight: classifier rows ``w_k``.
        bias: ``b_k``, if there is one.
        weighting: ``"pairs"`` (all pairs alike) or ``"classes"`` (all classes alike).
        pairs: compare all pairs, in ``O(M log M)``, if they are at most this many; else draw so many couples.
        seed: of the draws.

    Raises:
        InputError: for shapes that do not fit, entries not finite or above 1e60, labels without both pairs.

    Returns:
        A `Separability`: the probability, its interval, and three lower bounds.

    Source: the question is that of Das and Chaudhuri (arXiv:1909.06930); the bounds are derived here.

    Example:
        >>> x = np.array([[5.0, 0.0], [5.5, 0.0], [0.0, 5.0], [0.0, 5.5]])
        >>> found = separability(x, np.array([0, 0, 1, 1]), np.array([[1.0, -1.0], [-1.0, 1.0]]))
        >>> found.probability, 0.9 < found.mean_bound <= found.class_bound <= found.profile_bound <= 1
        (1.0, True)
    """
    x, y, w, b = _checked(features, labels, weight, bias)
    seed = nonnegative_integer("seed", seed)
    odds, view = _safe_log_odds(x, y, w, b), centred(x @ w.T)
    present, y = np.unique(y, return_inverse=True)
    one_of("weighting", weighting, ("pairs", "classes"))
    a, c = _class_probabilities(np.bincount(y), weighting)
    draws = None if len(y) * (len(y) - 1) // 2 <= positive_integer("pairs", pairs) else pairs
    intra, inter = _all_pairs(y, a, c) if draws is None else _drawn_pairs(y, a, c, draws, seed)
    short, long = _squared_distances(x, intra), _squared_distances(x, inter)
    if draws is None:
        probability = _exceedance(long, inter[2], short, intra[2])
        interval = (probability, probability)
    else:
        from scipy.stats import binomtest  # which takes half a second to import

        drawn = binomtest(int(np.count_nonzero(long > short)), draws)
        probability, interval = float(drawn.statistic), tuple(drawn.proportion_ci(CONFIDENCE, "exact"))
    norms: dict[str, Any] = {"intra": _describe(view, intra), "inter": _describe(view, inter)}
    theorem = _theorem(x, y, w[present], odds, a, c)
    return Separability(probability, interval, draws, weighting, **theorem, **norms)


def centred(scores: Float[Any, "N K"]) -> Float[Any, "N K"]:
    """Return rows ``C s_i``, ``C = I - 11'/K``; of logits ``W x_i`` and ``log p_i`` equal up to a constant.

    ``log p_i = W x_i + b - c_i 1`` with a scalar ``c_i`` and ``C 1 = 0``, so exactly, whatever the bias,
    ``C W (x_i - x_j) = C (log p_i - log p_j)``.
    """
    return scores - scores.mean(-1, keepdims=True)


def mean_loss_bound(pair_loss: float, intra_rms: float, classifier_distance: float) -> float:
    """Return ``convex(phi)(l)`` of (2): from three numbers a lower bound on P(inter > intra).

    With ``r = R D / 2``, ``phi = 1 - (r / g(l))^2`` is convex while ``g / (1 + e^-g) >= 3``, then concave,
    then 0 from ``l_0 = log(1 + e^-r)`` on. So convex(phi) is phi up to the tangent through ``(l_0, 0)``, then
    that tangent; bisection over g finds the point of contact.
    """
    # A larger r or loss only lowers the bound; these floors keep e^g inside float64.
    r, loss = max(intra_rms * classifier_distance / 2, 1e-100), max(pair_loss, 1e-300)
    end = math.log1p(math.exp(-r))
    if not loss < end:
        return 0.0
    low, contact = r, 700.0
    for _ in range(100):
        g = (low + contact) / 2
        steepness = 2 * (r / g) ** 2 / g * (1 + math.exp(g))
        above = 1 - (r / g) ** 2 > steepness * (end - math.log1p(math.exp(-g)))
        low, contact = (g, contact) if above else (low, g)
    odds = -loss - math.log(-math.expm1(-loss))  # g(loss), whatever the size of the loss
    remainder = (end - loss) / max(end - math.log1p(math.exp(-contact)), 1e-300)
    return max((1 - (r / max(odds, contact)) ** 2) * min(remainder, 1.0) - _MARGIN, 0.0)


def _theorem(x: _Array, y: _Array, w: _Array, odds: _Array, a: _Array, c: _Array) -> dict[str, Any]:
    """Every number of the theorem but the probability."""
    counts, ends = np.bincount(y), c.sum(axis=1) / 2
    rows = np.split(np.argsort(y, kind="stable"), np.cumsum(counts)[:-1])
    losses = np.maximum(np.logaddexp(0.0, -odds), 1e-300)
    mean_loss, pair_loss = float(losses.mean()), float(ends @ [losses[own].mean() for own in rows])
    spreads = [2 * np.sum((x[own] - x[own].mean(axis=0)) ** 2) for own in rows]
    rms = math.sqrt(a @ (spreads / np.maximum(counts - 1, 1)))
    gaps = np.sqrt([np.sum((w - row) ** 2, axis=1) for row in w])
    widest, rho = float(gaps.max()), float(np.max(ends * len(y) / counts))
    return {
        "profile_bound": _profile_bound([odds[own] for own in rows], rms * gaps, c),
        "class_bound": mean_loss_bound(pair_loss, rms, widest),
        "mean_bound": mean_loss_bound(rho * mean_loss, rms, widest),
        "mean_loss": mean_loss,
        "pair_loss": pair_loss,
        "intra_rms": rms,
        "classifier_distance": widest,
    }


def _safe_log_odds(x: _Array, y: _Array, w: _Array, b: _Array) -> _Array:
    """Log-odds of every label, straight from the logits and lowered by a bound on the rounding in them."""
    logits, own = x @ w.T + b, (np.arange(len(y)), y)
    odds = logits[own]
    logits[own] = -np.inf
    odds -= np.logaddexp.reduce(logits, axis=1)
    scale = 1 + np.linalg.norm(x, axis=1) * np.linalg.norm(w, axis=1).max() + np.abs(b).max()
    return odds - 4 * (sum(w.shape) + 16) * np.finfo(np.float64).eps * scale


def _profile_bound(odds: list[_Array], reach: _Array, c: _Array) -> float:
    """Bound (1), ``reach = R |w_k - w_m|``; similar log-odds are grouped and count as the lowest: a bound."""
    groups = _GROUPS if sum(map(len, odds)) <= _GROUPS else max(1, _GROUPS // len(odds))
    edges = [np.linspace(0, len(g), min(len(g), groups) + 1).astype(np.int64) for g in odds]
    values = [np.sort(g)[edge[:-1]] for g, edge in zip(odds, edges, strict=True)]
    shares = [np.diff(edge) / edge[-1] for edge in edges]
    bound = 0.0
    for k in range(len(odds) - 1):
        owners = np.repeat(np.arange(k + 1, len(odds)), [len(g) for g in values[k + 1 :]])
        sums = values[k][:, None] + np.concatenate(values[k + 1 :])
        ratio = np.divide(reach[k, owners], sums, out=np.ones_like(sums), where=sums > 0)
        inner = (1 - np.minimum(ratio, 1) ** 2) @ (np.concatenate(shares[k + 1 :]) * c[k, owners])
        bound += float(shares[k] @ inner)
    return max(bound - _MARGIN, 0.0)


def _class_probabilities(counts: _Array, weighting: str) -> tuple[_Array, _Array]:
    """``a_k``, and ``c_km`` as a symmetric matrix with zero diagonal (its entries sum to two)."""
    sizes = counts.astype(np.float64) if weighting == "pairs" else np.ones(len(counts))
    couples = np.outer(sizes, sizes) * (1 - np.eye(len(counts)))
    inside = sizes * (counts - 1.0) if weighting == "pairs" else (counts > 1) * 1.0
    return inside / inside.sum(), 2 * couples / couples.sum()


def _all_pairs(y: _Array, a: _Array, c: _Array) -> tuple[_Pairs, ...]:
    counts, (i, j) = np.bincount(y), np.triu_indices(len(y), 1)
    same, ways = y[i] == y[j], counts[y[i]] * (counts[y[j]] - (y[i] == y[j]))
    probability = np.where(same, 2 * a[y[i]], c[y[i], y[j]]) / ways
    return tuple((i[side], j[side], probability[side]) for side in (same, ~same))


def _drawn_pairs(y: _Array, a: _Array, c: _Array, draws: int, seed: int) -> tuple[_Pairs, ...]:
    rng, counts, order = np.random.default_rng(seed), np.bincount(y), np.argsort(y, kind="stable")
    starts, equal = np.cumsum(counts) - counts, np.full(draws, 1 / draws)
    k = rng.choice(len(counts), draws, p=a)
    i = rng.integers(counts[k])
    j = (i + 1 + rng.integers(counts[k] - 1)) % counts[k]
    couple = np.divmod(rng.choice(c.size, draws, p=c.ravel() / 2), len(counts))
    first, second = (order[starts[m] + rng.integers(counts[m])] for m in couple)
    return (order[starts[k] + i], order[starts[k] + j], equal), (first, second, equal)


def _squared_distances(points: _Array, pairs: _Pairs) -> _Array:
    """Squared lengths of the differences themselves: nothing is lost when classes have collapsed."""
    lengths = np.empty(len(pairs[0]))
    step = max(1, 2**20 // points.shape[1])
    for start in range(0, len(lengths), step):
        part = slice(start, start + step)
        lengths[part] = np.sum((points[pairs[0][part]] - points[pairs[1][part]]) ** 2, axis=1)
    return lengths


def _exceedance(inter: _Array, inter_weights: _Array, intra: _Array, intra_weights: _Array) -> float:
    """P(inter > intra) by sorting; intra probabilities are accumulated as integers, hence without drift."""
    order = np.argsort(intra)
    below = np.cumsum(np.rint(intra_weights[order] / intra_weights.sum() * 2.0**60).astype(np.int64))
    shares = np.append(0, below)[np.searchsorted(intra[order], inter, side="left")] / below[-1]
    return float(np.sum(shares * inter_weights) / np.sum(inter_weights))


def _describe(view: _Array, pairs: _Pairs) -> SquaredNorms:
    values, weights = _squared_distances(view, pairs), pairs[2] / pairs[2].sum()
    order, mean = np.argsort(values), float(weights @ values)
    where = np.searchsorted(np.cumsum(weights[order]), np.linspace(0, 1, 101))
    percentiles = tuple(values[order][np.minimum(where, len(values) - 1)].tolist())
    relative = float(weights @ (values / mean - 1) ** 2) if mean > 0 else 0.0
    gamma = (1 / relative, mean * relative) if relative > 0 else None
    return SquaredNorms(mean, relative * mean**2, gamma, percentiles)


def _checked(features: Any, labels: Any, weight: Any, bias: Any) -> tuple[_Array, ...]:
    """The arguments, torch tensors included, as NumPy arrays that fit together."""
    x, w = (float_array(n, v, 2, largest=_LARGEST) for n, v in (("features", features), ("weight", weight)))
    b = np.zeros(len(w)) if bias is None else float_array("bias", bias, 1, largest=_LARGEST)
    if not x.size or (b.shape, w.shape[1:]) != (w.shape[:1], x.shape[1:]):
        shapes = f"{x.shape}, {w.shape}, {b.shape}"
        raise InputError(
            f"features (N, d), weight (K, d) and bias (K,) must fit and not be empty, got {shapes}"
        )
    y = label_array(labels, len(w), len(x))
    if not 1 < len(np.unique(y)) < len(y):
        raise InputError(f"labels must name two classes or more, one of them twice, got {y}")
    return x, y, w, b
