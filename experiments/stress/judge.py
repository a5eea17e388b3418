"""A judge of solutions of the whole family, which shares no formula with the package and needs no residual.

Losses are written out in the plainest form, gradients and curvatures come from automatic differentiation, and no
conjugate is known. For convex losses ``loss(z) >= loss(z0) + <Q, z - z0>`` with Q the gradient at any logits z0, and
``sum_k a_k <Q_k, W h_k> >= -polar(A) R`` with R the regulariser, so with ``R* <= P* <= P``

    ``P* >= sum_k a_k (loss_k(z_k) - <Q_k, z_k>) - max(polar(A) - 1, 0) P``    (less what the bias could gain),

a bound that is off by the first power of the distance of z0 to the optimum. So the judge first polishes the point by
Newton steps of its own (MINRES on the whole Hessian, which rotations leave singular), and measures the objective that
was *reported* against the bound at the polished point. A reported bound above the polished objective is false.

The polar of free features is the largest singular value. That of non-negative ones, ``max |A' u|`` over unit vectors
``u >= 0``, is found exactly: a maximiser of smallest support T is the positive leading eigenvector of the principal
submatrix of ``G = A A'`` on T, and T hangs together by positive entries of G (where it falls into parts without any,
one part does as well). All such T are looked at, up to `LARGEST` classes that hang together; beyond, clipping
negative entries of G bounds it.

An unregularised bias is taken to be at most twice that of the point at the optimum, so that there this is a check and
no proof; after polishing it is of the order of rounding.

Not a script: a part of `python -m experiments.stress.family`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

#: Newton steps, MINRES iterations for each and, with many classes, fewer; relative residual that is enough.
NEWTON, MINRES, STATIONARY = 12, 400, 1e-13
#: Entries of G up to this are no connection, classes that may hang together, and how positive an eigenvector must be.
CONNECTED, LARGEST, POSITIVE = 1e-11, 16, -1e-6
#: Rounding that a comparison of objectives allows for.
ROUNDING = 1e-9


def own_losses(name: str, z: Any, labels: Any, n: Any) -> Any:
    """Return the losses of rows of logits z of the classes ``labels``, written out; n are the counts."""
    form, one = name.split(":")[0], jax.nn.one_hot(labels, len(n), dtype=z.dtype)
    if form == "mse":
        return jnp.sum((z - one) ** 2, axis=1) / 2
    if form == "bce":
        return jnp.sum(jnp.logaddexp(0.0, jnp.where(one > 0, -z, z)), axis=1)
    if form == "adjustment":
        z = z + jnp.log(n / jnp.sum(n))
    if form == "cdt":
        z = z * (n / jnp.max(n)) ** 0.1
    if form == "ldam":
        z = z - one * 0.5 * (jnp.min(n) / n) ** 0.25
    label = jnp.sum(one * z, axis=1)
    others = jax.scipy.special.logsumexp(jnp.where(one > 0, -jnp.inf, z), axis=1)
    hard = jnp.logaddexp(0.0, others - label)
    if form == "smoothing":
        return hard + 0.1 * (label - jnp.mean(z, axis=1))
    if form == "poly1":
        return hard + jax.nn.sigmoid(others - label)
    return hard * (one @ (n**-0.5 / jnp.sum(n**0.5) * jnp.sum(n))) if form == "weighted" else hard


@functools.partial(jax.jit, static_argnums=0)
def _losses_and_slopes(name: str, z: Any, labels: Any, n: Any) -> tuple[Any, Any]:
    return own_losses(name, z, labels, n), jax.grad(lambda z: jnp.sum(own_losses(name, z, labels, n)))(z)


@functools.partial(jax.jit, static_argnums=0)
def _bend(name: str, z: Any, labels: Any, n: Any, along: Any) -> Any:
    return jax.jvp(jax.grad(lambda z: jnp.sum(own_losses(name, z, labels, n))), (z,), (along,))[1]


class Point(NamedTuple):
    """Classifier, features (one row per class) and bias, in coordinates whose squares are the regulariser."""

    weight: Any
    features: Any
    bias: Any

    def plus(self, other: Point, times: float) -> Point:
        """Return the sum."""
        return Point(*(a + times * b for a, b in zip(self, other, strict=True)))

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return float(np.sqrt(sum(np.sum(part**2) for part in self)))


class Model:
    """The objective of a problem as the judge writes it, with gradient and curvature."""

    def __init__(self, name: str, problem: Any) -> None:
        self.name, self.n = name, np.asarray(problem.counts, float)
        self.share, self.free = self.n / self.n.sum(), problem.features == "free"
        self.scales = np.sqrt(problem.weight_decay), np.sqrt(problem.feature_decay * self.n)[:, None]
        self.reach = 1 / (self.scales[0] * self.scales[1])
        self.has_bias, self.bias_decay = problem.bias is not None, float(problem.bias or 0.0)

    def point(self, solution: Any) -> Point:
        """Return the class means of a solution."""
        rows = [np.flatnonzero(solution.labels == k) for k in range(len(self.n))]
        means = np.stack([solution.features[own].mean(axis=0) for own in rows])
        bias = np.zeros(len(self.n)) if solution.bias is None else np.asarray(solution.bias)
        return Point(solution.weight * self.scales[0], means * self.scales[1], bias)

    def logits(self, at: Point) -> Any:
        """Return the logits of every class."""
        return self.reach * (at.features @ at.weight.T) + at.bias

    def parts(self, at: Point) -> tuple[Any, Any]:
        """Return losses and their slopes."""
        losses, slopes = _losses_and_slopes(self.name, self.logits(at), np.arange(len(self.n)), self.n)
        return np.asarray(losses), np.asarray(slopes)

    def value(self, at: Point) -> float:
        """Return the objective."""
        squares = np.sum(at.weight**2) + np.sum(at.features**2) + self.bias_decay * np.sum(at.bias**2)
        return float(self.share @ self.parts(at)[0] + squares / 2)

    def gradient(self, at: Point) -> Point:
        """Return the gradient; nothing in a bias that the problem does not have."""
        slopes = self.share[:, None] * self.parts(at)[1]
        return self._pulled(slopes, at).plus(Point(at.weight, at.features, self.bias_decay * at.bias), 1.0)

    def _pulled(self, slopes: Any, at: Point) -> Point:
        scaled = self.reach * slopes
        return Point(scaled.T @ at.features, scaled @ at.weight, slopes.sum(axis=0) * self.has_bias)

    def curvature(self, at: Point, slopes: Any, along: Point) -> Point:
        """Return the second derivative times a direction."""
        moved = self.reach * (along.features @ at.weight.T + at.features @ along.weight.T) + along.bias
        bend = self.share[:, None] * np.asarray(
            _bend(self.name, self.logits(at), np.arange(len(self.n)), self.n, moved)
        )
        first, second = self._pulled(bend, at), self._pulled(slopes, along)._replace(bias=0.0)
        return first.plus(second, 1.0).plus(
            Point(along.weight, along.features, self.bias_decay * along.bias), 1.0
        )

    def movable(self, at: Point, slope: Point) -> Point:
        """Return ones where the point may move: a feature at zero that is pushed below stays."""
        stays = (at.features <= 0) & (slope.features >= 0) & (not self.free)
        return Point(np.ones_like(at.weight), 1.0 - stays, np.full(len(self.n), float(self.has_bias)))

    def residual(self, at: Point) -> float:
        """Return the norm of the projected gradient over that of the point."""
        slope = self.gradient(at)
        held = self.movable(at, slope)
        return Point(*(a * b for a, b in zip(slope, held, strict=True))).norm / np.sqrt(2 * self.value(at))

    def bound(self, at: Point) -> float:
        """Return a lower bound on the optimal value."""
        losses, slopes = self.parts(at)
        polar = polar_of(np.sqrt(self.share)[:, None] * slopes * self._to_dual, self.free)
        total = self.share @ slopes
        lost = 0.0
        if self.has_bias:
            lost = (
                total @ total / 2 / self.bias_decay if self.bias_decay else 2 * abs(total) @ np.abs(at.bias)
            )
        flat = self.share @ (losses - np.sum(slopes * self.logits(at), axis=1))
        return float(flat - max(polar - 1, 0) * self.value(at) - lost)

    @property
    def _to_dual(self) -> float:
        """``1 / sqrt(N lambda_W lambda_H)``."""
        return float((self.reach[0] * np.sqrt(self.n[0]) / np.sqrt(self.n.sum()))[0])


def polished(model: Model, start: Point) -> list[Point]:
    """Return the points that Newton steps lead to, while they make it more stationary, the last one last."""
    found, residual = [start], model.residual(start)
    shapes = [part.shape for part in start]
    cuts = np.cumsum([part.size for part in start])[:-1]
    for _ in range(NEWTON):
        at = found[-1]
        if not residual > STATIONARY:
            break
        slope = model.gradient(at)
        held = np.concatenate([part.ravel() for part in model.movable(at, slope)])
        slopes = model.share[:, None] * model.parts(at)[1]

        def bend(x: np.ndarray, at: Point = at, slopes: Any = slopes, held: np.ndarray = held) -> np.ndarray:
            parts = [
                part.reshape(shape) for part, shape in zip(np.split(held * x, cuts), shapes, strict=True)
            ]
            image = model.curvature(at, slopes, Point(*parts))
            return held * np.concatenate([part.ravel() for part in image])

        size = len(held)
        target = -held * np.concatenate([part.ravel() for part in slope])
        step = scipy.sparse.linalg.minres(
            scipy.sparse.linalg.LinearOperator((size, size), bend),
            target / np.linalg.norm(target),
            rtol=1e-7,
            maxiter=MINRES if size < 20_000 else MINRES // 4,
        )[0] * np.linalg.norm(target)
        change = Point(
            *(part.reshape(shape) for part, shape in zip(np.split(step, cuts), shapes, strict=True))
        )
        for length in (1.0, 0.3, 0.1):
            moved = at.plus(change, length)
            if not model.free:
                moved = moved._replace(features=np.maximum(moved.features, 0))
            better = model.residual(moved)
            if better < 0.9 * residual:
                break
        else:
            break
        found.append(moved)
        residual = better
    return found


def polar_of(dual: Any, free: bool) -> float:
    """Return ``max |A' u|`` over unit vectors, all or the non-negative ones; an upper bound if that is too large."""
    if not np.all(np.isfinite(dual)):
        return np.inf
    if free:
        return float(np.linalg.norm(dual, 2))
    gram = dual @ dual.T
    parts = scipy.sparse.csgraph.connected_components(gram > CONNECTED)
    found = [_cone_maximum(gram[np.ix_(own, own)]) for own in _members(*parts)]
    return float(np.sqrt(max(found) + CONNECTED * len(gram)))


