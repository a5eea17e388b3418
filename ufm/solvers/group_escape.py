"""Escape moves at group level: what `ufm.solvers.escape` does for classes, on whole groups at once.

Non-negative features get stuck where a class shares its coordinate, or has died because others took it. Turning the
features into ``(H H')^{1/2}`` brings every class as near as it can be to a coordinate of its own: logits and norms stay,
parallel coordinates merge, classes that lie on each other's coordinates return to their own. A class whose dual
constraint is violated, ``|A_k| > 1``, then gets the atom ``e_k w'``, ``w = -A_k/|A_k|``, on its own coordinate, together
with all of its group. Atoms of different groups touch the logits of different classes, so their best strengths are
scalar problems. Free features get singular directions of A above 1. A move is made only if it lowers the objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from ufm.duality.groups import GroupDual
from ufm.model.algebra import Blocks
from ufm.model.objective import Point

#: Constraints count as violated above 1 plus this margin.
MARGIN = 1e-9
#: A class is as good as dead when its features carry less than this share of the norm that they start with.
NEARLY_DEAD = 1e-3
#: Directions below this share of the largest are not used.
NEGLIGIBLE = 1e-8
DOUBLINGS = 40
REFINEMENTS = 6
SHRINKS = 12


@dataclasses.dataclass(frozen=True)
class GroupMove:
    """A better point, what was done to get there, and by how much the objective fell."""

    point: Point
    deed: str
    decrease: float

    @property
    def sentence(self) -> str:
        """The move in words, for the history."""
        return f"{self.deed}, objective down {self.decrease:.2e}"


def group_escape(dual: GroupDual, point: Point, least: float = 0.0) -> GroupMove | None:
    """Return a move that lowers the objective by more than ``least``, or None if there is none to be found.

    Args:
        dual: the problem on its algebra.
        point: a balanced point of the algebra, in NumPy.
        least: decrease that is not worth a move.
    """
    value = float(dual.objective.value(point))
    for moved, deed in _moves(dual, point, value):
        decrease = value - float(dual.objective.value(moved))
        if decrease > least:
            return GroupMove(moved, deed, decrease)
    return None


def _moves(dual: GroupDual, point: Point, value: float) -> Iterator[tuple[Point, str]]:
    if dual.problem.features == "free":
        yield from _free_moves(dual, point)
        return
    lengths = row_lengths(dual, point)
    violating = lengths > 1 + MARGIN
    if not np.any(violating):
        return
    turned = onto_axes(dual, point)
    bases = [(turned, "turned onto axes, "), (point, "")]
    if not float(dual.objective.value(turned)) <= value * (1 + 1e-12):
        bases = bases[::-1]
    energies = np.sum(point.features**2, axis=1) / dual.algebra.members
    dead = violating & (energies < NEARLY_DEAD / dual.objective.logit_scales)
    for base, deed in bases:
        for chosen in (dead, violating):
            if np.any(chosen):
                classes = int(dual.algebra.members[chosen].sum())
                for moved in _with_atoms(dual, base, chosen):
                    yield moved, f"{deed}added {classes} atoms"


def row_lengths(dual: GroupDual, point: Point) -> Float[np.ndarray, " G"]:
    """Return ``|A_k|`` for a class of every group."""
    slopes = dual.objective.slopes(point)
    return dual.scales * np.sqrt(np.sum(dual.algebra.times * slopes**2, axis=1))


def onto_axes(dual: GroupDual, point: Point) -> Point:
    """Return the point with features ``(H H')^{1/2}``, negative entries clipped: the same logits if there are none."""
    algebra = dual.algebra
    weight, features = algebra.blocks(point.weight), algebra.blocks(point.features)
    values, vectors = np.linalg.eigh(features.square @ features.square.T)
    roots = np.sqrt(np.maximum(values, 0.0))
    used = roots > NEGLIGIBLE * roots[-1]
    vectors, roots = vectors[:, used], roots[used]
    back = ((weight.square @ features.square.T) @ vectors / roots) @ vectors.T
    signs = np.sign(features.single)
    turned = algebra.element(Blocks((vectors * roots) @ vectors.T, np.abs(features.single)))
    turned = np.where(turned > NEGLIGIBLE * np.max(turned), turned, 0.0)
    return Point(algebra.element(Blocks(back, weight.single * signs)), turned, point.bias)


def _with_atoms(dual: GroupDual, base: Point, chosen: Bool[np.ndarray, " G"]) -> Iterator[Point]:
    """Yield the point with atoms for the chosen groups, their coordinates and features given up; ever weaker ones."""
    algebra, G = dual.algebra, len(chosen)
    own = np.arange(G + 1) == G
    # rows of features and columns of both that the atoms take over
    columns = np.append(chosen, False)[None, :] | (own & chosen[:, None])
    weight = np.where(columns, 0.0, base.weight)
    features = np.where(columns | chosen[:, None], 0.0, base.features)
    cleared = Point(weight, features, base.bias)
    slopes = dual.objective.slopes(cleared)
    sizes = np.sqrt(np.sum(algebra.times * slopes**2, axis=1))
    directions = -slopes / np.where(sizes > 0, sizes, 1.0)[:, None]
    strengths = np.where(chosen, _strengths(dual, cleared, directions), 0.0)
    for _ in range(SHRINKS):
        roots = np.sqrt(strengths)
        added = algebra.transpose(roots[:, None] * algebra.roots * directions)
        yield Point(weight + added, features + algebra.diagonal(roots), base.bias)
        strengths = strengths / 2


def _strengths(
    dual: GroupDual, point: Point, directions: Float[np.ndarray, "G columns"]
) -> Float[np.ndarray, " G"]:
    """Return near-optimal strengths: where the slope of the objective in each vanishes (regula falsi, Illinois)."""
    objective, times = dual.objective, dual.algebra.times
    logits = objective.logits(point)
    moves = objective.logit_scales[:, None] * directions

    def slope(strengths: np.ndarray) -> np.ndarray:
        gradient = objective.loss.gradient(
            logits + strengths[:, None] * moves, objective.labels, times
        )
        return 1 + objective.loss_weights * np.sum(times * gradient * moves, axis=1)

    low, high = np.zeros(len(moves)), 1 / objective.logit_scales
    at_low, at_high = slope(low), slope(high)
    for _ in range(DOUBLINGS):
        short = (at_high < 0) & (at_low < 0)
        if not np.any(short):
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
        at_low, at_high = np.where(short, at_high, at_low), slope(high)
    last = np.zeros(len(low))
    for _ in range(REFINEMENTS):
        down, up = np.maximum(-at_low, 0), np.maximum(at_high, 0)
        middle = np.where(up > 0, low + (high - low) * (down / np.where(up > 0, down + up, 1)), high)
        at_middle = slope(middle)
        side = np.sign(at_middle)
        keep = np.where(side == last, 0.5, 1.0)  # an end that stays twice is made to give way
        low, at_low = np.where(side < 0, [middle, at_middle], [low, keep * at_low])
        high, at_high = np.where(side < 0, [high, keep * at_high], [middle, at_middle])
        last = side
    return middle


def _free_moves(dual: GroupDual, point: Point) -> Iterator[tuple[Point, str]]:
    """Yield points with atoms along the singular directions of A above 1, on principal axes that are not in use."""
    algebra = dual.algebra
    left, values, right = np.linalg.svd(dual.scaled(dual.objective.slopes(point)).square)
    single = dual.scaled(dual.objective.slopes(point)).single
    weight, features = algebra.blocks(point.weight), algebra.blocks(point.features)
    energy = weight.square.T @ weight.square + features.square.T @ features.square
    carried, axes = np.linalg.eigh(energy)
    unused = np.flatnonzero(carried <= NEGLIGIBLE * max(carried[-1], 1e-300))
    chosen = np.flatnonzero(values > 1 + MARGIN)[: len(unused)]
    alone = (np.abs(single) > 1 + MARGIN) & (
        weight.single**2 + features.single**2 <= NEGLIGIBLE * np.mean(carried)
    )
    if not len(chosen) and not np.any(alone):
        return
    classes = len(chosen) + int(np.sum(dual.algebra.members[alone] - 1))
    strength = float(np.mean(1 / dual.objective.logit_scales))
    for _ in range(SHRINKS):
        root = np.sqrt(strength)
        turned = weight.square @ axes, features.square @ axes
        turned[0][:, unused[: len(chosen)]] = -root * right[chosen].T
        turned[1][:, unused[: len(chosen)]] = root * left[:, chosen]
        ends = (
            algebra.element(Blocks(turned[0], np.where(alone, -root * np.sign(single), weight.single))),
            algebra.element(Blocks(turned[1], np.where(alone, root, features.single))),
        )
        yield Point(*ends, point.bias), f"added {classes} atoms"
        strength = strength / 4
