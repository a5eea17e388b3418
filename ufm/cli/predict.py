"""``ufm predict``: the closed form."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from tyro.conf import arg

from ufm.cli.flags import Flags, Json, ProblemFlags
from ufm.cli.output import emit, problem_dict
from ufm.prediction.solved import predict
from ufm.text import class_table, wrapped
from ufm.theory import ClosedFormError, Prediction

Solve = Annotated[bool, arg(help="solve and certify where there is no closed form")]


def predict_command(problem: Flags = ProblemFlags(), solve: Solve = False, json: Json = False) -> int:
    """Print the closed form of the global optimum; solve nothing unless asked to.

    Example: ufm predict --counts 5000x5,50x5 --weight-decay 5e-4
    """
    given = problem.problem()
    try:
        prediction = predict(given, solve)
    except ClosedFormError as reason:
        sentence = str(reason)
        text = f"{sentence[0].upper()}{sentence[1:]}. Here: add --solve."
        emit({"closed_form": None, "reason": sentence}, json, wrapped(text))
        return 1
    emit(problem_dict(given) | prediction.to_dict(), json, _prediction_text(prediction))
    return 0


def _prediction_text(prediction: Prediction) -> str:
    columns = {
        "|h|": prediction.norms,
        "|w|": prediction.weight_norms,
        "margin": prediction.margins,
        "": np.where(prediction.collapsed, "collapsed", ""),
    }
    return "\n".join(
        [
            str(prediction.problem),
            "",
            class_table(prediction.problem.counts, columns),
            "",
            f"{prediction.num_collapsed} of {prediction.problem.num_classes} classes collapse.",
            f"Optimal value P* = {prediction.objective:.12g}",
            wrapped(
                f"Closed form: {prediction.theorem}"
                if prediction.relative_gap is None
                else f"No closed form: {prediction.theorem}"
            ),
        ]
    )
