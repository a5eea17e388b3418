"""What all experiments share: where results and pictures go. Not a script.

An experiment writes to a folder of its own, ``results/NAME`` (``results/NAME-quick`` with ``--quick``), pictures
included. The committed pictures are replaced only when told: ``--figures experiments/figures``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from ufm.model.compilation import keep_compiled_programs
from ufm.plots.style import Style, save_figure


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where results go, for the command line.

    Args:
        out: folder for results; by default ``results/NAME``, or ``results/NAME-quick``.
        figures: folder for pictures; by default that of the results. The committed ones are in experiments/figures.
        suffix: format of the pictures; pdf and svg are vector graphics.
        style: paper, at the width of a column or page; or screen, half as large again with the same type.
        panel: letter of a single panel to draw, at the width of a column.
    """

    out: Path | None = None
    figures: Path | None = None
    suffix: Literal["png", "pdf", "svg"] = "png"
    style: Style = "paper"
    panel: str | None = None

    def of(self, name: str, quick: bool = False) -> Results:
        """Return the results of an experiment; its folders exist from now on."""
        keep_compiled_programs()
        folder = self.out or Path("results") / (f"{name}-quick" if quick else name)
        results = Results(name, folder, self.figures or folder, self.suffix, self.style, self.panel)
        for place in (results.folder, results.figures):
            place.mkdir(parents=True, exist_ok=True)
        return results


@dataclasses.dataclass(frozen=True)
class Results:
    """The folders of one experiment, and writing into them."""

    name: str
    folder: Path
    figures: Path
    suffix: Literal["png", "pdf", "svg"]
    style: Style
    panel: str | None

    def save(self, data: Any, name: str | None = None) -> None:
        """Write data as JSON into the folder, by default under the name of the experiment."""
        (self.folder / f"{name or self.name}.json").write_text(json.dumps(data))

    def draw(self, figure: Figure, colours: int | None = 256) -> Path:
        """Write a picture under the name of the experiment; PNGs with so many colours, None for all."""
        name = self.name if self.panel is None else f"{self.name}-{self.panel}"
        path = self.figures / f"{name}.{self.suffix}"
        save_figure(figure, path, colours, self.style, self.panel)
        return path
