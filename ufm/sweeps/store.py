"""The data set of a sweep on disk: one file per batch, safe against a kill, checked on every reading.

A store is a folder::

    sweep.json          what is computed, the axes with their labels, how it is cut into batches; never changed
    claim.json          which processes are at work here
    batches/00017.npz   the members of batch 17: their positions in the grid, and one array per variable

Every file is written under another name and renamed, and holds a checksum of itself (`ufm.sweeps.sealed`). A batch
names the sweep and its own number, so that no file is taken for another. A batch that is not there is computed
again. `numpy.load` reads a batch; `open_dataset` joins all of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ufm.inputs.checks import CheckpointError, InputError
from ufm.inputs.claim import Share, claimed
from ufm.inputs.files import PARTIAL
from ufm.sweeps.dataset import Layout
from ufm.sweeps.grid import Places
from ufm.sweeps.joined import joined
from ufm.sweeps.sealed import (
    Archive,
    DamageError,
    checksum,
    read_description,
    write_archive,
    write_description,
)

FORMAT = 2
#: How a sentence ends about a sweep that ended early.
KEPT = "batches written before are kept, go on with --resume"


class Place(NamedTuple):
    """Where the batches of a sweep are written: all that a process that solves one needs to know."""

    folder: Path
    sweep: str


class Store:
    """A sweep's folder.

    Args:
        folder: the folder.
        layout: of the data set.
        batches: members of every batch, as indices into the grid in C order.
        settings: further JSON values on which the content depends.
        content: what is computed, as JSON values by name.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        batches: Sequence[Places],
        settings: Mapping[str, Any],
        content: Mapping[str, Any],
    ) -> None:
        self.folder, self.layout, self.batches = folder, layout, batches
        plan = checksum([list(map(int, batch)) for batch in batches])
        described = {"format": FORMAT, "settings": dict(settings), "sweep": dict(content), "plan": plan}
        described |= {"batches": len(batches), "layout": layout.to_json()}
        self.description: dict[str, Any] = json.loads(json.dumps(described))
        self.place = Place(folder.resolve(), checksum(self.description))

    @contextlib.contextmanager
    def opened(self, resume: bool, share: Share) -> Iterator[set[int]]:
        """Claim the folder, check what is there or begin, and yield the complete batches.

        Args:
            resume: whether to go on with a sweep that is there already.
            share: which of how many processes this is.

        Raises:
            InputError: if there is a sweep already and ``resume`` is false, if it is another one or damaged, or if
                another process is at work there.
        """
        new = not self.folder.exists()
        self._require_mine(resume)
        try:
            with claimed(self.folder / "claim.json", share) as alone:
                if alone:
                    for left_over in self.folder.rglob(f".*{PARTIAL}"):
                        left_over.unlink()
                with _writing(self.folder):
                    if not (self.folder / "sweep.json").exists():
                        write_description(self.folder / "sweep.json", self.description)
                    (self.folder / "batches").mkdir(exist_ok=True)
                yield set(_archives(self.folder, self.description, self.batches))
        finally:
            if new and not (self.folder / "sweep.json").exists():  # it could not be begun
                with contextlib.suppress(OSError):
                    (self.folder / "claim.json").unlink(missing_ok=True)
                    self.folder.rmdir()

    def write(self, batch: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write the members of a batch.

        Raises:
            CheckpointError: if that fails; the batches before are kept.
        """
        write_batch(self.place, batch, self.batches[batch], rows)

    def dataset(self) -> xr.Dataset:
        """Return the data set, its values read when needed."""
        return open_dataset(self.folder)

    def _require_mine(self, resume: bool) -> None:
        """Create the folder, or raise `InputError` unless it is empty or holds this sweep to go on with."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entries = {entry.name for entry in self.folder.iterdir()}
        except OSError as reason:
            raise InputError(f"{self.folder} cannot be used: {reason.strerror or reason}") from None
        if "sweep.json" not in entries:
            if any(not (name == "claim.json" or name.endswith(PARTIAL)) for name in entries):
                raise InputError(f"{self.folder} must be empty or hold a sweep, and it holds something else")
            return
        self._require_same(_described(self.folder))
        if not resume:
            raise InputError(
                f"{self.folder} already holds this sweep; pass --resume to go on with it, or choose another folder"
            )

    def _require_same(self, stored: Mapping[str, Any]) -> None:
        theirs, ours = (
            _flat({"settings": d["settings"]} | {"": d["sweep"]}) for d in (stored, self.description)
        )
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"{self.folder} holds another sweep: {name} is {_short(theirs.get(name))} there and "
                    f"{_short(ours.get(name))} here; choose another folder or restore the configuration"
                )
        if stored != self.description:
            what = "it was written by another version of ufm"
            if stored["layout"]["axes"] != self.description["layout"]["axes"]:
                what = "axes are in another order"
            elif stored["plan"] != self.description["plan"]:
                what = "batches are cut in another way"
            raise InputError(f"{self.folder} holds another sweep: {what}; choose another folder")


