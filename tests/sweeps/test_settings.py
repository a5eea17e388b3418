"""A setting is listed once: what is added to the registries is seen by everything that reads them."""

import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import optax
import pytest
import xarray as xr

import ufm
from ufm.solvers.projected_gradient import ProjectedGradient
from ufm.solvers.rules import RULES, NamedRule, step_rule
from ufm.solvers.settings import SETTINGS, Setting, check_settings
from ufm.sweeps.grid import make_grid
from ufm.sweeps.member import build_member
from ufm.sweeps.plan import plan

FIXED = {"counts": "40x2,10x2", "dim": 6, "nuclear_weight": 1e-3}
DUMMY = """
import optax
from ufm.inputs.checks import positive_integer
from ufm.solvers.rules import RULES, NamedRule
from ufm.solvers.settings import SETTINGS, Setting

def build(stride):
    from ufm.solvers.projected_gradient import ProjectedGradient
    return ProjectedGradient(optax.sgd(stride / 100), "balanced")

SETTINGS["stride"] = Setting(5, int, "hundredths of a step", positive_integer, compiled=True, of_rules=True)
RULES["dummy"] = NamedRule(build, ("stride",))
from ufm.cli import main
"""


@pytest.fixture
def dummy(monkeypatch):
    """A field and a rule that takes it, one line each."""
    stride = Setting(
        5, int, "hundredths of a step", lambda name, value: int(value), compiled=True, of_rules=True
    )
    rule = NamedRule(lambda stride: ProjectedGradient(optax.sgd(stride / 100), "balanced"), ("stride",))
    monkeypatch.setitem(SETTINGS, "stride", stride)
    monkeypatch.setitem(RULES, "dummy", rule)


def cli(*arguments):
    script = f"{DUMMY}\nimport sys; sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_command_line_sees_a_new_field_and_a_new_rule():
    done = cli("solve", "--help")
    said = " ".join(done.stdout.replace("│", " ").split())
    assert done.returncode == 0, done.stderr
    assert "accelerated, sgd, momentum, adam or dummy" in said
    assert "--stride" in said
    assert "hundredths of a step, of dummy; None: 5" in said
    refused = cli("solve", "--stride", "3")
    assert refused.returncode == 2
    assert "stride is for dummy; accelerated has none" in " ".join(refused.stderr.split())


def test_sweeps_see_a_new_field_and_a_new_rule(dummy, tmp_path):
    axes = {"stride": [2, 10]}
    grid = make_grid(FIXED | {"solver": "dummy"}, axes)
    members = list(grid.members())
    assert members[0].key != members[1].key
    assert members[0].shape != members[1].shape
    assert [batch.tolist() for batch in plan(grid, 8).members] == [[0], [1]]
    assert "--solver dummy --stride 10" in members[1].command()
    assert members[0].rule is not members[1].rule
    found = ufm.sweep(FIXED | {"solver": "dummy", "tol": 1e-5, "residual_tol": 1e-2}, axes)
    assert found.certified.values.all()
    assert found.steps.values[0] > 2 * found.steps.values[1]
    config = tmp_path / "sweep.toml"
    config.write_text('problem = { counts = "5x2" }\nsolver = { stride = 2 }\n')
    with pytest.raises(ufm.InputError, match="stride is for dummy; accelerated has none"):
        ufm.sweeps.run_config(config, tmp_path / "out")
    with pytest.raises(ufm.InputError, match=r"stridde is no field.*did you mean stride"):
        make_grid(FIXED, {"stridde": [1, 2]})


