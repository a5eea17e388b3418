r"""Which decays would make a measured last layer optimal? The inverse of the closed form, class by class.

At the optimum of cross-entropy without bias the off-target probability of a living class is
``q_k = N l sqrt(a/n_k) / K`` with ``l = sqrt(lambda_W lambda_H)`` and ``a = K/(K-1)`` for non-negative
features (general orthogonal frame), ``a = 1`` for free features and equal counts (simplex ETF); and ``q =
1/(K-1 + exp(M))``. So every class says

    ``l_k = K sqrt(n_k/a) / (N (K - 1 + exp(M_k)))``.

The median over classes that clearly live is the estimate: collapsed classes only give bounds, and a few
badly fitted classes do not matter. Balancedness, ``lambda_W |W|^2 = lambda_H sum_i
|h_i|^2`` at every critical point, gives the ratio of the two.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.metrics.statistics import FeatureStatistics
from ufm.model.problem import FeatureSet, Problem
from ufm.theory import ClosedFormError, Prediction, predict
from ufm.verification.checks import listed
from ufm.verification.measured import Measured

#: Classes whose margin is below this many nats, or this fraction of the largest one if less, take no part.
LIVING = 0.1
_SMALLEST_LOG = -300.0


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveDecays:
    """Decays under which the measured margins and norms would be optimal.

    Attributes:
        nuclear_weight: ``sqrt(lambda_W lambda_H)``, the median over classes.
        spread: factor by which single classes typically deviate from it (1 plus zero deviation is 1).
        per_class: each class's own estimate; 0 where it takes no part.
        weight_decay: ``lambda_W``.
        feature_decay: ``lambda_H``.
    """

    nuclear_weight: float
    spread: float
    per_class: Float[np.ndarray, " K"]
    weight_decay: float
    feature_decay: float

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        used = int(np.sum(self.per_class > 0))
        factor = f"{self.spread:.3g}"
        agreement = "all the same" if factor == "1" else f"which typically deviates by a factor {factor}"
        return (
            f"Effective lambda_W lambda_H = {self.nuclear_weight**2:.4g} "
            f"(square root {self.nuclear_weight:.4g}): median over {used} classes of what each margin says, "
            f"{agreement}; lambda_W = {self.weight_decay:.4g} and "
            f"lambda_H = {self.feature_decay:.4g} from the ratio of norms."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON."""
        return {
            key: getattr(value, "tolist", lambda value=value: value)() for key, value in vars(self).items()
        }


def estimate_decays(
    margins: Float[np.ndarray, " K"],
    counts: Float[np.ndarray, " K"],
    weight_energy: float,
    feature_energy: float,
    features: FeatureSet = "nonnegative",
) -> EffectiveDecays | None:
    """Return the decays that explain measured margins, or None if there is no class to learn them from.

    Args:
        margins: effective margins, from `ufm.metrics.margins`.
        counts: samples per class.
        weight_energy: ``|W|^2``.
        feature_energy: ``sum_i |h_i|^2`` over samples.
        features: which closed form to invert; ``"free"`` is meaningful for equal counts only.

    Example:
        >>> from ufm import Problem, predict
        >>> p = predict(Problem([300, 100], 2, weight_decay=1e-3, feature_decay=1e-5))
        >>> energies = (p.weight_norms**2).sum(), p.problem.counts @ p.norms**2
        >>> e = estimate_decays(p.margins, p.problem.counts.astype(float), *map(float, energies))
        >>> round(e.weight_decay, 12), round(e.feature_decay, 12)
        (0.001, 1e-05)
    """
    K = len(margins)
    living = (margins > LIVING * min(1.0, margins.max())) & (margins > 0) & (counts > 0)
    if not np.any(living) or not (weight_energy > 0 and feature_energy > 0):
        return None
    shape = K / (K - 1) if features == "nonnegative" else 1.0
    log_q = -np.logaddexp(math.log(K - 1), margins[living])
    logs = math.log(K) + np.log(counts[living] / shape) / 2 - math.log(counts.sum()) + log_q
    middle = float(np.median(logs))
    if middle < _SMALLEST_LOG:
        return None
    spread = math.exp(1.4826 * float(np.median(np.abs(logs - middle))))
    per_class = np.zeros(K)
    per_class[living] = np.exp(logs)
    ratio = math.sqrt(weight_energy) / math.sqrt(feature_energy)  # sqrt(lambda_H / lambda_W)
    weight = math.exp(middle)
    return EffectiveDecays(weight, spread, per_class, weight / ratio, weight * ratio)


class Fit(NamedTuple):
    """Decays learned from the data, what they predict, and sentences that say what was assumed or why not."""

    estimate: EffectiveDecays | None
    prediction: Prediction | None
    notes: tuple[str, ...]


def fit_decays(statistics: FeatureStatistics, measured: Measured) -> Fit:
    """Return what the data alone predict: cross-entropy without bias, counts from the labels."""
    if not np.all(statistics.present):
        missing = listed(np.flatnonzero(~statistics.present))
        return _no_fit(f"{missing} without samples, which take part in no feature metric")
    features: FeatureSet = "free" if statistics.smallest < 0 else "nonnegative"
    if features == "free" and np.ptp(statistics.counts) > 0:
        return _no_fit("features with negative entries and unequal counts have no closed form")
    if np.any(statistics.counts != np.floor(statistics.counts)):
        return _no_fit("the rows stand for fractions of samples")
    feature_energy = float(statistics.counts @ (measured.norms**2 + statistics.variances))
    weight_energy = float(np.sum(measured.weight**2))
    estimate = estimate_decays(measured.margins, statistics.counts, weight_energy, feature_energy, features)
    if estimate is None:
        return _no_fit("no class has a margin above zero")
    decays = (estimate.weight_decay, estimate.feature_decay)
    prediction, notes = predicted(Problem(statistics.counts, statistics.dim, *decays, features=features))
    if prediction is not None:
        ignored = "" if statistics.classifier[1] is None else " The fit ignores the bias."
        assumed = f"Predictions are for cross-entropy and {features} features at these decays;"
        notes = (f"{assumed} norms and margins were used for the fit and are not judged.{ignored}",)
    return Fit(estimate, prediction, (estimate.sentence, *notes))


def _no_fit(reason: str) -> Fit:
    return Fit(None, None, (f"No decays estimated: {reason}.",))


def predicted(problem: Problem) -> tuple[Prediction | None, tuple[str, ...]]:
    """Return the prediction, or None and the sentence that says why there is none."""
    try:
        return predict(problem), ()
    except ClosedFormError as error:
        text = str(error).rstrip(".")
        return None, (f"{text[:1].upper()}{text[1:]}.",)