def write_batch(place: Place, batch: int, members: Places, rows: Mapping[str, np.ndarray]) -> None:
    """Write the file of a batch.

    Raises:
        CheckpointError: if that fails; the batches before are kept.
    """
    about = {"format": FORMAT, "sweep": place.sweep, "batch": batch}
    arrays = {"about": np.array(json.dumps(about)), "member": np.asarray(members, dtype=np.int64)}
    with _writing(place.folder):
        write_archive(_path(place.folder, batch), arrays | dict(rows))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        raise CheckpointError(f"cannot write to {folder}: {reason.strerror or reason}; {KEPT}") from None


def open_dataset(folder: str | Path) -> xr.Dataset:
    """Return the data set of a stored sweep, complete or not, the status in words.

    Every file is checked; values are read when they are used, and checked again where a file has changed by then.

    Args:
        folder: what `ufm.sweep` wrote to.

    Raises:
        InputError: if there is none, it is damaged, or it was written in another format.
    """
    folder = Path(folder)
    description = _described(folder)
    layout = Layout.from_json(description["layout"])
    return joined(layout, _archives(folder, description), lambda batch: _damaged(folder, batch))


def _described(folder: Path) -> dict[str, Any]:
    """Return the description of a store."""
    try:
        content = read_description(folder / "sweep.json")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} holds no sweep (there is no sweep.json in it); name the folder that "
            "`ufm sweep CONFIG.toml --out FOLDER` wrote"
        ) from None
    except DamageError as reason:
        raise InputError(
            f"{folder / 'sweep.json'} is damaged: {reason}; restore it, or compute the sweep again in another folder"
        ) from None
    if content["format"] != FORMAT:
        raise InputError(
            f"{folder} holds a sweep in format {content['format']}, this version of ufm reads format {FORMAT} only; "
            "choose another folder and compute it again"
        )
    return content


def _archives(
    folder: Path, description: Mapping[str, Any], batches: Sequence[Places] | None = None
) -> dict[int, tuple[Archive, np.ndarray]]:
    """Return the file of every batch that is there and its members, all checked.

    Raises:
        InputError: naming what is damaged and how to compute it again.
    """
    found: dict[int, tuple[Archive, np.ndarray]] = {}
    sweep, size = checksum(description), Layout.from_json(description["layout"]).size
    taken = np.zeros(size, dtype=bool)
    for path in _entries(folder / "batches"):
        if path.name.startswith("."):  # being written, or a file system's own
            continue
        batch = int(path.stem) if path.stem.isdecimal() else -1
        if not 0 <= batch < description["batches"] or path != _path(folder, batch):
            raise InputError(f"{folder} is damaged: {path} is no batch of this sweep; remove it")
        try:
            archive = Archive(path)
            told, members = archive.read(("about", "member"))
        except DamageError:
            raise _damaged(folder, batch) from None
        about = json.loads(str(told))
        if about != {"format": FORMAT, "sweep": sweep, "batch": batch}:
            raise _damaged(folder, batch, "belongs to another batch or sweep")
        if batches is not None and members.tolist() != list(batches[batch]):
            raise _damaged(folder, batch, "holds other members")
        if np.any(taken[members]):
            raise _damaged(folder, batch, "holds members of another batch")
        taken[members] = True
        found[batch] = archive, members
    return found


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing if there is none, or raise `InputError` if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as reason:
        raise InputError(f"{folder} cannot be read: {reason.strerror or reason}") from None


def _path(folder: Path, batch: int) -> Path:
    return folder / "batches" / f"{batch:05d}.npz"


def _damaged(folder: Path, batch: int, what: str = "does not match its checksum") -> InputError:
    return InputError(
        f"{folder} is damaged: batch {batch} {what}; delete {_path(folder, batch)} and resume to compute it again"
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, ".".join(part for part in (prefix, name) if part))
    return found


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
