"""Escape moves: from a point where no gradient step helps to one of lower objective.

With non-negative features and few dimensions gradient methods get stuck at points where a class has no
coordinate of its own and stays at zero. The certificate sees it: ``polar(A) > 1``. A move

1. *frees* coordinates: dead ones; those whose columns of H are parallel to another's, which are merged into
   one (the logits stay, and the regulariser can only fall: a merged atom has strength ``|sum_j |g_j| v_j|``,
   at most the sum of theirs); and, where those are too few, the weakest ones, given up, or those that become
   free by rotating every living class towards an axis of its own;
2. *adds atoms*: unit directions ``u`` in class space with ``|A' u| > 1`` (projected power iteration from
   every violating class for non-negative features, singular vectors for free ones), with ``w = -A' u / |A'
   u|``. An atom of strength theta adds ``theta w u'`` to the balanced logits and theta to the regulariser, so
   the best strengths solve a convex problem; its slope at zero is ``1 - |A' u| < 0``.

One round frees as many coordinates and adds as many atoms as there are. Where all coordinates are taken and
in use, as with 31 classes that sit on the 31 lines of a projective plane, rotating alone helps: it changes
no logit, but the constraints that made the point stationary are no longer active. A move is made only if it
lowers the objective; it knows nothing of closed forms.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ufm.duality.certificate import class_means, objective_values
from ufm.duality.lower_bound import dual_scales
from ufm.duality.row_sums import logits_of
from ufm.losses import Loss
from ufm.model.objective import Variables
from ufm.model.problem import Level, Problem, row_labels, row_multiplicities
from ufm.model.stack import Stack, member, scaling
from ufm.solvers.atoms import PARALLEL, Atoms, strengths, violating_atoms
from ufm.solvers.own_coordinates import NEGLIGIBLE, applicable, with_own_coordinates

#: A coordinate is dead when it carries less than this share of the regulariser.
DEAD = 1e-14
HALVINGS = 40
#: A step from a rotated point, or a move of a loss that is not convex, counts if it lowers the objective by more
#: than this share.
WORTHWHILE = 1e-9
#: Times the added atoms are halved before a move is given up.
SHRINKS = 6

#: Classifier and features in balanced coordinates.
Balanced = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Move:
    """A better point, what was done to get there, by how much the objective fell, and how many steps it took."""

    point: Any
    description: str
    decrease: float
    steps: int = 0

    @property
    def sentence(self) -> str:
        """The move in words, for the history."""
        return f"{self.description}, objective down {self.decrease:.2e}"


@np.errstate(all="ignore")  # at decays of 1e-300 squares overflow; such a move is not better, and refused
def escape_all(stack: Stack, points: Variables) -> list[Move | None]:
    """Return for every member of a stack a move that lowers its objective, or None if there is none to be found.

    Args:
        stack: the problems.
        points: the points that they are stuck at, stacked.
    """
    if stack.classifier is not None:  # only features are free, a convex problem
        return [None] * len(stack)
    found: dict[int, Move] = {}
    kinds: dict[Loss, list[int]] = {}
    for i, problem in enumerate(stack.problems):
        kinds.setdefault(problem.loss, []).append(i)
    for group in kinds.values():
        mine = stack.take(group)
        if applicable(mine):
            moved, atoms, decrease = with_own_coordinates(mine, member(points, group))
            for i in np.flatnonzero(decrease > 0).tolist():
                description = f"rotated classes towards axes of their own, added {int(atoms[i])} atoms"
                found[group[i]] = Move(member(moved, i), description, float(decrease[i]))
    for i, problem in enumerate(stack.problems):
        if i not in found and (move := escape(problem, stack.level, member(points, i))) is not None:
            found[i] = move
    return [found.get(i) for i in range(len(stack))]


def escape(problem: Problem, level: Level, variables: Variables) -> Move | None:
    """Return a move that lowers the objective, or None if there is none to be found.

    Args:
        problem: the problem.
        level: level of the feature rows.
        variables: the point ``(W, H, b)``.
    """
    here = _Evaluated(problem, level, variables)
    dual = dual_scales(problem)[:, None] * here.means(here.slopes)
    atoms = violating_atoms(dual, problem.features == "nonnegative")
    if not len(atoms.u):
        return None
    most = min(len(atoms.u), problem.dim)
    counts = [most >> halvings for halvings in range(most.bit_length())]
    if problem.features == "nonnegative":
        bases = [here.balanced]
        bases += _onto_axes(*here.balanced, here.means(here.balanced[1] / here.share))
    else:
        bases = [_onto_principal_axes(*here.balanced)]
    moves = itertools.chain(
        (_add_atoms(here, base, atoms, count) for count in counts for base in bases),
        (_slide(here, base) for base in bases[1:]),
    )
    return next(filter(None, moves), None)


class _Evaluated:
    """The point to escape from, in balanced coordinates, with its logits and their gradients."""

    def __init__(self, problem: Problem, level: Level, variables: Variables) -> None:
        self.problem, self.bias = problem, variables.bias
        self.labels, self.multiplicities = row_labels(problem, level), row_multiplicities(problem, level)
        self.scales = scaling(problem, level, "balanced")
        self.share = np.sqrt(self.multiplicities / problem.counts[self.labels])[:, None]
        self.balanced = (
            variables.weight * self.scales.weight,
            variables.features * self.scales.rows[:, None],
        )
        self.logits = logits_of(*variables)
        self.slopes = problem.loss.gradient(self.logits, self.labels)
        self.value = self.value_of(variables)

    def means(self, rows: Float[np.ndarray, "rows any"]) -> Float[np.ndarray, "C any"]:
        """Return class means of rows."""
        return class_means(rows, self.labels, self.problem.num_classes)

    def variables(self, weight: Float[np.ndarray, "K d"], features: Float[np.ndarray, "rows d"]) -> Variables:
        """Return a balanced point as ``(W, H, b)``, with the bias of this one."""
        return Variables(weight / self.scales.weight, features / self.scales.rows[:, None], self.bias)

    def value_of(self, variables: Variables) -> float:
        """Return the objective at a point."""
        return float(objective_values(self.problem, variables, self.labels, self.multiplicities))


def _add_atoms(here: _Evaluated, base: Balanced, atoms: Atoms, count: int) -> Move | None:
    """Free ``count`` coordinates of the base and give them to the strongest atoms, if that lowers the objective."""
    weight, features, free, merged = _free_coordinates(*base, count)
    chosen = Atoms(atoms.u[: len(free)], atoms.w[: len(free)])
    sizes = np.sqrt(strengths(here.problem, here.means(here.logits), chosen))
    # without a gap to close, moves within rounding would never end
    least = 0.0 if here.problem.loss.convex else WORTHWHILE * here.value
    for _ in range(SHRINKS):
        weight[:, free] = (sizes[:, None] * chosen.w).T
        features[:, free] = (sizes[:, None] * chosen.u).T[here.labels] * here.share
        moved = here.variables(weight, features)
        decrease = here.value - here.value_of(moved)
        if decrease > least:
            return Move(moved, f"merged {merged} coordinates, added {len(free)} atoms", decrease)
        sizes = sizes / 2
    return None


def _slide(here: _Evaluated, base: Balanced) -> Move | None:
    """Take a projected gradient step from a rotated point, which need not be stationary any more."""
    weight, features = base
    slopes = here.problem.loss.gradient(logits_of(*here.variables(*base)), here.labels)
    slopes = slopes * (here.multiplicities / here.problem.num_samples)[:, None]
    scaled = slopes / (here.scales.weight * here.scales.rows[:, None])
    in_weight, in_features = scaled.T @ features + weight, scaled @ weight + features
    step = 1.0
    for _ in range(HALVINGS):
        moved = here.variables(weight - step * in_weight, np.maximum(features - step * in_features, 0))
        decrease = here.value - here.value_of(moved)
        if decrease > WORTHWHILE * here.value:
            return Move(moved, "rotated classes towards axes of their own", decrease)
        step = step / 2
    return None


def _onto_axes(
    weight: Float[np.ndarray, "K d"], features: Float[np.ndarray, "rows d"], means: Float[np.ndarray, "C d"]
) -> list[Balanced]:
    """Return the point rotated so that the class means M become ``(M M')^{1/2}``, if there are axes enough.

    The logits stay. Every living class comes as close as it can to an axis of its own, and the other axes are
    free, even where no two columns of H were parallel. A negative entry of the root, if any, is clipped.
    """
    left, values, right = np.linalg.svd(means, full_matrices=False)
    kept = values > NEGLIGIBLE * values[0]
    living = np.flatnonzero(np.linalg.norm(means, axis=1) > NEGLIGIBLE * values[0])
    if not 0 < len(living) <= means.shape[1]:
        return []
    rotation = right[kept].T @ left[np.ix_(living, kept)].T
    turned = (np.zeros_like(weight), np.zeros_like(features))
    turned[0][:, : len(living)] = weight @ rotation
    turned[1][:, : len(living)] = np.maximum(features @ rotation, 0)
    return [turned]


def _onto_principal_axes(weight: Float[np.ndarray, "K d"], features: Float[np.ndarray, "rows d"]) -> Balanced:
    """Return the point rotated so that coordinates its rank does not need are zero (free features only).

    Neither logits nor regulariser change. Without it a point of low rank, such as a start in which classes have
    collapsed, has no dead coordinate to offer: its few directions are spread over all of them.
    """
    axes = np.linalg.eigh(weight.T @ weight + features.T @ features)[1]
    return weight @ axes, features @ axes


def _free_coordinates(
    weight: Float[np.ndarray, "K d"], features: Float[np.ndarray, "rows d"], wanted: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "rows d"], Int[np.ndarray, " free"], int]:
    """Return the balanced point with ``wanted`` coordinates zero, which ones, and how many came from merging."""
    weight, features = weight.copy(), features.copy()
    carried = np.linalg.norm(weight, axis=0) * np.linalg.norm(features, axis=0)
    order = np.argsort(carried)
    dead = carried[order] <= DEAD * carried.sum()
    free = order[dead][:wanted].tolist()
    merged = _merge(weight, features, order[~dead][::-1], wanted - len(free)) if len(free) < wanted else []
    free += merged
    if len(free) < wanted:
        taken = np.isin(order, free)
        free += order[~taken][: wanted - len(free)].tolist()
    weight[:, free] = 0.0
    features[:, free] = 0.0
    return weight, features, np.array(free, dtype=np.int64), len(merged)


def _merge(weight: np.ndarray, features: np.ndarray, alive: np.ndarray, wanted: int) -> list[int]:
    """Merge coordinates with parallel features, in place, until ``wanted`` are free; return the freed ones."""
    sizes = np.linalg.norm(features[:, alive], axis=0)
    directions = features[:, alive] / sizes
    parallel: Bool[np.ndarray, "d d"] = directions.T @ directions > PARALLEL
    freed: list[int] = []
    for leader, column in enumerate(alive):
        group = np.flatnonzero(parallel[leader])
        group = group[group > leader][: wanted - len(freed)]
        if not len(group) or column in freed:
            continue
        members = np.concatenate([[leader], group])
        parallel[:, members] = False
        atom = weight[:, alive[members]] @ sizes[members]
        shared = features[:, alive[members]].sum(axis=1)
        strength = np.linalg.norm(atom)
        root = np.sqrt(strength)
        weight[:, column] = atom / root if strength > 0 else 0.0
        features[:, column] = shared * (root / np.linalg.norm(shared))
        freed.extend(alive[group].tolist())
        if len(freed) >= wanted:
            break
    return freed
