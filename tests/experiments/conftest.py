"""Every picture that an experiment draws in a test is read for what a reader would object to."""

import pytest
from helpers.figures import objections

from experiments.common import Results


@pytest.fixture(autouse=True)
def pictures_can_be_read(monkeypatch):
    draw = Results.draw

    def draw_and_read(self, figure, *rest):
        assert objections(figure) == []
        return draw(self, figure, *rest)

    monkeypatch.setattr(Results, "draw", draw_and_read)
