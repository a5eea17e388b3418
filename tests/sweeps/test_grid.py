import numpy as np
import optax
import pytest

import ufm
from ufm.profiles import exponential, step
from ufm.sweeps import run_config
from ufm.sweeps.config import load_config
from ufm.sweeps.grid import make_grid
from ufm.sweeps.member import build_member

FIXED = {"counts": "60x2,20x2", "dim": 4, "weight_decay": 1e-3, "feature_decay": 2e-3}


def test_fields_make_the_problem():
    member = build_member(FIXED | {"loss": "smoothing:0.2", "features": "free", "bias": 0.5})
    expected = ufm.Problem([60, 60, 20, 20], 4, 1e-3, 2e-3, ufm.LabelSmoothing(0.2), "free", 0.5)
    assert member.problem == expected


def test_nuclear_weight_stands_for_both_decays():
    problem = build_member({"counts": [3, 2], "dim": 2, "nuclear_weight": 1e-2, "decay_ratio": 4.0}).problem
    assert problem.weight_decay == pytest.approx(2e-2)
    assert problem.feature_decay == pytest.approx(5e-3)
    assert problem.nuclear_weight == pytest.approx(1e-2, rel=1e-15)


@pytest.mark.parametrize(
    ("counts", "parameters", "expected"),
    [
        ("step:K=4,n_max=90", {"counts.ratio": 9.0}, step(4, 90, 9)),
        ("step", {"counts.K": 4.0, "counts.n_max": 90, "counts.ratio": 2.5}, step(4, 90, 2.5)),
        ("exp:K=5", {"counts.n_max": 100, "counts.ratio": 7}, exponential(5, 100, 7)),
        ([7, 5], {}, [7, 5]),
        (np.array([7, 5]), {}, [7, 5]),
    ],
)
def test_profile_parameters_are_fields(counts, parameters, expected):
    member = build_member({"counts": counts, "dim": 5, "nuclear_weight": 1e-3} | parameters)
    assert member.problem.counts.tolist() == list(expected)


def test_loss_parameter_is_a_field():
    losses = [
        m.problem.loss for m in make_grid(FIXED | {"loss": "focal"}, {"loss.parameter": [1.0, 2.0]}).members()
    ]
    assert losses == [ufm.Focal(1.0), ufm.Focal(2.0)]


def test_grid_order_names_and_labels():
    axes = {
        "counts.ratio": {"start": 1, "stop": 16, "num": 3, "spacing": "log"},
        "loss": ["ce", "mse"],
        "seed": {"start": 0, "stop": 4, "num": 3, "integer": True},
    }
    grid = make_grid({"counts": "step:K=4,n_max=90", "dim": 4, "nuclear_weight": 1e-3}, axes)
    assert grid.shape == (3, 2, 3)
    assert [axis.name for axis in grid.axes] == ["ratio", "loss", "seed"]
    assert grid.axes[0].labels == pytest.approx([1, 4, 16])
    members = list(grid.members())
    assert len(members) == 18
    last = members[-1]
    assert last.problem.counts.tolist() == step(4, 90, 16).tolist()
    assert isinstance(last.problem.loss, ufm.MSE)
    assert last.fields["seed"] == 4
    assert members[1].fields["seed"] == 2
    assert grid.describe((2, 1, 0)) == "ratio=16.0, loss=mse, seed=0"


def test_an_axis_of_tables_sets_several_fields():
    settings = [
        {"label": "small", "counts": "9x2", "dim": 2},
        {"label": "large", "counts": "9x3", "dim": 3},
    ]
    grid = make_grid({"nuclear_weight": 1e-2}, {"setting": settings, "seed": [0, 1]})
    assert grid.axes[0].labels.tolist() == ["small", "large"]
    assert [member.problem.num_classes for member in grid.members()] == [2, 2, 3, 3]


def test_labels_that_are_numbers_make_a_numeric_coordinate():
    sizes = [{"label": 90 / n, "counts": [90, n]} for n in (90, 30, 7)]
    axis = make_grid({"dim": 2, "nuclear_weight": 1e-3}, {"ratio": sizes}).axes[0]
    assert axis.labels.dtype == np.float64
    assert axis.labels.tolist() == [1.0, 3.0, 90 / 7]


def test_counts_lists_and_none_are_values():
    grid = make_grid(
        {"dim": 4, "nuclear_weight": 1e-2}, {"counts": [[5, 4], "6x3"], "bias": ["none", 0.0, 1.0]}
    )
    members = list(grid.members())
    assert [member.problem.bias for member in members[:3]] == [None, 0.0, 1.0]
    assert members[3].problem.num_classes == 3


