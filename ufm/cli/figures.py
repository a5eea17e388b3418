"""``ufm figures``: a stored sweep, drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from ufm.cli.flags import Json, Panel, Style
from ufm.cli.output import emit
from ufm.text import progress_bar


def figures_command(
    directory: Annotated[Positional[Path], arg(help="what ufm sweep wrote to")],
    format: Annotated[
        Literal["png", "pdf", "svg"], arg(help="of the files; pdf and svg are vectors")
    ] = "png",
    style: Style = "paper",
    panel: Panel = None,
    json: Json = False,
) -> int:
    """Draw a sweep, complete or not, into its folder: solved beside predicted.

    Curves along one numeric axis or maps over two; a figure per value of others.

    Example: ufm figures ratios, after ufm sweep ratios.toml --out ratios
    """
    from ufm.plots.sweep import draw_figures
    from ufm.sweeps import open_dataset

    with progress_bar(not json and sys.stderr.isatty(), f"drawing {directory}"):
        dataset = open_dataset(directory)
        status = dataset.status.values
        paths = [str(path) for path in draw_figures(dataset, directory, f".{format}", style, panel)]
    computed = int(np.sum(status != "missing"))
    lines = [
        f"{computed} of {status.size} members computed",
        *(f"Figure written to {path}" for path in paths),
    ]
    emit({"figures": paths, "members": status.size, "computed": computed}, json, "\n".join(lines))
    return 0
