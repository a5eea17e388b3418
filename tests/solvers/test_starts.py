"""Several random starts: those that end uncertified begin again, the lowest counts, in sweeps as alone."""

import numpy as np
import pytest

import ufm
from experiments.stress.few_dimensions import largest_cosine
from ufm.inputs.checks import InputError
from ufm.losses.by_name import parse_loss
from ufm.solvers import starts
from ufm.sweeps.batch_work import solve_together
from ufm.sweeps.member import build_member

#: Fewer dimensions than classes: ends differ from start to start.
FEW = ufm.Problem([100, 100, 100, 20, 20], 2, 1e-3, 1e-5)


def test_the_best_of_some_starts_is_what_each_of_them_gives_alone():
    alone = [ufm.solve(FEW, seed=seed) for seed in range(3)]
    best = ufm.solve(FEW, starts=3)
    lowest = min(alone, key=lambda solution: solution.objective)
    assert best.objective == lowest.objective
    assert best.steps == lowest.steps
    assert max(solution.objective for solution in alone) > best.objective
    assert best.certificate.lower_bound < best.objective


def test_a_certified_start_is_the_last():
    problem = FEW.replace(dim=5)
    assert ufm.solve(problem, starts=100).steps == ufm.solve(problem).steps


@pytest.mark.slow
def test_members_of_sweeps_have_starts_too():
    fields = {"counts": [100, 100, 100, 20, 20], "dim": 2, "weight_decay": 1e-3, "feature_decay": 1e-5}
    members = [build_member(fields | {"starts": starts}) for starts in (1, 3)]
    one, three = solve_together(members, 2)
    assert three.certificate.objective == pytest.approx(ufm.solve(FEW, starts=3).objective, rel=1e-9)
    assert three.certificate.objective <= one.certificate.objective
    assert build_member(fields).key == members[0].key


def test_starts_are_random_ones():
    point = ufm.solve(FEW)
    with pytest.raises(InputError, match="starts must be 1 with start"):
        ufm.solve(FEW, starts=2, start=point)
    with pytest.raises(InputError, match="starts"):
        ufm.solve(FEW, starts=0)


def test_a_saddle_has_a_negative_curvature_and_a_local_minimum_has_none():
    problem = FEW.replace(features="free", dim=5)
    narrow = ufm.solve(problem.replace(dim=2))
    assert narrow.status == "stalled"
    assert narrow.least_curvature > -1e-5
    assert "local minimum" in str(narrow)
    padded = (np.pad(part, ((0, 0), (0, 3))) for part in (narrow.weight, narrow.features))
    saddle = ufm.solve(problem, start=tuple(padded), escapes=False)
    assert saddle.least_curvature == pytest.approx(1 - saddle.certificate.polar, abs=1e-5)
    assert "saddle" in str(saddle)


@pytest.mark.slow
def test_vanishing_decays_pack_the_icosahedron():
    assert largest_cosine(3, 12, seed=0) == pytest.approx(5**-0.5, abs=1e-5)


@pytest.mark.slow
def test_vanishing_decays_find_28_equiangular_lines():
    assert largest_cosine(7, 56, seed=0) == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.slow
def test_vanishing_decays_find_the_kissing_configuration_of_eight_dimensions():
    assert largest_cosine(8, 240, seed=0) == pytest.approx(1 / 2, abs=1e-4)


#: Groups that end in a local minimum from this seed: its classes would do better apart, as they end from the next.
LONG = np.array([28037, 201, 201, 201, 431])
STALLING = ufm.Problem(LONG, 5, 5.8e-5, 8.6e-4, loss=parse_loss("adjustment", LONG))


def test_a_run_that_stalls_where_every_class_has_room_begins_again(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(starts.IF_STALLED, "group", 1)
        alone = [ufm.solve(STALLING, level="group", seed=seed) for seed in (3, 4)]
    stalled, certified = alone
    assert stalled.status == "stalled"
    assert certified.certified
    again = ufm.solve(STALLING, level="group", seed=3)
    assert again.objective == certified.objective
    assert again.steps == stalled.steps + certified.steps
    short = ufm.solve(STALLING, level="group", seed=3, max_steps=stalled.steps + 20)
    assert not short.certified
    assert short.steps <= stalled.steps + 20
    fixed = ufm.solve(STALLING, level="group", seed=3, escapes=False)
    assert fixed.steps < again.steps
