"""Notebooks are committed as they are written: valid, without outputs, and every cell of code after a text about it."""

import copy
import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra tmac-cpu[notebooks]")

WORDS_OF_A_TITLE = re.compile(r"# \S")


def problems(notebook):
    """What is wrong with a notebook, one line each."""
    found = []
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        found.append(f"invalid: {error.message}")
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) < (4, 5):
        found.append("older than version 4.5, the first whose cells have ids")
    cells = notebook["cells"]
    if not cells or cells[0]["cell_type"] != "markdown" or not WORDS_OF_A_TITLE.match(cells[0]["source"]):
        found.append("does not begin with a title")
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell["cell_type"] != "code":
            continue
        name = cell.get("id", "?")
        if cell["outputs"]:
            found.append(f"{name}: has outputs")
        if cell["execution_count"] is not None:
            found.append(f"{name}: has an execution count")
        if cell["metadata"]:
            found.append(f"{name}: has metadata {sorted(cell['metadata'])}")
        if before is None or before["cell_type"] != "markdown":
            found.append(f"{name}: no text says what it is for")
    return found


@pytest.fixture(scope="module")
def notebooks(repository):
    paths = sorted((repository / "notebooks").glob("*.ipynb"))
    assert paths
    return {path.name: nbformat.read(path, nbformat.NO_CONVERT) for path in paths}


def test_notebooks_are_committed_as_they_are_written(notebooks):
    assert {name: found for name, each in notebooks.items() if (found := problems(each))} == {}


def with_output(cell):
    cell["outputs"] = [nbformat.v4.new_output("stream", text="1\n")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_output, "code: has outputs"),
        (lambda cell: cell.update(execution_count=1), "code: has an execution count"),
        (lambda cell: cell["metadata"].update(execution={}), "code: has metadata ['execution']"),
        (lambda cell: cell.pop("source"), "invalid: 'source' is a required property"),
    ],
)
def test_a_wrong_cell_is_found(change, message):
    cells = [nbformat.v4.new_markdown_cell("# Title", id="text"), nbformat.v4.new_code_cell("1", id="code")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert problems(notebook) == []
    wrong = copy.deepcopy(notebook)
    change(wrong.cells[1])
    assert problems(wrong) == [message]


def test_a_notebook_without_texts_or_ids_is_found():
    cells = [nbformat.v4.new_code_cell("1", id="code")]
    notebook = nbformat.v4.new_notebook(cells=cells, nbformat_minor=5)
    assert problems(notebook) == ["does not begin with a title", "code: no text says what it is for"]
    old = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    old.nbformat_minor = 4
    del old.cells[0]["id"]
    assert problems(old) == ["older than version 4.5, the first whose cells have ids"]
