"""The README cannot rot: its Python example prints what it says, and its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ufm.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_the_example_prints_what_the_readme_shows():
    (example,), (output,) = blocks("python"), blocks("text")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert done.stdout == output


COMMANDS = [line for text in blocks("sh") for line in text.splitlines() if line.startswith("ufm ")]


def test_every_command_runs(tmp_path, monkeypatch, capsys):
    """In order and in one empty directory, because later commands read what earlier ones wrote."""
    assert len(COMMANDS) >= 5
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
        assert capsys.readouterr().out


@pytest.mark.parametrize("path", re.findall(r"\]\((experiments/[^)]+)\)", README))
def test_every_picture_is_there(path):
    picture = Path(__file__).parent.parent / path
    assert picture.stat().st_size > 10_000


def test_the_two_commands_do_all_the_set_up():
    setup = [line for line in blocks("sh")[0].splitlines() if line]
    assert len(setup) == 2
    assert all(line.startswith("python3 -m venv .venv && ") for line in setup)
