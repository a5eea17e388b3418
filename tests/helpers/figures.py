"""What a reader of a figure would object to: text on text, a legend on data, type that is too small."""

import itertools
import types

import numpy as np

from ufm.duality.certificate import certify
from ufm.model.problem import Problem
from ufm.theory import predict


def solution(counts, history=(), decay=1e-2):
    """The closed form as a solution."""
    problem = Problem(counts, len(counts), decay, decay / 10)
    prediction = predict(problem)
    K = len(counts)
    features = np.diag(prediction.norms)
    scaled = np.sqrt(problem.counts)[:, None] * features
    weight = np.sqrt(0.1 / (K * (K - 1))) * (K * scaled - scaled.sum(axis=0))
    certificate = certify(problem, weight, features, np.arange(K))
    return types.SimpleNamespace(
        problem=problem,
        level="class",
        weight=weight,
        features=features,
        labels=np.arange(K),
        bias=None,
        status="certified",
        objective=certificate.objective,
        certificate=certificate,
        tol=1e-8,
        history=history,
    )


def texts(figure):
    """All texts that are drawn, of ticks only those in view, with their boxes in pixels."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label]
            for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                low, high = sorted(limits)
                room = 0.0 if axis.get_scale() == "log" else 1e-9 * (high - low)
                for ticks, places in (
                    (axis.get_major_ticks(), axis.get_majorticklocs()),
                    (axis.get_minor_ticks(), axis.get_minorticklocs()),
                ):
                    for tick, place in zip(ticks, places, strict=True):
                        if low - room <= place <= high + room:
                            found += [tick.label1, tick.label2]
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts]
    found += [text for legend in legends(figure) for text in legend.get_texts()]
    found += figure.texts
    return [(text, text.get_window_extent()) for text in found if text.get_visible() and text.get_text()]


def legends(figure):
    subfigures = [figure, *figure.subfigs]
    inside = [axes.get_legend() for axes in figure.axes if axes.get_legend() is not None]
    found = inside + [legend for each in subfigures for legend in each.legends]
    return [legend for legend in found if legend.get_visible()]


def objections(figure, smallest=6.9, outside=False):
    """Sentences, none for a good figure; ``outside``: a part is looked at, which may reach beyond the paper."""
    found, (width, height) = [], figure.get_size_inches() * figure.dpi
    drawn = texts(figure)
    for (one, a), (other, b) in itertools.combinations(drawn, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5:
            found.append(f"{one.get_text()!r} lies on {other.get_text()!r}")
    for text, box in drawn:
        if text.get_fontsize() < smallest:
            found.append(f"{text.get_text()!r} is of {text.get_fontsize()} points")
        if not outside and (box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1):
            found.append(f"{text.get_text()!r} is cut off")
    for legend in legends(figure):
        box = legend.get_window_extent()
        for axes in filter(lambda axes: axes.get_visible(), figure.axes):
            place = axes.get_window_extent()
            across = min(box.x1, place.x1) - max(box.x0, place.x0)
            if min(across, min(box.y1, place.y1) - max(box.y0, place.y0)) > 1:
                found.append(f"a legend lies on {axes.get_title(loc='left') or 'a panel'}")
    return found
