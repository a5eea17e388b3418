"""Last layers as people save them, and labels as people name them."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

import ufm
from ufm.cli import main
from ufm.inputs.layers import read_layer

LABELS = np.repeat(np.arange(3), (6, 3, 2))
LAYER = {
    "features": np.eye(3, 4, dtype=np.float32)[LABELS],
    "labels": LABELS,
    "weight": np.eye(3, 4) - 1 / 3,
    "bias": np.zeros(3),
}


def saved(kind, folder, layer=LAYER):
    """Write a layer in some format, as its users would."""
    file = folder / f"layer{kind}"
    if kind == ".npz":
        np.savez(file, **layer, extra=np.zeros(2))
    elif kind == "":
        file.mkdir()
        for name, array in layer.items():
            np.save(file / f"{name}.npy", array)
    elif kind == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(layer, file)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(array) for name, array in layer.items()}, file)
    return file


@pytest.mark.parametrize("kind", [".npz", "", ".pt", ".pth", ".safetensors"])
def test_every_format_holds_the_same(kind, tmp_path, capsys):
    file = saved(kind, tmp_path)
    found = read_layer(file)
    assert list(found) == list(LAYER)
    for name, array in LAYER.items():
        np.testing.assert_array_equal(found[name], array)
    assert main(["verify", str(file), "--json"]) in (0, 1)
    assert '"accuracy"' in capsys.readouterr().out


@pytest.mark.parametrize("kind", [".npz", "", ".pt", ".safetensors"])
def test_a_missing_file_is_said_whatever_library_its_format_needs(kind, tmp_path):
    with pytest.raises(ufm.InputError, match="there is no file"):
        read_layer(tmp_path / f"none{kind}")


@pytest.mark.parametrize("kind", [".npz", ".pt", ".safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(kind, tmp_path):
    os.mkfifo(tmp_path / f"pipe{kind}")
    with pytest.raises(ufm.InputError, match="must be a file, got a pipe"):
        read_layer(tmp_path / f"pipe{kind}")


@pytest.mark.parametrize("kind", ["", ".pt", ".safetensors"])
def test_what_is_missing_or_damaged_is_said(kind, tmp_path):
    file = saved(kind, tmp_path, {"features": LAYER["features"], "labels": LABELS})
    with pytest.raises(ufm.InputError, match=r"lacks weight \(it holds features, labels\)"):
        read_layer(file)
    damaged = file / "labels.npy" if kind == "" else file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ufm.InputError, match="layer"):
        read_layer(file)


def test_a_folder_without_arrays_and_a_missing_library_are_named(tmp_path, monkeypatch):
    with pytest.raises(ufm.InputError, match="a folder without features"):
        read_layer(tmp_path)

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ufm.InputError, match="needs torch to be read"):
        read_layer(tmp_path / "a.pt")


def test_a_folder_is_mapped_and_not_read(tmp_path):
    assert isinstance(read_layer(saved("", tmp_path))["features"].base, np.memmap)


NAMES = np.array(["ant", "bee", "cow"])


@pytest.mark.parametrize(
    "labels", [NAMES[LABELS], NAMES[LABELS].astype(object), NAMES[LABELS].astype("S"), LABELS.astype(str)]
)
def test_labels_may_be_names(labels):
    layer = LAYER | {"labels": labels}
    named, plain = (ufm.verify(**each).rows for each in (layer, LAYER))
    assert [row.cells() for row in named] == [row.cells() for row in plain]
    assert ufm.metrics.measure(LAYER["features"], labels).counts.tolist() == [6, 3, 2]


def test_texts_of_integers_are_in_the_order_of_integers():
    labels = np.repeat(np.arange(11), 2)
    counts = ufm.metrics.measure(np.ones((22, 2)) * labels[:, None], labels.astype(str)).means[:, 0]
    assert counts.tolist() == list(range(11))


def test_a_view_of_a_mapped_file_gives_what_an_array_gives(tmp_path):
    rng = np.random.default_rng(0)
    labels, table = rng.integers(0, 3, 4000), rng.random((4001, 6), dtype=np.float32)
    np.save(tmp_path / "features.npy", table)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")[1:]
    problem = ufm.Problem(np.bincount(labels), 6, 1e-3, 1e-4)
    arrays = {"labels": labels, "weight": rng.standard_normal((3, 6)), "problem": problem}
    assert (
        ufm.verify(features=mapped, **arrays).to_dict() == ufm.verify(features=table[1:], **arrays).to_dict()
    )


SCRIPT = """
import resource, sys
import numpy as np
import ufm

rng = np.random.default_rng(0)
K, d, N = 20, 1024, 60_000
labels, means = rng.integers(0, K, N), rng.random((K, d), dtype=np.float32)
table = np.lib.format.open_memmap(sys.argv[1], mode="w+", dtype=np.float32, shape=(N, d))
for start in range(0, N, 2000):
    table[start : start + 2000] = means[labels[start : start + 2000]]
table.flush()
size = table.nbytes
del table
weight, features = means - means.mean(0), np.load(sys.argv[1], mmap_mode="r")
problem = ufm.Problem(np.bincount(labels), d, 1e-3, 1e-5)
ufm.verify(features=features[:1000], labels=labels[:1000], weight=weight)


def peak():  # ru_maxrss would remember how the file was written
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
ufm.verify(features=features, labels=labels, weight=weight)
ufm.verify(features=features, labels=labels, weight=weight, problem=problem)
assert peak() - before < size / 2, ((peak() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_features_in_a_mapped_file_never_fill_half_of_its_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "f.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
