"""The notebooks: executed from nothing without errors or warnings, and committed with what they print and draw."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Seconds that a notebook may take on two busy cores.
TIMEOUT = 120


def named(path):
    return path.stem


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    return [found for cell in code_cells(notebook) for found in cell.outputs if found.output_type == kind]


def test_there_are_eight():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=map(named, NOTEBOOKS))
def test_notebook_runs(path):
    """In a kernel of its own, from notebooks/; a warning would be text on stderr."""
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=folder).execute()
    assert not [found.text for found in outputs(notebook, "stream") if found.name == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_is_committed_executed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not outputs(notebook, "error")
    assert all(found.name == "stdout" for found in outputs(notebook, "stream"))
    shown = outputs(notebook, "display_data") + outputs(notebook, "execute_result")
    assert any("image/png" in found.data for found in shown)
    assert sum(bool(cell.outputs) for cell in cells) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_is_thin_and_small(path):
    assert path.stat().st_size < 400_000
    for cell in code_cells(nbformat.read(path, as_version=4)):
        code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        nodes = ast.walk(ast.parse(code))
        logic = [
            n for n in nodes if isinstance(n, ast.stmt) and not isinstance(n, ast.Import | ast.ImportFrom)
        ]
        assert len(logic) <= 12, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_holds_no_path_of_a_machine(path):
    text = path.read_text()
    assert not any(place in text for place in ("/home/", "/Users/", "/tmp/", "/work", "C:\\\\"))


@pytest.mark.slow
def test_notebooks_find_the_experiments_from_the_repository_root():
    """Everything before the first computation, in the root; the notebooks themselves run in their folder."""
    cells = [code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS]
    scripts = ["\n".join(line for line in cell.splitlines() if not line.startswith("%")) for cell in cells]
    runner = "import sys\nbefore = list(sys.path), set(sys.modules)\n"
    runner += f"for script in {scripts!r}:\n"  # what one has found is hidden from the next
    runner += "    sys.path[:] = before[0]\n"
    runner += "    for name in set(sys.modules) - before[1]:\n"
    runner += "        if 'experiments' in str(getattr(sys.modules[name], '__file__', '')):\n"
    runner += "            del sys.modules[name]\n"
    runner += "    exec(script, {})\n"
    environment = os.environ | {"MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", runner], cwd=ROOT, check=True, env=environment)


def test_notebooks_link_to_notebooks_that_exist():
    names = {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for target in cell.source.split("](")[1:] if cell.cell_type == "markdown" else []:
                link = target.split(")")[0]
                assert link.startswith("https://") or link in names, (path.name, link)
