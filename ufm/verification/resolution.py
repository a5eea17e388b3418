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
  the scaled logits. Otherwise (non-negative features) no off-diagonal of ``A A'`` is positive, and (1) bounds
  ``sum_{k != l} |(A A')_kl| <g_k, g_l> <= 2 eps``: angles are pinned by the gap itself, not its square root.
* Classifier. ``V V' = X'A + V(V - A'G)'``.
* Collapse. A living class is resolved if its margin interval and the one around 0 are disjoint; a collapsed
  one if its dual slack ``1 - |A_k|`` exceeds what eps can move it by.

None of this depends on the measured point except through eps, so a point that meets the gap can only fail a
row if the closed form (or the code) is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm.losses.pinned import Pinned
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction
from ufm.verification.propagation import bound_of_cosine, bound_of_direction, bound_of_root, largest_root
from ufm.verification.representatives import Representatives
from ufm.verification.tolerances import Tolerances, dual_matrix

#: Slack for rounding in conditions that hold exactly at the optimum.
ROUNDING = 1e-9


def gap_tolerances(
    prediction: Prediction, gap: float, classes: Representatives | None = None
) -> Tolerances | None:
    """Return what every point with ``P - P* <= gap`` must satisfy; see the module docstring for the proof.

    None if the loss does not say what a divergence pins down (`ufm.losses.Loss.pinned`), or the classifier is fixed.

    Args:
        prediction: the global optimum.
        gap: ``eps``, absolute.
        classes: which classes are alike, if that is known.
    """
    problem = prediction.problem
    if problem.classifier is not None:  # the proof moves W
        return None
    classes = Representatives.of_all(problem.num_classes) if classes is None else classes
    kappa, rows = _divergences(problem, gap), classes.first
    pinned = problem.loss.pinned(prediction.rows("logits", rows), rows, kappa[rows])
    zero_margins = problem.loss.zero_margins(kappa)
    if pinned is None or zero_margins is None:
        return None
    return _Resolution(prediction, gap, classes, pinned, zero_margins).tolerances()


def zero_margin_bounds(problem: Problem, gap: float) -> Float[np.ndarray, " K"] | None:
    """Return the largest margin per class that a gap cannot tell from 0; None if a zero margin says nothing."""
    return problem.loss.zero_margins(_divergences(problem, gap))


def _divergences(problem: Problem, gap: float) -> np.ndarray:
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
        zero_margins: np.ndarray,
    ) -> None:
        self.prediction, self.problem, self.eps = prediction, prediction.problem, gap
        self.classes, self.rows = classes, classes.first
        self.root = math.sqrt(2 * gap)  # |V - A'G|
        self.K = self.problem.num_classes
        self.A = dual_matrix(prediction, classes)
        self.lengths = classes.of_classes(np.linalg.norm(self.A, axis=1))
        self.cross = classes.product(self.A, classes.transpose(self.A))
        self.norm_A = math.sqrt(classes.largest_eigenvalue(self.cross))
        self.units = self.problem.nuclear_weights * np.sqrt(self.problem.counts)  # X_k = units_k (z_k - b)
        self.pinned, self.zero_margins = pinned, zero_margins
        self.radius = classes.of_classes(pinned.radius)
        self._bound_logits()
        self.bias = self._bound_bias()
        self._bound_features()
        self._bound_classifier()

    def _bound_logits(self) -> None:
        """``along``: of ``A_k z_k``; ``entries``: of each logit, centred if a common shift means nothing."""
        spread, variances, K = self.pinned.spread, self.pinned.variances, self.K
        self.along = self.classes.of_classes(spread * np.sqrt(np.sum(self.A**2 * variances, axis=1)))
        squares = variances
        if self.problem.loss.shift_invariant:  # the direction onehot_j - 1/K
            squares = np.sum(variances, axis=1, keepdims=True) / K**2 + (1 - 2 / K) * variances
        self.entries = spread[:, None] * np.sqrt(squares)

    def _bound_bias(self) -> float:
        """Of the centred bias: a regularised one is pinned by its own term, any by logits of other classes.

        The second: row k of ``X = G V'`` is equal off the target up to ``|g_k| |V - A'G|``, so that
        differences of logits within a row are differences of biases; two rows cover all of them, with a
        factor below 4.
        """
        if self.problem.bias is None:
            return 0.0
        shifts = np.sqrt(self.problem.feature_decays) * self.prediction.norms * self.root
        bounds = [4 * float(np.max(self.radius + shifts / self.problem.nuclear_weights))]
        if self.problem.bias > 0:
            bounds.append(self.root / math.sqrt(self.problem.bias))
        return min(bounds)

    def _bound_features(self) -> None:
        """``squares``: of ``|g_k|^2`` and ``dots``: of ``<g_k, g_l>``, both in balanced coordinates."""
        problem, prediction = self.problem, self.prediction
        spectral = self.norm_A <= 1 + ROUNDING
        predicted = problem.feature_decays * problem.counts * prediction.norms**2
        lead = np.ones(self.K) if spectral else self.lengths**2
        along = self.units * (self.along + self.lengths * self.bias)
        extra = 0.0 if spectral else self.eps
        slope = self.root * np.sqrt(lead)
        high = largest_root(slope / lead, predicted + (along + extra) / lead)
        # the divergence and |V - A'G|^2 share one eps
        self.squares = (np.hypot(along, slope * high) + extra) / lead
        with np.errstate(divide="ignore"):
            direct = 2 * self.eps / np.maximum(1 - self._bound_lengths() ** 2, 0.0)
            self.squares = np.where(prediction.collapsed, np.minimum(self.squares, direct), self.squares)
            high = np.sqrt(predicted + self.squares)
            if spectral:
                one_way = self._outer(self.lengths, self.units * (self.radius + self.bias)) + self.root * high
                other_way = self._outer(self.units * (self.radius + self.bias), self.lengths)
                dots = np.minimum(one_way, other_way + self.root * high[self.rows, None])
            else:
                dots = self.eps / np.maximum(-self.cross, 0.0)
        self.dots = self._with_own(np.minimum(dots, self._outer(high, high)), self.squares)

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
        shift = self.problem.loss.shift_invariant / math.sqrt(self.K)
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
        """Living: margin intervals disjoint. Collapsed: the dual point cannot have moved to its boundary."""
        # |Q - Q*|^2 <= 2 L FY for a loss of curvature L
        factor = 2 * self.problem.loss.curvature(np.arange(self.K))
        move = np.sqrt(self.eps * factor / self.problem.num_samples) / self.problem.nuclear_weights
        fall = self.classes.of_classes(self.pinned.margin_fall)
        living = self.prediction.margins - fall > self.zero_margins
        return np.where(self.prediction.collapsed, self._bound_lengths() + move < 1, living)

    def _disagreement(self, resolved: np.ndarray) -> float:
        """Largest fraction of samples that may be put into another class, undecided classes included."""
        clear = resolved & ~self.prediction.collapsed
        undecided = float(self.problem.priors[~clear].sum())
        if not np.any(clear):
            return undecided
        return undecided + self.eps / float(np.min(self.classes.of_classes(self.pinned.confusion)[clear]))

    def tolerances(self) -> Tolerances:
        """Translate the bounds into the units of the metrics."""
        problem, prediction, classes = self.problem, self.prediction, self.classes
        names: tuple[Any, ...] = ("gram_features", "gram_weights", "logits")
        gram_features, gram_weights, logits = (prediction.rows(name, self.rows) for name in names)
        resolved = self._resolved()
        h_units, w_units = problem.feature_decays * problem.counts, problem.weight_decay
        h_squares, w_squares = self.squares / h_units, self.v_squares / w_units
        h_dots = self.dots / np.sqrt(self._outer(h_units, h_units))
        h_high = np.sqrt(prediction.norms**2 + h_squares)
        # mean logit of a class: row k of X 1 is g_k (V - A'G)' 1
        shift = problem.loss.shift_invariant * h_high * self.root / math.sqrt(problem.weight_decay * self.K)
        logit_error = math.hypot(float(self.radius.max()), float(np.linalg.norm(shift)) * math.sqrt(self.K))
        v_norm = math.sqrt(
            max(problem.weight_decay * np.sum(prediction.weight_norms**2) - self.v_squares.sum(), 0.0)
        )
        return Tolerances(
            margins_low=prediction.margins - classes.of_classes(self.pinned.margin_fall),
            margins_high=prediction.margins + classes.of_classes(self.pinned.margin_rise),
            zero_margins=self.zero_margins,
            resolved=resolved,
            norms=bound_of_root(prediction.norms, h_squares),
            weight_norms=bound_of_root(prediction.weight_norms, w_squares),
            feature_cosines=self._cosines(gram_features, h_dots, h_squares),
            weight_cosines=self._cosines(gram_weights, self.v_dots / w_units, w_squares),
            alignment=bound_of_cosine(
                classes.of_classes(classes.own(logits)),
                classes.of_classes(classes.own(self.entries)) + shift + self.bias,
                (prediction.norms**2, h_squares),
                (prediction.weight_norms**2, w_squares),
            ),
            nc2_h=bound_of_direction(classes.norm(h_dots), classes.norm(gram_features)),
            nc2_w=bound_of_direction(self.root * (1 + math.sqrt(2)), v_norm),
            nc2_wwt=bound_of_direction(self.v_frobenius / w_units, classes.norm(gram_weights)),
            nc3_wh=bound_of_direction(logit_error, classes.norm(logits)),
            within=2 * self.eps / (problem.num_samples * float(problem.feature_decays.min())),
            logits=2 * float(self.entries.max()),
            nc4=self._disagreement(resolved),
        )
