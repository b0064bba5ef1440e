"""Every notebook says what it answers, holds no outputs, imports the analysis alone, and runs to its end."""

import ast
import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALLOWED = {("vlp_jax", "analysis"), ("os", ""), ("pathlib", "")}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    """Its Python, without IPython's magics."""
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))


@pytest.fixture
def execute(environment, tmp_path, monkeypatch):
    """Runs a notebook from its own folder in a process of its own; returns it with its outputs."""

    def call(path, **variables):
        for name in ("VLP_JAX_WORKDIR", "VLP_JAX_WORKDIRS", "VLP_JAX_SPLIT"):
            monkeypatch.delenv(name, raising=False)
        own = {"IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        for name, value in {**environment, **own, "PYTHONPATH": paths, **variables}.items():
            monkeypatch.setenv(name, value)
        notebook = read(path)
        resources = {"metadata": {"path": str(path.parent)}}
        nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
        return notebook

    return call


def said(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_all_notebooks_are_on_the_page_that_lists_them():
    page = (ROOT / "notebooks" / "README.md").read_text()
    assert len(NOTEBOOKS) == 5 and all(f"]({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_question_and_holds_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and "?" in first.source.splitlines()[0], "the title is the question"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"clear all outputs of {path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_the_analysis_alone(path):
    imported = set()
    for node in ast.walk(ast.parse(code(read(path)))):
        if isinstance(node, ast.Import):
            imported |= {tuple(alias.name.partition(".")[::2]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] if node.module == "vlp_jax" else [""]
            imported |= {(node.module, name) for name in names}
    assert ("vlp_jax", "analysis") in imported and imported <= ALLOWED, f"{imported - ALLOWED}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_shows_pictures(path, execute, evaluated):
    _, pictures = said(execute(path, VLP_JAX_WORKDIR=str(evaluated)))
    assert pictures


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["04_compare_runs", "05_cost_quality"])
def test_a_notebook_of_several_runs_names_them_all(stem, execute, evaluated, another):
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    workdirs = os.pathsep.join(map(str, (evaluated, another)))
    text, pictures = said(execute(path, VLP_JAX_WORKDIRS=workdirs))
    assert "run" in text and "other_run" in text and "With more runs" not in text and pictures
