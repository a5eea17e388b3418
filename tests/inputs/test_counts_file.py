"""Class counts in files as they lie around."""

import json

import pytest

from ufm import InputError
from ufm.profiles import parse_counts

LIST = "".join(f"train/{k}/{i:03}.jpg {k}\n" for k, count in ((2, 5), (0, 50), (1, 20)) for i in range(count))


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("a.csv", "class,count\ncat,5000\ndog,500\nemu,50\n", [5000, 500, 50]),
        ("b.csv", "cat;5000\ndog;500\n", [5000, 500]),
        ("c.tsv", "label\tnumber\n0\t7\n1\t9\n", [7, 9]),
        ("d.txt", "5000\n500\n\n50\n", [5000, 500, 50]),
        ("e.txt", "5000, 500, 50", [5000, 500, 50]),
        ("f.txt", LIST, [50, 20, 5]),
        ("g.csv", "image,label\na.png,emu\nb.png,cat\nc.png,emu\n", [1, 2]),
        ("h.txt", "".join(f"x/{k}.png {k}\n" for k in (1, 10, 2, 10, 10)), [1, 1, 3]),
        ("i.json", "[5000, 500, 50]", [5000, 500, 50]),
        ("j.json", json.dumps({"10": 3, "2": 4, "1": 5}), [5, 4, 3]),
        ("k.txt", "# head\n7  # many\n3\n", [7, 3]),
    ],
)
def test_counts_are_read(name, text, counts, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    assert parse_counts(str(file)).tolist() == counts
    assert parse_counts(f"@{file}").tolist() == counts


def test_a_column_of_counts_is_a_list():
    assert parse_counts("5000\n500\n50").tolist() == [5000, 500, 50]


@pytest.mark.parametrize(
    "text", ["", "a,b\nc,d\n", "1,2,3\n4,5,6\n", "{", "3\nx\n", '"text"', "cat,-5\ndog,3\n", "5\n"]
)
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_other_files_say_what_is_read(text, suffix, tmp_path):
    file = tmp_path / f"counts.{suffix}"
    file.write_text(text)
    with pytest.raises(InputError, match="counts"):
        parse_counts(str(file))
