"""Last layers as people save them: npz, a folder of npy files, torch, safetensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ufm.inputs.checks import InputError, to_numpy
from ufm.inputs.files import HOW_TO_WRITE, open_archive, open_regular

REQUIRED, OPTIONAL = ("features", "labels", "weight"), ("bias",)
NAMES = (*REQUIRED, *OPTIONAL)


def read_layer(file: Path) -> dict[str, Any]:
    """Return the arrays of a last layer: features (N, d), labels (N,), weight (K, d)[, bias (K,)].

    An npz file; a folder of ``features.npy``, ``labels.npy``, ``weight.npy``[, ``bias.npy``], which are mapped, not
    read, so that features may be larger than memory; a ``.pt`` or ``.pth`` file of a dictionary of tensors, and a
    ``.safetensors`` file, where torch or safetensors is installed.

    Raises:
        InputError: if there is no such file, it is none of these, or an array is missing; saying what to do.
    """
    try:
        if not file.is_dir():
            open_regular(file).close()  # whether there is such a file is said before what its format needs
        found = _readers().get(file.suffix.lower(), _folder if file.is_dir() else _archive)(file)
        missing = [name for name in REQUIRED if name not in found]
        if missing:
            held = ", ".join(sorted(map(str, found))) or "nothing"
            raise InputError(f"{file} lacks {', '.join(missing)} (it holds {held}); {HOW_TO_WRITE}")
        arrays = {name: to_numpy(name, found[name]) for name in NAMES if name in found}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise InputError(f"{file}: {name} must be an array, got the single number {array}")
        return arrays
    except FileNotFoundError:
        raise InputError(f"there is no file {file}; `ufm solve --save {file.name}` would write one") from None
    except PermissionError:
        raise InputError(f"{file} may not be read: its permissions are for others") from None
    except (InputError, MemoryError):
        raise
    except Exception as reason:  # zip, header, compression, type: everything that a file can be wrong in
        raise InputError(f"{file} is damaged or holds objects ({reason}); {HOW_TO_WRITE}") from None


def _readers() -> dict[str, Any]:
    return {".pt": _torch, ".pth": _torch, ".safetensors": _safetensors}


def _archive(file: Path) -> dict[str, Any]:
    with open_archive(file) as archive:
        if any(name not in archive for name in REQUIRED):
            return dict.fromkeys(archive.files)
        return {name: archive[name] for name in NAMES if name in archive}


def _folder(folder: Path) -> dict[str, Any]:
    files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
    if not files:
        raise InputError(
            f"{folder} must be a file, got a folder without features.npy, labels.npy, weight.npy"
        )
    return {name: np.load(files[name], mmap_mode="r") for name in NAMES if name in files}


def _torch(file: Path) -> dict[str, Any]:
    found = _library("torch", file).load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise InputError(f"{file} must hold a dictionary of tensors, got {type(found).__name__}")
    return dict(found)


def _safetensors(file: Path) -> dict[str, Any]:
    return dict(_library("safetensors.numpy", file).load_file(file))


def _library(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"{file} needs {name.split('.')[0]} to be read: install it, or {HOW_TO_WRITE}"
        ) from None
