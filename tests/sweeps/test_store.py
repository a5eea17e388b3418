import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import ufm
from ufm.sweeps import open_dataset, run_config, summary
from ufm.sweeps.grid import make_grid
from ufm.sweeps.member import build_member

FIXED = {"counts": "step:K=4,n_max=40", "dim": 6}
AXES = {"counts.ratio": [1.0, 4.0, 10.0], "nuclear_weight": list(np.geomspace(1e-3, 1e-1, 4))}
BATCHES = {"batch_size": 8}  # the blocks are then four wide, as everywhere in these tests


@pytest.fixture(scope="module")
def expected():
    return ufm.sweep(FIXED, AXES, **BATCHES)


def damaged(folder):
    return pytest.raises(
        ufm.InputError, match=f"{folder.name} is damaged: batch 0 does not match its checksum"
    )


def test_the_data_set_is_labelled_and_right(expected):
    assert expected.sizes == {"ratio": 3, "nuclear_weight": 4, "class": 4}
    assert expected.ratio.values.tolist() == AXES["counts.ratio"]
    assert np.all(expected.status == "certified")
    assert expected.certified.values.all()
    for (i, j), member in zip(np.ndindex(3, 4), make_grid(FIXED, AXES).members(), strict=True):
        here = expected.isel(ratio=i, nuclear_weight=j)
        prediction = ufm.predict(member.problem)
        assert f"{int(here.key):016x}" == member.key
        assert here.class_counts.values.tolist() == member.problem.counts.tolist()
        assert float(here.predicted_objective) == prediction.objective
        assert float(here.objective) == pytest.approx(prediction.objective, rel=1e-9)
        assert float(here.objective_deviation) == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(here.norms, prediction.norms, atol=1e-4 * (prediction.norms.max() or 1))
        np.testing.assert_allclose(here.weight_norms, prediction.weight_norms, atol=1e-4)
        np.testing.assert_allclose(here.margins, prediction.margins, atol=1e-4)
        assert here.collapsed.values.tolist() == prediction.collapsed.tolist()
        assert int(here.num_collapsed) == prediction.num_collapsed
        assert int(here.collapse_mismatches) == 0
        assert max(float(here[name]) for name in ("nc2_h", "nc2_wwt", "nc3_wh")) < 1e-4
    assert 0 < int((expected.num_collapsed > 0).sum()) < 12
    assert all(variable.attrs["long_name"] for variable in expected.data_vars.values())
    assert "12 members: 12 certified" in summary(expected)


def test_stored_and_in_memory_are_the_same(expected, tmp_path):
    found = ufm.sweep(FIXED, AXES, out=tmp_path / "out", **BATCHES)
    xr.testing.assert_identical(
        open_dataset(tmp_path / "out").chunk(ratio=1).compute(), expected
    )  # Dask arrays
    xr.testing.assert_identical(found.load(), expected)
    described = json.loads((tmp_path / "out" / "sweep.json").read_text())["layout"]
    assert described["variables"]["norms"]["dims"] == ["class"]
    assert described["statuses"][0] == "certified"
    with np.load(tmp_path / "out" / "batches" / "00000.npz", allow_pickle=False) as raw:
        assert raw["norms"].shape == (8, 4)
        where = np.unravel_index(raw["member"], (3, 4))
        np.testing.assert_array_equal(raw["objective"], expected.objective.values[where])
        assert raw["status"].tolist() == [0] * 8
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_matrices_are_kept_on_request():
    found = ufm.sweep(FIXED, {"nuclear_weight": [1e-3], "counts.ratio": [4.0]}, matrices=True, **BATCHES)
    assert found.gram_weights.dims == ("nuclear_weight", "ratio", "class", "other_class")
    here = found.isel(nuclear_weight=0, ratio=0)
    np.testing.assert_allclose(np.sqrt(np.diagonal(here.gram_weights)), here.weight_norms)
    prediction = ufm.predict(ufm.Problem([40, 40, 10, 10], 6, 1e-3, 1e-3))
    np.testing.assert_allclose(here.gram_features, prediction.gram_features, atol=1e-4)
    np.testing.assert_allclose(here.logits, prediction.logits, atol=1e-4)


def test_unequal_numbers_of_classes_are_padded():
    found = ufm.sweep({"dim": 6, "nuclear_weight": 1e-3}, {"counts": ["40x2,10x2", "30,20"]}, **BATCHES)
    assert found.sizes["class"] == 4
    few = found.sel(counts="30,20")
    assert np.isnan(few.norms.values[2:]).all()
    assert not few.collapsed.values[2:].any()
    assert np.isfinite(few.norms.values[:2]).all()


