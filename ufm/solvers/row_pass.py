"""One pass over the feature rows does a whole step: move them, extrapolate, and evaluate the loss where they land.

The gradient in a row's features depends on the row and the classifier alone, and the classifier's step is known
before the pass begins. So a row is read once, moved, extrapolated to where the next gradient is wanted, its logits
and residual computed there, its share of the classifier's gradient summed, and written once, in the place of the
iterate before last. All else that the rule needs of the rows are sums.

With a `Layout` the pass runs over blocks of rows that stay in cache, on every device over its own, and keeps the
logit residual of every row (K numbers) for the next pass; without one it takes all rows at once and keeps the
feature slopes (d numbers), which saves a product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from ufm.losses.softmax import feature_gradient, label_mask
from ufm.model.devices import SAMPLES, Layout
from ufm.model.objective import Objective, Point

#: What an objective has for every row.
BY_ROW = ("labels", "loss_weights", "logit_scales", "row_decays")


class Move(NamedTuple):
    """How every part of the point moves in one step.

    Attributes:
        step: length of the gradient step.
        extrapolation: the gradient was taken at ``x + extrapolation (x - previous)``.
        next_extrapolation: the same for the next gradient.
        back: whether to go back to ``previous`` instead of making the step.
    """

    step: Float[Any, ""]
    extrapolation: Float[Any, ""]
    next_extrapolation: Float[Any, ""]
    back: Bool[Any, ""] | bool


class Sums(NamedTuple):
    """What a pass adds up over rows.

    Attributes:
        weight_slope: gradient of the loss in the classifier at the next extrapolated point.
        residual: sum of the logit residuals there, the gradient in the logits of a bias.
        uphill: ``<ahead - moved, moved - x>``, positive where the step went against its gradient.
        jump: squared distance between the two extrapolated points.
        bend: squared norm of the difference between the feature gradients there.
    """

    weight_slope: Float[Any, "K d"]
    residual: Float[Any, " K"]
    uphill: Float[Any, ""]
    jump: Float[Any, ""]
    bend: Float[Any, ""]


class Passed(NamedTuple):
    """What a pass leaves behind: moved features, what it keeps per row, and sums."""

    features: Float[Any, "rows d"]
    kept: Float[Any, "rows any"]
    sums: Sums


class Standing(NamedTuple):
    """What a look adds up over rows: all that says how good a point is.

    Attributes:
        value: the objective, without what it charges for classifier and bias.
        square: squared norm of the projected gradient in the features, in balanced coordinates.
        weight_slope: gradient of the loss in the classifier.
        residual: sum of the logit residuals.
        by_class: the same for every class.
    """

    value: Float[Any, ""]
    square: Float[Any, ""]
    weight_slope: Float[Any, "K d"]
    residual: Float[Any, " K"]
    by_class: Float[Any, "C K"]


class Classifier(NamedTuple):
    """The classifier where the last gradient was taken, and weight and bias where the next one is."""

    before: Float[Any, "K d"]
    weight: Float[Any, "K d"]
    bias: Float[Any, " K"] | None


class Moved(NamedTuple):
    """One part of the point after its move: where it is, where the next gradient is wanted, and two sums."""

    point: Float[Any, ...]
    ahead: Float[Any, ...]
    uphill: Float[Any, ""]
    jump: Float[Any, ""]


def move_part(
    part: Float[Any, ...],
    previous: Float[Any, ...],
    slope: Float[Any, ...],
    decay: Any,
    move: Move,
    nonnegative: bool = False,
) -> Moved:
    """Make one proximal gradient step of a part of the point, extrapolate, and measure.

    Args:
        part: ``x``.
        previous: ``x`` one step ago.
        slope: gradient of the loss at the extrapolated point; the regulariser ``decay/2 |x|^2`` is not in it.
        decay: of the regulariser, whose proximal map is exact, as is the clipping at zero.
        move: lengths.
        nonnegative: whether to clip.
    """
    ahead = part + move.extrapolation * (part - previous)
    moved = (ahead - move.step * slope) / (1 + move.step * decay)
    if nonnegative:
        moved = jnp.maximum(moved, 0)
    moved = jnp.where(move.back, previous, moved)
    travelled = moved - part
    following = moved + move.next_extrapolation * travelled
    return Moved(
        moved, following, _inner(ahead - moved, travelled), _inner(following - ahead, following - ahead)
    )


def nothing_kept(objective: Objective, point: Point) -> Float[Any, "rows any"]:
    """Return what a pass before the first step would have kept: zeros, spread as a pass leaves them."""
    if objective.layout is not None:
        return jax.lax.with_sharding_constraint(
            jnp.zeros_like(objective.residual(point)), objective.layout.by_row
        )
    return point.features.__array_namespace__().zeros_like(point.features)


def pass_over_rows(
    objective: Objective,
    features: Float[Any, "rows d"],
    previous: Float[Any, "rows d"],
    kept: Float[Any, "rows any"],
    classifier: Classifier,
    move: Move,
) -> Passed:
    """Move all rows and evaluate the loss where the next gradient is wanted.

    Args:
        objective: the objective, in the coordinates of the point.
        features: rows of the point.
        previous: rows of the point one step ago; their place is taken by the moved ones.
        kept: what the last pass kept.
        classifier: classifier and bias, already moved.
        move: lengths.
    """
    if objective.layout is None:
        return _all_rows(objective, features, previous, kept, classifier, move)
    return _by_blocks(objective, objective.layout, features, previous, kept, classifier, move)


def _all_rows(
    objective: Objective, features: Any, previous: Any, slope: Any, classifier: Classifier, move: Move
) -> Passed:
    moved = move_part(features, previous, slope, objective.row_decays[:, None], move, objective.nonnegative)
    residual, scaled, weight_slope = _evaluate(objective, moved.ahead, classifier)
    next_slope = objective.feature_slope(scaled, classifier.weight)
    bend = _inner(next_slope - slope, next_slope - slope)
    sums = Sums(weight_slope, objective.total(residual), moved.uphill, moved.jump, bend)
    return Passed(moved.point, next_slope, sums)


def _by_blocks(
    objective: Objective,
    layout: Layout,
    features: Any,
    previous: Any,
    kept: Any,
    classifier: Classifier,
    move: Move,
) -> Passed:
    """Let every device work through its blocks, writing in place, and add up the sums of all devices."""
    rows, everywhere = PartitionSpec(SAMPLES), PartitionSpec()
    by_row = tuple(getattr(objective, name) for name in BY_ROW)
    common = (objective.loss, objective.bias_scale, classifier, move)

    def on_one_device(features: Any, previous: Any, kept: Any, by_row: Any, common: Any) -> Any:
        loss, bias_scale, classifier, move = common

        def one_block(number: Any, carry: Any) -> Any:
            previous, kept, sums = carry
            first = number * layout.block

            def cut(part: Any) -> Any:
                return jax.lax.dynamic_slice_in_dim(part, first, layout.block)

            block = _block_of(objective, map(cut, by_row), loss, bias_scale)
            # A branch keeps all that reads a block ahead of what overwrites it: else XLA copies all blocks first.
            ways = [
                functools.partial(_one_block, block, classifier, move._replace(back=b)) for b in (True, False)
            ]
            passed = jax.lax.cond(move.back, *ways, cut(features), cut(previous), cut(kept))
            previous = jax.lax.dynamic_update_slice_in_dim(previous, passed.features, first, 0)
            kept = jax.lax.dynamic_update_slice_in_dim(kept, passed.kept, first, 0)
            return previous, kept, jax.tree.map(jnp.add, sums, passed.sums)

        zero = jnp.zeros((), features.dtype)
        none = Sums(jnp.zeros_like(classifier.weight), jnp.zeros_like(kept[0]), zero, zero, zero)
        moved, kept, sums = jax.lax.fori_loop(
            np.int32(0), np.int32(layout.blocks), one_block, (previous, kept, none)
        )
        return moved, kept, jax.lax.psum(sums, SAMPLES)

    parallel = jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(rows, rows, rows, rows, everywhere),
        out_specs=(rows, rows, everywhere),
        check_vma=False,
    )
    return Passed(*parallel(features, previous, kept, by_row, common))


def _one_block(
    objective: Objective, classifier: Classifier, move: Move, features: Any, previous: Any, old: Any
) -> Passed:
    slope = old @ classifier.before
    moved = move_part(features, previous, slope, objective.row_decays[:, None], move, objective.nonnegative)
    residual, scaled, weight_slope = _evaluate(objective, moved.ahead, classifier)
    bend = _bend(old, scaled, slope, classifier)
    sums = Sums(weight_slope, residual.sum(axis=0), moved.uphill, moved.jump, bend)
    return Passed(moved.point, scaled, sums)


def _block_of(objective: Objective, by_row: Iterable[Any], loss: Any, bias_scale: Any) -> Objective:
    """Return the objective of some rows, given what `BY_ROW` names of them."""
    here = dict(zip(BY_ROW, by_row, strict=True))
    return dataclasses.replace(objective, **here, loss=loss, bias_scale=bias_scale, layout=None)


def standing(objective: Objective, layout: Layout, point: Point, num_classes: int) -> Standing:
    """Return how good a point is, in one pass over blocks of its rows on all devices."""
    rows, everywhere = PartitionSpec(SAMPLES), PartitionSpec()
    by_row = tuple(getattr(objective, name) for name in BY_ROW)
    common = (objective.loss, objective.bias_scale, point._replace(features=None))

    def on_one_device(features: Any, by_row: Any, common: Any) -> Standing:
        loss, bias_scale, rest = common

        def one_block(number: Any, sums: Standing) -> Standing:
            def cut(part: Any) -> Any:
                return jax.lax.dynamic_slice_in_dim(part, number * layout.block, layout.block)

            block = _block_of(objective, map(cut, by_row), loss, bias_scale)
            found = _standing_of_block(block, rest._replace(features=cut(features)), num_classes)
            return jax.tree.map(jnp.add, sums, found)

        zero, K = jnp.zeros((), features.dtype), len(rest.weight)
        none = (
            jnp.zeros_like(rest.weight),
            jnp.zeros(K, features.dtype),
            jnp.zeros((num_classes, K), features.dtype),
        )
        sums = jax.lax.fori_loop(np.int32(0), np.int32(layout.blocks), one_block, Standing(zero, zero, *none))
        return jax.lax.psum(sums, SAMPLES)

    parallel = jax.shard_map(
        on_one_device,
        mesh=layout.mesh,
        in_specs=(rows, rows, everywhere),
        out_specs=everywhere,
        check_vma=False,
    )
    return parallel(point.features, by_row, common)


def _standing_of_block(objective: Objective, point: Point, num_classes: int) -> Standing:
    residual, decays = objective.residual(point), objective.row_decays
    scaled = residual * objective.logit_scales[:, None]
    slope = (
        feature_gradient(scaled, point.weight, point.features, decays[:, None]) / jnp.sqrt(decays)[:, None]
    )
    if objective.nonnegative:
        slope = jnp.where(point.features > 0, slope, jnp.minimum(slope, 0))
    losses = objective.loss.value(objective.logits(point), objective.labels)
    charge = decays @ jnp.sum(point.features**2, axis=1) / 2
    return Standing(
        objective.loss_weights @ losses + charge,
        _inner(slope, slope),
        objective.weight_slope(scaled, point.features),
        residual.sum(axis=0),
        label_mask(objective.labels, num_classes).astype(residual.dtype).T @ residual,
    )


def _evaluate(objective: Objective, ahead: Any, classifier: Classifier) -> tuple[Any, Any, Any]:
    """Return logit residuals, the same in the units of the coordinates, and the classifier's gradient."""
    residual = objective.residual(Point(classifier.weight, ahead, classifier.bias))
    scaled = residual * objective.logit_scales[:, None]
    return residual, scaled, objective.weight_slope(scaled, ahead)


def _bend(old: Any, new: Any, slope: Any, classifier: Classifier) -> Float[Any, ""]:
    """Return ``|new V - old V_before|^2``, the squared difference of two feature gradients ``R V``.

    It is ``dR V + old dV``, whose norm needs three K x K products and, unlike ``|new V|^2 - ...``, does not cancel:
    cheaper than a product with V where classes are few.
    """
    K, dim = classifier.weight.shape
    if dim <= 3 * K:
        change = new @ classifier.weight - slope
        return _inner(change, change)
    change, shift = new - old, classifier.weight - classifier.before
    square = jnp.sum((change.T @ change) * (classifier.weight @ classifier.weight.T))
    square += 2 * jnp.sum((change.T @ old) * (classifier.weight @ shift.T))
    return square + jnp.sum((old.T @ old) * (shift @ shift.T))


def _inner(a: Float[Any, ...], b: Float[Any, ...]) -> Float[Any, ""]:
    """Return ``<a, b>``, over rows first and by a product: XLA adds up all of a matrix number by number on CPUs."""
    if a.ndim < 2:
        return jnp.vdot(a, b)
    return jnp.sum(jnp.ones(len(a), a.dtype) @ (a * b))
