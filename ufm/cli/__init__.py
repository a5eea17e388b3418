"""The command line: ``ufm predict | solve | verify | advise | sweep | figures``, one file per command.

Exit codes: 0 = did what was asked and it holds; 1 = ran, but not certified or not verified; 2 = bad input.
Commands import what they need when they run, so that ``ufm --help`` and bad input do not wait for JAX.
"""

from ufm.cli.entry import main

__all__ = ["main"]
