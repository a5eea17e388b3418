"""The command line: ``ufm predict | solve | verify | advise | sweep | figures``, one file per command.

Exit codes: 0 = did what was asked and it holds; 1 = ran, but not certified, not verified or not written; 2 = bad
input; 130 and 143 = interrupted and terminated. The code is the verdict, whatever becomes of what is printed.
Commands import what they need when they run, so that ``ufm --help`` and bad input do not wait for JAX.
"""

import sys

from ufm.cli.signals import listen

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code; bad input is one sentence on stderr, never a traceback.

    Args:
        argv: the arguments; those of the process, which then also minds Ctrl-C and SIGTERM, if omitted.
    """
    if argv is None:
        listen()
    from ufm.cli.entry import run

    return run(sys.argv[1:] if argv is None else argv, program=argv is None)
