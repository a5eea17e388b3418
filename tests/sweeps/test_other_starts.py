"""Where no theorem applies members are compared with the best certified other start of their problem."""

import numpy as np
import pytest

import ufm
from ufm.sweeps import summary


@pytest.mark.slow
def test_starts_are_compared_with_each_other():
    fixed = {"counts": [30, 20, 10], "dim": 4, "weight_decay": 1e-2, "level": "class", "features": "free"}
    found = ufm.sweep(fixed, {"feature_decay": [1e-3, 2e-3], "seed": [0, 1]})
    assert found.certified.values.all()
    assert np.all(found.predicted_num_collapsed.values == 0)
    assert np.all(found.collapse_mismatches.values == 0)
    for name in ("objective_deviation", "margin_deviation", "norm_deviation", "nc2_h", "nc3_wh"):
        assert np.nanmax(np.abs(found[name].values)) < 1e-5, name
    assert np.abs(found.margin_deviation.values).max() > 0  # of another start, not of itself
    assert "closed form known" not in summary(found)
    assert "4 predicted, by closed form or other starts" in summary(found)
    alone = ufm.sweep(fixed, {"feature_decay": [1e-3, 2e-3]})
    assert np.isnan(alone.margin_deviation.values).all()
    assert np.all(alone.predicted_num_collapsed.values == -1)
