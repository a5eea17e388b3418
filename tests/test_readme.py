"""README and measurements cannot rot: the example prints what it says, commands run, names and links exist.

The two installing commands are the exception: they need a network and minutes, and are run from nothing by `.ci/run`.
"""

import ast
import itertools
import os
import pkgutil
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ufm
from ufm.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "experiments" / "MEASURED.md", ROOT / "experiments" / "CLUSTER.md"]
README = "\n".join(page.read_text() for page in PAGES)
LINKS = [page.parent / path for page in PAGES for path in re.findall(r"\]\(([^)]+)\)", page.read_text())]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
#: Stands in for Slurm's: two tasks on this machine, told who they are as Slurm tells them.
SRUN = """#!/usr/bin/env bash
export SLURM_JOB_ID=77 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" > second.txt & second=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $second && test ! -s second.txt
"""


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_the_example_prints_what_the_readme_shows(tmp_path):
    (example,), (output,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == output
    assert len([line for line in example.splitlines() if line]) <= 15


SETUP, *SHELL = blocks("sh")
PLAIN = [text for text in SHELL if all(re.fullmatch(r"ufm [^&|$]*", line) for line in text.splitlines())]
SCRIPTS = [text for text in SHELL if text not in PLAIN]


@pytest.mark.slow
def test_plain_commands_run(tmp_path, monkeypatch, capsys):
    """In order and in one empty directory, because later commands read what earlier ones wrote."""
    lines = [line for text in PLAIN for line in text.splitlines()]
    assert {line.split()[1] for line in lines} >= {"predict", "solve", "verify", "advise", "sweep"}
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("toml")
    (tmp_path / "ratios.toml").write_text(config)
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80, line


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run(script, tmp_path):
    """As a shell runs them, in an empty directory; what asks for a port gets a free one, `srun` is simulated."""
    commands = tmp_path / "bin"
    commands.mkdir()
    cli = f'exec {shlex.quote(sys.executable)} -m ufm "$@"\n'
    for name, text in {"ufm": "#!/usr/bin/env bash\n" + cli, "srun": SRUN}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    script = script.replace("localhost:12355", f"localhost:{port}")
    if "--resume" in script:
        script *= 2
    home = tmp_path / "empty"
    home.mkdir()
    done = subprocess.run(
        ["bash", "-euc", f"{script}\nwait -n || test $? = 127"],
        cwd=home,
        env=os.environ
        | {"PATH": f"{commands}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    solved = sum(line.startswith("ufm solve") or " ufm solve" in line for line in script.splitlines())
    solved -= "--process-id 1" in script  # which keeps silent
    assert done.stdout.count("Status: certified") == solved
    assert done.stdout.count("PASSED") == solved


def test_the_two_commands_do_all_the_set_up():
    setup = [line for line in SETUP.splitlines() if line]
    assert len(setup) == 2
    assert all(line.startswith("python3 -m venv .venv && ") for line in setup)


EXPERIMENTS = sorted({span for span in SPANS if span.startswith("python -m experiments.")})


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_experiments_understand_their_commands(command, tmp_path, monkeypatch, capsys):
    _, _, script, *flags = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *flags, "--help"])
    for name in (script, f"{script}.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # or runpy warns
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(script, run_name="__main__")
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


#: Have tests of their own that run their quick variant.
TESTED = {
    f"experiments.{name}"
    for name in (
        "benchmark",
        "benchmark.accelerator",
        "figures.dynamics",
        "figures.focal",
        "figures.frames",
        "figures.geometries",
        "figures.geometry",
        "figures.hong_ling",
        "figures.layer_peeled",
        "figures.long_tail",
        "figures.phase_diagram",
        "figures.threshold",
        "network",
        "network.charge",
        "network.remedies",
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({command.split()[2] for command in EXPERIMENTS} - TESTED))
def test_experiments_run_in_their_quick_variant(script, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", script, "--quick"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("command", sorted({span for span in SPANS if span.startswith("pytest ")}))
def test_test_commands_select_tests(command):
    """The file exists and holds such tests: collecting them takes longer than it is worth."""
    words = command.split()[1:]
    flags = dict(itertools.pairwise(words))
    files = [ROOT / word for word in words if word.endswith(".py")]
    assert set(words) <= {
        "-n",
        "2",
        "-m",
        "slow",
        "-k",
        flags.get("-k"),
        *(str(f.relative_to(ROOT)) for f in files),
    }
    for file in files:
        tests = [
            node
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.FunctionDef) and flags.get("-k", "test") in node.name
        ]
        assert any("mark.slow" in ast.unparse(mark) for test in tests for mark in test.decorator_list)


def test_no_command_in_the_prose_is_left_out():
    """Commands inside sentences are placeholders, or repeat one that is run above or timed."""
    run = {" ".join(line.split()[:2]) for text in SHELL for line in text.splitlines()}
    for span in SPANS:
        words = span.removeprefix("time ").split()
        if words[0] == "ufm" and len(words) > 1 and words[1].islower():
            assert " ".join(words[:2]) in run, span


def test_names_in_the_readme_exist():
    names = {name for name in re.findall(r"\bufm((?:\.[a-z_]\w*|\.[A-Z]\w*)+)", README) if name != ".toml"}
    assert len(names) >= 10
    for name in names:
        pkgutil.resolve_name(f"ufm{name}")


@pytest.mark.slow
def test_names_in_the_readme_are_there_after_import_ufm():
    names = set(re.findall(r"\bufm\.(\w+)", README)) - {"toml"}
    script = "import sys, ufm; [getattr(ufm, name) for name in (*sys.argv[1:], '__version__')]"
    done = subprocess.run([sys.executable, "-c", script, *sorted(names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_to_cite_is_this_one():
    assert f"(`ufm` {ufm.__version__})" in README


def test_extras_exist():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = set(re.findall(r'"\.\[(\w+)\]"', README))
    assert {"dev", "notebooks", "sweep", "cuda", "tpu"} <= extras <= set(declared)


@pytest.mark.parametrize("path", LINKS, ids=lambda path: path.name)
def test_every_picture_and_link_is_there(path):
    assert path.stat().st_size > (500 if path.suffix == ".md" else 10_000)
