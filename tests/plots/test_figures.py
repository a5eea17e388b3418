"""Figures: every format, every size, nothing left behind; contents are read back from the artists."""

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.figures import objections, solution

from ufm.inputs.checks import InputError
from ufm.metrics.statistics import FeatureStatistics
from ufm.plots import report as figures
from ufm.plots import style
from ufm.verification.verify import verify

HISTORY = tuple(
    {
        "step": 10 * i,
        "relative_gap": 10.0**-i,
        "residual": 0.0 if i == 3 else 3.0**-i,
        "nc1": 0.0,
        "nc2_h": 2.0**-i,
    }
    for i in range(4)
)


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


@pytest.mark.parametrize("suffix", [".PNG", ".pdf", ".svg"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    figure = verify(solution([30, 10])).plot(path)
    head = path.read_bytes()[:200]
    assert {"p": b"PNG", "d": b"%PDF", "s": b"<?xml"}[suffix.lower()[1 if suffix != ".pdf" else 2]] in head
    assert len(panels(figure)) == 8
    assert list(tmp_path.iterdir()) == [path]


def test_bad_paths(tmp_path):
    report = verify(solution([30, 10]))
    with pytest.raises(InputError, match=r"path must end in .png, .pdf, .svg, got 'figure.bmp'"):
        report.plot(tmp_path / "figure.bmp")
    with pytest.raises(InputError, match="path must be in a folder that exists"):
        report.plot(tmp_path / "no" / "figure.png")


SIZES = [[30, 10], [90, 60, 40, 20, 1, 1], [5] * 40, np.arange(260, 0, -1)]


@pytest.mark.parametrize("counts", few_daily(SIZES, (1, 3)))
def test_sizes(counts):
    report = verify(solution(counts))
    figure = figures.report_figure(report)
    learned, predicted, *_ = panels(figure)
    K = len(counts)
    shown = learned.images[0].get_array()
    assert len(shown) <= figures.LARGEST_IMAGE
    np.testing.assert_allclose(shown, predicted.images[0].get_array(), rtol=1e-9, atol=1e-9)
    assert shown.max() == pytest.approx(
        report.prediction.norms.max() ** 2
    )  # the diagonal survives the blocks
    norms = panels(figure)[4]
    dots = norms.collections[0].get_offsets()
    np.testing.assert_allclose(
        dots[:, 1], report.measured.norms[np.argsort(-np.asarray(counts), kind="stable")]
    )
    labels = [tick.get_text() for tick in norms.get_xticklabels()]
    assert len(labels) == K if K <= figures.LABELLED_CLASSES else len(labels) < 10
    assert objections(figure) == []
    shaded = [patch for patch in panels(figure)[6].patches if patch.get_facecolor()[:3] != (1, 1, 1)]
    assert len(shaded) == (1 if report.prediction.num_collapsed else 0)


def test_classes_are_sorted_by_count():
    report = verify(solution([10, 30, 20]))
    axes = panels(figures.report_figure(report))[4]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "0"]
    np.testing.assert_allclose(axes.collections[0].get_offsets()[:, 1], report.measured.norms[[1, 2, 0]])


def test_convergence_shows_what_was_recorded():
    axes = panels(figures.report_figure(verify(solution([30, 10], history=HISTORY))))[-1]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert set(lines) == {"relative duality gap", "KKT residual", "NC2_H"}  # zeros have no logarithm
    np.testing.assert_allclose(lines["relative duality gap"][:, 1], [1, 0.1, 0.01, 0.001])
    assert len(lines["KKT residual"]) == 3
    assert axes.get_yscale() == "log"


def test_a_bad_figure_is_objected_to():
    with style.canvas(style.COLUMN, 1.0) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], label="data")
        axes.set_xticks(np.linspace(0, 1, 12), ["wide label"] * 12)
        axes.text(0.5, 0.5, "small", fontsize=4)
        axes.legend()
    found = " ".join(objections(figure))
    for words in (
        "'wide label' lies on 'wide label'",
        "'small' is of 4.0 points",
        "a legend lies on a panel",
    ):
        assert words in found


def test_escape_moves_are_marked():
    moved = [
        record | {"event": "escape: added 1 atom" if record["step"] == 20 else None} for record in HISTORY
    ]
    figure = figures.report_figure(verify(solution([30, 10], history=tuple(moved))))
    (line,) = [line for line in panels(figure)[-1].lines if line.get_label() == "escape move"]
    assert line.get_xdata()[0] == 20
    assert objections(figure) == []


