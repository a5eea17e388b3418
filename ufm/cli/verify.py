"""``ufm verify``: the last layer of any network against the theory."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from ufm.cli.flags import LOSS_HELP, Json, Panel, Style
from ufm.cli.output import emit, written
from ufm.inputs.checks import InputError
from ufm.inputs.files import check_output, counts_of
from ufm.inputs.layers import read_layer
from ufm.losses.by_name import parse_loss
from ufm.model.problem import Problem
from ufm.profiles import parse_counts
from ufm.text import progress_bar


def verify_command(
    file: Positional[Path],
    counts: Annotated[str | None, arg(help="class counts; default: as in the labels")] = None,
    weight_decay: Annotated[float | None, arg(help="lambda_W; default: estimated from the margins")] = None,
    feature_decay: Annotated[float | None, arg(help="lambda_H; default: estimated from the margins")] = None,
    loss: Annotated[str, arg(help=LOSS_HELP)] = "ce",
    features: Annotated[str, arg(help="nonnegative (after a ReLU) or free")] = "nonnegative",
    bias: Annotated[float | None, arg(help="decay of the bias in the file; 0 = unregularised")] = None,
    fixed: Annotated[bool, arg(help="the classifier in the file was fixed: only features were free")] = False,
    charge: Annotated[
        float | None,
        arg(help="without decays: who pays for features, 0 samples, 1 classes; default: estimated"),
    ] = None,
    tol: Annotated[float | None, arg(help="relative duality gap that the point claims, below 1")] = None,
    tolerance: Annotated[
        float | None,
        arg(help="judge by this number; default: by the gap if that certifies an optimum, else 0.1"),
    ] = None,
    figure: Annotated[Path | None, arg(help="PNG, PDF or SVG; None for no figure")] = None,
    style: Style = "paper",
    panel: Panel = None,
    html: Annotated[Path | None, arg(help="HTML page with table, picture and assumptions")] = None,
    json: Json = False,
) -> int:
    """Check the last layer of any network: an npz of features, labels, weight[, bias].

    Without the two decays they are estimated, and who pays for features, too.

    Example: ufm verify layer.npz, after

    ufm solve --level sample --counts 90,60,30 --save layer.npz
    """
    from ufm.plots.style import SUFFIXES
    from ufm.verification.verify import verify

    check_output("figure", figure, SUFFIXES)
    check_output("html", html, (".html", ".htm"))
    if counts is not None and weight_decay is None:
        raise InputError(
            "counts need weight_decay and feature_decay; without these they are those of the labels"
        )
    show = not json and sys.stderr.isatty()
    with progress_bar(show, f"reading {file}"):
        arrays = read_layer(file)
    if (weight_decay is None) != (feature_decay is None):
        raise InputError(
            "weight_decay and feature_decay must be given together, or both left out to be estimated"
        )
    if weight_decay is None and (features, bias, fixed) != ("nonnegative", None, False):
        raise InputError(
            "features, bias and fixed need weight_decay and feature_decay: without these the sign of the features is "
            "seen, the decay of a bias estimated, and the classifier free"
        )
    if weight_decay is not None and charge is not None:
        raise InputError("charge must be left out where weight_decay and feature_decay are given")
    problem, told = None, {}
    if weight_decay is None:
        sizes = counts_of(arrays["labels"], len(arrays["weight"])) if loss != "ce" else np.ones(2)
        told = {"loss": parse_loss(loss, sizes), "charge": charge}
    if weight_decay is not None and feature_decay is not None:
        sizes = parse_counts(counts) if counts else counts_of(arrays["labels"], len(arrays["weight"]))
        dim = arrays["weight"].shape[1] if arrays["weight"].ndim == 2 else 1
        about = (weight_decay, feature_decay, parse_loss(loss, sizes), features, bias)
        problem = Problem(sizes, dim, *about, classifier=arrays["weight"] if fixed else None)
    with progress_bar(show, f"verifying {len(arrays['features']):,} rows"):
        report = verify(**arrays, problem=problem, **told, tol=tol, tolerance=tolerance)
        plot = functools.partial(report.plot, style=style, panel=panel)
        lines, failure = written({"Figure": (figure, plot), "Page": (html, report.to_html)})
    emit(report.to_dict(), json, "\n".join([report.table(), *lines]))
    if failure is not None:
        raise failure
    return 0 if report.passed else 1
