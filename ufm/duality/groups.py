"""The certificate of a point at group level: the same bounds as for classes, in the algebra of `ufm.model.algebra`.

The class-mean gradients of a point of the algebra lie in the algebra, and so do the candidates made from them, their
products and multipliers; eigenvalues and singular values are those of a G x G matrix and of G numbers. A dual point
holds one row of entries per group, as the logits do. The bound is one for *every* ``(W, H, b)`` of the problem, in
the algebra or not: symmetry only says where to look for the dual point, and feasibility is checked for all classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from ufm.duality.certificate import Certificate
from ufm.duality.copositive import (
    EXACT,
    STEPS,
    SUPPORTS_LIMIT,
    TOGETHER,
    USED,
    largest_on_supports,
    nearest,
)
from ufm.duality.faces import LINEAR_RANGE, NEWTON_STEPS, conjugate_gradients
from ufm.duality.polar import ROUNDING, SHARING_LIMIT, SHARPENED, perron_bound
from ufm.model.algebra import Algebra, Blocks
from ufm.model.groups import GroupObjective, Groups, group_objective
from ufm.model.objective import Point
from ufm.model.problem import Problem

EPS = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class GroupDual:
    """What bounds at group level are made of: the problem's objective on its algebra, in NumPy.

    Attributes:
        problem: the problem.
        groups: its groups.
        objective: its objective on their algebra, in float64 NumPy.
        scales: ``sqrt(n_g)/(N sqrt(lambda_W lambda_H))``, which take Q to A.
        direction: unit vector of the bias in block form, ``sqrt(m_g n_g/N)``.
    """

    problem: Problem
    groups: Groups
    objective: GroupObjective
    scales: Float[np.ndarray, " G"]
    direction: Float[np.ndarray, " G"]

    @classmethod
    def of(cls, problem: Problem, groups: Groups) -> GroupDual:
        """Return what is needed for the certificates of a problem."""
        objective = group_objective(problem, groups)
        weights = objective.loss_weights
        return cls(
            problem,
            groups,
            objective,
            weights * objective.logit_scales,
            np.sqrt(objective.algebra.members * weights),
        )

    @property
    def algebra(self) -> Algebra:
        """The algebra."""
        return self.objective.algebra

    @property
    def rounding(self) -> float:
        """Relative slack for rounding."""
        return ROUNDING * self.problem.num_classes

    def certify(self, point: Point, tol: float = -math.inf) -> Certificate:
        """Certify a balanced point of the algebra.

        Args:
            point: stored elements, in NumPy.
            tol: relative gap at which no better bound is looked for.
        """
        objective = self.objective
        with np.errstate(all="ignore"):
            value, slopes = float(objective.value(point)), objective.slopes(point)
            feasible = self.problem.features == "free" or bool(np.all(point.features >= 0))
            bound, polar = -math.inf, math.nan
            if self.problem.loss.bounded and feasible and bool(np.all(np.isfinite(slopes))):
                bound, polar = self.best_lower_bound(slopes, point.features, value - tol * value)
            residual = math.sqrt(self._stationarity(point))
        residual = residual / math.sqrt(2 * value) if value > 0 else math.inf
        return Certificate(value, bound, polar, residual, self.problem.num_classes)

    def _stationarity(self, point: Point) -> float:
        """Return the squared norm of the projected gradient in balanced coordinates."""
        gradient = self.objective.gradient(point)
        features = gradient.features
        if self.problem.features == "nonnegative":
            features = np.where(point.features > 0, features, np.minimum(features, 0))
        parts = (gradient.weight, features, gradient.bias)
        return sum(float(np.vdot(part, part)) for part in parts if part is not None)

    def best_lower_bound(
        self, raw: Float[np.ndarray, "G columns"], features: Float[np.ndarray, "G columns"], enough: float
    ) -> tuple[float, float]:
        """Return the best lower bound found from ``raw``, and a bound on its polar.

        Args:
            raw: gradient of the loss in the logits, per single logit.
            features: balanced features, which suggest the active constraints.
            enough: no further candidate is tried once the bound is at least this.
        """
        shared = self._shared(features)
        best, polar = -math.inf, self.polar(self.scaled(raw), shared)
        if not math.isfinite(polar):
            return best, math.nan
        for candidate in self._candidates(raw, features):
            bound = self.value_of_feasible(self.feasible(candidate, shared))
            best = bound if bound > best else best
            if best >= enough:
                break
        return best, polar

    def best_dual(self, point: Point) -> Float[np.ndarray, "G columns"]:
        """Return the feasible dual point whose bound is the best that a point gives."""
        slopes, shared = self.objective.slopes(point), self._shared(point.features)
        found = [self.feasible(candidate, shared) for candidate in self._candidates(slopes, point.features)]
        return max(found, key=self.value_of_feasible)

    def _shared(self, features: Float[np.ndarray, "G columns"]) -> Blocks | None:
        """The Gram matrix of balanced features, where it may sharpen the bound on the polar."""
        shares = self.problem.loss.shares_directions or self.problem.bias is not None
        return self._gram(features) if shares else None

    def _gram(self, features: Float[np.ndarray, "G columns"]) -> Blocks:
        blocks = self.algebra.blocks(features)
        return blocks @ blocks.transpose

    def scaled(self, dual: Float[np.ndarray, "G columns"]) -> Blocks:
        """Return ``A`` in block form."""
        return self.algebra.blocks(self.scales[:, None] * self.algebra.roots * dual)

    def _unscaled(self, dual: Blocks) -> Float[np.ndarray, "G columns"]:
        return self.algebra.entries(self.algebra.element(dual)) / self.scales[:, None]

    def value(self, dual: Float[np.ndarray, "G columns"]) -> float:
        """Return ``D(Q)``, a lower bound if the dual point is feasible (see `ufm.duality.lower_bound`)."""
        objective, algebra = self.objective, self.algebra
        conjugate = objective.loss.conjugate(dual, objective.labels, algebra.times)
        value = -float((algebra.members * objective.loss_weights) @ conjugate)
        if self.problem.bias:
            value -= float(np.sum(self._mean(dual) ** 2)) / (2 * self.problem.bias)
        return value

    def _mean(self, dual: np.ndarray) -> Float[np.ndarray, " G"]:
        """Return ``sqrt(m_g)`` times the sum over classes of ``n_k/N Q_k`` in a logit of group g."""
        return self.objective.total(self.objective.loss_weights[:, None] * self.algebra.roots * dual)

    def feasible(self, dual: Float[np.ndarray, "G columns"], gram: Blocks | None = None) -> np.ndarray:
        """Scale a candidate into the feasible set."""
        dual = self._feasible_for_bias(dual)
        return dual / max(1.0, self.polar(self.scaled(dual), gram))

    def value_of_feasible(self, dual: Float[np.ndarray, "G columns"]) -> float:
        """Return the value of a dual point; minus infinity where a free bias or rounding forbids it."""
        if self.problem.bias == 0:
            allowance = self.rounding * self._mean(np.abs(dual))
            if not np.all(np.abs(self._mean(dual)) <= allowance):
                return -math.inf
        value = self.value(dual)
        return -math.inf if math.isnan(value) else value

    def _feasible_for_bias(self, dual: np.ndarray) -> np.ndarray:
        objective, times = self.objective, self.algebra.times
        dual = objective.loss.into_domain(dual, objective.labels, times)
        if self.problem.bias != 0:
            return dual
        weights = self.algebra.members * objective.loss_weights
        centred = objective.loss.centre(dual, objective.labels, weights, times, self.groups.columns)
        return np.where(times > 0, centred, 0.0)  # rounding in entries that stand for none

    def polar(self, dual: Blocks, gram: Blocks | None = None) -> float:
        """Return an upper bound on ``polar(A)``, rounding allowed for (see `ufm.duality.polar`)."""
        if not (np.all(np.isfinite(dual.square)) and np.all(np.isfinite(dual.single))):
            return math.inf
        slack = 1 + self.rounding
        if self.problem.features == "free":
            return max(float(np.linalg.norm(dual.square, 2)), float(np.abs(dual.single).max())) * slack
        product = dual @ dual.transpose
        clipped = self.algebra.blocks(np.maximum(self.algebra.element(product), 0.0))
        bound = perron_bound(np.maximum(clipped.square, 0.0))
        if gram is not None and 1 < bound < SHARPENED and len(self.groups) <= SHARING_LIMIT:
            bound = min(bound, sharing_bound(self.algebra, product, gram))
            if bound > 1 + EXACT * self.problem.num_classes and self.problem.num_classes <= SUPPORTS_LIMIT:
                whole = self.groups.expand(self.algebra.element(product))
                bound = min(bound, largest_on_supports(whole)[0])
        return math.sqrt(bound) * slack

    def _candidates(self, raw: np.ndarray, features: np.ndarray) -> Iterator[np.ndarray]:
        """Yield dual points, the cheapest first: the raw one, and others moved onto the boundary."""
        yield raw
        dual = self._feasible_for_bias(raw)
        if not np.all(np.isfinite(dual)):
            return
        gram = self._gram(features)
        if self.problem.features == "free":
            yield self._unscaled(self.onto_spectral_face(self.scaled(dual), gram))
            return
        yield self._rows_onto_boundary(dual)
        yield self._unscaled(self.onto_cone_face(self.scaled(dual), gram))

    def _rows_onto_boundary(self, dual: np.ndarray) -> np.ndarray:
        """Scale every class to ``|A_k| = 1`` where it is too long, or where stretching it raises the bound."""
        objective, times = self.objective, self.algebra.times
        norms = self.scales * np.sqrt(np.sum(times * dual**2, axis=1))
        factors = 1 / np.where(norms > 0, norms, 1.0)
        shrunk = np.minimum(factors, 1.0)[:, None] * dual
        stretched = objective.loss.into_domain(factors[:, None] * dual, objective.labels, times)
        values = (objective.loss.conjugate(q, objective.labels, times) for q in (shrunk, stretched))
        return np.where((next(values) > next(values))[:, None], stretched, shrunk)

    def onto_spectral_face(self, dual: Blocks, gram: Blocks) -> Blocks:
        """Return A with the singular values of all active directions set to 1 (see `ufm.duality.faces`)."""
        dual, gram = self._centred(dual), self._per_class(gram)
        left, values, right = np.linalg.svd(dual.square)
        energies = np.einsum("gi,gi->i", left, gram.square @ left)
        sizes = np.abs(dual.single)
        active = (energies + values**2 > 1) & (values > LINEAR_RANGE)
        alone = (gram.single + sizes**2 > 1) & (sizes > LINEAR_RANGE)
        square = (left * np.where(active, 1.0, values)) @ right
        return Blocks(square, np.where(alone, np.sign(dual.single), dual.single))

    def onto_cone_face(self, dual: Blocks, gram: Blocks) -> Blocks:
        """Return A with ``(A A')_kl = [k = l]`` for all active pairs (see `ufm.duality.faces`)."""
        algebra = self.algebra
        identity = algebra.diagonal(np.ones(len(self.groups)))
        energies = algebra.element(self._per_class(gram))
        dual = self._centred(dual)
        for _ in range(NEWTON_STEPS):
            crossed = dual @ dual.transpose
            excess = algebra.element(crossed) - identity
            active = energies + excess > 0
            excess = np.where(active, excess, 0.0)
            if not EPS < np.max(np.abs(algebra.entries(excess))) < LINEAR_RANGE:
                break
            change = self._conjugate_gradients(crossed, active, excess)
            move = self._centred(algebra.blocks(change)) @ dual
            dual = Blocks(dual.square - move.square, dual.single - move.single)
        return dual

    def _conjugate_gradients(
        self, crossed: Blocks, active: Bool[np.ndarray, "G columns"], target: np.ndarray
    ) -> np.ndarray:
        """Solve ``P X A A' + A A' X P = target`` on the active pairs for a symmetric X that is zero elsewhere."""

        def change(x: np.ndarray) -> np.ndarray:
            half = self._centred(self.algebra.blocks(x)) @ crossed
            image = Blocks(half.square + half.square.T, 2 * half.single)
            return np.where(active, self.algebra.element(image), 0.0)

        return conjugate_gradients(change, target)

    def _per_class(self, gram: Blocks) -> Blocks:
        """``M`` in units of its mean diagonal."""
        members = self.algebra.members
        trace = np.trace(gram.square) + (members - 1) @ gram.single
        factor = self.problem.num_classes / trace if trace > 0 else 1.0
        return Blocks(factor * gram.square, factor * gram.single)

    def _centred(self, rows: Blocks) -> Blocks:
        """``rows`` with ``sum_k sqrt(n_k) rows_k = 0``, if the problem's bias is unregularised."""
        if self.problem.bias != 0:
            return rows
        across = np.outer(self.direction, self.direction @ rows.square)
        return Blocks(rows.square - across, rows.single)


def sharing_bound(algebra: Algebra, product: Blocks, gram: Blocks) -> float:
    """Return an upper bound on ``max u' G u`` over ``u >= 0, |u| = 1`` (see `ufm.duality.copositive`).

    Args:
        algebra: the algebra.
        product: ``G``, symmetric.
        gram: ``M``, Gram matrix of non-negative class means; it only suggests the multiplier.
    """
    return _largest(algebra, algebra.element(product) + sharing_multiplier(algebra, product, gram))


def sharing_multiplier(algebra: Algebra, product: Blocks, gram: Blocks) -> Float[np.ndarray, "G columns"]:
    """Return the S of that bound as a stored element; arguments as there, infinite where these are not finite."""
    G, entries = len(algebra.members), algebra.entries(algebra.element(gram))
    norms = np.sqrt(np.maximum(entries[:, G], np.finfo(np.float64).tiny))
    with np.errstate(all="ignore"):
        cosines = entries / norms[:, None] / np.append(norms[None, :], 1.0)
        cosines[:, G] = entries[:, G] / norms**2
    if not np.all(np.isfinite(cosines)):
        return np.full_like(entries, math.inf)
    apart = (cosines <= TOGETHER) & (algebra.roots > 0) & (np.arange(G + 1) < G)
    used = _range(algebra, algebra.blocks(algebra.roots * cosines), norms)
    start = np.where(apart, np.maximum(-algebra.element(product), 0.0), 0.0)

    def displacement(element: np.ndarray) -> np.ndarray:
        along = algebra.blocks(element) @ used
        image = Blocks(along.square - used.square, along.single - used.single)
        twice = used @ image
        half, single = image.square - twice.square / 2, image.single - twice.single / 2
        return algebra.element(Blocks(half + half.T, 2 * single))

    found = nearest(algebra.element(product), start, apart, displacement, STEPS)
    return min((start, found), key=lambda added: _largest(algebra, algebra.element(product) + added))


def _largest(algebra: Algebra, element: Float[np.ndarray, "G columns"]) -> float:
    """Return the largest eigenvalue of a symmetric matrix; infinity where an entry is not finite."""
    if not np.all(np.isfinite(element)):
        return math.inf
    blocks = algebra.blocks(element)
    return max(float(np.linalg.eigvalsh(blocks.square)[-1]), float(blocks.single.max()))


def _range(algebra: Algebra, cosines: Blocks, norms: np.ndarray) -> Blocks:
    """Return the projector onto the range of a Gram matrix, from that of its unit vectors."""
    values, vectors = np.linalg.eigh(cosines.square)
    least = USED * max(float(values[-1]), float(cosines.single.max()))
    basis = np.linalg.qr(norms[:, None] * vectors[:, values > least])[0]
    return Blocks(basis @ basis.T, np.where((cosines.single > least) & (algebra.members > 1), 1.0, 0.0))
