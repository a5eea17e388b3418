"""The examples in the help of every command work, in one empty directory and in the order of the commands."""

import inspect
import shlex

import pytest

from ufm.cli import main
from ufm.cli.entry import COMMANDS


def example(command):
    """Return the command in the help, the one it comes after, if any, and the file that it reads, if any."""
    text = inspect.getdoc(COMMANDS[command]).partition("Example: ")[2]
    text, _, file = text.partition(", where ratios.toml holds")
    text, _, before = text.partition(", after")
    return text.strip(), before.strip(), file


@pytest.mark.slow
def test_every_example_in_the_help_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = set()
    for command in COMMANDS:
        line, before, file = example(command)
        if file:
            (tmp_path / "ratios.toml").write_text(file)
        for text in (before, line):
            if not text or text in done:
                continue
            program, *arguments = shlex.split(text)
            done.add(text)
            assert program == "ufm"
            assert main(arguments) == 0, (text, capsys.readouterr())
            assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert (tmp_path / "ratios" / "sweep.png").exists()
