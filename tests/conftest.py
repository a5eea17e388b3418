"""Every test runs with jaxtyping's run-time shape checks on the whole package."""

from jaxtyping import install_import_hook

install_import_hook("ufm", "beartype.beartype")
