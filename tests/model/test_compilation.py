"""Compiled programs are kept where they should be, nowhere else, and never matter when they cannot be."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, warnings
from ufm.model.compilation import keep_compiled_programs
folder = keep_compiled_programs()
import jax
assert str(jax.config.jax_compilation_cache_dir) == str(folder) or folder is None
import ufm
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    assert ufm.solve(ufm.Problem([30, 20], 4, 1e-2, 1e-3)).certified
print(folder)
"""


def run(tmp_path, **variables):
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "UFM_COMPILED")
    }
    environment = inherited | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | variables
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="other folders there")
def test_programs_are_kept_and_damage_does_not_matter(tmp_path):
    folder = run(tmp_path)
    assert folder.startswith(str(tmp_path / "cache" / "ufm" / "compiled"))
    kept = [entry for entry in os.scandir(folder) if entry.is_file()]
    assert kept  # one program is all that a solve of its kind needs
    for entry in kept:
        with open(entry.path, "r+b") as file:
            file.truncate(entry.stat().st_size // 2)
    assert run(tmp_path) == folder


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"UFM_COMPILED": "off"}, {"JAX_COMPILATION_CACHE_DIR": "given"}])
def test_what_the_user_has_set_is_left_alone(tmp_path, variables):
    if "JAX_COMPILATION_CACHE_DIR" in variables:
        variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "given")}
    assert run(tmp_path, **variables) == "None"
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_place_that_is_no_folder_only_means_compiling_anew(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert run(tmp_path) == "None"
