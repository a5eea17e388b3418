"""Sweeps from a TOML file: sections ``[problem]``, ``[solver]``, ``[axes]`` and ``[sweep]``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ufm.inputs.checks import InputError, positive_integer
from ufm.inputs.files import path_of
from ufm.solvers.settings import SETTINGS as SOLVER_SETTINGS
from ufm.sweeps.grid import RANGE_KEYS, Grid, make_grid
from ufm.sweeps.member import PROBLEM_FIELDS

SECTIONS = ("problem", "solver", "axes", "sweep")
#: How the sweep is run and stored: the entries of ``[sweep]``.
SETTINGS = ("batch_size", "matrices")


def load_config(path: str | Path) -> tuple[Grid, dict[str, Any]]:
    """Return the grid and the settings that a TOML file describes.

    Example of a file::

        [problem]                              # fields that all members share
        counts = "step:K=10,n_max=5000"
        dim = 16

        [solver]
        tol = 1e-8

        [axes]                                 # the last one varies fastest
        counts.ratio = { start = 1, stop = 100, num = 64, spacing = "log" }
        nuclear_weight = { start = 1e-4, stop = 1e-2, num = 64, spacing = "log" }

        [sweep]                                # optional
        batch_size = 2048
        matrices = false

    Raises:
        InputError: naming the key, its value and what is required.
    """
    path = path_of("configuration", path)
    if path.exists() and not path.is_file():
        raise InputError(f"configuration must be a file, got {path}")
    try:
        with path.open("rb") as stream:
            config = tomllib.load(stream)
    except OSError as reason:
        raise InputError(f"configuration {path} cannot be read: {reason.strerror}") from None
    except RecursionError:
        raise InputError(f"configuration {path} must not be nested that deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise InputError(f"configuration {path} is no valid TOML: {reason}") from None
    try:
        return _parse(config)
    except InputError as error:
        raise InputError(f"configuration {path}: {error}") from None


def _parse(config: Mapping[str, Any]) -> tuple[Grid, dict[str, Any]]:
    for name, section in config.items():
        if name not in SECTIONS:
            raise InputError(f"{name} is no section; sections are {', '.join(SECTIONS)}")
        if not isinstance(section, dict):
            raise InputError(f"{name} must be a section [{name}], got {section!r}")
    fixed: dict[str, Any] = {}
    for section, fields in (("problem", PROBLEM_FIELDS), ("solver", SOLVER_SETTINGS)):
        for name, value in config.get(section, {}).items():
            if name not in fields and not (
                section == "problem" and name in ("loss.parameter", "targets.flip")
            ):
                raise InputError(f"{section}.{name} is unknown; [{section}] takes {', '.join(fields)}")
            fixed[name] = value
    return make_grid(fixed, _flat_axes(config.get("axes", {}))), _settings(config.get("sweep", {}))


def _flat_axes(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join dotted keys that TOML has read as nested tables, ranges excepted."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        full = f"{prefix}{name}"
        if isinstance(value, dict) and not any(key in RANGE_KEYS for key in value):
            found |= _flat_axes(value, full + ".")
        else:
            found[full] = value
    return found


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in section.items():
        if name not in SETTINGS:
            raise InputError(f"sweep.{name} is unknown; [sweep] takes {', '.join(SETTINGS)}")
        if name == "matrices" and not isinstance(value, bool):
            raise InputError(f"sweep.matrices must be true or false, got {value!r}")
        if name == "batch_size":
            positive_integer("sweep.batch_size", value)
    return dict(section)