def test_keys_are_stable_and_say_all_that_matters():
    assert build_member(FIXED).key == "01e851c6da5161e1"  # a change orphans every stored sweep
    changes = [
        {"counts": "60x2,20,21"},
        {"dim": 5},
        {"weight_decay": np.nextafter(1e-3, 1)},
        {"feature_decay": 1e-3},
        {"loss": "mse"},
        {"loss": "smoothing:0.1"},
        {"loss": "smoothing:0.2"},
        {"features": "free"},
        {"bias": 0.0},
        {"bias": 1.0},
        {"level": "sample"},
        {"solver": "sgd"},
        {"solver": "sgd", "learning_rate": 0.2},
        {"solver": ufm.Accelerated()},
        {"solver": ufm.Accelerated(window=4)},
        {"solver": ufm.ProjectedGradient(optax.sgd(0.1))},
        {"solver": ufm.ProjectedGradient(optax.sgd(0.2))},
        {"window": 4},
        {"seed": 1},
        {"tol": 1e-7},
        {"residual_tol": 1e-7},
        {"max_steps": 99},
        {"precision": "float32"},
        {"escapes": False},
    ]
    keys = [build_member(FIXED | change).key for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    same = {"counts": [60, 60, 20, 20], "dim": np.int64(4), "weight_decay": np.float64(1e-3), "seed": 0}
    assert build_member(FIXED | same).key == keys[0]


def test_a_grid_s_key_depends_on_values_and_order():
    one = make_grid(FIXED, {"seed": [0, 1], "tol": [1e-6, 1e-8]})
    other = make_grid(FIXED, {"tol": [1e-6, 1e-8], "seed": [0, 1]})
    third = make_grid(FIXED, {"seed": [0, 2], "tol": [1e-6, 1e-8]})
    assert len({one.key, other.key, third.key}) == 3
    assert one.key == make_grid(dict(reversed(FIXED.items())), {"seed": [0, 1], "tol": [1e-6, 1e-8]}).key


def test_the_command_rebuilds_the_member():
    member = build_member(FIXED | {"loss": "smoothing", "loss.parameter": 0.2, "seed": 3, "solver": "adam"})
    words = member.command().split()
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["ufm", "solve"]
    assert flags["--counts"] == "60x2,20x2"
    assert flags["--loss"] == "smoothing:0.2"
    assert (flags["--seed"], flags["--solver"]) == ("3", "adam")
    again = build_member(
        {"counts": flags["--counts"], "dim": int(flags["--dim"]), "loss": flags["--loss"]}
        | {name: float(flags["--" + name.replace("_", "-")]) for name in ("weight_decay", "feature_decay")}
        | {"seed": 3, "solver": "adam"}
    )
    assert again.key == build_member(FIXED | {"loss": "smoothing:0.2", "seed": 3, "solver": "adam"}).key


BAD = [
    ({"dims": 4}, {}, "dims is no field.*dim"),
    ({"dim": 0}, {}, "dim must be an integer"),
    ({"dim": None}, {}, "dim must be given"),
    ({"counts": None}, {}, "counts must be given"),
    ({"counts": "step:K=4"}, {}, "n_max"),
    ({"counts.ratio": 3}, {}, "counts .60x2,20x2. takes no parameters"),
    ({"counts": [3, 2], "counts.ratio": 3}, {}, "counts.ratio needs counts to name a profile"),
    ({"nuclear_weight": 1e-3}, {}, "nuclear_weight takes the place"),
    ({"weight_decay": None}, {}, "weight_decay must be given"),
    ({"decay_ratio": 2}, {}, "decay_ratio is used with nuclear_weight"),
    ({"loss": "hinge"}, {}, "loss must be one of"),
    ({"loss": 3}, {}, "loss must be text"),
    ({"loss": "smoothing:0.1", "loss.parameter": 0.2}, {}, "loss.parameter"),
    ({"solver": "newton"}, {}, "solver must be one of"),
    ({"learning_rate": -1}, {}, "learning_rate"),
    ({"learning_rate": 0.1}, {}, "learning_rate is for sgd, momentum and adam; accelerated chooses its own"),
    ({"solver": "adam"}, {"window": [4, 8]}, "window is for accelerated; adam has none"),
    ({"solver": ufm.Accelerated(), "window": 4}, {}, "window is for step rules by name"),
    ({"solver": 3}, {}, "solver must be one of"),
    ({"loss": ufm.MSE(), "loss.parameter": 0.2}, {}, "loss.parameter needs loss by name"),
    ({}, {"solver": [ufm.Accelerated(), ufm.Accelerated()]}, "axis solver must have different values"),
    ({"tol": 0}, {}, "tol must be"),
    ({"tol": 1}, {}, "tol must be below 1"),
    ({}, {"tol": [1e-3, 10.0]}, r"tol must be below 1.*at tol=10.0"),
    ({"seed": -1}, {}, "seed must be"),
    ({"max_steps": 1.5}, {}, "max_steps"),
    ({"escapes": 1}, {}, "escapes must be true or false"),
    ({"precision": "float16"}, {}, "precision must be one of"),
    ({"level": "batch"}, {}, "level must be one of"),
    ({}, {"seed": []}, "axis seed must be a list"),
    ({}, {"seed": 3}, "axis seed must be a list"),
    ({}, {"seed": [1, 1]}, "axis seed must have different values"),
    ({}, {"dim": [3, 4]}, "dim is fixed and an axis"),
    ({}, {"sede": [1]}, "sede is no field.*seed"),
    ({}, {"tol": [1e-3, -1.0]}, r"tol must be.*at tol=-1.0"),
    ({}, {"tol": {"start": 1, "num": 3}}, "axis tol.*missing stop"),
    ({}, {"tol": {"start": 1, "stop": 2, "num": 3, "step": 1}}, "axis tol.*unknown step"),
    ({}, {"tol": {"start": 0, "stop": 2, "num": 3, "spacing": "log"}}, "axis tol: start"),
    ({}, {"tol": {"start": 1, "stop": 2, "num": 0}}, "axis tol: num"),
    ({}, {"tol": {"start": 1, "stop": 2, "num": 2, "spacing": "cubic"}}, "axis tol: spacing"),
    ({}, {"setting": [{"seed": 1}, {"tol": 1e-3}]}, "axis setting must set the same fields"),
    ({}, {"setting": [{"seed": 1}], "seed": [2]}, "seed is set by axis"),
    ({}, {"setting": [{"dim": 5}]}, "dim is set by axis setting"),
    ({}, {"seed": [{"tol": 1e-3}]}, "axis seed is a field"),
    ({}, {"class": [{"tol": 1e-3}]}, "axis class must have another name"),
    ({}, {"seed": list(range(4000)), "tol": np.geomspace(1e-9, 1e-1, 4000)}, "at most 10000000 members"),
]


@pytest.mark.parametrize(("fixed", "axes", "message"), BAD, ids=[message for *_, message in BAD])
def test_mistakes_name_the_key(fixed, axes, message):
    with pytest.raises(ufm.InputError, match=message):
        list(make_grid(FIXED | fixed, axes).members())


TOML = """
[problem]
counts = "step:K=4,n_max=90"
dim = 4

[solver]
tol = 1e-9

[axes]
counts.ratio = { start = 1, stop = 9, num = 3, spacing = "log" }
nuclear_weight = [1e-3, 2e-2]

[sweep]
batch_size = 4
matrices = true
"""


def test_a_file_describes_the_same_grid(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(TOML)
    grid, settings = load_config(file)
    axes = {"counts.ratio": np.geomspace(1, 9, 3), "nuclear_weight": [1e-3, 2e-2]}
    expected = make_grid({"counts": "step:K=4,n_max=90", "dim": 4, "tol": 1e-9}, axes)
    assert [member.key for member in grid.members()] == [member.key for member in expected.members()]
    assert settings == {"batch_size": 4, "matrices": True}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[solver]", "[solvers]", "solvers is no section"),
        ("tol = 1e-9", "tolerance = 1e-9", "solver.tolerance is unknown"),
        ("dim = 4", "dim = 4\nseed = 1", "problem.seed is unknown"),
        ("dim = 4", "dim = 4.5", "dim must be an integer"),
        ("num = 3,", "", "axis counts.ratio.*missing num"),
        ("batch_size = 4", "batch_size = 0", "sweep.batch_size must be"),
        ("matrices = true", "matrices = 1", "sweep.matrices must be true or false"),
        ("matrices = true", "matrix = true", "sweep.matrix is unknown"),
        ("[axes]", "[axes", "no valid TOML"),
        ("stop = 9", "stop = 900", "ratio must be from 1 to n_max = 90.*at ratio="),
    ],
)
def test_mistakes_in_a_file_name_file_and_key(tmp_path, old, new, message):
    assert old in TOML
    file = tmp_path / "sweep.toml"
    file.write_text(TOML.replace(old, new))
    with pytest.raises(ufm.InputError, match=message):
        run_config(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(ufm.InputError, match="cannot be read"):
        load_config(tmp_path / "nothing.toml")
