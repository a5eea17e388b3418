"""The main script of this folder: `trials.py`."""

import tyro

from experiments.stress.trials import main

if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
