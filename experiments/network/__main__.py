"""The main script of this folder: `last_layer.py`."""

import tyro

from experiments.network.last_layer import main

if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
