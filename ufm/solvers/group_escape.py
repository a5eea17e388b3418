"""Escape moves at group level: what `ufm.solvers.escape` does for classes, on whole groups at once.

Non-negative features get stuck where a class shares its coordinate, or has died because others took it. Turning the
features into ``(H H')^{1/2}`` brings every class as near as it can be to a coordinate of its own: logits and norms
stay, parallel coordinates merge, classes that lie on each other's coordinates return to their own. A class whose
dual constraint is violated, ``|A_k| > 1``, then gets the atom ``e_k w'``, ``w = -A_k/|A_k|``, on its own coordinate,
together with all of its group. Atoms of different groups touch the logits of different classes, so their best
strengths are scalar problems. Free features get singular directions of A above 1. A move is made only if it lowers
the objective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from ufm.duality.groups import GroupDual
from ufm.model.algebra import Blocks
from ufm.model.objective import Point
from ufm.solvers.atoms import MARGIN, where_zero
from ufm.solvers.escape import Move
from ufm.solvers.own_coordinates import NEGLIGIBLE

#: A class is as good as dead when its features carry less than this share of the norm that they start with.
NEARLY_DEAD = 1e-3
SHRINKS = 8


@np.errstate(all="ignore")  # a move that overflows is not better, and refused
def group_escape(dual: GroupDual, point: Point, least: float = 0.0) -> Move | None:
    """Return a move that lowers the objective by more than ``least``, or None if there is none to be found.

    Args:
        dual: the problem on its algebra.
        point: a balanced point of the algebra, in NumPy.
        least: decrease that is not worth a move.
    """
    value = float(dual.objective.value(point))
    moves = _cone_moves if dual.problem.features == "nonnegative" else _free_moves
    for shrinks in range(1 if least > 0 else SHRINKS):  # weaker atoms only where nothing else goes on
        found = [
            Move(moved, description, value - float(dual.objective.value(moved)))
            for moved, description in moves(dual, point, 4.0**-shrinks)
        ]
        best = max(found, key=lambda move: move.decrease, default=None)
        if best is None or best.decrease > least:
            return best
    return None


def _cone_moves(dual: GroupDual, point: Point, share: float) -> Iterator[tuple[Point, str]]:
    """Yield the point as it is and turned onto axes, with atoms for dead classes only and for all violating ones."""
    lengths = row_lengths(dual, point)
    violating = lengths > 1 + MARGIN
    if not np.any(violating):
        return
    energies = np.sum(point.features**2, axis=1) / dual.algebra.members
    dead = violating & (energies < NEARLY_DEAD / dual.objective.logit_scales)
    chosen = [dead, violating] if np.any(dead) and np.any(dead != violating) else [violating]
    for base, description in ((onto_axes(dual, point), "turned onto axes, "), (point, "")):
        for groups in chosen:
            classes = int(dual.algebra.members[groups].sum())
            yield _with_atoms(dual, base, groups, share), f"{description}added {classes} atoms"


def row_lengths(dual: GroupDual, point: Point) -> Float[np.ndarray, " G"]:
    """Return ``|A_k|`` for a class of every group."""
    slopes = dual.objective.slopes(point)
    return dual.scales * np.sqrt(np.sum(dual.algebra.times * slopes**2, axis=1))


def onto_axes(dual: GroupDual, point: Point) -> Point:
    """Return the point with features ``(H H')^{1/2}``, negative entries clipped; without any the logits stay."""
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


def _with_atoms(dual: GroupDual, base: Point, chosen: Bool[np.ndarray, " G"], share: float) -> Point:
    """Return the point with atoms for the chosen groups, whose coordinates and features are given up.

    Args:
        dual: the problem on its algebra.
        base: the point.
        chosen: groups that get atoms.
        share: of their best strengths.
    """
    algebra, G = dual.algebra, len(chosen)
    own = np.arange(G + 1) == G
    # rows of features and columns of both that the atoms take over
    columns = np.append(chosen, False)[None, :] | (own & chosen[:, None])
    weight = np.where(columns, 0.0, base.weight)
    features = np.where(columns | chosen[:, None], 0.0, base.features)
    cleared = Point(weight, features, base.bias)
    objective = dual.objective
    slopes, times = objective.slopes(cleared), algebra.times
    sizes = np.sqrt(np.sum(times * slopes**2, axis=1))
    directions = -slopes / np.where(sizes > 0, sizes, 1.0)[:, None]
    logits, moves = objective.logits(cleared), objective.logit_scales[:, None] * directions

    def slope(strengths: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        gradient = objective.loss.gradient(logits + strengths[:, None] * moves, objective.labels, times)
        return 1 + objective.loss_weights * np.sum(times * gradient * moves, axis=1)

    strengths = np.where(chosen, where_zero(slope, 1 / objective.logit_scales), 0.0)
    roots = np.sqrt(share * strengths)
    added = algebra.transpose(roots[:, None] * algebra.roots * directions)
    return Point(weight + added, features + algebra.diagonal(roots), base.bias)


def _free_moves(dual: GroupDual, point: Point, share: float) -> Iterator[tuple[Point, str]]:
    """Yield the point with atoms along singular directions of A above 1, on principal axes not in use."""
    algebra = dual.algebra
    scaled = dual.scaled(dual.objective.slopes(point))
    left, values, right = np.linalg.svd(scaled.square)
    weight, features = algebra.blocks(point.weight), algebra.blocks(point.features)
    carried, axes = np.linalg.eigh(weight.square.T @ weight.square + features.square.T @ features.square)
    least = NEGLIGIBLE * carried[-1]
    unused = np.flatnonzero(carried <= least)
    chosen = np.flatnonzero(values > 1 + MARGIN)[: len(unused)]
    unused = unused[: len(chosen)]
    alone = (np.abs(scaled.single) > 1 + MARGIN) & (weight.single**2 + features.single**2 <= least)
    if not len(chosen) and not np.any(alone):
        return
    root = float(np.sqrt(share * np.mean(1 / dual.objective.logit_scales)))
    turned = [part.square @ axes for part in (weight, features)]
    turned[0][:, unused], turned[1][:, unused] = -root * right[chosen].T, root * left[:, chosen]
    signs = np.sign(scaled.single)
    singles = [np.where(alone, -root * signs, weight.single), np.where(alone, root, features.single)]
    ends = (algebra.element(Blocks(*parts)) for parts in zip(turned, singles, strict=True))
    classes = len(chosen) + int(np.sum(dual.algebra.members[alone] - 1))
    yield Point(next(ends), next(ends), point.bias), f"added {classes} atoms"
