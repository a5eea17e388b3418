"""Plain-text tables: 80 columns, classes of one count on one line, readable numbers."""

import numpy as np
import pytest

from ufm.model.problem import Problem
from ufm.text import WIDTH, class_table, plain_table, progress_bar, track, wrapped


def test_the_longest_description_fits_the_terminal():
    problem = Problem(
        [123_456_789] * 99 + [5], 1024, 1.2345e-12, 5.4321e-10, features="nonnegative", bias=1.23e-7
    )
    text = str(problem)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "d = 1024" in text
    assert text.endswith("bias decay 1.23e-07")


def test_classes_of_one_count_share_a_line_and_rounding_is_nothing():
    counts = np.array([50, 500, 50, 500])
    values = np.array([8.8818e-16, 1.25, 8.8818e-16, 1.25])
    lines = class_table(counts, {"margin": values, "range": np.array([1.0, 2.0, 3.0, 2.0])}).splitlines()
    assert [line.split() for line in lines[1:]] == [["500", "2", "1.25", "2"], ["50", "2", "0", "1..3"]]


def test_many_counts_leave_the_middle_out():
    table = class_table(np.arange(1, 101), {"x": np.arange(100.0)})
    assert "(76 more)" in table
    assert len(table.splitlines()) == 26


def test_columns_of_words_are_left_justified_and_only_the_first_is_folded():
    lines = [["a property with a name of many words " * 3, "1.25", "unresolved"], ["short", "-", "pass"]]
    table = plain_table(["property", "error", "verdict"], lines, words=("property", "verdict")).splitlines()
    assert max(map(len, table)) <= WIDTH
    assert table[0].startswith("property  ")
    (folded,) = [line for line in table if "unresolved" in line]
    assert folded.startswith("a property")
    place = folded.index("unresolved")
    assert table[-1][place:] == "pass"
    assert table[-1].split() == ["short", "-", "pass"]


def test_paths_are_broken_only_where_allowed():
    path = "/".join(["folder"] * 20)
    assert path in wrapped(f"cannot write {path}", break_long_words=False)
    assert max(map(len, wrapped(f"cannot write {path}").splitlines())) == WIDTH


def test_nothing_is_shown_unless_asked(capsys):
    with progress_bar(False, "verifying") as bar:
        bar.advance()
        bar.show(0.5, "half")
        bar.line("nobody reads this")
    assert list(track("abc", "letters", show=False)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_sees_what_is_done_and_nothing_reaches_stdout(capsys, terminal):
    with progress_bar(True, "verifying 200,000 rows"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "verifying 200,000 rows" in err


def test_a_bar_says_what_is_done_of_how_much_and_lines_stay(capsys, terminal):
    with progress_bar(True, "solving", total=8, done=2, stays=True) as bar:
        bar.advance(5)
        bar.line("stalled at ratio = 3")
    out, err = capsys.readouterr()
    assert out == ""
    assert "7/8" in err
    assert "stalled at ratio = 3" in err
    assert list(track(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert "2/2" in capsys.readouterr().err
