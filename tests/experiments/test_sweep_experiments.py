"""The experiments on sweeps, geometry, dynamics and long tails: what they compare, and that each runs by itself."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import ufm
from ufm.sweeps import open_dataset
from ufm.theory import critical_imbalance_ratio

ROOT = Path(__file__).parents[2]


def load(name):
    return importlib.import_module(f"experiments.figures.{name}")


@pytest.mark.slow
def test_threshold_decays_are_those_of_the_critical_ratios():
    threshold = load("threshold")
    for ratio, weight in threshold.decays().items():
        found = critical_imbalance_ratio(5, 5, weight, weight, fixed="majority", size=threshold.MAJORITY)
        assert found == pytest.approx(ratio, rel=1e-9)
        expected = threshold.curves(weight)
        dead = expected["ratio"] >= ratio * (1 + 1e-9)
        assert np.all(expected["margin"][dead] == 0)
        assert np.all(expected["margin"][~dead] > 0)
        np.testing.assert_allclose(expected["cosine"][dead], 1, rtol=1e-9)


@pytest.mark.slow
def test_phase_diagram_tells_differences_that_the_gap_could_see():
    phase = load("phase_diagram")
    dataset = ufm.sweep(phase.FIXED, phase.axes_of(3), batch_size=8)
    assert dataset.certified.values.all()
    assert phase.mismatches(dataset, 3) == []
    collapsed = dataset.predicted_collapsed.copy()
    collapsed[0, 0, 9] = ~collapsed[0, 0, 9]
    forged = dataset.assign(
        collapsed=dataset.collapsed.copy(),
        predicted_collapsed=collapsed,
        collapse_mismatches=xr.where(
            (dataset.ratio == dataset.ratio[0]) & (dataset.nuclear_weight == dataset.nuclear_weight[0]), 1, 0
        ),
    )
    (entry,) = phase.mismatches(forged, 3)
    assert entry["could_tell"]
    assert 0 < entry["resolvable"][0] < entry["margins"][0]  # alive, and the gap knows it
    assert entry["classes"] == [9]
    assert entry["ratio"] == 1.0


def test_long_tail_problems_have_a_fifth_of_their_classes_collapsed():
    tail = load("long_tail")
    for profile in tail.PROFILES.values():
        problem = tail.problem_of(profile)
        prediction = ufm.predict(problem)
        assert 0.15 <= prediction.num_collapsed / problem.num_classes <= 0.25
        margins = prediction.margins[~prediction.collapsed]
        assert margins.min() > 1e-2  # not at the threshold


def test_angles_of_a_simplex():
    geometry = load("geometry")
    found = geometry.angles(np.eye(3) - 1 / 3)
    assert np.isnan(np.diagonal(found)).all()
    np.testing.assert_allclose(found[~np.eye(3, dtype=bool)], 120)
    assert np.isnan(geometry.angles(np.diag([1.0, 0.0]))).all()


@pytest.mark.parametrize("counts", [[1000] * 2 + [3000] * 3, list(range(40, 0, -1))])
def test_frames_are_labelled_by_counts(counts):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    load("geometry")._frame(axes, np.array(counts))
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert [counts[round(float(tick))] for tick in axes.get_xticks()] == list(map(int, labels))
    assert 2 <= len(labels) <= 6


def test_the_runs_of_dynamics_end_in_what_became_of_them(tmp_path):
    dynamics = load("dynamics")
    courses = {
        who: [{name: [1.0, 0.1] for name in dynamics.TITLES} | {"step": [1, 10], "status": status}]
        for who, status in zip(
            dynamics.METHODS, ["stalled", "max_steps", "certified", "certified"], strict=True
        )
    }
    for axes in dynamics.figure(courses).axes:
        assert [line.get_marker() for line in axes.lines if line.get_marker() != "None"] == [
            "X",
            "X",
            "o",
            "o",
        ]
        assert axes.get_ylabel()


@pytest.mark.slow
def test_a_comparison_of_speeds_times_both_on_the_same_problems(monkeypatch):
    phase = load("phase_diagram")
    monkeypatch.setattr(phase, "SINGLES", 4)
    found = phase.compare_speed(3)
    assert found["ratio"] > 0
    assert found["ratio_processor"] > 0
    assert found["batched_processor"] < 10 * found["one_by_one_processor"]


RESULTS = {
    "threshold": ("threshold-quick/report.json", "threshold-quick/threshold.png"),
    "phase_diagram": ("phase_diagram-quick/report.json", "phase_diagram-quick/phase_diagram.png"),
    "geometry": ("geometry-quick/solution.npz", "geometry-quick/geometry.png"),
    "dynamics": ("dynamics-quick/dynamics.json", "dynamics-quick/dynamics.png"),
    "long_tail": ("long_tail-quick/long_tail.json", "long_tail-quick/long_tail.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_quick_runs_leave_data_and_a_figure(name, tmp_path):
    command = [sys.executable, "-W", "error", "-m", f"experiments.figures.{name}", "--quick"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for result in RESULTS[name]:
        assert (tmp_path / "results" / result).stat().st_size > 1000 or result.endswith("report.json")
    if name in ("threshold", "phase_diagram"):
        report = json.loads((tmp_path / "results" / RESULTS[name][0]).read_text())
        assert report["certified"] == report["members"]
        assert open_dataset(tmp_path / "results" / f"{name}-quick" / "sweep").certified.values.all()
