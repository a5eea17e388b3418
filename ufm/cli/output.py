"""What commands print: a text that fits 80 columns, or one JSON object."""

from __future__ import annotations

import json
from typing import Any

from ufm.model.problem import Problem


def emit(outcome: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the outcome as one JSON object, or the text."""
    print(json.dumps(outcome, allow_nan=False) if as_json else text, flush=True)


def problem_dict(problem: Problem) -> dict[str, Any]:
    """Return what the flags said, for JSON."""
    return {
        "counts": problem.counts.tolist(),
        "dim": problem.dim,
        "weight_decay": problem.weight_decay,
        "feature_decay": problem.feature_decay,
        "loss": repr(problem.loss),
        "features": problem.features,
        "bias_decay": problem.bias,
    }
