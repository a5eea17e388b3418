"""What commands print: a text that fits 80 columns, or one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ufm.inputs.checks import OutputError
from ufm.inputs.files import write_output
from ufm.model.problem import Problem
from ufm.text import finite

#: Where to write something, if anywhere, and what writes it.
Output = tuple[Path | None, Callable[[Path], Any]]


def emit(outcome: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the outcome as one JSON object, numbers that are not finite as null, or the text."""
    emit_text(json.dumps(finite(outcome), allow_nan=False) if as_json else text)


def emit_text(text: str) -> None:
    """Print ``text``; a reader who has seen enough and closed the pipe is no failure.

    Raises:
        OutputError: if it cannot be printed for any other reason.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        forget_stdout()
    except (OSError, ValueError) as reason:  # no space left; closed
        forget_stdout()
        raise OutputError(
            f"standard output cannot be written ({getattr(reason, 'strerror', reason)})"
        ) from None


def written(outputs: dict[str, Output]) -> tuple[list[str], OutputError | None]:
    """Write the files that are asked for; return a line for each, and why one could not be written.

    That is to be raised when all the rest is printed: what took long to find is not lost with it.
    """
    lines, failure = [], None
    for name, (path, write) in outputs.items():
        if path is not None:
            try:
                write_output(path, write)
                lines.append(f"{name} written to {path}")
            except OutputError as error:
                failure = error
    return lines, failure


def forget_stdout() -> None:
    """Send to nowhere what is still to be printed, or the interpreter would complain when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    } | ({} if problem.targets is None else {"contexts": problem.num_classes, "logits": problem.num_logits})
