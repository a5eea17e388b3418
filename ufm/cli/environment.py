"""Environment variables that would stop a command half-way, looked at before it begins."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ufm.inputs.checks import InputError


def check_environment(argv: Sequence[str]) -> None:
    """Raise `InputError` if a variable names a backend that there is not; where none is set, nothing is imported."""
    command = argv[0] if argv else ""
    if "MPLBACKEND" in os.environ and command in ("solve", "verify", "figures"):
        _check_matplotlib(os.environ["MPLBACKEND"])
    solves = command in ("solve", "sweep", "verify", "advise") or "--solve" in argv
    if os.environ.get("JAX_PLATFORMS") and solves and "--distributed" not in argv:
        _check_jax(os.environ["JAX_PLATFORMS"])


def _check_matplotlib(name: str) -> None:
    try:
        from matplotlib import rcsetup

        if name:
            rcsetup.validate_backend(name)
    except ValueError:
        raise InputError(f"MPLBACKEND must be a backend of matplotlib such as agg, got {name!r}") from None


def _check_jax(name: str) -> None:
    import jax

    try:
        jax.devices()
    except RuntimeError:
        raise InputError(
            f"JAX_PLATFORMS must name devices that JAX finds, such as cpu, got {name!r}"
        ) from None
