"""The figure of a verification with soft targets: contexts have no class to be right about, but a target to fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ufm.plots.report import last_panel
from ufm.plots.style import BLACK, BLUE, GREEN, PAGE, VERMILLION, canvas
from ufm.verification.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.6


def context_figure(report: Report) -> Figure:
    """Return the figure: spectra, norms and what is left of each target by count, and how it was reached.

    Args:
        report: what `ufm.verify` returned for a problem with soft targets.
    """
    from matplotlib.ticker import MaxNLocator

    measured: Any = report.measured
    with canvas(PAGE, HEIGHT) as figure:
        spectra, norms, left, last = figure.subplots(1, 4)
        styles = {"features": (BLUE, "-"), "classifier": (VERMILLION, "--"), "logits": (GREEN, ":")}
        for name, (colour, style) in styles.items():
            values = measured.spectra[name]
            kept = values[values > 1e-8 * values.max()]
            spectra.plot(np.arange(1, len(kept) + 1), kept, color=colour, ls=style, label=name)
        spectra.set(xlabel="number", ylabel="singular value")
        spectra.set_title("(a) spectra, balanced", loc="left")
        size = 8.0 if len(measured.counts) < 500 else 2.0
        shown = {"color": BLACK, "s": size, "linewidths": 0, "rasterized": True}
        norms.scatter(measured.counts, measured.norms, **shown)
        norms.set(xlabel="samples", ylabel="$|h_c|$")
        norms.set_title("(b) features", loc="left")
        left.scatter(measured.counts, measured.divergences, **shown)
        left.set(xlabel="samples", ylabel=r"$\mathrm{KL}(t_c\,\|\,p_c)$ in nats")
        left.set_title("(c) target and fit", loc="left")
        for axes in (norms, left):
            _count_axis(axes, measured.counts)
        for axes in (spectra, norms, left):
            axes.set_ylim(bottom=0)
        spectra.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        last_panel(last, report)
        last.set_title(f"(d) {last.get_title(loc='left')}", loc="left")
        figure.legend(*spectra.get_legend_handles_labels(), loc="outside lower left", ncols=3)
        if last.get_legend_handles_labels()[0]:
            figure.legend(*last.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def _count_axis(axes: Axes, counts: np.ndarray) -> None:
    """Decades where there are several."""
    from matplotlib.ticker import LogLocator, NullLocator

    if counts.max() >= 20 * counts.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
