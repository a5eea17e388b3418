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

import numpy as np
from jaxtyping import Float

from ufm.losses import SoftmaxLoss
from ufm.losses.softmax import softmax
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction
from ufm.verification.divergence import binary_interval, concordant_radius, curvature_loss
from ufm.verification.propagation import (
    bound_of_cosine,
    bound_of_direction,
    bound_of_root,
    bounds_of_cosines,
    largest_eigenvalue,
    largest_root,
)
from ufm.verification.tolerances import Tolerances, dual_matrix

#: Slack for rounding in conditions that hold exactly at the optimum.
ROUNDING = 1e-9


def gap_tolerances(prediction: Prediction, gap: float) -> Tolerances:
    """Return what every point with ``P - P* <= gap`` must satisfy; see the module docstring for the proof.

    Args:
        prediction: the global optimum.
        gap: ``eps``, absolute.
    """
    return _Resolution(prediction, gap).tolerances()


def zero_margin_bounds(problem: Problem, gap: float) -> Float[np.ndarray, " K"]:
    """Return the largest margin per class that a gap cannot tell from 0."""
    K = problem.num_classes
    kappa = _divergences(problem, gap)
    if isinstance(problem.loss, SoftmaxLoss):
        return binary_interval(np.full(K, (K - 1) / K), kappa)[0]
    return 2 * np.sqrt(kappa)


def _divergences(problem: Problem, gap: float) -> np.ndarray:
    """``kappa_k``, the largest divergence from the optimum that class k can have."""
    return gap * problem.num_samples / (problem.counts * _loss_weights(problem))


def _loss_weights(problem: Problem) -> np.ndarray:
    weights = problem.loss.weights if isinstance(problem.loss, SoftmaxLoss) else 1.0
    return np.broadcast_to(np.asarray(weights, dtype=np.float64), (problem.num_classes,))


