"""The benchmark: all solve the same problem from the same start, and clocks and ratios are what they say."""

import functools
import json

import jax
import numpy as np
import pytest

import ufm
from experiments.benchmark import accelerator, peers, race, roofline, whole
from experiments.benchmark import figures as benchmark_figures
from experiments.common import Outputs

PROBLEM = ufm.Problem([30, 20, 10], 12, 2e-2, 2e-3)
NEEDS = {"scipy": "scipy", "jaxopt": "jaxopt", "torch": "torch"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("solver", "level"),
    [
        (solver, level)
        for solver, run in peers.SOLVERS.items()
        for level in race.LEVELS
        if (run, level) != (peers.ufm_together, "sample")
    ],
)
@pytest.mark.slow
def test_every_contender_comes_close_to_the_optimum(solver, level, monkeypatch):
    """From a start whose basin holds the optimum: what a peer is asked to minimise is the problem that ufm solves."""
    needed = NEEDS.get(solver.split()[0].strip(","))
    if needed:
        pytest.importorskip(needed)
    monkeypatch.setattr(peers, "TOGETHER", 3)
    case = peers.Case("small", PROBLEM, level, seed=1)
    course = peers.Course(case.optimum, 1e-3, limit=10.0)
    with jax.enable_x64(True):
        peers.SOLVERS[solver](case, course)
    seconds, steps = course.reached(1e-3)
    assert 0 <= seconds <= course.seconds
    assert 0 < steps <= course.steps
    assert course.records[-1][2] > -1e-12  # nobody is below the optimal value
    assert course.compiling >= 0


@pytest.mark.parametrize("level", race.LEVELS)
def test_the_peers_objective_is_the_packages_in_all_units(level):
    case = peers.Case("small", PROBLEM, level)
    weight, features = case.start()
    labels = np.repeat([0, 1, 2], PROBLEM.counts) if level == "sample" else np.arange(3)
    value = ufm.certify(PROBLEM, weight, features, labels).objective
    rescaled = case.rescaled()
    assert not np.allclose(rescaled.start()[1], features)
    with jax.enable_x64(True):
        for peer in (case, rescaled):
            assert float(peers.objective_in_jax(peer)(peer.start())) == pytest.approx(value, rel=1e-12)


def test_a_course_stops_at_the_gap_at_the_limit_and_at_what_is_not_finite():
    course = peers.Course(optimum=1.0, gap=0.1, limit=5.0)
    assert course.add(1.0, 2.0)
    assert not course.add(1.0, 1.05)
    assert (course.reached(0.1), course.reached(0.01)) == ((2.0, 2), None)
    assert not peers.Course(1.0, 0.1, 5.0).add(6.0, 2.0)
    wild = peers.Course(1.0, 0.1, 5.0)
    assert not wild.add(1.0, np.inf)
    assert wild.diverged