@pytest.mark.parametrize("scale", [3e-9, 0.7, 1.0, 1e4])
def test_ticks_of_colour_bars_are_round(scale):
    image = np.array([[1.0, -0.4], [-0.4, 0.3]]) * scale
    from ufm.plots.style import canvas

    for matrix in (image, np.abs(image), np.kron(np.eye(9), image)):
        with canvas(3.25, 1.5) as figure:
            axes = figure.subplots()
            order = np.arange(len(matrix))
            shown = figures._image(axes, "", matrix, order, figures._colours([matrix]))
            figures._colour_bar(figure, shown, [axes], len(order))
        figure.draw_without_rendering()
        ticks = figure.axes[1].get_yticks()
        assert len(ticks) >= 3
        for tick in ticks:
            assert float(f"{tick:.1e}") == pytest.approx(tick, rel=1e-9, abs=0)


def test_failures_are_crosses_without_history():
    wrong = solution([30, 10])
    wrong.features = wrong.features * 1.01
    report = verify(wrong)
    axes = panels(figures.report_figure(report))[-1]
    passing, failing = (len(points.get_offsets()) for points in axes.collections)
    assert failing == sum(row.verdict == "fail" and bool(row.tolerance) for row in report.rows) > 0
    assert passing > 0


def test_no_text_lies_on_other_text_where_everything_is_judged():
    assert objections(figures.report_figure(verify(solution([90, 60, 40, 20, 1, 1])))) == []


@pytest.mark.slow
def test_errors_within_less_than_a_decade_have_ticks_apart():
    """Free features and unequal counts, where only the variability is judged."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), [60] * 5 + [20] * 5)
    means = 3 * np.eye(10) - 0.5
    features = means[labels] + 0.3 * rng.standard_normal((400, 10))
    assert objections(verify(features=features, labels=labels, weight=means).plot()) == []


def test_without_prediction_cosines_take_its_place(tmp_path):
    rng = np.random.default_rng(0)
    report = verify(
        features=rng.normal(size=(9, 2)), labels=[0] * 5 + [1] * 3 + [2], weight=rng.normal(size=(3, 2))
    )  # fewer dimensions than classes
    titles = [axes.get_title(loc="left") for axes in panels(report.plot(tmp_path / "figure.pdf"))]
    assert sum("cos" in title for title in titles) == 2
    assert not any("predicted" in title for title in titles)


@pytest.mark.slow
def test_collapsed_and_missing_classes(tmp_path):
    statistics = FeatureStatistics(weight=np.zeros((3, 2)))
    statistics.update(np.zeros((2, 2)), [0, 2])
    verify(statistics=statistics).plot(tmp_path / "nothing.png")
    everything = solution([6, 5, 4], decay=3.0)
    report = verify(everything)
    assert report.prediction.num_collapsed == 3
    report.plot(tmp_path / "collapsed.png")


def test_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.report_figure(verify(solution([30, 10])))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_few_colours_make_a_png_smaller_and_no_different_to_see(tmp_path):
    from matplotlib.image import imread

    figure = figures.report_figure(verify(solution([30, 10])))
    style.save_figure(figure, tmp_path / "all.png")
    figure.set_layout_engine("none")  # or it is laid out anew every time, a little differently
    style.save_figure(figure, tmp_path / "all.png")
    style.save_figure(figure, tmp_path / "few.png", colours=256)
    style.save_figure(figure, tmp_path / "vector.pdf", colours=256)
    assert (tmp_path / "few.png").stat().st_size < 0.7 * (tmp_path / "all.png").stat().st_size
    few, whole = (imread(tmp_path / name)[..., :3] for name in ("few.png", "all.png"))
    assert np.abs(few - whole).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("panel", "shown"), [("b", 3), ("f", 1), ("h", 1)])
def test_a_single_panel_has_the_width_of_a_column(tmp_path, panel, shown):
    """A Gram matrix keeps its colour bar and the matrix that shares it; the figure itself is left as it was."""
    figure = figures.report_figure(verify(solution([90, 60, 40, 20, 1, 1], history=HISTORY)))
    before = figure.get_size_inches().tolist(), len(figure.axes), [axes.get_visible() for axes in figure.axes]
    for kind, width in (("paper", style.COLUMN), ("screen", style.COLUMN * style.ON_SCREEN)):
        with style._single(figure, panel, width / style.COLUMN) as box:
            assert box.width == pytest.approx(width, rel=0.03)
            assert sum(axes.get_visible() for axes in figure.axes) == shown
            assert objections(figure, outside=True) == []
        style.save_figure(figure, tmp_path / "panel.png", style=kind, panel=panel)
    assert before == (
        figure.get_size_inches().tolist(),
        len(figure.axes),
        [axes.get_visible() for axes in figure.axes],
    )
    with pytest.raises(InputError, match="panel must be one of a, b, c, d, e, f, g, h, got 'z'"):
        style.save_figure(figure, tmp_path / "panel.png", panel="z")