class _Resolution:
    """The chain of bounds of the module docstring, in its notation; every attribute is an upper bound."""

    def __init__(self, prediction: Prediction, gap: float) -> None:
        self.prediction, self.problem, self.eps = prediction, prediction.problem, gap
        self.root = math.sqrt(2 * gap)  # |V - A'G|
        self.K = self.problem.num_classes
        self.A = dual_matrix(prediction)
        self.lengths = np.linalg.norm(self.A, axis=1)
        self.cross = self.A @ self.A.T
        self.norm_A = math.sqrt(largest_eigenvalue(self.cross))
        self.units = self.problem.nuclear_weight * np.sqrt(self.problem.counts)  # X_k = units_k (z_k - b)
        self.kappa = _divergences(self.problem, gap)
        self.zero_margins = zero_margin_bounds(self.problem, gap)
        if isinstance(self.problem.loss, SoftmaxLoss):
            self._bound_softmax_logits()
        else:
            self._bound_mse_logits()
        self.bias = self._bound_bias()
        self._bound_features()
        self._bound_classifier()

    def _probabilities(self) -> np.ndarray:
        assert isinstance(self.problem.loss, SoftmaxLoss)
        p = softmax(self.prediction.logits + self.problem.loss.offsets)
        return np.maximum(p, np.finfo(np.float64).tiny)

    def _bound_softmax_logits(self) -> None:
        """``radius``: of centred logits; ``entries``: of each; ``along``: of ``A_k z_k``; and margins."""
        p, K = self._probabilities(), self.K
        self.radius = concordant_radius(p.min(axis=1), self.kappa)
        spread = np.sqrt(self.kappa * curvature_loss(self.radius))
        # sum_j a_j^2/p_j for the directions a = A_k and a = onehot_j - 1/K
        self.along = spread * np.sqrt(np.sum(self.A**2 / p, axis=1))
        self.entries = spread[:, None] * np.sqrt(
            np.sum(1 / p, axis=1, keepdims=True) / K**2 + (1 - 2 / K) / p
        )
        off_target = np.sum(np.where(np.eye(K, dtype=bool), 0.0, p), axis=1)
        self.margin_rise, self.margin_fall = binary_interval(off_target, self.kappa)

    def _bound_mse_logits(self) -> None:
        self.radius = np.sqrt(2 * self.kappa)
        self.along = self.lengths * self.radius
        self.entries = np.broadcast_to(self.radius[:, None], (self.K, self.K))
        self.margin_fall = self.margin_rise = math.sqrt(2) * self.radius

    def _bound_bias(self) -> float:
        """Of the centred bias: a regularised one is pinned by its own term, any by logits of other classes.

        The second: row k of ``X = G V'`` is equal off the target up to ``|g_k| |V - A'G|``, so that
        differences of logits within a row are differences of biases; two rows cover all of them, with a
        factor below 4.
        """
        if self.problem.bias is None:
            return 0.0
        shifts = math.sqrt(self.problem.feature_decay) * self.prediction.norms * self.root
        bounds = [4 * float(np.max(self.radius + shifts / self.problem.nuclear_weight))]
        if self.problem.bias > 0:
            bounds.append(self.root / math.sqrt(self.problem.bias))
        return min(bounds)

    def _bound_features(self) -> None:
        """``squares``: of ``|g_k|^2`` and ``dots``: of ``<g_k, g_l>``, both in balanced coordinates."""
        problem, prediction = self.problem, self.prediction
        spectral = self.norm_A <= 1 + ROUNDING
        predicted = problem.feature_decay * problem.counts * prediction.norms**2
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
                dots = np.outer(self.lengths, self.units * (self.radius + self.bias)) + self.root * high
            else:
                dots = self.eps / np.maximum(-self.cross, 0.0)
        self.dots = np.minimum(np.minimum(dots, dots.T), np.outer(high, high))
        np.fill_diagonal(self.dots, self.squares)

    def _bound_lengths(self) -> np.ndarray:
        """``|A_k|``; if rows of A are neither orthogonal nor obtuse, ``|A|_2`` for all."""
        apart = np.max(self.cross - np.diag(np.diagonal(self.cross))) <= ROUNDING
        return self.lengths if apart else np.full(self.K, self.norm_A)

    def _bound_classifier(self) -> None:
        """``v_squares``: of ``|v_k|^2``, ``v_dots``: of ``<v_k, v_l>``, from ``V V' = X'A + V (V - A'G)'``.

        Rows of X move independently, sharing one eps: their contributions add in quadrature. For softmax
        losses ``1'A = 0``, so a common shift of all logits enters only as ``|v_l| |V - A'G| / sqrt(K)``.
        """
        squares = self.problem.weight_decay * self.prediction.weight_norms**2
        # row l, column k: how far sum_m X_mk A_ml may move
        moved = np.sqrt((self.A**2).T @ (self.units[:, None] * self.entries) ** 2)
        moved = moved + (np.abs(self.A.T @ self.units) * self.bias)[:, None]
        shift = 1 / math.sqrt(self.K) if isinstance(self.problem.loss, SoftmaxLoss) else 0.0
        slope = (1 + shift) * self.root
        high = largest_root(slope, squares + np.diagonal(moved))
        self.v_squares = np.hypot(np.diagonal(moved), slope * high)
        dots = np.hypot(moved, self.root * high[None, :] + shift * self.root * high[:, None])
        self.v_dots = np.minimum(np.minimum(dots, dots.T), np.outer(high, high))
        np.fill_diagonal(self.v_dots, self.v_squares)
        logits = float(np.max(self.units * self.radius)) + self.bias * float(np.linalg.norm(self.units))
        largest = self.problem.weight_decay * largest_eigenvalue(self.prediction.gram_weights)
        top = float(largest_root(2 * self.root, largest + self.norm_A * logits))
        jointly = math.hypot(self.norm_A * logits, 2 * top * self.root)
        self.v_frobenius = min(jointly, float(np.linalg.norm(self.v_dots)))

    def _resolved(self) -> np.ndarray:
        """Living: margin intervals disjoint. Collapsed: the dual point cannot have moved to its boundary."""
        factor = _loss_weights(self.problem) * (1.0 if isinstance(self.problem.loss, SoftmaxLoss) else 2.0)
        move = np.sqrt(self.eps * factor / self.problem.num_samples) / self.problem.nuclear_weight
        living = self.prediction.margins - self.margin_fall > self.zero_margins
        return np.where(self.prediction.collapsed, self._bound_lengths() + move < 1, living)

    def _disagreement(self, resolved: np.ndarray) -> float:
        """Largest fraction of samples that may be put into another class, undecided classes included."""
        clear = resolved & ~self.prediction.collapsed
        undecided = float(self.problem.priors[~clear].sum())
        if not np.any(clear):
            return undecided
        needed = self.prediction.margins**2 / 4
        if isinstance(self.problem.loss, SoftmaxLoss):
            p = self._probabilities()
            own = np.diagonal(p).copy()
            np.fill_diagonal(p, 0.0)
            pair = own + p.max(axis=1)
            share = own / pair
            # least divergence from p to a distribution that does not prefer the own class
            needed = pair * (math.log(2) + share * np.log(share) + (1 - share) * np.log1p(-share))
        return undecided + self.eps / float(np.min((_loss_weights(self.problem) * needed)[clear]))

    def tolerances(self) -> Tolerances:
        """Translate the bounds into the units of the metrics."""
        problem, prediction = self.problem, self.prediction
        resolved = self._resolved()
        h_units, w_units = problem.feature_decay * problem.counts, problem.weight_decay
        h_squares, w_squares = self.squares / h_units, self.v_squares / w_units
        h_dots = self.dots / np.sqrt(np.outer(h_units, h_units))
        softmax_shift = isinstance(problem.loss, SoftmaxLoss)
        h_high = np.sqrt(prediction.norms**2 + h_squares)
        # mean logit of a class: row k of X 1 is g_k (V - A'G)' 1
        shift = softmax_shift * h_high * self.root / math.sqrt(problem.weight_decay * self.K)
        logit_error = math.hypot(float(self.radius.max()), float(np.linalg.norm(shift)) * math.sqrt(self.K))
        v_norm = math.sqrt(
            max(problem.weight_decay * np.sum(prediction.weight_norms**2) - self.v_squares.sum(), 0.0)
        )
        return Tolerances(
            margins_low=prediction.margins - self.margin_fall,
            margins_high=prediction.margins + self.margin_rise,
            zero_margins=self.zero_margins,
            resolved=resolved,
            norms=bound_of_root(prediction.norms, h_squares),
            weight_norms=bound_of_root(prediction.weight_norms, w_squares),
            feature_cosines=bounds_of_cosines(prediction.gram_features, h_dots, h_squares),
            weight_cosines=bounds_of_cosines(prediction.gram_weights, self.v_dots / w_units, w_squares),
            alignment=bound_of_cosine(
                np.diagonal(prediction.logits),
                np.diagonal(self.entries) + shift + self.bias,
                (prediction.norms**2, h_squares),
                (prediction.weight_norms**2, w_squares),
            ),
            nc2_h=bound_of_direction(
                float(np.linalg.norm(h_dots)), float(np.linalg.norm(prediction.gram_features))
            ),
            nc2_w=bound_of_direction(self.root * (1 + math.sqrt(2)), v_norm),
            nc2_wwt=bound_of_direction(
                self.v_frobenius / w_units, float(np.linalg.norm(prediction.gram_weights))
            ),
            nc3_wh=bound_of_direction(logit_error, float(np.linalg.norm(prediction.logits))),
            within=2 * self.eps / (problem.num_samples * problem.feature_decay),
            logits=2 * float(self.entries.max()),
            nc4=self._disagreement(resolved),
        )
