"""Where experiments write: folders of their own, and never over the committed pictures unless told."""

import json
from pathlib import Path

import pytest

import experiments
from experiments.common import Outputs
from ufm.plots.style import ON_SCREEN, PAGE, canvas


def test_results_and_pictures_go_to_a_folder_of_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for quick, folder in ((False, "results/name"), (True, "results/name-quick")):
        results = Outputs().of("name", quick)
        results.save({"a": 1})
        with canvas(PAGE, 1.0) as figure:
            figure.subplots()
        assert results.draw(figure) == Path(folder) / "name.png"
        assert json.loads((Path(folder) / "name.json").read_text()) == {"a": 1}
    told = Outputs(figures=tmp_path / "pictures", suffix="pdf").of("name")
    assert told.draw(figure) == tmp_path / "pictures" / "name.pdf"
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(("style", "scale"), [("paper", 1.0), ("screen", ON_SCREEN)])
def test_a_picture_for_a_screen_is_larger(tmp_path, style, scale):
    from matplotlib.image import imread

    with canvas(PAGE, 1.0) as figure:
        figure.subplots()
    path = Outputs(tmp_path, style=style).of("name").draw(figure)
    assert imread(path).shape[1] == pytest.approx(200 * PAGE * scale, abs=1)
    assert figure.get_size_inches().tolist() == [PAGE, 1.0]


MODULES = sorted(
    path for path in Path(experiments.__file__).parent.rglob("*.py") if path.name != "__init__.py"
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_is_a_script_or_says_that_it_is_none(path):
    text = path.read_text()
    assert ("__main__" in text) != ("Not a script" in text.split('"""')[1])
