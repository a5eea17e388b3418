"""Every test runs with jaxtyping's run-time shape checks on the whole package; an int may stand for a float.

Compiling takes most of the time, and most programs are compiled in more than one process: compiled programs are
kept in a folder for all workers, subprocesses and notebooks of a session, unless the environment names one to keep.
They are compiled without what makes them fast, which takes half the time; as users have them where the environment
says ``JAX_DISABLE_MOST_OPTIMIZATIONS=false``, which `test_processors.py` does.

Hypothesis draws the same examples every time, unless ``--hypothesis-seed`` asks for others.
"""

import os
import shutil
import tempfile
from importlib import metadata

from hypothesis import settings
from jaxtyping import install_import_hook

FOLDER = "JAX_COMPILATION_CACHE_DIR"
QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"
OURS = FOLDER not in os.environ
if OURS:
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="ufm-compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

install_import_hook("ufm", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("seeded", deadline=None, derandomize=False, database=None)


def pytest_configure(config):
    """Choose the examples, and how to compile, before a test module is read."""
    quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
    if quick and metadata.version("jaxlib").startswith("0.10."):  # others may have no such flag
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*flags, QUICK_TO_COMPILE]))
    seeded = config.getoption("--hypothesis-seed") is not None
    settings.load_profile("seeded" if seeded else "fixed")


def pytest_unconfigure():
    """Remove the folder in the process that made it: workers inherit its name."""
    if OURS:
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
