"""What all figures share: size, colours, type, and writing them to files.

They are drawn at the width of a paper's column or page, with type of 7 to 8 points as printed.

Figures are built on the Agg canvas without `pyplot`, so that no global state, display or back end is touched.
Colours are those of Okabe and Ito and perceptually uniform maps, distinguishable with any colour vision and
in print; every curve also has its own marker or line style.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ufm.inputs.checks import InputError
from ufm.inputs.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
SHADE = "#DDDDDD"
#: Widths of a column and of a page in inches, as conferences and journals set them.
COLUMN, PAGE = 3.25, 6.75
#: How much larger, with type of the same size, figures are for a screen.
ON_SCREEN = 1.5
SUFFIXES = (".png", ".pdf", ".svg")
STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 7.5,
    "figure.titlesize": 8.0,
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


def round_below(value: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... of any power of ten that is at most a positive value.

    Example:
        >>> round_below(7.4), round_below(0.45)
        (5.0, 0.2)
    """
    power = math.floor(math.log10(value))
    digit = max(digit for digit in (1, 2, 5) if digit <= value / 10.0**power * (1 + 1e-12) or digit == 1)
    return float(f"{digit}e{power}")


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of so many inches, to be drawn on in the style of this package; no state is touched."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(
    figure: Figure,
    path: str | os.PathLike[str],
    colours: int | None = None,
    style: Literal["paper", "screen"] = "paper",
) -> None:
    """Write a figure as PNG (a third as large with at most 256 ``colours``), PDF or SVG, as the suffix says.

    Args:
        figure: what to write.
        path: where to.
        colours: most colours of a PNG; None for all.
        style: ``"paper"`` as it is, or ``"screen"``: half as large again, with type of the same size.

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
        width, height = figure.get_size_inches().tolist()
        scale = ON_SCREEN if style == "screen" else 1.0
        figure.set_size_inches(scale * width, scale * height)
        figure.savefig(stream, format=target.suffix[1:].lower())
        figure.set_size_inches(width, height)
    if colours is not None and target.suffix.lower() == ".png":
        from PIL import Image  # which matplotlib writes its PNGs with

        with Image.open(target) as image:
            image.convert("RGB").quantize(colours, kmeans=2).save(target, optimize=True)