def _members(count: int, labels: Any) -> list[Any]:
    return [np.flatnonzero(labels == part) for part in range(count)]


def _cone_maximum(gram: np.ndarray) -> float:
    """Return ``max u' G u`` over non-negative unit vectors, from the leading eigenvector of every submatrix."""
    size = len(gram)
    if size > LARGEST:
        return float(np.linalg.eigvalsh(np.maximum(gram, 0))[-1])
    best = float(np.max(np.diagonal(gram)))
    for chosen in range(2, size + 1):
        supports = np.array(list(itertools.combinations(range(size), chosen)))
        for block in np.array_split(supports, max(1, len(supports) // 4000)):
            values, vectors = np.linalg.eigh(gram[block[:, :, None], block[:, None, :]])
            last = vectors[:, :, -1] * np.sign(vectors[:, :, -1].sum(axis=1))[:, None]
            positive = np.all(last >= POSITIVE, axis=1)
            best = max(best, float(np.max(values[positive, -1], initial=0.0)))
    return best


def judge(name: str, solution: Any) -> dict[str, Any]:
    """Recompute objective and gap of a solution from its arrays, and say what does not fit.

    Args:
        name: the loss as text.
        solution: problem, arrays, and what it says of itself; only its numbers are read.

    Returns:
        ``judged_gap`` from the judge's bound to the reported objective, ``above``: by what share the polished point
        lies below it, ``polished``: its residual, and ``complaints``.
    """
    problem, certificate = solution.problem, solution.certificate
    with jax.enable_x64(True), np.errstate(all="ignore"):
        model = Model(name, problem)
        start = model.point(solution)
        value = objective_of(name, solution)
        ladder = polished(model, start)
        bound = max(model.bound(point) for point in {id(p): p for p in (start, *ladder[-2:])}.values())
        lowest, residual = min(model.value(ladder[-1]), value), model.residual(ladder[-1])
    objections = {
        "negative feature": problem.features == "nonnegative" and solution.features.min() < 0,
        "objective": not abs(value - solution.objective) <= ROUNDING * abs(value),
        "bound above the objective": not certificate.lower_bound <= lowest * (1 + ROUNDING),
    }
    return {
        "judged_gap": float((solution.objective - bound) / solution.objective),
        "above": float((solution.objective - lowest) / solution.objective),
        "polished": float(residual),
        "complaints": [text for text, holds in objections.items() if holds],
    }


def objective_of(name: str, solution: Any) -> float:
    """Return the objective of a solution with its rows as they are, any number of equal ones per class."""
    problem, labels, n = solution.problem, solution.labels, np.asarray(solution.problem.counts, float)
    bias = np.zeros(len(n)) if solution.bias is None else solution.bias
    times = (n / np.bincount(labels, minlength=len(n)))[labels]
    losses = np.asarray(own_losses(name, solution.features @ solution.weight.T + bias, labels, n))
    squares = problem.weight_decay * np.sum(solution.weight**2) + (problem.bias or 0.0) * bias @ bias
    squares += problem.feature_decay * times @ np.sum(solution.features**2, axis=1)
    return float(times @ losses / n.sum() + squares / 2)
