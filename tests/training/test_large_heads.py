"""A language model's head: many classes, measured without an array over pairs of them."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
import ufm
from ufm import metrics
from ufm.training import Monitor

K, d = 12_000, 48
rng = np.random.default_rng(0)
weight, means = rng.standard_normal((K, d)), rng.standard_normal((K, d))
labels = np.concatenate([np.arange(K), rng.integers(0, K, 8000)])
statistics, monitor = ufm.FeatureStatistics(weight=weight), Monitor(K, d)
for rows in np.array_split(labels, 10):
    features = means[rows] + 0.1 * rng.standard_normal((len(rows), d))
    statistics.update(features, rows)
    monitor.update(features, rows, weight)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics.nc1(statistics), metrics.cdnv(statistics), monitor.epoch()
assert ufm.verify(statistics=statistics)["NC1 CDNV"].measured < 0.02
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < K * K * 8 / 2, grown
"""


@pytest.mark.slow
def test_nothing_is_as_large_as_all_pairs_of_classes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
