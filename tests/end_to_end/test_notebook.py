"""The notebooks run, and the outputs that are committed with them are those of such a run."""

from __future__ import annotations

import base64
import io
import re

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

from tests.end_to_end.notebooks import FOLDER, NOTEBOOKS, execute

COMMITTED = {file.stem: nbformat.read(file, as_version=4) for file in NOTEBOOKS}
# Folders of a machine, in a text or an error.
PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|var|mnt|Users|private)/|[A-Z]:\\\\|site-packages")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook):
    """What each code cell shows: kinds of outputs, and texts without the digits that a processor may change.

    Of a cell with the tag `answers`, whose words a training decides, the number of lines is all that is compared.
    """
    shown = {}
    for cell in code(notebook):
        texts = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        kinds = [kind for output in cell.outputs if "data" in output for kind in output.data]
        answers = "answers" in cell.metadata.get("tags", ())
        shown[cell.id] = texts.count("\n") if answers else re.sub(r"\d+", "0", texts), kinds
    return shown


def pictures(notebook):
    """The pictures that are shown: int array (height, width, 3) each."""
    outputs = [output for cell in code(notebook) for output in cell.outputs if "data" in output]
    files = [io.BytesIO(base64.b64decode(output.data["image/png"])) for output in outputs if "image/png" in output.data]
    return [np.asarray(Image.open(file), dtype=int) for file in files]


def test_the_first_prompt_is_there():
    assert "first_prompt" in COMMITTED


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_what_is_committed(file, tmp_path):
    """In an empty folder, from a copy."""
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    now, then = execute(copy, tmp_path), COMMITTED[file.stem]
    assert [cell.source for cell in now.cells] == [cell.source for cell in then.cells]
    assert said(now) == said(then)
    fresh, committed = pictures(now), pictures(then)
    assert [picture.shape for picture in fresh] == [picture.shape for picture in committed]
    # The first shows the data, before anything is learned.
    assert np.abs(fresh[0] - committed[0]).max() <= 1


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_outputs_are_whole_and_name_no_folder_of_a_machine(name):
    notebook = COMMITTED[name]
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not PATHS.findall(text)
    assert len(text) < 200_000
    assert pictures(notebook)
    assert all(max(picture.shape) <= 400 for picture in pictures(notebook)), "pictures are small"


def test_a_path_of_a_machine_would_be_noticed():
    for text in ("in /home/anna/x", '"/tmp/pytest/a"', "/opt/venv/lib/python3.11/site-packages/tqdm", r"C:\\Users"):
        assert PATHS.search(text), text
    assert not PATHS.search("samples/notebooks/first_prompt.ipynb and work/run, a 1/2")


def test_a_cell_that_fails_fails_the_run(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "fails.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "fails.ipynb", tmp_path)
