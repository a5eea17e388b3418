"""Limits of vanishing regularisation: with free features simplex-encoded-labels interpolation, else a frame."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from ufm.inputs.checks import class_counts, nonnegative_float
from ufm.theory.prediction import require_matrix_size


@dataclasses.dataclass(frozen=True, eq=False)
class WeakDecayLimit:
    """The directions that the optimum approaches; every matrix has Frobenius norm 1.

    Attributes:
        gram_features: ``<h_k, h_l>`` of class means, up to scale.
        gram_weights: ``<w_k, w_l>`` of classifier rows, up to scale.
        logits: ``W h_k`` in row k, up to scale.
    """

    gram_features: Float[np.ndarray, "K K"]
    gram_weights: Float[np.ndarray, "K K"]
    logits: Float[np.ndarray, "K K"]


@dataclasses.dataclass(frozen=True, eq=False)
class SELI(WeakDecayLimit):
    """The limit with free features.

    Attributes:
        singular_values: of the simplex-encoded label matrix, in descending order; the last one is 0.
    """

    singular_values: Float[np.ndarray, " K"]


def seli(counts: Any) -> SELI:
    r"""Return the SELI geometry of cross-entropy with free features and no bias as the decays go to zero.

    With ``C = I - 11'/K`` and the singular value decomposition ``C diag(sqrt(n)) = U S V'``:

        ``W W'`` tends to ``U S U'``,   ``H H'`` to ``D V S V' D`` with ``D = diag(n^{-1/2})``,   logits to
        ``C``,

    each up to scale. ``C diag(sqrt(n))`` is the simplex-encoded label matrix with the equal columns of
    every class merged into one. The feature dimension must be at least K - 1.

    Accuracy: 1e-13 in Frobenius norm, ``H H'`` 1e-15 times the root of the imbalance ratio, if that is more.

    Args:
        counts: samples per class.

    Raises:
        InputError: if the counts are invalid, or too many for K x K matrices.

    Source: Thrampoulidis, Kini, Vakilian, Behnia, NeurIPS 2022 (arXiv:2208.05512), Definition 2 and Theorem
    1.

    Example:
        >>> seli([10, 10, 10]).gram_weights.round(3).tolist()[0]
        [0.471, -0.236, -0.236]
    """
    counts = class_counts(counts)
    require_matrix_size("the SELI geometry", len(counts))
    centring = np.eye(len(counts)) - 1 / len(counts)
    roots = np.sqrt(counts)
    left, values, right = np.linalg.svd(centring * roots)
    features = (right.T * values) @ right / np.outer(roots, roots)
    return SELI(_unit(features), _unit((left * values) @ left.T), _unit(centring), values)


def weak_decay_limit(counts: Any, charge: float | int = 0) -> WeakDecayLimit:
    r"""Return the geometry of symmetric shift-invariant losses with non-negative features as the decays go to zero.

    Margins become equal, features stay orthogonal with ``|h_k|^2`` proportional to ``n_k^{-(1-g)/2}``, and the
    classifier is the centred frame ``C diag(n^{(1-g)/2}) C`` with ``C = I - 11'/K``.

    Accuracy: 1e-13 in Frobenius norm.

    Args:
        counts: samples per class.
        charge: g, 0 if samples pay for their features, 1 if classes do (`ufm.conventions.charged`).

    Raises:
        InputError: if an argument is invalid, or there are too many classes for K x K matrices.

    Source: `ufm.theory.symmetric`; equal margins by ``x_k -> 0``.

    Example:
        >>> limit = weak_decay_limit([16, 1])
        >>> round(float(limit.gram_features[1, 1] / limit.gram_features[0, 0]), 12)
        4.0
    """
    counts = class_counts(counts)
    require_matrix_size("the geometry", len(counts))
    scale = counts.astype(np.float64) ** (-(1 - nonnegative_float("charge", charge)) / 2)
    centring = np.eye(len(counts)) - 1 / len(counts)
    return WeakDecayLimit(_unit(np.diag(scale)), _unit((centring / scale) @ centring), _unit(centring))


def _unit(matrix: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    return matrix / np.linalg.norm(matrix)
