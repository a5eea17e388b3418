"""The README's table of what has a closed form, loss by loss."""

import itertools

import numpy as np
import pytest

import ufm
from ufm.losses.by_name import parse_loss

COUNTS, EQUAL = np.repeat([300, 30], 3), np.repeat(100, 6)
KINDS = list(itertools.product(["nonnegative", "free"], [None, 0.0, 0.05]))
PLAIN = {("nonnegative", None)}
SQUARED = {("nonnegative", None), ("free", None), ("free", 0.0)}
SYMMETRIC = ["ce", "weighted:0.5", "effective:0.999", "smoothing:0.1", "ldam:0.5", "poly1:1"]
TABLE = [(name, PLAIN, set(KINDS)) for name in SYMMETRIC]
TABLE += [(name, set(), set(KINDS)) for name in ("adjustment:1", "balanced", "cdt:0.1")]
TABLE += [("mse", SQUARED, SQUARED), ("bce", set(), set()), ("focal:2", set(), set())]


def has_closed_form(name, counts, features, bias):
    loss = parse_loss(name, counts)
    try:
        ufm.predict(ufm.Problem(counts, 7, 5e-3, 2e-5, features=features, bias=bias, loss=loss))
    except ufm.ClosedFormError:
        return False
    return True


@pytest.mark.parametrize(("name", "unequal", "equal"), TABLE, ids=[row[0] for row in TABLE])
def test_closed_forms_are_where_the_table_says(name, unequal, equal):
    for counts, expected in ((COUNTS, unequal), (EQUAL, equal)):
        assert {kind for kind in KINDS if has_closed_form(name, counts, *kind)} == expected
