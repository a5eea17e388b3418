"""Sweeps: thousands of problems over a grid of fields, solved together, certified one by one, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from ufm.plots.style import Style

__all__ = ["draw_figures", "open_dataset", "run_config", "summary", "sweep"]


def sweep(
    fixed: Mapping[str, Any],
    axes: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    matrices: bool = False,
    batch_size: int = 2048,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = False,
    client: Any = None,
) -> xr.Dataset:
    """Solve all problems of a grid to certified global optima and compare each with its closed form.

    Problems of equal shape are solved together; each has its own certificate, status and number of steps, escapes
    when it is stuck and leaves when it is done. Several devices share the members.

    Args:
        fixed: fields that all members share: those of `ufm.Problem` (``counts`` and ``loss`` also as text, as on the
            command line; ``nuclear_weight`` and ``decay_ratio`` in place of the decays), of `ufm.solve` (``level``,
            ``seed``, ``starts``, ``tol``, ``max_steps``, ``residual_tol``, ``precision``, ``escapes``, ``solver`` and
            what step rules take). Losses and step rules are given by name or as objects.
        axes: field -> values, or -> ``{"start": 1, "stop": 100, "num": 64, "spacing": "log"}``. ``counts.ratio`` and
            the like are parameters of the profile that ``counts`` names, ``loss.parameter`` is that of the loss,
            ``targets.flip`` the probability of a wrong label.
            Values that are tables set several fields together, ``label`` naming the position.
        out: folder to keep the results in, batch by batch; None keeps them in memory only.
        resume: go on with the sweep in ``out``; at most one batch is computed again.
        matrices: keep Gram matrices and logits as well (K x K per member).
        batch_size: most members of a batch, the unit that is stored and resumed; costly ones come in smaller ones.
        process_index: which of ``process_count`` processes this is; each takes its own batches.
        process_count: number of processes that share the sweep and the folder.
        progress: show a progress bar, and a line for every member that is not certified.
        client: of `dask.distributed`, whose workers are to solve the batches; they must see ``out`` at the same path.

    Returns:
        A data set whose dimensions are the axes and ``class`` (NaN beyond a member's own classes): certificates,
        geometry, predictions (closed forms, else other seeds) and differences; every variable has a ``long_name``.

    Raises:
        InputError: naming the field, its value and what is required; also if the folder holds another sweep or is
            damaged.

    Source: `ufm.solve` and `ufm.predict` for every member.

    Example:
        >>> found = sweep({"counts": "60x2,20x2", "dim": 4}, {"nuclear_weight": [1e-3, 2.9e-2]})
        >>> found.num_collapsed.values.tolist(), found.certified.values.tolist()
        ([0, 2], [True, True])
    """
    from ufm.sweeps.grid import make_grid
    from ufm.sweeps.run import run_grid

    return run_grid(
        make_grid(fixed, axes),
        out,
        resume=resume,
        matrices=matrices,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        progress=progress,
        client=client,
    )


def run_config(config: str | Path, out: str | Path, **options: Any) -> xr.Dataset:
    """Run the sweep that a TOML file describes (see `ufm.sweeps.config.load_config`) and return its data set.

    Args:
        config: the file.
        out: folder for the results.
        options: ``resume``, ``process_index``, ``process_count``, ``progress`` and ``client`` of `sweep`.

    Raises:
        InputError: naming the key, its value and what is required.
    """
    from ufm.sweeps.config import load_config
    from ufm.sweeps.run import run_grid

    grid, settings = load_config(config)
    return run_grid(grid, out, **settings, **options)


def open_dataset(folder: str | Path) -> xr.Dataset:
    """Return the data set of a stored sweep, complete or not.

    Raises:
        InputError: if there is none in ``folder``, or it is damaged.
    """
    from ufm.sweeps import store

    return store.open_dataset(folder)


def draw_figures(
    folder: str | Path, suffix: str = ".png", style: Style = "paper", panel: str | None = None
) -> list[Path]:
    """Draw the figures of a stored sweep into its folder and return their paths: curves, or maps over two axes.

    Args:
        folder: what `sweep` wrote to.
        suffix: ``.png``, or ``.pdf`` or ``.svg`` for vector graphics.
        style: ``"paper"``, or ``"screen"``: half as large again.
        panel: letter of the one panel to draw, from the left, at the width of a column; None for all.

    Raises:
        InputError: if there is no sweep, nothing to draw along, nothing computed yet, or no such panel.
    """
    from ufm.inputs.checks import one_of
    from ufm.plots import sweep as plots

    one_of("suffix", suffix, plots.SUFFIXES)  # before anything is read
    return plots.draw_figures(open_dataset(folder), Path(folder), suffix, style, panel)


def summary(dataset: xr.Dataset) -> str:
    """Return in a few lines how a sweep went: members, statuses, and agreement with predictions."""
    import numpy as np

    statuses, numbers = np.unique(dataset.status.values.astype(str), return_counts=True)
    listed = ", ".join(f"{number} {status}" for status, number in zip(statuses, numbers, strict=True))
    lines = [f"{dataset.status.size} members: {listed}"]
    known = dataset.predicted_num_collapsed.values >= 0
    if np.any(known):
        worst = float(np.abs(dataset.objective_deviation.values[known]).max())
        mismatches = int(np.sum(dataset.collapse_mismatches.values[known] > 0))
        lines.append(
            f"{known.sum()} predicted, by closed form or other starts: objectives agree to {worst:.1e},"
        )
        lines.append(f"collapsed classes differ in {mismatches}")
    return "\n".join(lines)
