"""Plain-text tables: 80 columns, classes of one count on one line, readable numbers."""

import numpy as np

from ufm.model.problem import Problem
from ufm.text import WIDTH, class_table, waiting


def test_the_longest_description_fits_the_terminal():
    problem = Problem(
        [123_456_789] * 99 + [5], 1024, 1.2345e-12, 5.4321e-10, features="nonnegative", bias=1.23e-7
    )
    text = str(problem)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "d = 1024" in text
    assert text.endswith("bias decay 1.23e-07")


def test_classes_of_one_count_share_a_line_and_rounding_is_short():
    counts = np.array([50, 500, 50, 500])
    values = np.array([8.8818e-16, 1.25, 8.8818e-16, 1.25])
    lines = class_table(counts, {"margin": values, "range": np.array([1.0, 2.0, 3.0, 2.0])}).splitlines()
    assert [line.split() for line in lines[1:]] == [["500", "2", "1.25", "2"], ["50", "2", "9e-16", "1..3"]]


def test_many_counts_leave_the_middle_out():
    table = class_table(np.arange(1, 101), {"x": np.arange(100.0)})
    assert "(76 more)" in table
    assert len(table.splitlines()) == 26


def test_nothing_is_shown_unless_asked(capsys):
    with waiting("verifying", False):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_what_is_done_and_nothing_reaches_stdout(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    with waiting("verifying 200,000 rows", True):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "verifying 200,000 rows" in err
