"""``ufm predict``: the closed form."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from ufm.cli.flags import Flags, Json, ProblemFlags
from ufm.cli.output import emit, problem_dict
from ufm.prediction.solved import predict
from ufm.text import wrapped
from ufm.theory import ClosedFormError

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
    emit(problem_dict(given) | prediction.to_dict(), json, "\n".join([str(prediction), *problem.notes()]))
    return 0