def test_a_race_gives_peers_a_multiple_of_our_time(monkeypatch):
    def slow(case, course):
        for _ in range(3):
            course.add(0.25, 2 * case.optimum)

    monkeypatch.setattr(race, "SOLVERS", {"ufm": peers.ufm_default, "slow": slow})
    ours, theirs = race.race_on("small", PROBLEM, "class", (0.0, 1e9))
    assert ours["limit"] is None
    assert theirs["limit"] == pytest.approx(race.PATIENCE * ours["reached"][-1][0])
    table = race.race_table([ours, theirs])
    assert f"> {0.75 / ours['reached'][-1][0]:.3g}" in table
    assert "gap 1e+00" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_roofline_counts_bytes_and_operations(precision, monkeypatch):
    monkeypatch.setattr(roofline, "COPIED", 2**20)
    monkeypatch.setattr(roofline, "MULTIPLIED", 2**20)
    found = roofline.roofline(PROBLEM, precision)
    size = {"float32": 4, "float64": 8}[precision]
    assert found["features_bytes"] == PROBLEM.num_samples * PROBLEM.dim * size
    assert found["traffic_seconds"] * found["bandwidth"] == pytest.approx(3 * found["features_bytes"])
    assert found["products_seconds"] * found["rate"] == pytest.approx(6 * 60 * 12 * 3)
    assert found["times_sum"] < found["times_bound"]
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
def test_the_benchmark_prints_saves_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "COPIED", 2**20)
    monkeypatch.setattr(roofline, "MULTIPLIED", 2**20)
    monkeypatch.setattr(race, "SOLVERS", {"ufm": peers.ufm_default})
    small = race.Suite({"small": PROBLEM}, {}, (0.1, 1), {"small": PROBLEM}, False, ("float64",))
    monkeypatch.setitem(race.SUITES, "quick", small)
    assert race.main(quick=True, outputs=Outputs(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "class level" in printed
    assert "sample level" in printed
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert [record["solver"] for record in saved["race"]] == ["ufm", "ufm"]
    assert saved["machine"]["jax"] == jax.__version__
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


@pytest.mark.slow
def test_whole_processes_and_sweeps_are_measured(monkeypatch):
    monkeypatch.setitem(whole.SIZES, 3, whole.Size("30,20,10", 8, 1e-2, ("class",)))
    (found,) = whole.whole_process(3, "class")
    for call in (found["first"], found["second"]):
        assert call["status"] == "certified"
        assert call["relative_gap"] <= 1e-8
        assert call["processor"] > 0
        assert 5e7 < call["peak"] < 2e9
    swept = whole.swept(4, 3)
    assert min(swept[0]["alone"], swept[0]["together"]) > 0
    for table in (whole.process_table([found]), whole.sweep_table(swept)):
        assert max(map(len, table.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("solver", race.CONIC)
def test_conic_solvers_and_ours_agree_on_free_features(solver):
    pytest.importorskip("cvxpy")
    case = peers.Case("small", PROBLEM.replace(features="free"), "class")
    course = peers.Course(case.optimum, 1e-8, limit=30.0)
    race.CONIC[solver](case, course)
    assert abs(course.records[-1][2]) < 1e-6
    assert course.steps > 0


def test_without_peers_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    for quick, missing in ((True, "jaxopt, torch"), (False, "cvxpy, jaxopt, torch")):
        with pytest.raises(SystemExit, match=rf"needs {missing}: pip install \".\[peers,sweep\]\""):
            race.main(quick=quick, outputs=Outputs(tmp_path))


def test_figures_have_a_panel_for_everything():
    scaling = [{"axis": axis, "value": v, "seconds": v / 1e3} for axis in ("N", "d") for v in (1, 10)]
    drawn = benchmark_figures.figure({"race": [], "roofline": [], "scaling": scaling})
    assert [axes.get_xlabel() for axes in drawn.axes] == ["N", "d"]
    assert "N" in race.scaling_table(scaling)


def test_the_suites_are_what_they_are_called():
    assert set(race.SUITES) == {"quick", "full"}
    assert race.WORKLOADS["N=30,000, d=512"].num_samples == 30_000
    shapes = {(p.num_samples, p.dim, p.num_classes) for p in accelerator.FULL.steps.values()}
    assert shapes == {(10**6, 512, 10), (115_846, 2048, 1000)}
    for problem in race.WORKLOADS.values():
        assert not ufm.predict(problem).collapsed.all()


@pytest.mark.slow
def test_the_accelerator_script_runs_unchanged_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "COPIED", 2**20)
    monkeypatch.setattr(roofline, "MULTIPLIED", 2**20)
    monkeypatch.setattr(roofline, "REPEATS", 2)
    monkeypatch.setattr(accelerator, "step_seconds", functools.partial(roofline.step_seconds, seconds=0.01))
    assert accelerator.main(quick=True, outputs=Outputs(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert "NOT CERTIFIED" not in printed
    saved = json.loads((tmp_path / "accelerator.json").read_text())
    parts = {record["part"] for record in saved["jobs"]}
    assert parts >= {"correctness", "step", "blocks", "diagram", "classes"}
    assert not any("left_out" in record for record in saved["jobs"])
    assert set(saved["float32_gain"]) >= {"step: N=300, d=16", "diagram: 4 x 4", "classes: class level, K=12"}
    assert max(map(len, printed.splitlines())) <= 80


def test_the_accelerator_script_says_what_it_leaves_out_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    def short():
        raise MemoryError("out of memory")

    wrong = ("correctness", "class", lambda: {"right": False})
    monkeypatch.setattr(accelerator, "jobs", lambda sizes: [wrong, ("step", "large", short)])
    assert accelerator.main(quick=True, outputs=Outputs(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "out of memory" in printed
    assert accelerator.measured(short, left=0) == {"left_out": "the time is up"}
