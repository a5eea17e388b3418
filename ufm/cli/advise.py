"""``ufm advise``: which classes collapse, and what saves them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from ufm.cli.flags import COUNTS_HELP, Json
from ufm.cli.output import emit
from ufm.profiles import parse_counts


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The training set and the two decays."""

    counts: Annotated[str, arg(help=COUNTS_HELP)] = "cifar10-lt-100"
    weight_decay: Annotated[float, arg(help="lambda_W, on |W|^2/2")] = 5e-3
    feature_decay: Annotated[float, arg(help="lambda_H, on the sum over samples of |h|^2/2")] = 2e-4


def advise_command(
    training: OmitArgPrefixes[TrainingFlags] = TrainingFlags(),
    json: Json = False,
) -> int:
    """Say which classes will collapse, which nearly do, and what saves them.

    Example: ufm advise --counts 5000x5,50x5 --weight-decay 5e-3
    """
    from ufm.prediction.advice import advise

    advice = advise(parse_counts(training.counts), training.weight_decay, training.feature_decay)
    emit(advice.to_dict(), json, str(advice))
    return 0
