"""Unconstrained-feature models of neural collapse: solve, certify, predict, verify.

The public names and the modules that they live in are listed once, in ``__init__.pyi``. They are loaded on first use,
so that predictions (pure NumPy) never pay for importing JAX.
"""

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Load the first public name, or their list: `ufm.cli` minds signals before anything is imported here."""
    import lazy_loader

    load, listed, names = lazy_loader.attach_stub(__name__, __file__)
    globals().update(__getattr__=load, __dir__=listed, __all__=names)
    return names if name == "__all__" else load(name)


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))  # type: ignore[call-overload]
