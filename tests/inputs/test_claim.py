"""One run at a time works in a folder; what a dead one has left is taken over."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

import ufm
from ufm.inputs.claim import _born, claimed

FIXED, AXES = {"counts": "9x2", "dim": 2}, {"nuclear_weight": [1e-3, 2e-3]}
HOLD = """
import sys, time
from pathlib import Path
from ufm.inputs.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def claim(tmp_path):
    return tmp_path / "claim.json"


def holders(claim):
    return json.loads(claim.read_text())["holders"]


def leave(claim, **changes):
    """Leave a claim behind, of this process but for some changes."""
    with claimed(claim):
        (mine,) = holders(claim)
    claim.write_text(json.dumps({"holders": [mine | changes]}))


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_when_it_is_dead(tmp_path, claim):
    ufm.sweep(FIXED, AXES, out=tmp_path)
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(claim)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(
            ufm.InputError, match=f"is in use: process {first.pid} on .* at work there since 20"
        ):
            ufm.sweep(FIXED, AXES, out=tmp_path, resume=True)
        assert [holder["pid"] for holder in holders(claim)] == [first.pid]
    finally:
        first.kill()
        while _born(first.pid) is not None:  # until it is dead, though not yet buried
            time.sleep(0.01)
    ufm.sweep(FIXED, AXES, out=tmp_path, resume=True)
    assert holders(claim) == []
    first.wait()
    first.stdout.close()


def test_a_run_in_the_same_process_is_another_run(tmp_path, claim):
    with claimed(claim), pytest.raises(ufm.InputError, match="is in use"):
        ufm.sweep(FIXED, AXES, out=tmp_path)
    ufm.sweep(FIXED, AXES, out=tmp_path)


def test_a_claim_ends_with_its_run_however_that_ends(tmp_path, claim, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ufm.sweeps.batch_work.solve_together", fail)
    with pytest.raises(KeyboardInterrupt):
        ufm.sweep(FIXED, AXES, out=tmp_path)
    monkeypatch.undo()
    assert holders(claim) == []
    ufm.sweep(FIXED, AXES, out=tmp_path, resume=True)


def test_the_dead_hold_nothing(claim):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for changes in (
        {"pid": dead.pid},
        {"born": "1"},
        {"pid": 1},
    ):  # dead, or another of that number
        leave(claim, **changes)
        with claimed(claim) as alone:
            assert alone
        assert holders(claim) == []
    assert _born(os.getpid()) is not None


def test_nobody_can_tell_about_another_machine(claim):
    leave(claim, host="elsewhere", pid=1)
    with (
        pytest.raises(ufm.InputError, match=r"process 1 on elsewhere .* or delete .*claim\.json if that"),
        claimed(claim),
    ):
        pass
    claim.unlink()
    with claimed(claim):
        pass


@pytest.mark.parametrize(
    "text", ["[", "[]", "{}", '{"holders": [{"pid": 3}]}', '{"holders": 3}', '{"holders": [[]]}']
)
def test_a_damaged_claim_is_refused(claim, text):
    claim.write_text(text)
    with (
        pytest.raises(ufm.InputError, match=r"claim\.json is damaged; delete it if no other run"),
        claimed(claim),
    ):
        pass


def test_shares_of_one_plan_work_side_by_side(claim):
    with claimed(claim, (0, 2)) as first, claimed(claim, (1, 2)) as second:
        assert (first, second) == (True, False)
        for share in ((0, 2), (0, 1), (2, 3)):
            with pytest.raises(ufm.InputError, match="is in use"), claimed(claim, share):
                pass
    assert holders(claim) == []


def test_only_one_of_many_at_once(claim):
    inside, most, refused = [], [], []

    def work():
        for _ in range(20):
            try:
                with claimed(claim):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except ufm.InputError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 120
    assert holders(claim) == []