def test_one_solve_sees_a_new_rule(dummy):
    problem = build_member(FIXED).problem
    found = ufm.solve(problem, solver="dummy", stride=10, tol=1e-5, residual_tol=1e-2)
    same = ufm.solve(
        problem, solver=ProjectedGradient(optax.sgd(0.1), "balanced"), tol=1e-5, residual_tol=1e-2
    )
    assert found.steps == same.steps
    np.testing.assert_array_equal(found.weight, same.weight)
    with pytest.raises(ufm.InputError, match="stride is for dummy; adam has none"):
        ufm.solve(problem, solver="adam", stride=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
        ufm.solve(problem, strides=3)


def test_a_new_setting_leaves_the_keys_of_before(monkeypatch):
    before = build_member(FIXED).key
    monkeypatch.setitem(SETTINGS, "spare", Setting(1, int, "nothing", lambda name, value: value))
    assert build_member(FIXED).key == build_member(FIXED | {"spare": 1}).key == before
    assert build_member(FIXED | {"spare": 2}).key != before


def test_defaults_are_those_of_the_registry():
    parameters = inspect.signature(ufm.solve).parameters
    for name, setting in SETTINGS.items():
        if not setting.of_rules and name != "solver":
            assert parameters[name].default == setting.default
    assert step_rule("accelerated", {}) == ufm.Accelerated()
    assert {name for rule in RULES.values() for name in rule.parameters} == {
        name for name, setting in SETTINGS.items() if setting.of_rules
    }
    assert check_settings({}) == {name: setting.default for name, setting in SETTINGS.items()}


@pytest.mark.parametrize("rate", [0.02, None])
def test_solve_takes_rules_by_name(rate):
    problem = build_member(FIXED).problem
    given = {} if rate is None else {"learning_rate": rate}
    found = ufm.solve(problem, solver="adam", max_steps=40, **given)
    same = ufm.solve(problem, solver=ufm.ProjectedGradient(optax.adam(rate or 0.1)), max_steps=40)
    np.testing.assert_array_equal(found.features, same.features)


@dataclasses.dataclass(frozen=True, eq=False)
class Halved(ufm.CrossEntropy):
    """A loss of a user's own that is cross-entropy under another name."""


@pytest.mark.slow
def test_losses_and_rules_are_objects_too():
    weights = np.array([1.0, 1.0, 2.0, 2.0])
    losses = [ufm.LabelSmoothing(0.1), ufm.WeightedCrossEntropy(weights), "ce", Halved()]
    rules = ["accelerated", ufm.Accelerated(window=3), ufm.ProjectedGradient(optax.sgd(0.1), "balanced")]
    axes = {"loss": losses, "solver": rules}
    fixed = FIXED | {"tol": 1e-6, "residual_tol": 1e-3}
    members = list(make_grid(fixed, axes).members())
    assert len({member.key for member in members}) == 12
    labels = make_grid(fixed, axes).axes[1].labels.tolist()
    assert labels[:2] == ["accelerated", "Accelerated(window=3)"]
    assert labels[2].startswith("ProjectedGradient-")
    assert ufm.sweep(fixed, {"solver": rules[1:]}).certified.values.all()
    found = ufm.sweep(fixed, axes | {"solver": rules[:2]})
    assert found.certified.values.all()
    assert found.loss.values.tolist()[::2] == ["LabelSmoothing(smoothing=0.1)", "ce"]
    alone = ufm.solve(members[1].problem, solver=rules[1], tol=1e-6, residual_tol=1e-3)
    assert int(found.steps.values[0, 1]) == alone.steps
    named = ufm.sweep(fixed | {"loss": "smoothing:0.1", "solver": "accelerated"}, {"window": [3]})
    assert float(named.objective[0]) == float(found.objective.values[0, 1])


@pytest.mark.slow
def test_objects_have_the_same_key_in_another_process():
    fixed = FIXED | {"solver": ufm.ProjectedGradient(optax.adam(0.02)), "loss": ufm.LabelSmoothing(0.2)}
    script = (
        "import optax, ufm; from ufm.sweeps.member import build_member;"
        "made = build_member({'counts': '40x2,10x2', 'dim': 6, 'nuclear_weight': 1e-3,"
        "'solver': ufm.ProjectedGradient(optax.adam(0.02)), 'loss': 'smoothing:0.2'}); print(made.key)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == build_member(fixed).key


@pytest.mark.slow
def test_objects_are_stored_and_resumed(tmp_path):
    fixed, axes = (
        FIXED | {"loss": ufm.LabelSmoothing(0.1)},
        {"solver": [ufm.Accelerated(), ufm.Accelerated(4)]},
    )
    found = ufm.sweep(fixed, axes, out=tmp_path / "out").load()
    again = ufm.sweep(fixed, axes, out=tmp_path / "out", resume=True)
    xr.testing.assert_identical(found, again.load())
    with pytest.raises(ufm.InputError, match="holds another sweep: loss is"):
        ufm.sweep(fixed | {"loss": ufm.LabelSmoothing(0.2)}, axes, out=tmp_path / "out", resume=True)


def test_how_to_run_a_member_alone_says_every_setting(capsys):
    from ufm.cli import main

    chosen = {"escapes": False, "residual_tol": 1e-3, "window": 5, "seed": 2, "max_steps": 77}
    member = build_member(FIXED | chosen)
    words = member.command().split()
    for flag in ("--no-escapes", "--residual-tol", "--window", "--seed", "--max-steps"):
        assert flag in words
    assert main([*words[1:], "--figure", "None", "--json"]) in (0, 1)
    text = capsys.readouterr().out
    alone = ufm.solve(member.problem, solver=ufm.Accelerated(5), seed=2, **{
        name: chosen[name] for name in ("escapes", "residual_tol", "max_steps")
    })  # fmt: skip
    assert f'"steps": {alone.steps}' in text
    for uneven in ({"feature_decay": [1e-3, 2e-3, 3e-3, 4e-3]}, {"counts": [6.5, 6.5, 2.5, 2.5]}):
        fixed = {"counts": "40x2,10x2", "dim": 6, "weight_decay": 1e-3, "feature_decay": 1e-3}
        member = build_member(fixed | uneven)  # what the command line cannot read
        assert eval(member.command(), {"ufm": ufm}).problem == member.problem
    object_made = build_member(FIXED | {"solver": ufm.Accelerated(4), "loss": ufm.LabelSmoothing(0.1)})
    assert eval(object_made.command(), {"ufm": ufm}).certified
