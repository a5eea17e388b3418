r"""Theorem (T): symmetric losses and orthogonal features, the main case of the package.

Let ``loss_k`` be convex with gradients ``-c u_k`` along the ray ``M u_k`` (`ufm.losses.scalar`) and ``<u_k, u_l> <=
0``: cross-entropy with class weights, smoothing or label margins, Poly-1, MSE, binary cross-entropy up to K = 4.
Features are non-negative (or free, if ``<u_k, u_l> = 0`` as for MSE), d at least the number of living classes, no
bias. Then the optimal value is (T) of `ufm.theory.scalar` with ``a = |u_k|``, and with its minimisers ``M_k``

    ``<h_k, h_l> = 0``,   ``|h_k|^2 = M_k a sqrt(lambda_W / (lambda_H,k n_k))``,   ``W h_k = M_k u_k``,
    ``W = sum_k (M_k / |h_k|^2) u_k h_k'``.

Proof. Take ``Q_k = phi_k'(M_k) u_k / a^2``, the gradients at these logits. The row ``A_k = Q_k sqrt(n_k) / (N l_k)``
of the dual matrix has length ``t_k = |phi_k'(M_k)| sqrt(n_k) / (N l_k a)``, which stationarity makes 1 where ``M_k >
0``, and which is at most 1 where ``M_k = 0``. As ``<A_k, A_l> <= 0``, ``|A'u|^2 <= sum_k t_k^2 u_k^2 <= 1`` for all
non-negative unit u (all unit u, if the rows are orthogonal): the dual point is feasible. Its value is (T) by
Fenchel-Young, which is the objective of the point above. So both are optimal. A bias stays zero where ``sum_k n_k Q_k
= 0``.

As the decays vanish ``x_k`` does, and the margins become equal to first order (`weak_decay_limit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from ufm.losses.scalar import ScalarForm
from ufm.model.problem import Problem
from ufm.theory.prediction import ClosedFormError, Prediction, not_covered, or_none
from ufm.theory.scalar import ScalarProblems, one_by_one, symmetric_form

SOURCES = {
    False: "Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058), main theorem, "
    "extended to symmetric losses, class weights and decays: general orthogonal frame",
    True: "Dang et al., ICML 2023 (arXiv:2301.00437), imbalanced MSE without bias: general orthogonal frame",
}


def covers(problem: Problem) -> bool:
    """Whether this is the theorem for the problem's loss and features, whatever its bias and dimension."""
    if problem.features == "nonnegative":
        return True
    form = problem.loss.scalar_form(problem.num_classes)
    return form is not None and form.overlap == 0


def scalar_problems(problem: Problem) -> ScalarProblems:
    """Return the scalar problems of (T) at zero bias.

    Raises:
        ClosedFormError: if the loss is not symmetric, or the bias has no reason to be zero.
    """
    form = symmetric_form(problem)
    if problem.bias is not None and form.own != problem.num_classes * form.off:
        raise not_covered(f"the theorem for {type(problem.loss).__name__} needs a model without bias")
    return ScalarProblems(problem, form, form.squared_length)


def predict_symmetric(problem: Problem) -> Prediction:
    r"""Return the optimum of (T), see the module's docstring.

    Args:
        problem: ``dim`` at least the number of living classes (each needs a coordinate of its own), and either no
            bias or gradients that balance at zero bias (for instance equal counts and weights).

    Raises:
        ClosedFormError: naming the assumption that fails.

    Source: Dang, Tran, Nguyen, Ho, ICML 2024 (arXiv:2401.02058) for cross-entropy; Dang et al., ICML 2023
        (arXiv:2301.00437) for MSE; extended above.

    Example:
        >>> prediction = predict_symmetric(Problem([500, 50], 2, weight_decay=5e-3, feature_decay=1e-5))
        >>> prediction.margins.round(4).tolist(), prediction.num_collapsed
        ([5.5457, 4.3859], 0)
    """
    return _prediction(scalar_problems(problem))


def predict_several(problems: Sequence[Problem]) -> list[Prediction | None]:
    """Return the predictions of problems that share shape, loss and kind of bias; None where (T) needs more."""
    try:
        like = scalar_problems(problems[0])
    except ClosedFormError:
        return [None] * len(problems)
    return [or_none(_prediction, scalar) for scalar in one_by_one(problems, like)]


def _prediction(scalar: ScalarProblems) -> Prediction:
    problem = scalar.problem
    if problem.dim < scalar.living:
        raise not_covered(
            f"each of the {scalar.living} classes that do not collapse needs a dimension of its own, "
            f"and dim is {problem.dim}"
        )
    _require_zero_bias(scalar)
    form, margins = scalar.form, scalar.optimum
    squared_norms, energies = margins * scalar.scale * scalar.frame, margins / scalar.scale / scalar.frame
    own, off = float(form.own), float(form.off)
    squared_weights = own * (own - 2 * off) * energies + off**2 * np.sum(energies)
    return Prediction(
        problem=problem,
        theorem=SOURCES[form.overlap == 0],
        norms=np.sqrt(squared_norms),
        weight_norms=np.sqrt(np.maximum(squared_weights, 0.0)),
        margins=own * margins,
        collapsed=scalar.collapsed,
        objective=float(scalar.value),
        _gram_features=partial(diagonal, squared_norms),
        _gram_weights=partial(_classifier_gram, form, energies),
        _logits=partial(logits_on_rays, form, margins),
        bias=None if problem.bias is None else np.zeros(problem.num_classes),
    )


def _require_zero_bias(scalar: ScalarProblems) -> None:
    """Raise unless the predicted optimum without bias stays optimal, and unique, with one.

    The data term's gradient in the bias is ``sum_k (n_k/N) Q_k``, which vanishes if and only if all
    ``n_k phi_k'(M_k)`` agree; the certificate of the problem without bias then holds with one. Two classes with an
    unregularised bias can shift it against their features for free: no unique optimum.
    """
    problem = scalar.problem
    if problem.bias is None:
        return
    pull = problem.counts * scalar.form.pull * scalar.share
    if np.ptp(pull) > 1e-12 * np.max(pull):
        raise not_covered("with a bias the theorem needs equal counts; these classes pull the bias from zero")
    if problem.num_classes == 2 and problem.bias == 0 and scalar.living:
        raise not_covered("two classes with an unregularised bias have a continuum of optima")


def _classifier_gram(
    form: ScalarForm, energies: Float[np.ndarray, " K"], rows: slice | np.ndarray
) -> Float[np.ndarray, "rows K"]:
    """``sum_k c_k u_k u_k'`` with ``c_k = M_k^2 / |h_k|^2``."""
    own, off = float(form.own), float(form.off)
    mixed = off**2 * np.sum(energies) - own * off * (energies[rows, None] + energies)
    return mixed + diagonal(own**2 * energies, rows)


def logits_on_rays(
    form: ScalarForm, margins: Float[np.ndarray, " K"], rows: slice | np.ndarray
) -> Float[np.ndarray, "rows K"]:
    """Return logits whose row k is ``M_k u_k``."""
    return float(form.own) * diagonal(margins, rows) - float(form.off) * margins[rows, None]


def diagonal(values: Float[np.ndarray, " K"], rows: slice | np.ndarray) -> Float[np.ndarray, "rows K"]:
    """Return some rows of the diagonal matrix."""
    classes = np.arange(len(values))
    return np.where(classes == classes[rows, None], values, 0.0)
