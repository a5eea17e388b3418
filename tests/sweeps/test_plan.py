"""The plan of a sweep: whoever solves it, made without making its members, even enough for many workers."""

import functools
import heapq
from unittest import mock

import numpy as np
import pytest

import ufm
from ufm.sweeps import grid as grids
from ufm.sweeps.grid import make_grid
from ufm.sweeps.plan import BATCH_BYTES, BATCH_COST, plan, shape_of

LARGE = {
    "nuclear_weight": np.geomspace(1e-4, 1e-1, 50).tolist(),
    "seed": list(range(50)),
    "decay_ratio": np.geomspace(0.5, 2, 50).tolist(),
}

#: Processor time in ms of a member of 2 to 30 classes (step:n_max=20,ratio=2, d = 30) at twelve nuclear weights from
#: 1e-4 to 1e-1: batches of 32, eight seeds and four ratios of decays, on one core of a small machine.
RECORDED = {
    2: [3.5, 3.5, 3.3, 3.6, 3.6, 3.3, 3.3, 3.4, 3.1, 3.4, 4.1, 5.3],
    4: [5.1, 4.2, 3.5, 3.5, 3.5, 3.3, 3.5, 4.0, 3.5, 3.9, 3.1, 3.1],
    8: [4.6, 4.8, 4.7, 5.3, 4.4, 3.7, 4.2, 3.8, 4.5, 4.3, 3.5, 4.0],
    10: [5.8, 3.9, 5.1, 4.4, 4.2, 3.7, 3.6, 3.9, 4.7, 4.3, 3.1, 3.1],
    12: [4.7, 5.1, 5.6, 6.8, 6.1, 7.5, 4.2, 4.9, 4.3, 3.4, 3.2, 3.1],
    16: [5.3, 11.8, 6.3, 4.8, 7.6, 5.2, 4.3, 4.2, 4.3, 5.8, 5.6, 5.4],
    20: [10.2, 7.6, 7.6, 6.5, 6.8, 6.1, 5.4, 8.6, 4.7, 3.7, 4.0, 3.4],
    30: [14.0, 13.0, 19.0, 11.9, 20.5, 23.4, 38.1, 9.1, 4.3, 4.1, 3.6, 3.6],
}


@functools.cache
def a_million():
    """A grid of a million members of 2 to 30 classes, and its plan."""
    grid = make_grid({"counts": "step:n_max=20,ratio=2", "dim": 30}, LARGE | {"counts.K": [*RECORDED]})
    return grid, plan(grid, 2048)


def busy(costs, workers, durations):
    """The share of the time until the end that workers are busy, each taking the next batch as it comes free."""
    free = [0.0] * workers
    for batch in sorted(range(len(costs)), key=lambda batch: -costs[batch]):
        heapq.heapreplace(free, free[0] + durations[batch])
    return sum(durations) / (workers * max(free))


def test_a_million_members_are_planned_from_few():
    """In the number of members made and held, not in seconds."""
    grid = make_grid({"counts": "9x2,4x2"}, LARGE | {"dim": [4, 6, 7, 8, 9, 10, 11, 12]})
    assert grid.size == 10**6
    with mock.patch.object(grids, "build_member", wraps=grids.build_member) as build:
        found = plan(grid, 2048)
    assert build.call_count <= 8 + 3 * 50
    np.testing.assert_array_equal(np.sort(np.concatenate(found.members)), np.arange(10**6))
    for batch in (found.batches[0], found.batches[-1]):
        assert len({grid.member(int(i)).shape for i in batch.members[[0, 1, -1]]}) == 1


def test_the_plan_is_that_of_all_members():
    """Shapes found from few members are those of every member."""
    axes = {"counts.K": [2, 4], "loss": ["ce", "mse"], "nuclear_weight": [1e-3, 1e-2], "bias": [0.0, 1e-2]}
    grid = make_grid({"counts": "step:n_max=20,ratio=2", "dim": 4, "level": "sample"}, axes)
    groups = {}
    for index, member in enumerate(grid.members()):
        groups.setdefault(member.shape, []).append(index)
    found = plan(grid, 3)
    expected = [group[i : i + 3] for group in groups.values() for i in range(0, len(group), 3)]
    assert [batch.tolist() for batch in found.members] == expected
    assert found.num_classes == 4


def test_batches_are_of_limited_cost_and_memory():
    grid = make_grid(
        {"counts": "step:n_max=20,ratio=2", "dim": 400, "nuclear_weight": 1e-3}, {"counts.K": [2, 200]}
    )
    for member in grid.members():
        many = make_grid(
            {"counts": member.problem.counts, "dim": 400, "nuclear_weight": 1e-3}, {"seed": list(range(200))}
        )
        shape, batches = shape_of(member), plan(many, 2048).batches
        assert all(len(batch.members) * shape.bytes <= BATCH_BYTES for batch in batches)
        assert all(batch.cost <= BATCH_COST for batch in batches)
        assert all(batch.width <= len(batches[0].members) for batch in batches)


def test_groups_cost_what_their_number_says():
    grid = make_grid(
        {"dim": 1000, "nuclear_weight": 1e-4, "level": "group"},
        {"counts": ["9x500,3x500", "9x500,3x250,1x250"]},
    )
    assert [shape_of(member).cost for member in grid.members()] == [4 * 4, 6 * 6]
    assert len(plan(grid, 8).batches) == 2  # each is compiled for itself


def test_a_number_at_fault_is_named_before_anything_is_solved():
    with pytest.raises(ufm.InputError, match=r"nuclear_weight .* \(at nuclear_weight=-1.0, seed=0\)"):
        plan(make_grid({"counts": "9x2", "dim": 4}, {"nuclear_weight": [1e-3, -1.0], "seed": [0, 1]}), 8)


def test_256_workers_are_busy_to_the_end():
    """A simulation: a million members of 2 to 30 classes, times off by a half, those of batches by a tenth."""
    found = a_million()[1]
    costs = [batch.cost for batch in found.batches]
    rng = np.random.default_rng(0)
    spread = [
        rng.lognormal(0, 0.1) * rng.lognormal(0, 0.5, len(batch.members)).mean() for batch in found.batches
    ]
    recorded = np.array(costs) * spread
    assert len(costs) > 256
    assert busy(costs, 256, recorded.tolist()) > 0.95


def test_256_workers_are_busy_to_the_end_with_recorded_durations():
    """A member takes as long as those of its number of classes and of the nearest decays took."""
    grid, found = a_million()
    recorded = np.array([*RECORDED.values()])
    logs = np.log(grid.axes[0].labels)
    nearest = np.abs(logs[:, None] - np.linspace(logs[0], logs[-1], recorded.shape[1])).argmin(axis=1)
    durations = []
    for batch in found.batches:
        weights, _, _, classes = np.unravel_index(batch.members, grid.shape)
        durations.append(float(recorded[classes, nearest[weights]].sum()))
    costs = [batch.cost for batch in found.batches]
    assert busy(costs, 256, durations) > 0.95
    assert busy([0] * len(costs), 256, durations) < busy(costs, 256, durations)  # in the order of the plan
