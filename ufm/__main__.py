"""``python -m ufm`` is the command ``ufm``."""

from ufm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
