r"""Which decays would make a measured last layer optimal? The inverse of theorem (T), class by class.

At the optimum of a symmetric loss without bias every living class has ``-phi_k'(M_k) sqrt(n_k) = N l_k a`` and
``|h_k|^2 = M_k a sqrt(lambda_W / (lambda_H,k n_k))`` (`ufm.theory.scalar`): a constant a, ``l_k = sqrt(lambda_W
lambda_H,k)``, and ``lambda_H,k = lambda_H (N/(K n_k))^g`` with the exponent g of who pays for features, samples (0)
or classes (1). Hence

* ``log(-phi_k'(M_k))`` has the slope ``-(1+g)/2`` on ``log n_k``: g from margins;
* ``log(|h_k|^2 / M_k)`` has the slope ``-(1-g)/2``: g once more, from norms;
* ``-phi_k'(M_k) n_k |h_k|^2 / M_k`` is the same for all classes, whatever g is: a test of the whole;
* with g from the margins (or told) every class says ``l``. The median over classes that clearly live is the estimate:
  collapsed classes only give bounds, and a few badly fitted classes do not matter.

Balancedness, ``lambda_W |W|^2 = sum_k lambda_H,k n_k |h_k|^2`` at every critical point, gives the ratio of decays.

Where (T) does not apply (free features with unequal counts, a bias, any other loss) stationarity itself gives them.
At every critical point, behind a ReLU or not, with the gradients ``Q_k`` of the loss at the class means,

    ``N lambda_H,k |h_k|^2 = -<Q_k, W h_k>``,   ``lambda_W |W|^2 = -sum_k (n_k/N) <Q_k, W h_k>``,

and ``lambda_b |b|^2 = -sum_k (n_k/N) <Q_k, b>``: one equation per class, and g from how ``lambda_H,k`` depends on n.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ufm.conventions import charged
from ufm.losses import CrossEntropy, Loss
from ufm.metrics.statistics import FeatureStatistics
from ufm.model.problem import FeatureSet, Problem
from ufm.prediction.solved import KINDS, best_known
from ufm.theory import ClosedFormError, Prediction
from ufm.theory.scalar import symmetric_form
from ufm.verification.checks import listed
from ufm.verification.measured import MeasuredLayer

#: Classes whose margin is below this many nats, or this fraction of the largest one if less, take no part.
LIVING = 0.1
#: A bias that the loss pulls at by less than this share of what it could is taken as unregularised.
BIAS = 1e-6
#: A class deviates if its own estimate is off by more than this factor.
DEVIATING = 1.5
_SMALLEST_LOG = -300.0
#: Logits of so many classes and rows are looked at together.
ENTRIES = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveDecays:
    """Decays under which the measured margins and norms would be optimal.

    Attributes:
        nuclear_weight: ``sqrt(lambda_W lambda_H)``, the median over classes.
        spread: factor by which single classes typically deviate from it (1 plus zero deviation is 1).
        per_class: each class's own estimate; 0 where it takes no part.
        weight_decay: ``lambda_W``.
        feature_decay: ``lambda_H``, of a class of average size.
        charge: the exponent g that was used.
        charge_from_margins: g from the margins; None where it is told, or counts are too alike to say.
        charge_from_norms: g from the norms; likewise.
        constancy: factor by which ``-phi_k'(M_k) n_k |h_k|^2/M_k``, which should not depend on the class, typically
            deviates from its mean; None without norms.
        stationary: whether stationarity gave it, which looks at neither margins nor the ratio of norms.
    """

    nuclear_weight: float
    spread: float
    per_class: Float[np.ndarray, " K"]
    weight_decay: float
    feature_decay: float
    charge: float = 0.0
    charge_from_margins: float | None = None
    charge_from_norms: float | None = None
    constancy: float | None = None
    stationary: bool = False

    @property
    def deviating(self) -> np.ndarray:
        """Classes whose own estimate is off by more than a factor `DEVIATING`."""
        used = self.per_class > 0
        off = np.abs(np.log(np.where(used, self.per_class, 1.0) / self.nuclear_weight))
        return np.flatnonzero(used & (off > math.log(DEVIATING)))

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        used = int(np.sum(self.per_class > 0))
        factor = f"{self.spread:.3g}"
        agreement = "all the same" if factor == "1" else f"which typically deviates by a factor {factor}"
        odd = self.deviating
        more = f"; more than a factor {DEVIATING:g} off: {listed(odd)}" if len(odd) else ""
        each, pair = (
            ("margin", " from the ratio of norms") if not self.stationary else ("one's stationarity", "")
        )
        return (
            f"Effective lambda_W lambda_H = {self.nuclear_weight**2:.4g} "
            f"(square root {self.nuclear_weight:.4g}): median over {used} classes of what each {each} says, "
            f"{agreement}{more}; lambda_W = {self.weight_decay:.4g} and "
            f"lambda_H = {self.feature_decay:.4g}{pair}."
        )

    @property
    def charge_sentence(self) -> str:
        """Who pays for features, in words; empty where the counts do not say."""
        if self.charge_from_margins is None or self.charge_from_norms is None:
            return ""
        return (
            f"Charge exponent g (0: samples pay for features, 1: classes): {self.charge_from_margins:.2f} from "
            f"margins, {self.charge_from_norms:.2f} from norms; g = {self.charge:.2f} is used. Where the theory "
            f"holds the two agree, and c_k n_k q_k |h_k|^2/M_k is the same for all classes: it deviates by a factor "
            f"{self.constancy:.3g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON."""
        own = {
            key: getattr(value, "tolist", lambda value=value: value)() for key, value in vars(self).items()
        }
        return own | {"deviating": self.deviating.tolist()}


