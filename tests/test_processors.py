"""The numerically sensitive tests on other processors: narrower vectors, other BLAS kernels, other examples.

Here programs are compiled as users have them. By hand, on all of the sensitive files and for every setting, with the
interpreter at hand:

    python tests/test_processors.py [SETTING ...]
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
#: Folders and files whose outcome hangs on rounding.
SENSITIVE = [
    "duality",
    "experiments/test_stress.py",
    "losses",
    "metrics",
    "models",
    "solvers",
    "theory",
    "verification",
]
#: The quick ones among them, and the settings, for whenever the slow tests run.
QUICK = [
    "duality/test_copositive.py",
    "losses/test_softmax.py",
    "models/test_layer_peeled.py",
    "theory/test_frames.py",
]
OFTEN = ["as it is", "oldest"]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
SETTINGS = {
    "as it is": {},
    "AVX2": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "SSE4_2": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "one thread": ONE_THREAD,
    "oldest": {
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "OPENBLAS_NUM_THREADS": "1",
    },
} | {f"seed {seed}": {} for seed in range(10)}


def command(name, files):
    seed = [f"--hypothesis-seed={name.removeprefix('seed ')}"] if name.startswith("seed ") else []
    paths = [str(FOLDER / file) for file in files]
    return [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *seed, *paths]


def environment(name, cache):
    """Programs compiled for one processor are kept apart from those of another."""
    setting = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"} | SETTINGS[name]
    apart = setting["XLA_FLAGS"].rpartition("=")[2]
    return os.environ | setting | {"JAX_COMPILATION_CACHE_DIR": f"{cache}{apart}"}


@pytest.mark.slow
@pytest.mark.parametrize("name", OFTEN)
def test_quick_ones_pass_on(name, tmp_path):
    done = subprocess.run(
        command(name, QUICK),
        env=environment(name, tmp_path),
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "/tmp/ufm-compiled-")
    codes = {}
    for name in sys.argv[1:] or SETTINGS:
        print(f"== {name}", flush=True)
        codes[name] = subprocess.run(
            command(name, SENSITIVE), env=environment(name, cache), cwd=FOLDER.parent
        ).returncode
    raise SystemExit(max(codes.values()))
