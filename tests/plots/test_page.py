"""The page of a report: complete, and nothing in it comes from elsewhere."""

import html.parser
import re

import numpy as np
import pytest
from helpers.cases import few_daily
from helpers.figures import solution

import ufm
from ufm.profiles import parse_counts
from ufm.verification.verify import verify

#: Elements without an end.
VOID = {"meta", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Keeps what a page says, and what it refers to."""

    def __init__(self, page):
        super().__init__()
        self.open, self.references, self.texts, self.rows = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        self.rows += [dict(attrs).get("class")] if tag == "tr" else []
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_picture_is_described_as_what_it_shows():
    labelled = verify(solution([90, 60, 40])).to_html()
    assert 'alt="Gram matrices, norms and margins of the classes' in labelled
    targets = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
    contexts = ufm.Problem([40, 30, 20, 10], 4, 1e-2, 1e-3, features="free", targets=targets)
    assert 'alt="Spectra, norms and divergences of the contexts' in verify(ufm.solve(contexts)).to_html()


LONG = parse_counts("pareto:K=1000,N=20000,n_max=900,n_min=2")


@pytest.mark.parametrize("counts", few_daily([[90, 60, 40, 20, 1, 1], LONG], (0,)))
def test_the_page_holds_everything(tmp_path, counts):
    report = verify(solution(counts))
    page = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    seen = Reader(page)
    assert seen.open == []
    (picture,) = seen.references
    assert picture.startswith("data:image/png;base64,")
    assert not re.search(r"https?:|url\(|<script|@import", page.replace(picture, ""))
    text = "\n".join(seen.texts)
    for words in (report.summary(), report.basis, report.title, report.prediction.source, "Furthest"):
        assert words in text
    assert [kind for kind in seen.rows if kind][: len(report.rows)] == [row.verdict for row in report.rows]
    for row in report.rows:
        assert row.name in text
        assert row.meaning in text


def test_the_class_that_deviates_comes_first():
    found = solution([90, 60, 40, 20])
    found.features = found.features * np.array([1, 1, 1.2, 1])[:, None]
    report = verify(found)
    page = report.to_html()
    assert re.search(r"Furthest.*?<tr class=\"\"><td>2</td><td>40</td>", page, flags=re.DOTALL)
    assert '<tr class="fail"><td>feature norms</td>' in page
    assert "feature norms fails (worst: class 2)" in page


def test_without_a_prediction():
    rng = np.random.default_rng(0)
    report = verify(
        features=rng.normal(size=(9, 2)), labels=[0] * 5 + [1] * 3 + [2], weight=rng.normal(size=(3, 2))
    )  # fewer dimensions than classes
    page = report.to_html()
    assert Reader(page).open == []
    assert "Furthest" not in page
    assert report.notes[0].replace("'", "&#x27;") in page


def test_a_notebook_shows_the_table():
    report = verify(solution([30, 10]))
    shown = report._repr_html_()
    assert report.summary() in shown
    assert "<img" not in shown


@pytest.mark.slow
def test_contexts_have_a_page_too():
    rows = [[0.8, 0.2, 0.0], [0.0, 0.5, 0.5], [0.3, 0.3, 0.4]]
    page = verify(ufm.solve(ufm.Problem([30, 20, 10], 4, 1e-2, 1e-3, targets=rows))).to_html()
    assert Reader(page).open == []
    assert "data:image/png" in page
