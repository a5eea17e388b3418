r"""Fixed prototypes: with the classifier W given the features of every class have a problem of their own, convex.

A loss with a scalar form (`ufm.losses.scalar`) pulls class k along ``v_k = W' u_k``, or ``(v_k)_+`` for non-negative
features. Where the logits of that are along ``u_k`` again, ``W v_k = g_k u_k`` (up to a constant, for a loss that
does not see one), as for a simplex ETF or orthogonal rows, the optimum is

    ``h_k = (M_k / g_k) v_k``,   ``M_k = -phi_k'(M_k) g_k / (|u_k|^2 N lambda_H,k)``,

since then ``Q_k = phi_k'(M_k) u_k/|u_k|^2`` and ``h_k = (-W' Q_k)_+ / (N lambda_H,k)``. As ``phi_k'(0) < 0`` no class
ever collapses, and (if samples pay, without class weights) the count of a class does not matter at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from ufm.inputs.checks import InputError, fits_memory, positive_float, positive_integer
from ufm.losses.scalar import ScalarForm
from ufm.model.problem import Problem
from ufm.theory.prediction import Prediction, not_covered
from ufm.theory.scalar import symmetric_form

SOURCE = "stationarity of convex problems class by class: fixed prototypes"
#: Relative error up to which logits count as being on the ray.
_ON_RAY = 1e-12


def simplex_etf(num_classes: int, dim: int, length: float = 1.0) -> Float[np.ndarray, "K d"]:
    r"""Return a simplex equiangular tight frame: K rows of one length whose cosines are all ``-1/(K-1)``.

    Args:
        num_classes: K, at least 2.
        dim: d, at least K - 1; coordinates beyond these are zero.
        length: of every row.

    Raises:
        InputError: if an argument is out of range.

    Source: Papyan, Han, Donoho, PNAS 2020 (arXiv:2008.08186); as a fixed classifier Yang et al., NeurIPS 2022.

    Example:
        >>> frame = simplex_etf(3, 4, length=2.0)
        >>> (frame @ frame.T).round(12).tolist()[0]
        [4.0, -2.0, -2.0]
    """
    K, d = _sizes(num_classes, dim, 1)
    steps = np.tril(np.ones((K - 1, K)))  # Helmert's basis of what is orthogonal to (1, ..., 1)
    rows = np.arange(1, K)
    steps[rows - 1, rows] = -rows
    basis = steps / np.sqrt(rows * (rows + 1.0))[:, None]
    frame = np.zeros((K, d))
    frame[:, : K - 1] = positive_float("length", length) * np.sqrt(K / (K - 1)) * basis.T
    return frame


def orthogonal_frame(num_classes: int, dim: int, length: float = 1.0) -> Float[np.ndarray, "K d"]:
    """Return K orthogonal non-negative rows of one length: multiples of the first K unit vectors.

    Args:
        num_classes: K, at least 2.
        dim: d, at least K.
        length: of every row.

    Raises:
        InputError: if an argument is out of range.

    Source: the geometry of Kini et al. 2023 and Dang et al. 2024, as a fixed classifier.

    Example:
        >>> orthogonal_frame(2, 3, length=2.0).tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    """
    K, d = _sizes(num_classes, dim, 0)
    return positive_float("length", length) * np.eye(K, d)


#: Frames by name.
FRAMES = {"etf": simplex_etf, "frame": orthogonal_frame}


def parse_frame(text: str, num_classes: int, dim: int) -> Float[np.ndarray, "K d"]:
    """Return the frame that text such as ``etf:3`` or ``frame:3`` means: its name, and the length of its rows.

    Raises:
        InputError: for another name or no length.

    Example:
        >>> parse_frame("frame:2", 2, 3).tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    """
    name, _, length = text.partition(":")
    try:
        return FRAMES[name](num_classes, dim, float(length))
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"classifier must be etf:LENGTH or frame:LENGTH, got {text!r}") from None


def _sizes(num_classes: Any, dim: Any, fewer: int) -> tuple[int, int]:
    K, d = positive_integer("num_classes", num_classes), positive_integer("dim", dim)
    if K < 2:
        raise InputError(f"num_classes must be at least 2, got {K}")
    if d < K - fewer:
        raise InputError(f"dim must be at least {K - fewer} for {K} classes, got {d}")
    fits_memory(f"{K:,} prototypes of dimension {d:,}", K * (K + d), "take fewer classes")
    return K, d


def predict_prototypes(problem: Problem) -> Prediction:
    r"""Return the optimal features of a fixed classifier, see the module's docstring.

    Raises:
        ClosedFormError: if the loss has no scalar form, there is a bias, or the classifier is no such frame.

    Source: the module docstring; design equations ``M = q(M) s^2 K^2/((K-1) N lambda_H)`` for a simplex ETF and free
        features, ``M = (K-1) q(M) s^2/(N lambda_H)`` for orthogonal rows and non-negative ones.

    Example:
        >>> problem = Problem([500, 5, 5], 3, 1.0, 1e-3, classifier=orthogonal_frame(3, 3, 2.0))
        >>> prediction = predict_prototypes(problem)
        >>> prediction.margins.round(6).tolist(), prediction.num_collapsed
        ([1.860889, 1.860889, 1.860889], 0)
    """
    form = symmetric_form(problem)
    if problem.bias is not None:
        raise not_covered("the theorem for a fixed classifier needs a model without bias")
    K, weight, loss = problem.num_classes, np.asarray(problem.classifier), problem.loss
    own, off = float(form.own), float(form.off)
    rays = own * np.eye(K) - off
    pulls = rays @ weight
    if problem.features == "nonnegative":
        pulls = np.maximum(pulls, 0)
    reached = pulls @ weight.T
    seen = reached - reached.mean(axis=1, keepdims=True) if loss.shift_invariant else reached
    square = float(form.squared_length)
    gains = np.einsum("kj,kj->k", seen, rays) / square
    if np.any(np.abs(seen - gains[:, None] * rays) > _ON_RAY * K * np.abs(reached).max()) or np.any(
        gains <= 0
    ):
        raise not_covered(
            "the theorem for a fixed classifier needs a frame that pulls every class along its own ray, such as a "
            "simplex ETF with free or orthogonal rows with non-negative features"
        )
    margins, values = _optimum(problem, form, gains, np.linalg.norm(pulls, axis=1))
    features = (margins / gains)[:, None] * pulls
    return Prediction(
        **values,
        weight_norms=np.linalg.norm(weight, axis=1),
        _gram_features=lambda rows: features[rows] @ features.T,
        _gram_weights=lambda rows: weight[rows] @ weight.T,
        _logits=lambda rows: features[rows] @ weight.T,
    )


def predict_fixed_simplex(problem: Problem, length: float) -> Prediction:
    """Return what becomes of a problem whose classifier is fixed as `simplex_etf`, without forming that frame.

    Args:
        problem: without a bias; its features may have any sign here, and its weight decay does nothing.
        length: of the rows of the frame.

    Raises:
        ClosedFormError: if the loss has no scalar form or there is a bias.

    Source: the module docstring, ``g_k = length^2 K/(K-1)``.

    Example:
        >>> frame = Problem([50, 5], 2, 1.0, 1e-3, classifier=simplex_etf(2, 2, 3.0), features="free")
        >>> both = predict_fixed_simplex(Problem([50, 5], 2, 1.0, 1e-3), 3.0), predict_prototypes(frame)
        >>> [prediction.margins.round(6).tolist() for prediction in both]
        [[4.889378, 4.889378], [4.889378, 4.889378]]
    """
    form = symmetric_form(problem)
    if problem.bias is not None:
        raise not_covered("the theorem for a fixed classifier needs a model without bias")
    K = problem.num_classes
    gain = positive_float("length", length) ** 2 * K / (K - 1)
    pull = np.sqrt(gain * float(form.squared_length))
    _, values = _optimum(problem, form, np.full(K, gain), np.full(K, pull))
    norms, classes = values["norms"], np.arange(K)

    def cosines(rows: Any) -> Float[np.ndarray, "rows K"]:
        return ((classes[rows, None] == classes) * K - 1.0) / (K - 1)

    return Prediction(
        **values,
        weight_norms=np.full(K, float(length)),
        _gram_features=lambda rows: norms[rows, None] * norms * cosines(rows),
        _gram_weights=lambda rows: length**2 * cosines(rows),
        _logits=lambda rows: (norms[rows] * length)[:, None] * cosines(rows),
    )


def _optimum(
    problem: Problem, form: ScalarForm, gains: Float[np.ndarray, " K"], pulls: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], dict[str, Any]]:
    """Return ``M_k`` in units of the ray, and what a prediction says of it; ``pulls`` are ``|v_k|``."""
    stretch = gains / (float(form.squared_length) * problem.num_samples * problem.feature_decays)
    margins = _margins(form, stretch)
    norms = margins / gains * pulls
    charge = problem.feature_decays * problem.counts * norms**2
    return margins, {
        "problem": problem,
        "theorem": SOURCE,
        "norms": norms,
        "margins": float(form.own) * margins,
        "collapsed": np.zeros(problem.num_classes, dtype=bool),
        "objective": float(problem.priors @ form.value(margins) + np.sum(charge) / 2),
    }


def _margins(form: ScalarForm, stretch: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Return the roots of ``M + stretch phi_k'(M)``, which grows with M."""
    from scipy.optimize import elementwise  # only where a root is needed: `import ufm` stays fast

    def excess(margins: np.ndarray, classes: np.ndarray) -> np.ndarray:
        full = np.zeros(form.num_classes)
        full[classes] = margins
        return margins + stretch[classes] * form.slope(full)[classes]

    top = stretch * form.pull
    classes = np.arange(form.num_classes)
    found = elementwise.find_root(excess, (np.zeros_like(top), top), args=(classes,), maxiter=2000)
    return np.asarray(found.x)
