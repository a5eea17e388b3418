"""Losses as text, for the command line and sweep files: ``ce``, ``smoothing:0.1``, ``weighted:0.5``, ..."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.inputs.checks import InputError
from ufm.losses import (
    LDAM,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjustment,
    Loss,
    Poly1,
    VectorScaling,
    WeightedCrossEntropy,
)


def _averaging_one(
    counts: Float[np.ndarray, " K"], weights: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " K"]:
    """Scale class weights so that their mean over samples is one."""
    return weights * (counts.sum() / (counts @ weights))


def _effective_numbers(counts: Float[np.ndarray, " K"], share: float) -> Float[np.ndarray, " K"]:
    """Return ``(1 - b^n)/(1 - b)``, the effective number of samples (Cui et al., CVPR 2019, arXiv:1901.05555)."""
    if not 0 <= share < 1:
        raise InputError(f"loss effective needs a number from 0 to below 1 after the colon, got {share:g}")
    return np.expm1(counts * np.log(share)) / (share - 1) if share else np.ones_like(counts)


#: Name -> (default parameter or None if there is none, what it means, constructor from counts and parameter).
LOSS_FORMS: dict[str, tuple[float | None, str, Callable[[np.ndarray, float], Loss]]] = {
    "ce": (None, "cross-entropy", lambda n, _: CrossEntropy()),
    "smoothing": (0.1, "label smoothing e", lambda n, e: LabelSmoothing(e)),
    "weighted": (
        0.5,
        "class weights proportional to n_k^-g, averaging 1 over samples; 0.5 equalises margins",
        lambda n, g: WeightedCrossEntropy(_averaging_one(n, n**-g)),
    ),
    "effective": (
        0.9999,
        "class weights (1-b)/(1-b^n_k) by effective number of samples, averaging 1 over samples",
        lambda n, b: WeightedCrossEntropy(_averaging_one(n, 1 / _effective_numbers(n, b))),
    ),
    "adjustment": (
        1.0,
        "logits plus t log(n_k/N)",
        lambda n, t: LogitAdjustment(t * np.log(n / n.sum())),
    ),
    "balanced": (
        None,
        "balanced softmax: logits plus log(n_k/N)",
        lambda n, _: LogitAdjustment(np.log(n / n.sum())),
    ),
    "ldam": (0.5, "label margins m (n_min/n_k)^(1/4)", lambda n, m: LDAM.of_counts(n, m)),
    "poly1": (1.0, "Poly-1 loss, cross-entropy plus e (1 - p)", lambda n, e: Poly1(e)),
    "cdt": (0.1, "logits times (n_k/n_max)^g", lambda n, g: VectorScaling((n / n.max()) ** g)),
    "bce": (None, "binary cross-entropy, one against the rest", lambda n, _: BinaryCrossEntropy()),
    "mse": (None, "squared error", lambda n, _: MSE()),
    "focal": (2.0, "focal loss with gamma; not convex", lambda n, g: Focal(g)),
}


def parse_loss(text: str, counts: Int[np.ndarray, " K"] | Float[np.ndarray, " K"]) -> Loss:
    """Return the loss that ``text`` describes: a name in `LOSS_FORMS`, optionally ``:`` and its parameter.

    Args:
        text: for instance ``"ce"``, ``"smoothing:0.1"`` or ``"weighted:0.5"``.
        counts: class counts, from which class weights and logit adjustments are made.

    Raises:
        InputError: naming ``loss``, the value and what is required.

    Example:
        >>> parse_loss("smoothing:0.2", np.array([5, 5]))
        LabelSmoothing(smoothing=0.2)
    """
    name, colon, parameter = text.strip().lower().partition(":")
    if name not in LOSS_FORMS:
        raise InputError(
            f"loss must be one of {', '.join(LOSS_FORMS)}, some with a number as in smoothing:0.1; got {text!r}"
        )
    default, _, build = LOSS_FORMS[name]
    if colon and default is None:
        raise InputError(f"loss {name} takes no parameter, got {text!r}")
    try:
        value = float(parameter) if colon else default or 0.0
    except ValueError:
        raise InputError(f"loss {name} needs a number after the colon, got {text!r}") from None
    if not math.isfinite(value):
        raise InputError(f"loss {name} needs a finite number after the colon, got {text!r}")
    with np.errstate(
        all="ignore"
    ):  # what is not finite then is refused as what it was to be, such as a class weight
        return build(np.asarray(counts, np.float64), value)


def as_loss(loss: Any, counts: Int[np.ndarray, " K"] | Float[np.ndarray, " K"]) -> Loss:
    """Return a loss that is given as text (see `parse_loss`) or as a `Loss`, or raise `InputError`."""
    if isinstance(loss, str):
        return parse_loss(loss, counts)
    if not isinstance(loss, Loss):
        raise InputError(f"loss must be text such as 'ce' or 'smoothing:0.1', or a ufm loss, got {loss!r}")
    return loss
