"""The main script of this folder: `race.py`."""

import tyro

from experiments.benchmark.race import main

if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
