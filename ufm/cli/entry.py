"""Choosing the command, and one sentence with an exit code for whatever goes wrong in it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro

import ufm
from ufm.cli.advise import advise_command
from ufm.cli.environment import check_environment
from ufm.cli.figures import figures_command
from ufm.cli.output import emit_text, forget_stdout
from ufm.cli.predict import predict_command
from ufm.cli.solve import solve_command
from ufm.cli.sweep import sweep_command
from ufm.cli.verify import verify_command
from ufm.inputs.checks import InputError, OutputError
from ufm.text import wrapped

_SMALLER = "try --level class, --precision float32, a smaller --dim, or more devices"
#: The parser's words about types, and plain ones.
_PLAINER = (
    (
        r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*?);",
        r"\1 must be an integer, got \2;",
    ),
    (r"Error parsing (\S+): could not convert string to float: (.*?);", r"\1 must be a number, got \2;"),
    (
        r"Error parsing (\S+): no type matching (\S+) could be instantiated from \['(.*?)'\]",
        r"\1 must be \2, got '\3'",
    ),
)

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict_command,
    "solve": solve_command,
    "verify": verify_command,
    "advise": advise_command,
    "sweep": sweep_command,
    "figures": figures_command,
}


def run(argv: Sequence[str], program: bool = False) -> int:
    """Run a command and return its exit code; bad input is one sentence on stderr, never a traceback.

    Args:
        argv: the arguments.
        program: whether this is all that the process does: then no warning with a line of source reaches the user.
    """
    if program:
        warnings.filterwarnings(
            "ignore", category=RuntimeWarning
        )  # of NumPy: outcomes say what is not finite
    try:
        if list(argv) == ["--version"]:
            emit_text(f"ufm {ufm.__version__}")
            return 0
        command = _parsed(argv)
        check_environment(argv)
        return command()
    except InputError as error:
        return _complain(2, str(error))
    except OutputError as error:
        return _complain(1, str(error))
    except ModuleNotFoundError as missing:
        return _complain(2, f"this needs {missing.name}: pip install {missing.name}")
    except BrokenPipeError:  # while the help was printed: the reader, `head` for instance, has seen enough
        forget_stdout()
        return 0
    except OSError as error:  # no space left, no permission, a disk gone: what it was for is in the sentence
        return _complain(1, f"{error.filename or 'standard output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _complain(130, "interrupted")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "the machine's memory is full"
        return _complain(1, f"not enough memory ({reason}): {_SMALLER}")


def _parsed(argv: Sequence[str]) -> Callable[[], int]:
    """Return the command with its arguments, not run yet; what cannot be parsed is one sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in COMMANDS.items()},
                prog="ufm",
                description=(
                    "Unconstrained-feature models of neural collapse under class imbalance.\n\n"
                    "Example: ufm solve    (a default problem: solved, certified, verified, drawn)\n\n"
                    "ufm --version prints the version."
                ),
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code:
            _complain(2, _sentence(said.getvalue(), argv))
        sys.stdout.flush()
        raise
    except (OverflowError, ValueError) as error:  # numbers of thousands of digits
        raise InputError(f"the arguments cannot be read ({error})") from None
    return command


def _deferred(command: Callable[..., int]) -> Callable[..., Any]:
    @functools.wraps(command)
    def later(*args: Any, **flags: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **flags)

    return later


def _sentence(box: str, argv: Sequence[str]) -> str:
    """Return what a parser says in boxes as one sentence."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = " ".join("\n" if set(line) in ({"─"}, {"-"}) else line for line in lines).split("\n")
    if not box.startswith("╭"):  # a terminal without lines to draw has the title, then a line of hyphens
        parts = parts[1:]
    kept = [
        " ".join(part.partition("Got errors:")[0].split()) for part in parts if "full helptext" not in part
    ]
    kept = [_hint(part) for part in kept]
    text = "; ".join(part.removeprefix("Argument helptext: ").rstrip(".") for part in kept if part)
    for pattern, plain in _PLAINER:
        text = re.sub(pattern, plain, text)
    known = next((name for name in argv if name in COMMANDS), None)
    return f"{text[:1].lower()}{text[1:]}; see ufm {f'{known} ' if known else ''}--help"


def _hint(part: str) -> str:
    """Return what the parser says without the help of the flags that it guesses were meant, but for their names."""
    said, guess, meant = part.partition("Perhaps you meant:")
    said = re.sub(
        r" \(applied to ufm \w+\)|Arguments are applied to the directly preceding.*", "", said
    ).strip()
    flags = dict.fromkeys(re.findall(r"(?<!\S)--(?!help\b)[\w-]+", meant))
    return f"{guess.lower()[:-1]} {' or '.join(flags)}" if guess and flags and not said else said


def _complain(code: int, sentence: str) -> int:
    """Print why it did not work, and return the exit code. Paths and flags are not broken, the longest words cut."""
    sentence = re.sub(r"(\S{50})\S*(\s+\S{60,}){5,}|(\S{80})\S{400,}", r"\1\3...", sentence)
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(wrapped(f"ufm: {sentence}", break_long_words=False), file=sys.stderr, flush=True)
    return code