def test_what_has_no_closed_form_says_so():
    found = ufm.sweep(
        FIXED | {"counts.ratio": 4.0, "features": "free"}, {"nuclear_weight": [1e-3]}, **BATCHES
    )
    assert found.certified.values.all()
    assert np.isnan(found.predicted_objective).all()
    assert (found.predicted_num_collapsed == -1).all()
    assert (found.collapse_mismatches == -1).all()
    assert "closed form" not in summary(found)


def test_one_member_without_axes(tmp_path):
    found = ufm.sweep(
        FIXED | {"counts.ratio": 4.0, "nuclear_weight": 1e-3}, {}, out=tmp_path / "one", **BATCHES
    )
    assert dict(found.sizes) == {"class": 4}
    assert bool(found.certified)
    again = ufm.sweep(
        FIXED | {"counts.ratio": 4.0, "nuclear_weight": 1e-3},
        {},
        out=tmp_path / "one",
        resume=True,
        **BATCHES,
    )
    xr.testing.assert_identical(found.load(), again.load())


def test_resuming_redoes_only_what_is_missing(expected, tmp_path):
    out = tmp_path / "out"
    ufm.sweep(FIXED, AXES, out=out, **BATCHES)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "batches").iterdir()}
    assert sorted(times) == ["00000.npz", "00001.npz"]
    (out / "batches" / "00001.npz").unlink()
    found = ufm.sweep(FIXED, AXES, out=out, resume=True, **BATCHES)
    xr.testing.assert_identical(found.load(), expected)
    assert (out / "batches" / "00000.npz").stat().st_mtime_ns == times["00000.npz"]
    assert (out / "batches" / "00001.npz").stat().st_mtime_ns > times["00001.npz"]


def test_a_sweep_is_not_overwritten_or_mixed(expected, tmp_path):
    out = tmp_path / "out"
    ufm.sweep(FIXED, AXES, out=out, resume=True, **BATCHES)  # nothing there: a start
    with pytest.raises(ufm.InputError, match="already holds this sweep; pass --resume"):
        ufm.sweep(FIXED, AXES, out=out, **BATCHES)
    changes = [
        (FIXED | {"tol": 1e-7}, AXES, BATCHES, "tol is absent there and 1e-07 here"),
        (FIXED | {"dim": 7}, AXES, BATCHES, "dim is 6 there and 7 here"),
        (FIXED, AXES | {"counts.ratio": [1.0, 5.0]}, BATCHES, "axes.ratio is .* there and .* here"),
        (FIXED, dict(reversed(AXES.items())), BATCHES, "axes are in another order"),
        (FIXED, AXES, {"batch_size": 4}, "settings.batch_size is 8 there and 4 here"),
        (FIXED, AXES, BATCHES | {"matrices": True}, "settings.matrices is false there and true here"),
    ]
    for fixed, axes, settings, message in changes:
        with pytest.raises(ufm.InputError, match=message):
            ufm.sweep(fixed, axes, out=out, resume=True, **settings)
    xr.testing.assert_identical(open_dataset(out).load(), expected)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "other" / "lock").write_text("mine too")
    with pytest.raises(ufm.InputError, match="must be empty or hold a sweep"):
        ufm.sweep(FIXED, AXES, out=tmp_path / "other", **BATCHES)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ufm.InputError, match="holds no sweep"):
        open_dataset(tmp_path / "other")
    assert (tmp_path / "other" / "lock").read_text() == "mine too"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "out"
    ufm.sweep(FIXED, AXES, out=out, **BATCHES)
    return out


def copied(stored, tmp_path):
    import shutil

    return shutil.copytree(stored, tmp_path / "copy")


def batch_of(folder, batch=0):
    return folder / "batches" / f"{batch:05d}.npz"


def resume(folder):
    return ufm.sweep(FIXED, AXES, out=folder, resume=True, **BATCHES)


def rewritten(path, change):
    """Change the arrays of an archive and write it with NumPy alone."""
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(batch_of(folder)),
        lambda folder: batch_of(folder).write_bytes(batch_of(folder).read_bytes()[:20]),
        lambda folder: rewritten(batch_of(folder), lambda arrays: arrays.pop("steps")),
        lambda folder: rewritten(batch_of(folder), lambda arrays: arrays.pop("about")),
        lambda folder: batch_of(folder).write_text("{"),
        lambda folder: batch_of(folder).write_text("0" * 64),
    ],
    ids=["bit", "cut", "array", "about", "text", "checksum"],
)
def test_damage_is_found(stored, tmp_path, damage):
    folder = copied(stored, tmp_path)
    resume(folder)
    damage(folder)
    with damaged(folder):
        resume(folder)


