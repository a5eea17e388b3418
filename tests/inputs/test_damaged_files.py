"""Damaged files: refused in one sentence, or read as what was written; never anything else."""

import contextlib
import random
import resource

import numpy as np
import pytest
from helpers.damage import damage

import ufm
from ufm.inputs.layers import read_layer
from ufm.profiles import parse_counts
from ufm.sweeps.config import load_config

PROBLEM = ufm.Problem([40, 30, 20], 4, 5e-3, 1e-5)
LABELS = np.repeat(np.arange(3), 3)
LAYER = {"features": np.eye(3, 4)[LABELS], "labels": LABELS, "weight": np.eye(3, 4) - 1 / 3}
CONFIG = """
[problem]
counts = "step:K=4,n_max=40"
dim = 6
loss = "smoothing:0.1"
[solver]
tol = 1e-8
[axes]
counts.ratio = { start = 1, stop = 100, num = 4, spacing = "log" }
nuclear_weight = [1e-3, 2e-3]
seed = [1, 2]
[sweep]
batch_size = 20
"""


def same_arrays(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


#: Of every kind of file: its name, how it is read, and whether what is read must then be what was written (a digit
#: of a text that has become another is no damage that anybody could see).
KINDS = {
    "layer": ("layer.npz", read_layer, same_arrays),
    "checkpoint": (
        "run.npz",
        lambda file: ufm.solve(PROBLEM, checkpoint=file, resume=True, max_steps=40),
        lambda one, other: np.array_equal(one.features, other.features),
    ),
    "table": ("counts.csv", lambda file: parse_counts(str(file)), None),
    "list": ("list.txt", lambda file: parse_counts(str(file)), None),
    "object": ("counts.json", lambda file: parse_counts(str(file)), None),
    "sweep": ("sweep.toml", load_config, None),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One whole file of every kind."""
    folder = tmp_path_factory.mktemp("written")
    np.savez(folder / "layer.npz", **LAYER)
    ufm.solve(PROBLEM, checkpoint=folder / "run.npz", max_steps=20)
    (folder / "counts.csv").write_text("class,count\ncat,5000\ndog,500\nemu,50\n")
    (folder / "list.txt").write_text(
        "".join(f"train/{k}/{i}.jpg {k}\n" for k in range(3) for i in range(9 - k))
    )
    (folder / "counts.json").write_text('{"cat": 5000, "dog": 500, "emu": 50}')
    (folder / "sweep.toml").write_text(CONFIG)
    return {kind: (folder / name).read_bytes() for kind, (name, *_) in KINDS.items()}


def try_damages(kind, seeds, written, folder):
    name, read, same = KINDS[kind]
    file = folder / name
    file.write_bytes(written[kind])
    whole, refused = read(file), 0
    for seed in seeds:
        file.write_bytes(written[kind])
        damage(file, random.Random(seed))
        found = None
        with contextlib.suppress(ufm.InputError):
            found = read(file)
        if found is None:
            refused += 1
        else:
            assert same is None or same(whole, found), f"seed {seed}"
        with contextlib.suppress(FileNotFoundError):
            assert [path.name for path in folder.iterdir()] == [name]
    assert refused >= 0.3 * len(seeds)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < START + 2 * 2**20


START = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes


@pytest.mark.parametrize("kind", KINDS)
def test_some_damages(kind, written, tmp_path):
    try_damages(kind, range(10), written, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_damages(kind, written, tmp_path):
    try_damages(kind, range(100, 150), written, tmp_path)
