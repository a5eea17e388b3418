"""Unconstrained-feature models of neural collapse: solve, certify, predict, verify.

The public names and the modules that they live in are listed once, in ``__init__.pyi``. They are loaded on first use,
so that predictions (pure NumPy) never pay for importing JAX.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
