"""Labels that are names, and counts by label."""

from collections import Counter

import numpy as np
import pytest

import ufm
from ufm import InputError
from ufm.cli import main

NUMBERS = np.repeat(np.arange(3), [5, 4, 3])
NAMES = np.array(["ant", "bee", "cat"])[NUMBERS]
LAYER = {"features": np.eye(3, 4)[NUMBERS] + 0.1, "weight": np.eye(3, 4) - 1 / 3}


@pytest.mark.parametrize("labels", [NAMES, NAMES.tolist(), NAMES.astype(object)])
def test_names_are_numbered_and_reported(labels):
    named, numbered = ufm.verify(**LAYER, labels=labels), ufm.verify(**LAYER, labels=NUMBERS)
    assert [row.cells() for row in named.rows] == [row.cells() for row in numbered.rows]
    places = [(one.where, other.where) for one, other in zip(named.rows, numbered.rows, strict=True)]
    assert ("class cat", "class 2") in places or ("classes ant and bee", "classes 0 and 1") in places
    assert "0 ant, 1 bee, 2 cat" in named.notes[-1]


def test_names_of_numbers_are_in_their_order():
    ten = np.repeat(np.arange(11), 2)
    layer = {"features": np.eye(11)[ten] + 0.1, "weight": np.eye(11) - 1 / 11}
    named, numbered = ufm.verify(**layer, labels=ten.astype(str)), ufm.verify(**layer, labels=ten)
    assert [row.cells() for row in named.rows] == [row.cells() for row in numbered.rows]


def test_names_of_some_classes_are_refused():
    with pytest.raises(InputError, match=r"must name each of the 3 classes.* got 2 names"):
        ufm.verify(**LAYER, labels=np.where(NUMBERS > 0, "cat", "ant"))


def test_the_command_line_takes_names(tmp_path, capsys):
    np.savez(tmp_path / "layer.npz", **LAYER, labels=NAMES)
    assert (
        main(["verify", str(tmp_path / "layer.npz"), "--weight-decay", "1e-2", "--feature-decay", "1e-3"])
        == 1
    )
    assert "0 ant, 1 bee, 2 cat" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"10": 3, "9": 5, "2": 7}, [7, 5, 3]),
        ({2: 3, 0: 5, 10: 7}, [5, 3, 7]),
        (Counter("abacab"), [3, 2, 1]),
        (Counter(NUMBERS), [5, 4, 3]),
        ({(1, 2): 3, (0, 3): 5}, [5, 3]),
        ({"9" * 5000: 3, "1": 5}, [5, 3]),
    ],
)
def test_counts_by_label_are_sorted_by_it(counts, wanted):
    assert ufm.Problem(counts, 3, 1e-2, 1e-3).counts.tolist() == wanted
    assert ufm.LDAM.of_counts(counts).margins.argmax() == np.argmin(wanted)


@pytest.mark.parametrize(
    "counts", [{2: 3, "a": 5, None: 7}, {(1, 2): 3, "a": 5}, {4, 5}, {4: 1, 5: 1}.keys(), np.ma.array([4, 5])]
)
def test_labels_without_an_order_and_sets_are_refused(counts):
    with pytest.raises(InputError, match="counts must"):
        ufm.Problem(counts, 3, 1e-2, 1e-3)
