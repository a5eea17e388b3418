"""Advice checked by solving: the classes named collapse, and what is said to save them does."""

import numpy as np
import pytest

import ufm
from ufm.prediction.advice import advise
from ufm.profiles import parse_counts

CASES = {
    "long tail": (parse_counts("cifar10-lt-100"), 5e-3, 2e-4),
    "step": (parse_counts("500x3,40x3"), 2e-3, 2e-3),
    "all alive": (parse_counts("100,60,30"), 1e-3, 1e-4),
}
#: The long tail also says how many samples save a class; the step is the quickest of the others.
NAMES = ["long tail", "step", pytest.param("all alive", marks=pytest.mark.slow)]


def living(counts, weight_decay, feature_decay, loss=None):
    """Classes with a feature at the certified optimum, and the margins."""
    problem = ufm.Problem(counts, len(counts), weight_decay, feature_decay, loss or ufm.CrossEntropy())
    solution = ufm.solve(problem, tol=1e-12)
    assert solution.certified
    norms = np.linalg.norm(solution.features, axis=1)
    logits = solution.features @ solution.weight.T
    margins = np.diagonal(logits) - np.where(np.eye(len(counts)) == 1, -np.inf, logits).max(axis=1)
    return norms > 1e-4 * norms.max(), margins


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_named_are_those_that_collapse(name):
    advice = advise(*CASES[name])
    alive, _ = living(*CASES[name])
    assert np.flatnonzero(~alive).tolist() == advice.collapsed.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("factor", "everyone"), [(0.97, True), (1.03, False)])
def test_the_largest_product_keeps_all_alive_and_no_larger_one_does(name, factor, everyone):
    counts, weight_decay, feature_decay = CASES[name]
    product = advise(counts, weight_decay, feature_decay).largest_product * factor
    alive, _ = living(counts, weight_decay, product / weight_decay)
    assert bool(alive.all()) is everyone


@pytest.mark.parametrize("name", NAMES)
def test_the_class_weights_equalise_the_margins(name):
    advice = advise(*CASES[name])
    alive, margins = living(*CASES[name], loss=ufm.WeightedCrossEntropy(advice.class_weights))
    assert alive.all() == (not advice.weighted.collapsed.any())
    np.testing.assert_allclose(margins, advice.weighted.margins, rtol=1e-5)
    assert np.ptp(margins) <= 1e-5 * margins.max()


@pytest.mark.parametrize("name", ["long tail", "step"])
def test_so_many_samples_save_a_class_and_one_fewer_does_not(name):
    counts, *decays = CASES[name]
    for index, extra in list(advise(counts, *decays).extra_samples.items())[:2]:
        assert extra is not None
        saved, doomed = counts.copy(), counts.copy()
        saved[index] += extra
        doomed[index] += extra - 1
        assert not ufm.predict(ufm.Problem(saved, 12, *decays)).collapsed[index]
        assert ufm.predict(ufm.Problem(doomed, 12, *decays)).collapsed[index]
        assert living(np.maximum(saved, 0), *decays)[0][index]
        fewer = counts.copy()
        fewer[index] += max(extra - 3, 0)  # a few below the edge, where collapse can be resolved
        assert not living(fewer, *decays)[0][index]