def estimate_decays(
    margins: Float[np.ndarray, " K"],
    counts: Float[np.ndarray, " K"],
    weight_energy: float,
    feature_energies: float | Float[np.ndarray, " K"],
    features: FeatureSet = "nonnegative",
    *,
    loss: Loss | None = None,
    norms: Float[np.ndarray, " K"] | None = None,
    charge: float | None = None,
) -> EffectiveDecays | None:
    """Return the decays that explain measured margins, or None if there is no class to learn them from.

    Args:
        margins: effective margins, from `ufm.metrics.margins`.
        counts: samples per class.
        weight_energy: ``|W|^2``.
        feature_energies: ``sum_i |h_i|^2`` over the samples of each class, or of all (for g = 0).
        features: which closed form to invert; ``"free"`` is meaningful for equal counts only.
        loss: a symmetric loss of the cross-entropy family; cross-entropy if omitted.
        norms: ``|h_k|``, which are needed to learn g.
        charge: g, if it is known; 0 if neither that nor the norms are given.

    Raises:
        ClosedFormError: if the loss has no scalar form.

    Example:
        >>> from ufm import Problem, predict
        >>> p = predict(Problem([300, 100], 2, weight_decay=1e-3, feature_decay=1e-5))
        >>> energies = (p.weight_norms**2).sum(), p.problem.counts @ p.norms**2
        >>> e = estimate_decays(p.margins, p.problem.counts.astype(float), *map(float, energies))
        >>> round(e.weight_decay, 12), round(e.feature_decay, 12)
        (0.001, 1e-05)
    """
    K = len(margins)
    form = symmetric_form(Problem(np.maximum(counts, 1.0), K, 1.0, 1.0, loss=loss or CrossEntropy()))
    orthogonal = features == "nonnegative" or form.overlap == 0
    frame = math.sqrt(form.squared_length) if orthogonal else 1 - 1 / K
    pulls = -form.slope(margins / form.own)
    living = (margins > LIVING * min(1.0, margins.max())) & (counts > 0) & (margins > 0) & (pulls > 0)
    if not np.any(living) or not (weight_energy > 0 and np.sum(feature_energies) > 0):
        return None
    told, found = charge, None
    if charge is None and norms is not None:
        found = _charges(counts[living], pulls[living], norms[living] ** 2 / margins[living])
    charge = told if told is not None else max(found.margins, 0.0) if found else 0.0
    costs = charged(1.0, counts, charge) if charge else np.ones(K)
    logs = np.log(pulls[living] / frame / counts.sum()) + np.log(counts[living] / costs[living]) / 2
    middle = float(np.median(logs))
    if middle < _SMALLEST_LOG:
        return None
    spread = math.exp(1.4826 * float(np.median(np.abs(logs - middle))))
    per_class = np.zeros(K)
    per_class[living] = np.exp(logs)
    energy = (
        float(np.sum(costs * feature_energies))
        if np.ndim(feature_energies)
        else float(np.sum(feature_energies))
    )
    ratio = math.sqrt(weight_energy) / math.sqrt(energy)  # sqrt(lambda_H / lambda_W)
    weight = math.exp(middle)
    decays = (weight, spread, per_class, weight / ratio, weight * ratio, charge)
    return EffectiveDecays(*decays, *(found or ()))


