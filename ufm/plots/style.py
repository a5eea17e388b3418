"""What all figures share: size, colours, type, and writing them to files.

They are drawn at the width of a paper's column or page, with type of 7 to 8 points as printed.

Figures are built on the Agg canvas without `pyplot`, so that no global state, display or back end is touched.
Colours are those of Okabe and Ito and perceptually uniform maps, distinguishable with any colour vision and
in print; every curve also has its own marker or line style.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ufm.inputs.checks import InputError
from ufm.inputs.files import write_whole

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
Style = Literal["paper", "screen"]
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
    style: Style = "paper",
    panel: str | None = None,
) -> None:
    """Write a figure as PNG, PDF or SVG, as the suffix says; see `picture`.

    Args:
        figure: what to write.
        path: where to.
        colours: most colours of a PNG; None for all.
        style: ``"paper"`` as it is, or ``"screen"``: half as large again, with type of the same size.
        panel: letter of the one panel to write, at the width of a column; None for all.

    Raises:
        InputError: for any other suffix, a folder that does not exist, or a panel that the figure does not have.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"path must end in {', '.join(SUFFIXES)}, got {target.name!r}")
    if not target.parent.is_dir():
        raise InputError(f"path must be in a folder that exists, got {str(target)!r}")
    data = picture(figure, target.suffix.lower(), colours, style, panel)
    write_whole(target, data)


def picture(
    figure: Figure,
    suffix: str = ".png",
    colours: int | None = None,
    style: Style = "paper",
    panel: str | None = None,
) -> bytes:
    """Return a figure as the contents of a file: a PNG (a third as large with 256 ``colours``), PDF or SVG.

    The arguments are those of `save_figure`. The figure is left as it was.
    """
    import matplotlib

    stream, scale = io.BytesIO(), ON_SCREEN if style == "screen" else 1.0
    with matplotlib.rc_context(STYLE), _resized(figure, scale), _single(figure, panel, scale) as box:
        figure.savefig(stream, format=suffix[1:], bbox_inches=box)
    if colours is None or suffix != ".png":
        return stream.getvalue()
    from PIL import Image  # which matplotlib writes its PNGs with

    fewer = io.BytesIO()
    with Image.open(stream) as image:
        image.convert("RGB").quantize(colours, kmeans=2).save(fewer, format="png", optimize=True)
    return fewer.getvalue()


@contextlib.contextmanager
def _resized(figure: Figure, scale: float) -> Iterator[None]:
    """Draw a figure larger for a while, with type of the same size."""
    width, height = figure.get_size_inches().tolist()
    figure.set_size_inches(scale * width, scale * height)
    try:
        yield
    finally:
        figure.set_size_inches(width, height)


@contextlib.contextmanager
def _single(figure: Figure, panel: str | None, scale: float) -> Iterator[Any]:
    """Yield the part of a figure to be written: all (None), or one panel, laid out anew at the width of a column.

    It keeps its colour bar, and panels that share it; what labels it has stand above it.
    """
    if panel is None:
        yield None
        return
    bars = {axes: _bars(axes) for axes in figure.axes}
    plain = [axes for axes in figure.axes if not any(axes in found for found in bars.values())]
    titles = [axes.get_title(loc="left") for axes in plain]
    lettered = {title[1]: axes for title, axes in zip(titles, plain, strict=True) if title.startswith("(")}
    panels = lettered or dict(zip("abcdefghijklmnopqrstuvwxyz", plain, strict=False))
    if panel not in panels:
        raise InputError(f"panel must be one of {', '.join(panels)}, got {panel!r}")
    own = bars[panels[panel]]
    parts = {panels[panel], *own, *(axes for axes in plain if own & bars[axes])}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_resized(figure, 1.0))
        legends = [legend for each in (figure, *figure.subfigs) for legend in each.legends]
        for other in (set(figure.axes) - parts) | set(legends):
            stack.callback(other.set_in_layout, other.get_in_layout())
            stack.callback(other.set_visible, other.get_visible())
            other.set_in_layout(False)
            other.set_visible(False)
        for _ in range(5):  # type does not grow with the figure
            factor = scale * COLUMN / _box(figure, parts).width
            figure.set_size_inches(*(factor * figure.get_size_inches()))
        yield _with_labels(figure, panels[panel], parts, stack)


def _bars(axes: Any) -> set[Any]:
    return set(getattr(axes, "_colorbars", None) or ())


def _with_labels(figure: Figure, axes: Any, parts: set[Any], stack: contextlib.ExitStack) -> Any:
    """Put what labels a panel has above its title, in two columns if they fit; return the place of all."""
    from matplotlib.transforms import ScaledTranslation

    box = _box(figure, parts)
    handles, labels = axes.get_legend_handles_labels()
    if not handles or axes.get_legend() is not None:
        return box
    higher = axes.transAxes + ScaledTranslation(0, 0.25, figure.dpi_scale_trans)
    for columns in (2, 1):
        where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "bbox_transform": higher, "borderaxespad": 0}
        legend = axes.legend(handles, labels, ncols=columns, **where)
        legend.set_in_layout(False)
        joint = _box(figure, {*parts, legend})
        if joint.width < 1.01 * box.width:
            break
    stack.callback(lambda: axes.get_legend().remove())
    return joint


def _box(figure: Figure, parts: set[Any]) -> Any:
    """Return the place of some artists and their labels, in inches, with a narrow margin."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    box = Bbox.union([part.get_tightbbox() for part in parts])
    return box.transformed(figure.dpi_scale_trans.inverted()).padded(0.04)
