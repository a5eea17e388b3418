"""What a sweep keeps of members that are solved by groups: that of their points in full size, without K x K."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from helpers.cases import few_daily

from ufm.sweeps.batch_work import solve_together
from ufm.sweeps.grid import make_grid
from ufm.sweeps.measure import MATRICES, measure_members

STEP = {"counts": "9x40,3x25,1", "dim": 70, "level": "group"}
CASES = [
    {"nuclear_weight": 2e-3},
    {"nuclear_weight": 1e-3, "bias": 0.0},
    {"nuclear_weight": 1e-3, "features": "free", "loss": "mse", "bias": 1e-2},
]


@pytest.mark.parametrize("about", few_daily(CASES, ()), ids=["ce", "bias", "mse"])
def test_groups_are_measured_as_all_their_classes(about):
    members = list(make_grid(STEP | about, {"seed": [0, 1]}).members())
    solved = solve_together(members, 2)
    expanded = [dataclasses.replace(end, point=end.variables) for end in solved]
    for matrices in (False, True):
        found, expected = (measure_members(members, ends, matrices) for ends in (solved, expanded))
        assert found.keys() == expected.keys()
        assert not matrices or found["logits"].shape == (2, 66, 66)
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-7, atol=1e-9, err_msg=name)
    point = expanded[0].variables
    lengths = np.linalg.norm(point.weight, axis=1) * np.linalg.norm(point.features, axis=1)
    cosines = np.sum(point.weight * point.features, axis=1) / np.where(lengths > 0, lengths, 1.0)
    np.testing.assert_allclose(found["alignment"][0], cosines, atol=1e-12)  # there is no bias in a cosine


def test_a_thousand_classes_in_two_groups_need_no_square():
    (member,) = make_grid(
        STEP | {"counts": "5000x500,5x500", "dim": 1000, "nuclear_weight": 1e-5}, {}
    ).members()
    solved = solve_together([member], 1)
    tracemalloc.start()
    found = measure_members([member], solved, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["certified"].all()
    assert not MATRICES.keys() & found.keys()
    assert peak < 8 * 1000**2 / 4
    assert found["norm_deviation"] < 1e-4
    assert max(found[name] for name in ("nc2_h", "nc2_wwt", "nc3_wh")) < 1e-4
