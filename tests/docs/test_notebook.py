"""docs/first_hour.ipynb is made of docs/first_hour.py, and runs."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.docs
FOLDER = Path(__file__).parents[2] / "docs"
LONG, SHORT = "STEPS = 1200\n", "STEPS = 10\n"


def read(path: Path) -> Any:
    jupytext = pytest.importorskip("jupytext", reason="needs the extra notebook: make test-docs installs it")
    return jupytext.read(path)


def sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_it_is_made_of_the_script():
    notebook = read(FOLDER / "first_hour.ipynb")
    assert sources(notebook) == sources(read(FOLDER / "first_hour.py"))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert "/" + "home/" not in str(outputs)


def test_it_runs(tmp_path):
    """From the first cell to the last, for fewer steps."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra notebook: make test-docs installs it")
    notebook = read(FOLDER / "first_hour.ipynb")
    long = [cell for cell in notebook.cells if LONG in cell.source]
    (cell,) = long
    cell.source = cell.source.replace(LONG, SHORT)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-2].outputs)
    assert [line.split()[0] for line in printed.splitlines()] == ["vdm", "diffenc", "shifted"]
    for name in ("vdm", "diffenc", "shifted"):
        assert (tmp_path / "runs" / "first_hour" / name / "config.gin").is_file()
