"""The package as a whole: its public names, what imports what, and the examples in its docstrings."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ufm

ROOT = Path(ufm.__file__).parent
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "ufm."))

#: Modules for users that are there after `import ufm`.
PUBLIC_MODULES = ["conventions", "losses", "metrics", "profiles", "targets", "theory", "training"]
PUBLIC = [
    "Accelerated",
    "BinaryCrossEntropy",
    "Certificate",
    "ClosedFormError",
    "CrossEntropy",
    "FeatureStatistics",
    "Focal",
    "InputError",
    "LDAM",
    "LabelSmoothing",
    "LayerPeeled",
    "LogitAdjustment",
    "Loss",
    "MSE",
    "Poly1",
    "Prediction",
    "Problem",
    "ProjectedGradient",
    "Report",
    "Separability",
    "Solution",
    "Status",
    "SupervisedContrastive",
    "VectorScaling",
    "WeightedCrossEntropy",
    "advise",
    "certify",
    "collapse_observer",
    "hard_margin_limit",
    "orthogonal_frame",
    "predict",
    "separability",
    "simplex_etf",
    "solve",
    "sweep",
    "verify",
]


def test_public_names_are_pinned():
    assert sorted(ufm.__all__) == sorted(PUBLIC + PUBLIC_MODULES)
    assert set(dir(ufm)) == set(PUBLIC + PUBLIC_MODULES)
    assert re.fullmatch(r"\d+\.\d+\.\d+", ufm.__version__)
    with pytest.raises(AttributeError, match="ufm attribute slove"):
        _ = ufm.slove


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented_and_never_modules(name):
    value = getattr(ufm, name)
    assert not inspect.ismodule(value)
    assert len(inspect.getdoc(value)) > 200
    assert ">>>" in inspect.getdoc(value)
    for part, member in inspect.getmembers(value, lambda x: inspect.isfunction(x) or isinstance(x, property)):
        if not part.startswith("_") and inspect.isclass(value):
            assert inspect.getdoc(member), f"{name}.{part}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_say_what_they_take_and_raise(name):
    value = getattr(ufm, name)
    text = inspect.getdoc(value)
    if inspect.isfunction(value):
        assert "Args:" in text or len(inspect.signature(value).parameters) <= 1
        parameters = inspect.signature(value).parameters
        described = text.partition("Args:")[2].partition("Returns:")[0]
        if described:
            assert [p for p in parameters if p not in described] == []


#: Submodules for users, besides what `ufm` itself exports.
SUBMODULES = (
    "conventions",
    "losses.softmax",
    "metrics",
    "metrics.collapse",
    "metrics.separability",
    "models.layer_peeled",
    "plots.report",
    "plots.style",
    "profiles",
    "sweeps",
    "targets",
    "theory",
    "training",
)


@pytest.mark.parametrize("name", SUBMODULES)
def test_names_of_public_submodules_are_documented(name):
    module = importlib.import_module(f"ufm.{name}")
    assert len(module.__doc__) > 100
    own = [part for part, value in vars(module).items() if getattr(value, "__module__", "") == f"ufm.{name}"]
    for part in getattr(module, "__all__", own):
        if not part.startswith("_"):
            assert len(inspect.getdoc(getattr(module, part)) or "") > 20, part


def imported_by(path):
    """Modules that a file imports anywhere, and those it imports when loaded."""
    tree = ast.parse(path.read_text())
    found = {"anywhere": set(), "on load": set()}
    for kind, nodes in (("anywhere", ast.walk(tree)), ("on load", tree.body)):
        for node in nodes:
            if isinstance(node, ast.Import):
                found[kind] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[kind] |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_benchmark_peers_are_never_imported(path):
    roots = {name.split(".")[0] for name in imported_by(path)["anywhere"]}
    assert not roots & {"torch", "jaxopt", "sklearn", "cvxpy"}


def test_every_name_in_the_stub_is_where_it_says():
    """Type checkers read the stub, and so does `lazy_loader` when a name is used."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    for node in stub.body:
        for alias in getattr(node, "names", []):
            module = importlib.import_module(f"ufm.{node.module}" if node.module else f"ufm.{alias.name}")
            assert not node.module or hasattr(module, alias.name)


def test_imports_point_one_way():
    """The contracts in pyproject.toml: packages in order, nothing of the solvers in what judges them."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_importing_ufm_loads_nothing_heavy():
    script = "import sys, ufm; assert not {'jax', 'matplotlib', 'rich', 'tyro', 'xarray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_predicting_from_the_command_line_loads_neither_jax_nor_statistics(tmp_path):
    script = (
        "import sys; from ufm.cli import main\n"
        "main('predict --counts 50x2,5 --weight-decay 1e-2 --feature-decay 1e-3'.split())\n"
        "assert not {'jax', 'matplotlib', 'scipy.stats'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.slow
def test_examples_in_docstrings_run():
    """In a process of its own, where lists may be passed as users pass them."""
    script = (
        "import doctest, importlib, sys\n"
        f"results = [doctest.testmod(importlib.import_module(name)) for name in {MODULES!r}]\n"
        "attempted, failed = (sum(r[i] for r in results) for i in (1, 0))\n"
        "print(attempted); sys.exit(bool(failed))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[-1]) >= 30


def test_every_public_function_and_class_has_a_docstring():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_what_is_printed_is_a_few_readable_lines():
    problem = ufm.Problem("imagenet-lt", 1024, 1e-4, 1e-4)
    small = ufm.solve(ufm.Problem("30x2,20", 4, 1e-2, 1e-3))
    advice = ufm.advise("30x2,20", 1e-2, 1e-3)
    for value, most in (
        (problem, 3),
        (ufm.predict(problem), 36),
        (small, 8),
        (ufm.verify(small), 36),
        (advice, 12),
    ):
        lines = str(value).splitlines()
        assert 1 < len(lines) <= most
        assert max(map(len, lines)) <= 80
        assert "array(" not in str(value)
        assert value is problem or repr(value) == str(value)
        assert "<" in value._repr_html_()


#: Kinds and mistakes: what they are is all there is to say.
NAMES_ONLY = ("ClosedFormError", "InputError", "Loss", "Status")


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - set(NAMES_ONLY)))
def test_public_names_are_documented_in_full(name):
    """Where it comes from, what is wrong with bad arguments, shapes of arrays, and an example that runs."""
    value = getattr(ufm, name)
    text = inspect.getdoc(value)
    assert re.search(r"^Source: ", text, flags=re.M)
    assert re.search(r"^Example:\n +>>> ", text, flags=re.M)
    if inspect.isfunction(value):
        assert "Raises:" in text
        assert "Args:" in text
    elif list(inspect.signature(value).parameters):
        assert "Args:" in text or "Attributes:" in text
