"""Compiled programs kept from one process to the next: most of a short command is compilation.

JAX has the cache; this says where, once per machine type and version, and leaves alone what the user has set.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

#: Set to ``off``, or to a folder.
VARIABLE = "UFM_COMPILED"


def keep_compiled_programs() -> Path | None:
    """Have JAX keep what it compiles in the user's cache folder, and return that folder; None if it is switched off.

    Nothing is changed where the environment or JAX's configuration names a folder already, or ``UFM_COMPILED=off``. A
    folder that cannot be made or written, or whose files are damaged, only means that programs are compiled anew.

    Example:
        >>> os.environ[VARIABLE] = "off"
        >>> keep_compiled_programs() is None
        True
    """
    import jax

    wanted = os.environ.get(VARIABLE, "")
    if wanted.lower() == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return None
    folder = Path(wanted) if wanted else _cache_folder() / "ufm" / "compiled"
    folder = folder / _kind_of_machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # read-only, full, or a file in its place
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _cache_folder() -> Path:
    """Return the user's cache folder by the custom of the platform."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local")))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _kind_of_machine() -> str:
    """Return a name that differs where programs cannot be shared: versions of JAX, kinds of processor, its flags."""
    import jaxlib

    kind = platform.machine() + os.environ.get("XLA_FLAGS", "")
    with contextlib.suppress(OSError):  # home folders are shared by machines with different instructions
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"jaxlib-{jaxlib.__version__}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
