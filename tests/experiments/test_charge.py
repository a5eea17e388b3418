"""The experiment about who pays for features: its fit recognises a planted network, and it runs."""

import json

import numpy as np
import pytest

from experiments.common import Outputs
from experiments.network import charge


def test_the_grid_changes_one_thing_at_a_time():
    usual = charge.Setting()
    assert all(sum(a != b for a, b in zip(setting, usual, strict=True)) <= 1 for setting in charge.GRID)
    assert len(set(charge.GRID)) == len(charge.GRID)


@pytest.mark.slow
def test_the_quick_variant_runs(tmp_path, capsys):
    assert charge.main(quick=True, outputs=Outputs(tmp_path)) == 0
    rows = json.loads((tmp_path / "charge.json").read_text())
    assert len(rows) == len(charge.QUICK)
    assert all(np.isfinite(row["g_margins"]).all() and row["accuracy"][0] > 0.8 for row in rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
