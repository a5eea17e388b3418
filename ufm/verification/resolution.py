r"""What a duality gap pins down: rigorous intervals for margins, norms, angles and Gram matrices.

Let ``P - P* <= eps``, let Q be the dual optimum (the loss gradients at the predicted logits), and use balanced
coordinates: ``V = sqrt(lambda_W) W``, ``G_k = sqrt(lambda_H n_k) mu_k``, ``A_k = -sqrt(n_k) Q_k / (N l)`` with
``l = sqrt(lambda_W lambda_H)``. Inserting Q into Fenchel-Young on every sample and completing squares gives

    ``P - P* = sum_i FY_i / N + |V - A'G|^2/2 + (|G|^2 - |A'G|^2)/2 + (N lambda_H/2) tr Sigma_W``      (1)

(and ``lambda_b/2 |b - b*|^2`` with a bias). No term is negative: hence each is at most eps. Here
``FY_i = loss(z_i) + loss*(Q_y) - <Q_y, z_i>`` is ``c_y KL(p*_y || p_i)`` for the softmax family and
``|z_i - z*_y|^2 / 2`` for MSE.

* Margins. ``KL(p*_k || p_k) <= kappa_k = eps N / (n_k c_k)`` for the class average p_k too (Jensen), and for
  the two-point distributions (off target, on target): an interval of off-target probabilities, hence of
  margins.
* Logits. With Hessian H at ``z*`` and generalised self-concordance of log-sum-exp (Bach 2010, Proposition 1),
  ``KL >= (u'Hu) psi(t)/t^2`` for ``u = z - z*``, ``t = sqrt(2) |u|``, ``psi(t) = exp(-t) + t - 1``; and
  ``u'Hu >= min_j p*_j |u|^2`` for centred u. Along a centred direction a, ``(a'u)^2 <= (u'Hu) sum_j
  a_j^2/p*_j``.
* Features. If ``|A|_2 <= 1`` then also ``|G - A V|^2 <= 2 eps`` and ``G G' = A X' + ...`` with ``X = G V'``
  the scaled logits. Otherwise (non-negative features) there is a multiplier ``S >= 0`` with ``B = A A' + S <= 1``
  (`ufm.duality.copositive`), and (1) splits: ``sum_{k != l} S_kl <g_k, g_l> <= 2 eps``, so that angles are pinned by
  the gap itself, not its square root, and ``|(1 - B)^{1/2} G|^2 <= 2 eps``, so that ``G = A V + S G + ...``. Where no
  off-diagonal of ``A A'`` is positive, as in the theorems, S is its negative part and B is diagonal.
* Classifier. ``V V' = X'A + V(V - A'G)'``. Bias: `ufm.verification.bias_bound`.
* Collapse. A living class is resolved if its margin interval and the one around 0 are disjoint; a collapsed
  one if its dual slack ``1 - |A_k|`` exceeds what eps can move it by.

Of all this only the dual point Q has to be feasible, with ``P - D(Q)`` in the place of ``P - P*``. So it holds for a
prediction that was solved, with the point of its bound for Q, and around the same centre for the prediction itself,
with its own gap delta: measured and predicted are apart by no more than what ``(sqrt(eps + delta) + sqrt(delta))^2``
allows.

None of this depends on the measured point except through eps, so a point that meets the gap can only fail a
row if the prediction (or the code) is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm import metrics
from ufm.duality.copositive import TOGETHER
from ufm.losses.pinned import Pinned
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction
from ufm.verification.bias_bound import OPEN, free_mean_bound, unshared_bound
from ufm.verification.propagation import (
    FLOOR,
    bound_of_cosine,
    bound_of_direction,
    bound_of_root,
    largest_root,
)
from ufm.verification.representatives import Representatives
from ufm.verification.tolerances import Tolerances, dual_matrix

#: Slack for rounding in conditions that hold exactly at the optimum.
ROUNDING = 1e-9
#: Passes over the inequalities between angles.
PASSES = 30


def gap_tolerances(
    prediction: Prediction, gap: float, classes: Representatives | None = None
) -> Tolerances | None:
    """Return what every point with ``P - P* <= gap`` must satisfy; see the module docstring for the proof.

    None if the loss does not say what a divergence pins down (`ufm.losses.Loss.pinned`).

    Args:
        prediction: the global optimum.
        gap: ``eps``, absolute.
        classes: which classes are alike, if that is known.
    """
    problem = prediction.problem
    classes = Representatives.of_all(problem.num_classes) if classes is None else classes
    gap = (math.sqrt(gap + prediction.gap) + math.sqrt(prediction.gap)) ** 2
    kappa, rows = divergences(problem, gap), classes.first
    pinned = problem.loss.pinned(prediction.rows("logits", rows), rows, kappa[rows])
    if pinned is None:
        return None
    wider = 1.0 if prediction.relative_gap is None else 4.0  # a solved margin is itself not quite zero
    zero_margins = problem.loss.zero_margins(wider * kappa)
    if problem.classifier is not None:
        return fixed_tolerances(prediction, gap, classes, pinned, zero_margins)
    return _Resolution(prediction, gap, classes, pinned, zero_margins).tolerances()


def zero_margin_bounds(problem: Problem, gap: float) -> Float[np.ndarray, " K"] | None:
    """Return the largest margin per class that a gap cannot tell from 0; None if a zero margin says nothing."""
    return problem.loss.zero_margins(divergences(problem, gap))


def divergences(problem: Problem, gap: float) -> Float[np.ndarray, " K"]:
    """The largest divergence from the optimum, in units of the loss, that class k can have."""
    return gap * problem.num_samples / problem.counts


class _Resolution:
    """The chain of bounds of the module docstring, in its notation; every attribute is an upper bound.

    Matrices have one row per group of classes that are alike, vectors one entry per class.
    """

    def __init__(
        self,
        prediction: Prediction,
        gap: float,
        classes: Representatives,
        pinned: Pinned,
        zero_margins: np.ndarray | None,
    ) -> None:
        self.prediction, self.problem, self.eps = prediction, prediction.problem, gap
        self.classes, self.rows = classes, classes.first
        self.K = self.problem.num_classes
        self.A = dual_matrix(prediction, classes)
        self.lengths = classes.of_classes(np.linalg.norm(self.A, axis=1))
        self.cross = classes.product(self.A, classes.transpose(self.A))
        self.norm_A = math.sqrt(classes.largest_eigenvalue(self.cross))
        self.spectral = self.problem.features == "free" or self.norm_A <= 1 + ROUNDING
        self.solved = prediction.relative_gap is not None
        self.bend = 0.0
        if self.shared:
            self._find_multiplier()
        self.root = math.sqrt(2 * self.eps)  # |V - A'G|
        self.units = self.problem.nuclear_weights * np.sqrt(self.problem.counts)  # X_k = units_k (z_k - b)
        self.pinned, self.zero_margins = pinned, zero_margins
        self.radius = classes.of_classes(pinned.radius)
        self._bound_logits()
        self.bias = self._bound_bias()
        self._bound_features()
        self._bound_classifier()

    @property
    def shared(self) -> bool:
        """Whether the multiplier is not simply the negative part of ``A A'``, as in the theorems."""
        return self.solved and not self.spectral

    def _find_multiplier(self) -> None:
        """``S``, ``bend = |1 - B|``, and what B exceeds 1 by as part of the gap (``|G|^2 <= 2 P``)."""
        charge = self.problem.counts * self.problem.feature_decays
        gram = self.prediction.rows("gram_features", self.rows) * np.sqrt(self._outer(charge, charge))
        self.S = self.classes.sharing_multiplier(self.cross, gram)
        low, high = self.classes.extreme_eigenvalues(self.cross + self.S)
        self.bend = 1 - low
        self.eps += max(high - 1, 0.0) * self.prediction.objective
        norms = np.sqrt(self.classes.own(gram))
        lengths = np.maximum(np.outer(norms, self.classes.of_classes(norms)), np.finfo(float).tiny)
        self.alone = self.classes.of_classes(
            ~np.any((gram > TOGETHER * lengths) & self.classes.apart, axis=1) & (norms > 0)
        )

    def _bound_logits(self) -> None:
        """``along``: of ``A_k z_k``; ``entries``: of each logit, centred if a common shift means nothing."""
        spread, variances, K = self.pinned.spread, self.pinned.variances, self.problem.num_logits
        self.along = self.classes.of_classes(spread * np.sqrt(np.sum(self.A**2 * variances, axis=1)))
        squares = variances
        self.free = np.zeros(K) if self.pinned.free is None else self.pinned.free
        if self.pinned.free is not None:  # the direction onehot_j - free_j free
            part = np.sum(variances * self.free**2, axis=1, keepdims=True)
            squares = part * self.free**2 + (1 - 2 * self.free**2) * variances
        self.entries = spread[:, None] * np.sqrt(squares)

    def _bound_bias(self) -> float:
        """Of the centred bias, see `ufm.verification.bias_bound`."""
        problem, largest = self.problem, math.sqrt(2 * self.prediction.objective) + self.root
        if problem.bias is None:
            return 0.0
        bounds = [OPEN]
        if not self.solved:
            shifts = np.sqrt(problem.feature_decays) * self.prediction.norms * self.root
            bounds.append(4 * float(np.max(self.radius + shifts / problem.nuclear_weights)))
        elif problem.bias == 0 and problem.features == "free":
            bounds.append(free_mean_bound(self.units, self.radius, problem.priors, self.root, largest))
        elif problem.bias == 0 and self.shared and self.classes.whole:
            bounds.append(
                unshared_bound(self.A, self.S, self.units, self.radius, self.alone, self.eps, largest)
            )
        if problem.bias > 0:
            bounds.append(self.root / math.sqrt(problem.bias))
        return min(bounds)

    def _bound_features(self) -> None:
        """``squares``: of ``|g_k|^2`` and ``dots``: of ``<g_k, g_l>``, both in balanced coordinates."""
        problem, prediction = self.problem, self.prediction
        simple = self.spectral or self.shared
        predicted = problem.feature_decays * problem.counts * prediction.norms**2
        lead = np.ones(self.K) if simple else self.lengths**2
        along = self.units * (self.along + self.lengths * self.bias)
        extra = 0.0 if self.spectral else self.eps
        slope = self.root * np.sqrt(self.bend + self.lengths**2 if self.shared else lead)
        high = largest_root(slope / lead, predicted + (along + extra) / lead)
        # the divergence and |V - A'G|^2 share one eps
        self.squares = (np.hypot(along, slope * high) + extra) / lead
        with np.errstate(divide="ignore"):
            if not self.solved:
                direct = 2 * self.eps / np.maximum(1 - self._bound_lengths() ** 2, 0.0)
                self.squares = np.where(prediction.collapsed, np.minimum(self.squares, direct), self.squares)
            high = np.sqrt(predicted + self.squares)
            moved = self._outer(self.lengths, self.units * (self.radius + self.bias))
            if self.spectral:
                other_way = self._outer(self.units * (self.radius + self.bias), self.lengths)
                dots = np.minimum(moved + self.root * high, other_way + self.root * high[self.rows, None])
            elif self.shared:
                dots = self._shared_dots(moved + slope[self.rows, None] * high, high)
            else:
                dots = self.eps / np.maximum(-self.cross, 0.0)
        self.dots = self._with_own(np.minimum(dots, self._outer(high, high)), self.squares)

    def _shared_dots(self, moved: np.ndarray, high: np.ndarray) -> np.ndarray:
        """``<g_k, g_l>`` moves by no more than ``A X'`` and the rest do, and ``S`` times what others move by."""
        dots = np.minimum(self.eps / self.S, self._outer(high, high))
        for _ in range(PASSES):
            full = self._with_own(dots, self.squares)
            dots = np.minimum(dots, moved + self.classes.product(self.S, full))
            dots = np.minimum(dots, self.classes.transpose(dots))
        return dots

    def _outer(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.outer(left[self.rows], right)

    def _with_own(self, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return rows with these diagonal entries."""
        return np.where(self.classes.apart, rows, own)

    def _bound_lengths(self) -> np.ndarray:
        """``|A_k|``; if rows of A are neither orthogonal nor obtuse, ``|A|_2`` for all."""
        apart = np.max(np.where(self.classes.apart, self.cross, 0.0)) <= ROUNDING
        return self.lengths if apart else np.full(self.K, self.norm_A)

    def _bound_classifier(self) -> None:
        """``v_squares``: of ``|v_k|^2``, ``v_dots``: of ``<v_k, v_l>``, from ``V V' = X'A + V (V - A'G)'``.

        Rows of X move independently, sharing one eps: their contributions add in quadrature. For softmax
        losses ``1'A = 0``, so a common shift of all logits enters only as ``|v_l| |V - A'G| / sqrt(K)``.
        """
        squares = self.problem.weight_decay * self.prediction.weight_norms**2
        # row l, column k: how far sum_m X_mk A_ml may move
        classes, columns = self.classes, self.classes.transpose(self.A)
        moved = np.sqrt(classes.product(columns**2, (self.units[self.rows, None] * self.entries) ** 2))
        moved = moved + (np.abs(columns @ self.units) * self.bias)[:, None]
        shift = self.free
        slope, own = (1 + shift) * self.root, classes.of_classes(classes.own(moved))
        high = largest_root(slope, squares + own)
        self.v_squares = np.hypot(own, slope * high)
        dots = np.hypot(moved, self.root * high[None, :] + shift * self.root * high[self.rows, None])
        dots = np.minimum(np.minimum(dots, classes.transpose(dots)), self._outer(high, high))
        self.v_dots = self._with_own(dots, self.v_squares)
        logits = float(np.max(self.units * self.radius)) + self.bias * float(np.linalg.norm(self.units))
        gram = self.prediction.rows("gram_weights", self.rows)
        largest = self.problem.weight_decay * classes.largest_eigenvalue(gram)
        top = float(largest_root(2 * self.root, largest + self.norm_A * logits))
        jointly = math.hypot(self.norm_A * logits, 2 * top * self.root)
        self.v_frobenius = min(jointly, classes.norm(self.v_dots))

    def _cosines(self, gram: np.ndarray, dots: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Return bounds on the cosines of a frame from bounds on its Gram matrix."""
        lengths, rows = self.classes.of_classes(self.classes.own(gram)), self.rows
        first = (lengths[rows, None], squares[rows, None])
        return bound_of_cosine(gram, dots, first, (lengths, squares))

    def _resolved(self) -> np.ndarray:
        """Living: margin intervals disjoint. Collapsed: the dual point cannot have moved to its boundary.

        Of a solved optimum the interval of a collapsed class must be within the one around zero.
        """
        prediction, zero = self.prediction, self.zero_margins
        if zero is None:
            top = int(np.argmax(prediction.weight_norms))
            low, high = (
                np.maximum(prediction.norms + sign * self.norms, 0.0)
                * max(prediction.weight_norms[top] + sign * np.max(self.weight_norms), 0.0)
                for sign in (-1, 1)
            )
            return np.where(prediction.collapsed, high <= metrics.STILL, low > metrics.STILL)
        low, high = self._margins()
        if self.solved:
            return np.where(prediction.collapsed, high <= zero, low > zero)
        # |Q - Q*|^2 <= 2 L FY for a loss of curvature L
        factor = 2 * self.problem.loss.curvature(np.arange(self.K))
        move = np.sqrt(self.eps * factor / self.problem.num_samples) / self.problem.nuclear_weights
        return np.where(prediction.collapsed, self._bound_lengths() + move < 1, low > zero)

    def _margins(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest margins."""
        each, margins = self.classes.of_classes, self.prediction.margins
        free = np.ptp(self.free) * self.shift
        return margins - each(self.pinned.margin_fall) - free, margins + each(self.pinned.margin_rise) + free

    def tolerances(self) -> Tolerances:
        """Translate the bounds into the units of the metrics."""
        problem, prediction, classes = self.problem, self.prediction, self.classes
        names: tuple[Any, ...] = ("gram_features", "gram_weights", "logits")
        gram_features, gram_weights, logits = (prediction.rows(name, self.rows) for name in names)
        h_units, w_units = problem.feature_decays * problem.counts, problem.weight_decay
        h_squares, w_squares = self.squares / h_units, self.v_squares / w_units
        h_dots = self.dots / np.sqrt(self._outer(h_units, h_units))
        self.norms = bound_of_root(prediction.norms, h_squares)
        self.weight_norms = bound_of_root(prediction.weight_norms, w_squares)
        # logits along the direction that the loss does not see: there row k of X is g_k (V - A'G)'
        h_high = np.sqrt(prediction.norms**2 + h_squares)
        self.shift = np.any(self.free) * h_high * self.root / math.sqrt(problem.weight_decay)
        logit_error = math.hypot(float(self.radius.max()), float(np.linalg.norm(self.shift)))
        resolved, (low, high) = self._resolved(), self._margins()
        v_norm = math.sqrt(
            max(problem.weight_decay * np.sum(prediction.weight_norms**2) - self.v_squares.sum(), 0.0)
        )
        return Tolerances(
            margins_low=low,
            margins_high=high,
            zero_margins=self.zero_margins,
            resolved=resolved,
            norms=_open(self.norms),
            weight_norms=_open(self.weight_norms),
            feature_cosines=self._cosines(gram_features, h_dots, h_squares),
            weight_cosines=self._cosines(gram_weights, self.v_dots / w_units, w_squares),
            alignment=bound_of_cosine(
                classes.of_classes(prediction.inner_products(self.rows)),
                classes.of_classes(classes.own(self.entries)) + self.free * self.shift + self.bias,
                (prediction.norms**2, h_squares),
                (prediction.weight_norms**2, w_squares),
            ),
            residuals={
                "NC2_H": bound_of_direction(classes.norm(h_dots), classes.norm(gram_features)),
                "NC2_W": bound_of_direction(self.root * (1 + math.sqrt(2)), v_norm),
                "NC2_WWT": bound_of_direction(self.v_frobenius / w_units, classes.norm(gram_weights)),
                "NC3_WH": bound_of_direction(logit_error, classes.norm(logits)),
            },
            within=2 * self.eps / (problem.num_samples * float(problem.feature_decays.min())),
            logits=2 * float(self.entries.max()),
            nc4=_disagreement(prediction, classes, self.pinned, resolved, self.eps),
        )


def _disagreement(
    prediction: Prediction, classes: Representatives, pinned: Pinned, resolved: np.ndarray, eps: float
) -> float:
    """Return the largest fraction of samples that may be put into another class, undecided classes included."""
    confusion = classes.of_classes(pinned.confusion)
    clear = resolved & ~prediction.collapsed & (confusion > 0)
    undecided = float(prediction.problem.priors[~clear].sum())
    return undecided + eps / float(np.min(confusion[clear], initial=math.inf))


def _open(bounds: np.ndarray) -> np.ndarray:
    """Return bounds, infinite where none was found."""
    return np.where(bounds < math.sqrt(OPEN), bounds, np.inf)


def fixed_tolerances(
    prediction: Prediction,
    gap: float,
    classes: Representatives,
    pinned: Pinned,
    zero_margins: Float[np.ndarray, " K"] | None,
) -> Tolerances:
    """Return what a gap says with a fixed classifier: ``lambda_H,k n_k |h_k - h_k*|^2 <= 2 eps``, class by class.

    The objective in H is as strongly convex as its regulariser, and at the optimum no feasible direction descends.
    """
    problem = prediction.problem
    moved = np.sqrt(2 * gap / (problem.feature_decays * problem.counts))
    weights = prediction.weight_norms
    logits = moved * float(np.linalg.norm(np.asarray(problem.classifier), 2))
    low, high = prediction.margins - math.sqrt(2) * logits, prediction.margins + math.sqrt(2) * logits
    gram, frame = (prediction.rows(name, classes.first) for name in ("gram_features", "logits"))
    squares = moved * (2 * prediction.norms + moved)
    dots = np.outer(prediction.norms[classes.first], moved)
    dots = dots + moved[classes.first, None] * (prediction.norms + moved)
    lengths, first = prediction.norms**2, classes.first
    zero = high * 0 if zero_margins is None else zero_margins
    resolved = np.where(prediction.collapsed, high <= zero, low > zero)
    return Tolerances(
        margins_low=low,
        margins_high=high,
        zero_margins=zero,
        resolved=resolved,
        norms=moved + FLOOR * prediction.norms,
        weight_norms=1e-9 * weights,
        feature_cosines=bound_of_cosine(
            gram, dots, (lengths[first, None], squares[first, None]), (lengths, squares)
        ),
        weight_cosines=np.full(gram.shape, 1e-9),
        alignment=bound_of_cosine(
            classes.of_classes(prediction.inner_products(first)),
            logits,
            (lengths, squares),
            (weights**2, 0 * weights),
        ),
        residuals={
            "NC2_H": bound_of_direction(classes.norm(dots), classes.norm(gram)),
            "NC2_W": math.inf,
            "NC2_WWT": 1e-9,
            "NC3_WH": bound_of_direction(float(np.linalg.norm(logits)), classes.norm(frame)),
        },
        within=2 * gap / (problem.num_samples * float(problem.feature_decays.min())),
        logits=2 * float(logits.max()),
        nc4=_disagreement(prediction, classes, pinned, resolved, gap),
    )
