"""The spinner: a sign of life on a terminal, nothing anywhere else."""

from ufm.waiting import waiting


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