def test_one_changed_value_is_found_and_can_be_repaired(expected, stored, tmp_path):
    folder = copied(stored, tmp_path)

    def change(arrays):
        arrays["objective"][1] = np.nextafter(arrays["objective"][1], 1)

    rewritten(batch_of(folder), change)
    with damaged(folder) as error:
        resume(folder)
    (folder / "batches" / "00000.npz").unlink()
    assert f"delete {folder / 'batches' / '00000.npz'}" in str(error.value)
    xr.testing.assert_identical(resume(folder).load(), expected)


def test_a_lost_description_or_data_set_is_noticed(stored, tmp_path):
    folder = copied(stored, tmp_path)
    (folder / "sweep.json").write_text("[")
    with pytest.raises(ufm.InputError, match=r"sweep\.json is damaged"):
        resume(folder)
    (folder / "sweep.json").unlink()
    with pytest.raises(ufm.InputError, match="must be empty or hold a sweep"):
        resume(folder)


def test_processes_share_a_sweep(expected, tmp_path):
    out = tmp_path / "out"
    settings = BATCHES | {"process_count": 2}
    half = ufm.sweep(FIXED, AXES, out=out, process_index=1, **settings)
    assert np.sum(half.status == "missing") == 8
    assert np.isnan(half.objective.values[half.status == "missing"]).all()
    whole = ufm.sweep(FIXED, AXES, out=out, process_index=0, **settings)
    xr.testing.assert_identical(whole.load(), expected)
    for index in (-1, 2, True):
        with pytest.raises(ufm.InputError, match="process_index must be from 0"):
            ufm.sweep(FIXED, AXES, process_index=index, **settings)


def test_failed_members_are_named_with_how_to_run_them_alone(capfd):
    found = ufm.sweep(
        FIXED | {"counts.ratio": 4.0, "max_steps": 5}, {"nuclear_weight": [1e-3]}, progress=True, **BATCHES
    )
    assert found.status.values.tolist() == ["max_steps"]
    captured = capfd.readouterr()
    assert captured.out == ""
    line = next(line for line in captured.err.splitlines() if "max_steps at" in line)
    command = build_member(FIXED | {"counts.ratio": 4.0, "max_steps": 5, "nuclear_weight": 1e-3}).command()
    assert "max_steps at nuclear_weight=0.001" in line
    assert line.rstrip().endswith(command)
    assert "1/1" in captured.err


CONFIG = """
[problem]
counts = "step:K=4,n_max=40"
dim = 6
[axes]
counts.ratio = { start = 1, stop = 30, num = 8, spacing = "log" }
nuclear_weight = { start = 1e-3, stop = 1e-1, num = 8, spacing = "log" }
[sweep]
batch_size = 8
"""
RUN = "import sys; from ufm.sweeps import run_config; run_config(sys.argv[1], sys.argv[2], resume=True)"


def run(config, out, **options):
    return subprocess.Popen([sys.executable, "-c", RUN, str(config), str(out)], **options)


def batches(out):
    return len(list((out / "batches").glob("[0-9]*.npz"))) if out.exists() else 0


@pytest.mark.slow
def test_a_killed_sweep_resumes(tmp_path):
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(CONFIG)
    process = run(config, out)
    while process.poll() is None and batches(out) < 2:
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = batches(out)
    assert 2 <= done < 8
    found = run_config(config, out, resume=True)
    xr.testing.assert_identical(found.load(), run_config(config, tmp_path / "undisturbed").load())


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_no_trace(tmp_path):
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(CONFIG.replace("num = 8", "num = 45"))
    clean = run_config(config, tmp_path / "undisturbed").load()
    moments = random.Random(0)
    kills, before = 0, 0
    while kills < 10:
        process = run(config, out)
        if kills % 2:  # while the sweep is under way: up to the next batch, and a little more
            while process.poll() is None and batches(out) <= before:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
        else:  # at any moment, the start included
            time.sleep(moments.uniform(0, 3.5))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert batches(out) >= before, "a complete batch was lost"
        before = batches(out)
    assert kills == 10, "the sweep was over too soon to be killed ten times"
    found = run_config(config, out, resume=True)
    xr.testing.assert_identical(found.load(), clean)
    assert json.loads((out / "sweep.json").read_text()) == json.loads(
        (tmp_path / "undisturbed" / "sweep.json").read_text()
    )
