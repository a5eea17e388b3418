"""Figures of sweeps: what they show is what was solved, and every label can be read."""

import itertools

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.figures import objections

import ufm
from ufm.inputs.checks import OutputError
from ufm.plots.style import SUFFIXES
from ufm.plots.sweep import _edges, drawn_axes, logarithmic, slices, sweep_figure
from ufm.sweeps import draw_figures

FIXED = {"counts": "step:K=4,n_max=40", "dim": 6}
RATIOS = {"counts.ratio": [1.0, 4.0, 10.0]}
WEIGHTS = {"nuclear_weight": list(np.geomspace(1e-3, 1e-1, 4))}
BATCHES = {"batch_size": 8}


def ink(path):
    from matplotlib.image import imread

    return np.mean(np.any(imread(path)[..., :3] < 0.9, axis=-1))


@pytest.mark.slow
def test_a_stored_sweep_is_drawn(tmp_path):
    ufm.sweep(FIXED, RATIOS | WEIGHTS, out=tmp_path / "out", **BATCHES)
    for suffix in SUFFIXES:
        (path,) = draw_figures(tmp_path / "out", suffix)
        assert path == tmp_path / "out" / f"sweep{suffix}"
        assert path.stat().st_size > 5000
        assert suffix != ".png" or ink(path) > 0.2


def test_maps_show_the_numbers_solved_and_predicted():
    dataset = ufm.sweep(FIXED, RATIOS | WEIGHTS, **BATCHES)
    dataset.collapse_mismatches[0, 1] = 1
    dataset.certified[2, 3] = False
    solved, predicted, gaps, *_ = sweep_figure(dataset).axes
    for axes, name in ((solved, "num_collapsed"), (predicted, "predicted_num_collapsed")):
        mesh = axes.collections[0]
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(3, 4), dataset[name])
    marked = {line.get_label(): line.get_xydata().tolist() for line in solved.lines}
    weight = WEIGHTS["nuclear_weight"]
    assert marked == {"differs": [[weight[1], 1.0]], "not certified": [[weight[3], 10.0]]}
    assert (solved.get_xscale(), gaps.get_xscale()) == ("log", "log")
    assert "lambda" in solved.get_xlabel()


def test_curves_carry_dots_on_predictions():
    dataset = ufm.sweep(FIXED | {"counts.ratio": 4.0}, WEIGHTS, **BATCHES)
    margins, *_ = sweep_figure(dataset).axes
    predicted, solved = margins.lines[:2]
    np.testing.assert_array_equal(predicted.get_ydata(), dataset.predicted_margins[:, 0])
    np.testing.assert_array_equal(solved.get_ydata(), dataset.margins[:, 0])
    small = margins.lines[3]
    np.testing.assert_array_equal(small.get_ydata(), dataset.margins[:, 3])


def test_curves_leave_out_what_is_not_computed_yet():
    ratios = {"counts.ratio": np.geomspace(1, 10, 6).tolist()}
    half = ufm.sweep(FIXED | {"nuclear_weight": 2e-2}, ratios, batch_size=2, process_count=2)
    missing = (half.status == "missing").values
    assert missing.tolist() == [False, False, True, True, False, False]
    panels = sweep_figure(half).axes
    for axes in panels:
        assert axes.get_xscale() == "log"
        for line in axes.lines:
            np.testing.assert_array_equal(np.isnan(line.get_ydata()), missing)
    assert all(tick == int(tick) for tick in panels[3].get_yticks())


@pytest.mark.slow
def test_other_axes_make_figures_of_their_own(tmp_path):
    out = tmp_path / "out"
    ufm.sweep(
        FIXED | {"nuclear_weight": 1e-3},
        RATIOS | {"loss": ["smoothing:0.1", "smoothing:0.2"], "seed": [0, 1]},
        out=out,
        **BATCHES,
    )
    names = [path.name for path in draw_figures(out)]
    assert names == [f"sweep-{number:02d}.png" for number in range(4)]
    dataset = ufm.sweep(
        FIXED | {"nuclear_weight": 1e-3, "max_steps": 1}, {"seed": list(range(25))} | RATIOS, **BATCHES
    )
    assert drawn_axes(dataset) == ["ratio"]
    with pytest.raises(ufm.InputError, match="25 figures"):
        list(slices(dataset, ["ratio"]))


def test_what_cannot_be_drawn_is_an_input_error(tmp_path):
    with pytest.raises(ufm.InputError, match="holds no sweep"):
        draw_figures(tmp_path)
    with pytest.raises(ufm.InputError, match="suffix must be one of"):
        draw_figures(tmp_path, ".jpg")
    ufm.sweep(
        FIXED | {"nuclear_weight": 1e-3, "counts.ratio": 4.0},
        {"seed": [0, 1]},
        out=tmp_path / "out",
        **BATCHES,
    )
    with pytest.raises(ufm.InputError, match="needs an axis with at least two numbers"):
        draw_figures(tmp_path / "out")
    settings = BATCHES | {"process_count": 3, "process_index": 2}
    ufm.sweep(FIXED | {"counts.ratio": 4.0}, WEIGHTS, out=tmp_path / "empty", **settings)
    with pytest.raises(ufm.InputError, match="holds no results yet"):
        draw_figures(tmp_path / "empty")


def test_a_folder_that_cannot_be_written_to_is_an_input_error(tmp_path):
    out = tmp_path / "out"
    ufm.sweep(FIXED | {"counts.ratio": 4.0}, WEIGHTS, out=out, **BATCHES)
    (out / "sweep.png").mkdir()
    with pytest.raises(OutputError, match="choose another place"):
        draw_figures(out)


def test_scales_follow_the_values():
    assert logarithmic(np.geomspace(1, 100, 5))
    assert not logarithmic(np.linspace(1, 100, 5))
    assert not logarithmic(np.array([0.0, 1.0, 10.0]))
    np.testing.assert_allclose(_edges(np.array([1.0, 10.0, 100.0])), 10 ** np.array([-0.5, 0.5, 1.5, 2.5]))
    np.testing.assert_allclose(_edges(np.array([0.0, 1.0])), [-0.5, 0.5, 1.5])


@pytest.mark.parametrize("top", [2e-3, 2e-2, 10.0])
def test_labels_of_a_map_do_not_overlap(top):
    weights = {"nuclear_weight": list(np.geomspace(1e-3, top, 4))}
    dataset = ufm.sweep(FIXED, RATIOS | weights, **BATCHES)
    dataset.collapse_mismatches[0, 1] = 1
    dataset.certified[2, 3] = False
    drawn = sweep_figure(dataset.assign_attrs(title="loss = smoothing:0.1"))
    assert objections(drawn) == []
    for axes in drawn.axes[:2]:
        texts = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
        boxes = sorted((t.get_window_extent() for t in texts if t.get_text()), key=lambda box: box.x0)
        assert len(boxes) >= 3 or top == 2e-3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    "weights",
    few_daily([np.geomspace(1e-3, 1e-1, 5), np.geomspace(1e-3, 4e-3, 5), np.linspace(0.01, 0.03, 5)], (1,)),
)
def test_labels_of_curves_do_not_overlap(weights):
    drawn = sweep_figure(
        ufm.sweep(FIXED | {"counts.ratio": 4.0}, {"nuclear_weight": weights.tolist()}, **BATCHES)
    )
    assert objections(drawn) == []
