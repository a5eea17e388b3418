"""``ufm advise``: which classes collapse, and what saves them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from ufm.cli.flags import COUNTS_HELP, Json
from ufm.cli.output import emit
from ufm.inputs.checks import positive_float
from ufm.profiles import parse_counts
from ufm.text import wrapped

#: Feature decay where none is given, as in the other commands.
DEFAULT_FEATURE_DECAY = 2e-4


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The training set and the two decays."""

    counts: Annotated[str, arg(help=COUNTS_HELP)] = "cifar10-lt-100"
    weight_decay: Annotated[float, arg(help="lambda_W, on |W|^2/2")] = 5e-3
    feature_decay: Annotated[
        float | None, arg(help="lambda_H, on the sum over samples of |h|^2/2; 2e-4 if None, and said so")
    ] = None


def advise_command(
    training: OmitArgPrefixes[TrainingFlags] = TrainingFlags(),
    json: Json = False,
) -> int:
    """Say which classes will collapse, which nearly do, and what saves them.

    Example: ufm advise --counts 5000x5,50x5 --weight-decay 5e-3
    """
    from ufm.prediction.advice import advise

    assumed = training.feature_decay is None
    feature_decay = DEFAULT_FEATURE_DECAY if training.feature_decay is None else training.feature_decay
    for name, value in (("weight_decay", training.weight_decay), ("feature_decay", feature_decay)):
        positive_float(name, value)  # before counts that may take long to make
    advice = advise(parse_counts(training.counts), training.weight_decay, feature_decay)
    decays = f"At lambda_W = {training.weight_decay:g} and lambda_H = {feature_decay:g}"
    if assumed:
        decays += (
            ", which is a default: training code has no such setting. `ufm verify layer.npz` estimates both "
            "from a trained network"
        )
    used = {
        "weight_decay": training.weight_decay,
        "feature_decay": feature_decay,
        "feature_decay_assumed": assumed,
    }
    emit(used | advice.to_dict(), json, f"{wrapped(decays + '.')}\n{advice}")
    return 0
