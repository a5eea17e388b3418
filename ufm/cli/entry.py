"""Choosing the command, and one sentence with an exit code for whatever goes wrong in it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ufm.cli.advise import advise_command
from ufm.cli.figures import figures_command
from ufm.cli.predict import predict_command
from ufm.cli.solve import solve_command
from ufm.cli.sweep import sweep_command
from ufm.cli.verify import verify_command
from ufm.inputs.checks import CheckpointError, InputError
from ufm.text import wrapped

_SMALLER = "try --level class, --precision float32, a smaller --dim, or more devices"

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict_command,
    "solve": solve_command,
    "verify": verify_command,
    "advise": advise_command,
    "sweep": sweep_command,
    "figures": figures_command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; bad input is one sentence on stderr, never a traceback."""
    if list(sys.argv[1:] if argv is None else argv) == ["--version"]:
        print(f"ufm {importlib.metadata.version('ufm')}")
        return 0
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="ufm",
            description=(
                "Unconstrained-feature models of neural collapse under class imbalance.\n\n"
                "Example: ufm solve    (a default problem: solved, certified, verified, drawn)\n\n"
                "ufm --version prints the version."
            ),
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except InputError as error:
        return _complain(2, str(error))
    except CheckpointError as error:
        return _complain(1, str(error))
    except ModuleNotFoundError as missing:
        return _complain(2, f"this needs {missing.name}: pip install {missing.name}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _complain(1, f"not enough memory ({str(error).splitlines()[0]}): {_SMALLER}")
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _complain(130, "interrupted")


def _complain(code: int, sentence: str) -> int:
    """Print why it did not work, and return the exit code. Paths and flags are not broken."""
    print(wrapped(f"ufm: {sentence}", break_long_words=False), file=sys.stderr)
    return code
