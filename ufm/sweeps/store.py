"""The data set of a sweep on disk: labelled Zarr, written batch by batch, safe against a kill at any moment.

A store is a folder::

    sweep.json         what is computed and how it is cut into batches; written first, never changed
    data.zarr/         the data set (`xarray.open_zarr`), complete in shape from the start, NaN where not computed
    batches/00017.json written when batch 17 is complete: its members and the checksum of their values

Every file is written under another name and renamed, so it is there completely or not at all. A batch whose
marker is missing is computed again and overwrites whatever an interrupted run left of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ufm.inputs.checks import InputError
from ufm.sweeps.dataset import empty_dataset, fill, open_dataset
from ufm.sweeps.grid import Grid
from ufm.sweeps.measure import variables

FORMAT = 1
#: Largest size of one chunk of one variable, in bytes.
CHUNK_BYTES = 4_000_000


class Store:
    """A sweep's folder.

    Args:
        folder: the folder.
        grid: what is computed.
        batches: members of every batch, as indices into the grid in C order.
        num_classes: largest number of classes of a member.
        settings: further JSON values on which the content depends.
    """

    def __init__(
        self,
        folder: Path,
        grid: Grid,
        batches: Sequence[Sequence[int]],
        num_classes: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.folder, self.grid, self.batches = folder, grid, batches
        self.num_classes, self.settings = num_classes, dict(settings)
        self.data = folder / "data.zarr"

    def open(self, resume: bool) -> set[int]:
        """Create the store or, to resume, check that it is the same sweep and undamaged; return complete batches.

        Raises:
            InputError: if there is a store already and ``resume`` is false, if it holds another sweep, or if it is
                damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            description = self.folder / "sweep.json"
            if description.exists():
                self._require_same(_read_json(description))
                if not resume:
                    raise InputError(
                        f"{self.folder} already holds this sweep; pass --resume to go on with it, "
                        "or choose another folder"
                    )
            else:
                if any(entry.name not in ("lock", "sweep.json.partial") for entry in self.folder.iterdir()):
                    raise InputError(
                        f"{self.folder} must be empty or hold a sweep, and it holds something else"
                    )
                _write_json(description, self._description())
            if not self.data.exists():
                self._create()
            for left_over in self.data.rglob("*.partial"):
                left_over.unlink()
            done = self.done()
            self.check(done)
        return done

    def done(self) -> set[int]:
        """Return the batches whose marker says that they are complete."""
        return {int(path.stem) for path in (self.folder / "batches").glob("*.json")}

    def write(self, batch: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write the members of a batch, then its marker."""
        indices = self.batches[batch]
        first, last = self._span(indices)
        with self._lock():
            group = zarr.open_group(self.data, mode="r+", use_consolidated=False)
            digest = hashlib.sha256()
            for name, values in rows.items():
                array: Any = group[name]
                where = slice(first, last + 1) if self.grid.shape else ...
                block = np.array(array[where])
                fill(block, self.grid, indices, values, first)
                array[where] = block
                digest.update(self._bytes(name, block, indices))
            marker = {"batch": batch, "members": len(indices), "checksum": digest.hexdigest()}
            (self.folder / "batches").mkdir(exist_ok=True)
            _write_json(self.folder / "batches" / f"{batch:05d}.json", marker)

    def check(self, batches: set[int]) -> None:
        """Compare the values of complete batches with their checksums.

        Raises:
            InputError: naming the batch that does not match and how to compute it again.
        """
        for batch in sorted(batches):
            marker = self.folder / "batches" / f"{batch:05d}.json"
            try:
                group = zarr.open_group(self.data, mode="r", use_consolidated=False)
                sound = _read_json(marker)["checksum"] == self._checksum(group, self.batches[batch])
            except (InputError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError):
                sound = False
            if not sound:
                raise InputError(
                    f"{self.folder} is damaged: batch {batch} does not match its checksum; delete {marker} and "
                    "resume to compute it again (or delete the folder if data.zarr cannot be read at all)"
                )

    def dataset(self) -> xr.Dataset:
        """Return the data set, its values read when needed, the status in words."""
        return open_dataset(self.folder)

    def _description(self) -> dict[str, Any]:
        plan = hashlib.sha256(
            json.dumps([list(map(int, batch)) for batch in self.batches]).encode()
        ).hexdigest()
        content = {"format": FORMAT, "axes": [axis.name for axis in self.grid.axes], "key": self.grid.key}
        return content | {"plan": plan[:16], "settings": self.settings, "sweep": self.grid.content()}

    def _require_same(self, stored: Any) -> None:
        mine = self._description()
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise InputError(f"{self.folder} was written in another format; choose another folder")
        theirs, ours = (_flat({"settings": d["settings"]} | {"": d["sweep"]}) for d in (stored, mine))
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"{self.folder} holds another sweep: {name} is {_short(theirs.get(name))} there and "
                    f"{_short(ours.get(name))} here; choose another folder or restore the configuration"
                )
        if json.loads(json.dumps(mine)) != stored:
            what = (
                "axes are in another order"
                if stored.get("axes") != mine["axes"]
                else "batches are cut in another way"
            )
            raise InputError(f"{self.folder} holds another sweep: {what}; choose another folder")

    def _create(self) -> None:
        """Write the empty data set beside its final place and move it there."""
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        dataset = empty_dataset(self.grid, self.num_classes, bool(self.settings.get("matrices")))
        encoding = {}
        for name, variable in dataset.data_vars.items():
            row = variable.dtype.itemsize * int(np.prod(variable.shape[1:], dtype=np.int64))
            length = max(1, min(variable.shape[0], CHUNK_BYTES // max(row, 1))) if variable.ndim else 1
            encoding[name] = {"chunks": (length, *variable.shape[1:]) if variable.ndim else ()}
        dataset.to_zarr(partial, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
        partial.replace(self.data)

    def _span(self, indices: Sequence[int]) -> tuple[int, int]:
        """Return the first and last position of members on the first axis."""
        first = np.unravel_index(np.asarray(indices), self.grid.shape or (1,))[0]
        return int(first.min()), int(first.max())

    def _checksum(self, group: Any, indices: Sequence[int]) -> str:
        """Hash the stored values of some members, variable by variable."""
        first, last = self._span(indices)
        digest = hashlib.sha256()
        for name in variables(bool(self.settings.get("matrices"))):
            block = np.asarray(group[name][slice(first, last + 1) if self.grid.shape else ...])
            digest.update(self._bytes(name, block, indices))
        return digest.hexdigest()

    def _bytes(self, name: str, block: np.ndarray, indices: Sequence[int]) -> bytes:
        """Return what is hashed of a variable, from the part of it that spans the members."""
        where = np.unravel_index(np.asarray(indices), self.grid.shape or (1,))
        block = block if self.grid.shape else block[None]
        return (
            name.encode()
            + np.ascontiguousarray(block[(where[0] - self._span(indices)[0], *where[1:])]).tobytes()
        )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes of the same sweep out; the lock dies with the process."""
        with (self.folder / "lock").open("a") as stream:
            try:
                import fcntl
            except ImportError:  # elsewhere only one process may write
                yield
                return
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as reason:
        raise InputError(f"{path} is damaged: {reason}") from None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into dotted names, after a round trip through JSON."""
    tree = json.loads(json.dumps(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, ".".join(part for part in (prefix, name) if part))
    return found


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
