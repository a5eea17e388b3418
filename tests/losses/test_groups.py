"""Columns that stand for several logits, and losses of gathered classes: the same as writing every logit out."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.losses import CLASSES as KINDS
from helpers.losses import example, is_vector

import ufm
from ufm.losses import CrossEntropy

GROUPS = [2, 1, 3]  # classes 0, 1 alike, 2 alone, 3, 4, 5 alike
CLASSES = np.repeat(np.arange(3), GROUPS)
FIRST = np.array([0, 2, 3])
#: Row g: the label (first class of the group), then one column per group for the others.
COLUMNS = np.column_stack([FIRST, np.tile(FIRST, (3, 1))])
TIMES = np.column_stack([np.ones(3), np.tile(np.array(GROUPS, float), (3, 1)) - np.eye(3)])
LABELS = np.zeros(3, dtype=np.int64)
LOSSES = [example(kind, np.random.default_rng(7)) for kind in KINDS]
LOSSES += [ufm.losses.VectorScaling([0.01, 1.0, 1.5, 10.0], [-1.0, 2.0, 0.0, 0.3])]
grouped_loss = pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.grouped], ids=repr)


def by_class(loss):
    """The loss for six classes, parameters equal within groups."""
    vectors = [field.name for field in dataclasses.fields(loss) if is_vector(field)]
    return dataclasses.replace(loss, **{name: getattr(loss, name)[:3][CLASSES] for name in vectors})


def expanded(rows):
    """Rows of groups as rows of their first classes with all six logits."""
    full = rows[:, 1:][:, CLASSES]
    full[np.arange(3), FIRST] = rows[:, 0]
    return full


def grouped(full):
    """The columns of full rows; of a group that stands for nobody else, anything."""
    return np.column_stack([full[np.arange(3), FIRST], full[:, [1, 2, 5]]])


def points(seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).normal(size=(3, 4))


@grouped_loss
def test_value_and_gradient_are_those_of_the_logits_written_out(loss):
    loss, rows = by_class(loss), points()
    few, full = loss.of_columns(COLUMNS), expanded(rows)
    np.testing.assert_allclose(few.value(rows, LABELS, TIMES), loss.value(full, FIRST), rtol=1e-13)
    np.testing.assert_allclose(few.curvature(LABELS), loss.curvature(FIRST))
    gradient = expanded(few.gradient(rows, LABELS, TIMES))
    np.testing.assert_allclose(gradient, loss.gradient(full, FIRST), rtol=1e-12, atol=1e-15)
    with jax.enable_x64(True):
        compiled = jax.jit(lambda z: (few.value(z, LABELS, TIMES), few.gradient(z, LABELS, TIMES)))(rows)
    np.testing.assert_allclose(compiled[0], loss.value(full, FIRST), rtol=1e-12)
    np.testing.assert_allclose(expanded(np.array(compiled[1])), gradient, rtol=1e-11, atol=1e-15)


@grouped_loss
@pytest.mark.parametrize("size", [1.0, 0.2, 30.0])
def test_the_dual_is_that_of_the_logits_written_out(loss, size):
    loss = by_class(loss)
    few, full = loss.of_columns(COLUMNS), expanded(points())
    dual = size * loss.gradient(full, FIRST)
    inside, wanted = few.into_domain(grouped(dual), LABELS, TIMES), loss.into_domain(dual, FIRST)
    np.testing.assert_allclose(expanded(inside), wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        few.conjugate(inside, LABELS, TIMES), loss.conjugate(wanted, FIRST), rtol=1e-11, atol=1e-13
    )


@grouped_loss
def test_centring_is_that_of_all_classes(loss):
    loss = by_class(loss)
    few, rows, sizes = loss.of_columns(COLUMNS), points(), np.array(GROUPS)
    priors = np.array([0.5, 0.3, 0.2])
    full = np.empty((6, 6))
    for k, group in enumerate(CLASSES):  # every class, by symmetry
        full[k] = rows[group, 1:][CLASSES]
        full[k, k] = rows[group, 0]
    dual = loss.gradient(full, np.arange(6))
    wanted = loss.centre(dual, np.arange(6), (priors / sizes)[CLASSES])
    few_dual = few.gradient(rows, LABELS, TIMES)
    found = few.centre(few_dual, LABELS, priors, TIMES, COLUMNS)
    np.testing.assert_allclose(expanded(found), wanted[FIRST], rtol=1e-8, atol=1e-11)


@grouped_loss
def test_gathered_columns_are_a_permutation_of_logits(loss):
    rng = np.random.default_rng(1)
    order = np.stack([rng.permutation(4) for _ in range(5)])
    logits, labels = rng.normal(size=(5, 4)), rng.integers(0, 4, size=5)
    moved = np.argsort(order, axis=1)[np.arange(5), labels]
    found = loss.of_columns(order).value(np.take_along_axis(logits, order, axis=1), moved)
    np.testing.assert_allclose(found, loss.value(logits, labels), rtol=1e-12)


def test_small_probabilities_keep_their_accuracy():
    logits, times = np.array([[60.0, 0.0, -1e4]]), np.array([1.0, 1e6, 0.0])
    value = CrossEntropy().value(logits, np.array([0]), times)[0]
    assert value == pytest.approx(1e6 * np.exp(-60.0), rel=1e-12)


def test_a_loss_with_its_own_value_declares_for_itself():
    class Own(ufm.losses.SoftmaxLoss):
        def value(self, logits, labels):
            return 2.0 * ufm.CrossEntropy().value(logits, labels)

    assert Own().scalar_form(3) is None
    assert Own().targets(np.arange(3), 3) is None
    assert not Own().grouped
    assert not Own().shift_invariant
    assert ufm.WeightedCrossEntropy([1.0, 1.0]).scalar_form(2) is not None
    assert not Own().bounded
    assert ufm.Focal(2.0).bounded
    problem = ufm.Problem([3, 2], 2, 0.1, 0.1, loss=Own())
    zero = np.zeros((2, 2))
    assert not np.isfinite(ufm.certify(problem, zero, zero, np.arange(2)).relative_gap)
