"""A stored sweep that is not as it was written is never taken for one that is: by resuming, opening or drawing."""

import json
import random
import shutil

import numpy as np
import pytest
import xarray as xr
from helpers.damage import cut, damage, flip, swap, zero
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ufm
from ufm.inputs.checks import CheckpointError
from ufm.sweeps import draw_figures, open_dataset

FIXED = {"counts": "step:K=4,n_max=40", "dim": 6}
AXES = {"counts.ratio": [1.0, 4.0, 10.0], "nuclear_weight": list(np.geomspace(1e-3, 1e-1, 4))}


def sweep(out, resume=True, fixed=FIXED, **options):
    return ufm.sweep(fixed, AXES, out=out, resume=resume, **({"batch_size": 4} | options))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Twelve members in three batches, complete."""
    out = tmp_path_factory.mktemp("stored") / "out"
    sweep(out, resume=False)
    return out


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Another sweep of the same size."""
    out = tmp_path_factory.mktemp("foreign") / "out"
    sweep(out, resume=False, fixed=FIXED | {"seed": 1})
    return out


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def batch(folder, number=0):
    return folder / "batches" / f"{number:05d}.npz"


def rewrite(path, change):
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def in_axes(content):
    return content["layout"]["axes"][0]


SHARES = [0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 1]
DAMAGES = {
    **{f"bit at {share}": lambda folder, share=share: flip(batch(folder), share) for share in SHARES},
    **{f"cut to {share}": lambda folder, share=share: cut(batch(folder), share) for share in SHARES[:-1]},
    "zeros everywhere": lambda folder: zero(batch(folder), 0, 1),
    "zeros at the end": lambda folder: zero(batch(folder), 0.9, 1),
    "zeros in the middle": lambda folder: zero(batch(folder), 0.4, 0.6),
    "a byte more": lambda folder: batch(folder).write_bytes(batch(folder).read_bytes() + b"0"),
    "twice in one": lambda folder: batch(folder).write_bytes(2 * batch(folder).read_bytes()),
    "two swapped": lambda folder: swap(batch(folder, 0), batch(folder, 1)),
    "one copied over another": lambda folder: shutil.copy(batch(folder, 0), batch(folder, 2)),
    "one copied beside": lambda folder: shutil.copy(batch(folder, 0), folder / "batches" / "00000 (1).npz"),
    "one more": lambda folder: shutil.copy(batch(folder, 0), batch(folder, 3)),
    "one with a shorter name": lambda folder: batch(folder, 1).rename(folder / "batches" / "1.npz"),
    "something else": lambda folder: (folder / "batches" / "notes.txt").write_text("mine"),
    "a folder in its place": lambda folder: (batch(folder).unlink(), batch(folder).mkdir()),
    "an array changed by hand": lambda folder: rewrite(batch(folder), lambda arrays: arrays["norms"].sort(axis=0)),
    "an array lost": lambda folder: rewrite(batch(folder), lambda arrays: arrays.pop("margins")),
    "members changed": lambda folder: rewrite(batch(folder), lambda arrays: arrays["member"].sort()),
    "text": lambda folder: batch(folder).write_text("objective"),
}  # fmt: skip
DESCRIPTIONS = {
    **{f"bit at {share}": lambda file, share=share: flip(file, share) for share in SHARES},
    "cut": lambda file: cut(file, 0.5),
    "empty": lambda file: cut(file, 0),
    "zeros": lambda file: zero(file, 0, 1),
    "a list": lambda file: file.write_text("[1]"),
    "a label": lambda file: edit(file, lambda content: in_axes(content)["labels"].__setitem__(1, 5.0)),
    "labels in another order": lambda file: edit(file, lambda content: in_axes(content)["labels"].reverse()),
    "an axis renamed": lambda file: edit(file, lambda content: in_axes(content).update(name="rate")),
    "a field": lambda file: edit(file, lambda content: content["sweep"].update(dim=7)),
    "the checksum": lambda file: edit(file, lambda content: content.update(checksum="0" * 64)),
    "no checksum": lambda file: edit(file, lambda content: content.pop("checksum")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_batch_is_refused_by_every_reading(folder, name):
    DAMAGES[name](folder)
    for read in (open_dataset, sweep, draw_figures):
        with pytest.raises(ufm.InputError, match=r"is damaged: .*(delete|remove)"):
            read(folder)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_damaged_description_is_refused_by_every_reading(folder, name):
    DESCRIPTIONS[name](folder / "sweep.json")
    for read in (open_dataset, sweep, draw_figures):
        with pytest.raises(ufm.InputError, match=r"sweep\.json is damaged"):
            read(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["sweep.json", "batches/00001.npz"]), share=st.floats(0, 1), bit=st.integers(0, 7)
)
def test_no_bit_may_change(folder, name, share, bit):
    before = (folder / name).read_bytes()
    flip(folder / name, share, bit)
    with pytest.raises(ufm.InputError, match="is damaged"):
        open_dataset(folder)
    (folder / name).write_bytes(before)


@pytest.mark.slow
def test_two_hundred_damages_at_random(folder, stored):
    """Of one or two files at once: refused, or what was written."""
    whole = open_dataset(stored).load()
    for seed in range(200):
        draw = random.Random(seed)
        files = draw.sample(
            [folder / "sweep.json", *(batch(folder, i) for i in range(3))], draw.randint(1, 2)
        )
        before = {file: file.read_bytes() for file in files}
        for file in files:
            damage(file, draw)
        changed = any(file.read_bytes() != content for file, content in before.items())
        if changed:
            with pytest.raises(ufm.InputError, match=r"is damaged|format"):
                (sweep if seed % 10 == 0 else open_dataset)(folder).load()
        for file, content in before.items():
            file.write_bytes(content)
    xr.testing.assert_identical(open_dataset(folder).load(), whole)


@pytest.mark.parametrize("matrices", [False, True])
def test_files_of_another_sweep_are_refused(folder, foreign, stored, tmp_path, matrices):
    if matrices:
        foreign = tmp_path / "matrices"
        sweep(foreign, matrices=True)
    shutil.copy(batch(foreign, 1), batch(folder, 1))
    with pytest.raises(ufm.InputError, match="batch 1 belongs to another batch or sweep"):
        open_dataset(folder)
    shutil.copy(batch(stored, 1), batch(folder, 1))
    shutil.copy(foreign / "sweep.json", folder / "sweep.json")
    with pytest.raises(ufm.InputError, match="batch 0 belongs to another batch or sweep"):
        open_dataset(folder)
    with pytest.raises(ufm.InputError, match="holds another sweep"):
        sweep(folder)


@pytest.mark.parametrize("gone", [[0], [1, 2], [0, 1, 2]])
def test_a_batch_that_is_gone_is_missing_and_computed_again(folder, stored, gone):
    for number in gone:
        batch(folder, number).unlink()
    missing = open_dataset(folder).status.values == "missing"
    assert np.flatnonzero(missing).tolist() == [4 * number + i for number in gone for i in range(4)]
    assert np.isnan(open_dataset(folder).objective.values[missing]).all()
    xr.testing.assert_identical(sweep(folder).load(), open_dataset(stored).load())
    for number in range(3):
        assert batch(folder, number).read_bytes() == batch(stored, number).read_bytes()


def test_damage_after_opening_is_noticed_when_values_are_read(folder):
    opened = open_dataset(folder)
    flip(batch(folder, 1), 0.5)
    first = opened.isel(ratio=0).norms.values
    assert np.isfinite(first).all()
    with pytest.raises(ufm.InputError, match="batch 1 does not match its checksum"):
        opened.load()
    opened = open_dataset(shutil.copytree(folder, folder.parent / "again", ignore=lambda *_: ["00001.npz"]))
    batch(folder.parent / "again", 2).unlink()
    with pytest.raises(ufm.InputError, match="batch 2 does not match its checksum"):
        opened.load()


def test_only_what_is_asked_for_is_read(folder, stored, monkeypatch):
    from ufm.sweeps.sealed import Archive

    opened, whole, asked = open_dataset(folder), open_dataset(stored).load(), []
    read = Archive.read
    monkeypatch.setattr(
        Archive, "read", lambda self, names: asked.append((self.path.name, *names)) or read(self, names)
    )
    for where in (
        {"ratio": 1},
        {"ratio": slice(0, 2), "nuclear_weight": -1},
        {"ratio": [0, 2], "class": [3, 0]},
    ):
        xr.testing.assert_identical(opened.norms.isel(where), whole.norms.isel(where))
    assert ("00001.npz", "norms") in asked
    assert {name for _, name in asked} == {"norms"}
    opened.objective.isel(ratio=2).load()
    assert asked[-1] == ("00002.npz", "objective")
    assert ("00000.npz", "objective") not in asked


def test_what_else_lies_about_is_harmless(folder, stored):
    (folder / "batches" / ".00001.npz.ab12.partial").write_text("half")
    (folder / ".sweep.json.ab12.partial").write_text("half")
    (folder / "report.json").write_text("{}")
    xr.testing.assert_identical(open_dataset(folder).load(), open_dataset(stored).load())
    xr.testing.assert_identical(sweep(folder).load(), open_dataset(stored).load())
    assert not list(folder.rglob("*.partial"))
    assert (folder / "report.json").exists()


def test_a_store_of_the_first_format_is_refused(folder):
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "axes": ["ratio"], "sweep": {"dim": 6}}))
    (folder / "data.zarr").mkdir()
    for read in (open_dataset, sweep, draw_figures):
        with pytest.raises(ufm.InputError, match="format 1, this version of ufm reads format 2 only; choose"):
            read(folder)


def test_a_full_disk_leaves_what_was_written(tmp_path, stored, monkeypatch):
    written = []

    def full(_):
        written.append(1)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("ufm.sweeps.sealed.os.fsync", full)
    with pytest.raises(
        CheckpointError, match=r"cannot write to .*out: No space left on device; batches written before"
    ):
        sweep(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "batches").iterdir()] == ["00000.npz"]
    monkeypatch.undo()
    xr.testing.assert_identical(sweep(tmp_path / "out").load(), open_dataset(stored).load())
