"""The README's road, as it is typed: train in torch, save, verify, ask for advice; in an empty folder."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ufm.cli import main

pytest.importorskip("torch")
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.slow
def test_the_road_of_the_readme(tmp_path, monkeypatch, capsys):
    [section] = re.findall(r"## Your own network\n(.*?)\n## ", README, flags=re.DOTALL)
    script = textwrap.dedent("".join(re.findall(r"(?:    .*\n|\n(?=    ))+", section)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy, nc1, tail = map(float, done.stdout.split())
    assert accuracy > 0.99
    assert nc1 < 0.1
    assert tail > 3
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`ufm ([^`]*layer\.npz[^`]*)`", section)
    assert [command.split()[0] for command in commands] == ["verify", "advise"]
    assert main(commands[0].split()) in (0, 1)
    assert "Charge exponent g" in capsys.readouterr().out
    assert main(commands[1].split()) == 0
    assert "balanced sampler" in capsys.readouterr().out
