"""What all figures share: colours, type, and writing them to files.

Figures are built on the Agg canvas without `pyplot`, so that no global state, display or back end is touched.
Colours are those of Okabe and Ito and perceptually uniform maps, distinguishable with any colour vision and
in print; every curve also has its own marker or line style.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ufm.inputs.checks import InputError
from ufm.inputs.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
SHADE = "#DDDDDD"
SUFFIXES = (".png", ".pdf", ".svg")
STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "legend.fontsize": 7.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.dpi": 200,
}


def save_figure(figure: Figure, path: str | os.PathLike[str], colours: int | None = None) -> None:
    """Write a figure as PNG (a third as large with at most 256 ``colours``), PDF or SVG, as the suffix says.

    Raises:
        InputError: for any other suffix, or a folder that does not exist.
    """
    import matplotlib

    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"path must end in {', '.join(SUFFIXES)}, got {target.name!r}")
    if not target.parent.is_dir():
        raise InputError(f"path must be in a folder that exists, got {str(target)!r}")
    with matplotlib.rc_context(STYLE), replacing(target) as stream:
        figure.savefig(stream, format=target.suffix[1:].lower())
    if colours is not None and target.suffix.lower() == ".png":
        from PIL import Image  # which matplotlib writes its PNGs with

        with Image.open(target) as image:
            image.convert("RGB").quantize(colours, kmeans=2).save(target, optimize=True)
