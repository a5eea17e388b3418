"""A store of a million members, its batches written directly: joined and drawn without all of it in memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ufm.sweeps.dataset import layout_of
from ufm.sweeps.grid import make_grid
from ufm.sweeps.plan import plan
from ufm.sweeps.store import Store

SCRIPT = """
import json, resource, sys
from ufm.cli import main
from ufm.sweeps import open_dataset
peaks = []
for folder in sys.argv[1:]:
    assert main(["figures", folder, "--json"]) == 0
    found = open_dataset(folder).chunk(ratio=100)
    peaks += [float(found.norms.mean()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
print(json.dumps(peaks))
"""


def write_invented(folder, size):
    """Write the batches of a grid of ``size`` x ``size`` members of ten classes; return the mean of the norms."""
    ratios, weights = np.geomspace(1, 100, size).tolist(), np.geomspace(1e-4, 1e-2, size).tolist()
    fixed = {"counts": "exp:K=10,n_max=5000", "dim": 16}
    grid = make_grid(fixed, {"counts.ratio": ratios, "nuclear_weight": weights})
    planned = plan(grid, 2048)
    layout = layout_of(grid, planned.num_classes, False)
    store = Store(folder, layout, planned.members, {}, grid.content())
    rng, total = np.random.default_rng(0), 0.0
    with store.opened(False, (0, 1)):
        for number, members in enumerate(planned.members):
            shapes = {name: (len(members), *layout.inner_shape(of)) for name, of in layout.variables.items()}
            rows = {
                name: rng.random(shape).astype(layout.variables[name].dtype) for name, shape in shapes.items()
            }
            total += rows["norms"].sum()
            store.write(number, rows)
    return total / (10 * size**2)


@pytest.mark.slow
def test_a_million_members_are_joined_and_drawn_in_bounded_memory(tmp_path):
    """Against a small store in the same process: what is above it must be a fraction of what is stored."""
    sizes = {"small": 10, "large": 1000}
    means = [write_invented(tmp_path / name, size) for name, size in sizes.items()]
    command = [sys.executable, "-c", SCRIPT, *(str(tmp_path / name) for name in sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, before, large, after = json.loads(done.stdout.splitlines()[-1])
    assert [small, large] == pytest.approx(means)
    stored = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.npz"))
    assert stored > 9e8
    assert 1024 * (after - before) < stored / 2
    assert (tmp_path / "large" / "sweep.png").stat().st_size > 10_000
