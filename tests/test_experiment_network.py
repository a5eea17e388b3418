"""A small network trained on digits ends where the closed form says, collapsed or not."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import network


def test_quick_network_reaches_the_prediction(tmp_path, capsys):
    network.main(quick=True, out=tmp_path)
    printed = capsys.readouterr().out
    outcomes = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(outcomes) == 2
    assert printed.count("PASSED") == 2
    assert "NOT PASSED" not in printed
    assert list(tmp_path.glob("*.png"))