def stationary_decays(
    loss: Loss,
    counts: Float[np.ndarray, " K"],
    layer: tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "K d"], Float[np.ndarray, " K"] | None],
    energies: Float[np.ndarray, " K"],
    charge: float | None = None,
) -> tuple[EffectiveDecays, float | None] | None:
    """Return the decays under which a layer is stationary, whatever its loss, and that of its bias (0: none seen).

    Args:
        loss: any.
        counts: samples per class.
        layer: classifier, class means and bias (None without one).
        energies: ``sum_i |h_i|^2`` over the samples of each class.
        charge: the exponent g; fitted to the classes' own decays if None.

    Example:
        >>> import ufm
        >>> uneven = ufm.Problem([30, 20, 10], 3, weight_decay=1e-2, feature_decay=1e-3, features="free")
        >>> s = ufm.solve(uneven)
        >>> energies = uneven.counts * (s.features**2).sum(axis=1)
        >>> found, _ = stationary_decays(uneven.loss, uneven.counts * 1.0, (s.weight, s.features, None), energies)
        >>> round(found.weight_decay, 6), round(found.feature_decay, 6), round(abs(found.charge), 4)
        (0.01, 0.001, 0.0)
    """
    weight, means, bias = layer
    N, shift = counts.sum(), np.zeros(len(weight)) if bias is None else bias
    pulls, tugs, most = (np.empty(len(counts)) for _ in range(3))  # along W h_k, and along the bias
    for rows in np.array_split(np.arange(len(counts)), -(-(len(counts) ** 2) // ENTRIES)):
        products = means[rows] @ weight.T
        gradient = loss.gradient(products + shift, rows)
        pulls[rows] = -np.sum(gradient * products, axis=1)
        tugs[rows], most[rows] = -gradient @ shift, np.abs(gradient) @ np.abs(shift)
    norms = np.linalg.norm(means, axis=1)
    living = (pulls > 0) & (energies > 0) & (norms > LIVING * norms.max())
    if not np.any(living) or not np.any(weight):
        return None
    own = pulls[living] * counts[living] / energies[living] / N
    if charge is None:
        size = np.log(counts[living]) - np.log(counts[living]).mean()
        spread = float(size @ size)
        charge = max(-float(size @ np.log(own)) / spread, 0.0) if spread > 0 else 0.0
    each = own / (charged(1.0, counts, charge)[living] if charge else 1.0)
    middle = math.exp(float(np.median(np.log(each))))
    weight_decay = float(counts @ pulls / N / np.sum(weight**2))
    if not weight_decay > 0:
        return None
    per_class = np.zeros(len(counts))
    per_class[living] = np.sqrt(weight_decay * each)
    off = math.exp(1.4826 * float(np.median(np.abs(np.log(each / middle)))) / 2)
    found = EffectiveDecays(
        math.sqrt(weight_decay * middle), off, per_class, weight_decay, middle, charge, stationary=True
    )
    if bias is None:
        return found, None
    square, pull = float(np.sum(bias**2)), float(counts @ tugs) / N
    decayed = square > 0 and pull > BIAS * float(counts @ most) / N
    return found, pull / square if decayed else 0.0


class Charges(NamedTuple):
    """The exponent g from margins and from norms, and how constant the product of both is."""

    margins: float
    norms: float
    constancy: float


def _charges(
    counts: Float[np.ndarray, " L"], pulls: Float[np.ndarray, " L"], stretch: Float[np.ndarray, " L"]
) -> Charges | None:
    """Fit both slopes on ``log n`` by least squares; None where counts (or margins) leave nothing to fit.

    Args:
        counts: of the living classes.
        pulls: ``-phi_k'(M_k)``.
        stretch: ``|h_k|^2 / M_k``.
    """
    if np.ptp(counts) == 0 or not np.all(stretch > 0):
        return None
    size = np.log(counts) - np.log(counts).mean()
    slopes = [float(size @ np.log(values)) / float(size @ size) for values in (pulls, stretch)]
    constant = np.log(pulls * counts * stretch)
    return Charges(-2 * slopes[0] - 1, 2 * slopes[1] + 1, math.exp(float(np.std(constant))))


class Fit(NamedTuple):
    """Decays learned from the data, what they predict, and sentences that say what was assumed or why not."""

    estimate: EffectiveDecays | None
    prediction: Prediction | None
    notes: tuple[str, ...]


def fit_decays(
    statistics: FeatureStatistics,
    measured: MeasuredLayer,
    loss: Loss | None = None,
    charge: float | None = None,
) -> Fit:
    """Return what the data alone predict: counts from the labels, and a loss (cross-entropy unless told).

    By theorem (T) where it may apply, else by stationarity; a bias is ignored where there are too many classes to
    solve for its optimum.
    """
    loss = loss or CrossEntropy()
    if not np.all(statistics.present):
        missing = listed(np.flatnonzero(~statistics.present))
        return _no_fit(f"{missing} without samples, which take part in no feature metric")
    features: FeatureSet = "free" if statistics.smallest < 0 else "nonnegative"
    if np.any(statistics.counts != np.floor(statistics.counts)):
        return _no_fit("the rows stand for fractions of samples")
    counts, bias = statistics.counts, measured.bias
    energies = counts * (measured.norms**2 + statistics.variances)
    seen = bias is not None and len(counts) <= KINDS and bool(np.any(np.abs(bias) > BIAS))
    bias_decay: float | None = None
    uneven = features == "free" and np.ptp(counts) > 0
    if seen or uneven or loss.scalar_form(len(counts)) is None:
        layer = (measured.weight, measured.means, bias if seen else None)
        found = stationary_decays(loss, counts, layer, energies, charge)
        estimate, bias_decay = found or (None, None)
        if estimate is not None and not uneven and loss.scalar_form(len(counts)) is not None:
            estimate = _with_charges(estimate, measured, counts, loss)
    else:
        data = (measured.margins, counts, float(np.sum(measured.weight**2)), energies, features)
        try:
            estimate = estimate_decays(*data, loss=loss, norms=measured.norms, charge=charge)
        except ClosedFormError as error:
            return _no_fit(str(error).rstrip("."))
    if estimate is None:
        return _no_fit("no class has a margin above zero")
    cost: Any = estimate.feature_decay
    if estimate.charge:
        cost = charged(cost, counts, estimate.charge)
    problem = Problem(counts, statistics.dim, estimate.weight_decay, cost, loss, features, bias_decay)
    prediction, notes = best_known(problem)
    if prediction is not None:
        ignored = " The fit ignores the bias." if bias is not None and not seen else ""
        if seen:
            ignored = (
                f" The bias has a decay of {bias_decay:.3g}." if bias_decay else " The bias has no decay."
            )
        name = "cross-entropy" if type(loss) is CrossEntropy else repr(loss).partition("(")[0]
        assumed = f"Predictions are for {name} and {features} features at these decays;"
        used = f"{assumed} norms and margins were used for the fit and are not judged.{ignored}"
        notes = (used, *notes)
    said = (estimate.sentence, estimate.charge_sentence)
    return Fit(estimate, prediction, (*(text for text in said if text), *notes))


def _with_charges(
    estimate: EffectiveDecays, measured: MeasuredLayer, counts: Float[np.ndarray, " K"], loss: Loss
) -> EffectiveDecays:
    """Return an estimate with the exponents that margins and norms give where a bias is not looked at."""
    plain = estimate_decays(measured.margins, counts, 1.0, 1.0, loss=loss, norms=measured.norms)
    if plain is None:
        return estimate
    names = ("charge_from_margins", "charge_from_norms", "constancy")
    return dataclasses.replace(estimate, **{name: getattr(plain, name) for name in names})


def _no_fit(reason: str) -> Fit:
    return Fit(None, None, (f"No decays estimated: {reason}.",))
