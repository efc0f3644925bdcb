"""Runs the notebooks of samples/notebooks in an empty folder.

python -m tests.end_to_end.notebooks     writes what they show into them; `make notebooks` is the same
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(file: Path, folder: Path) -> Any:
    """Run a notebook in a folder; returns it with what it shows now. What a cell raises is raised."""
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as connection:  # by files of a short name, so that no port is opened
        manager = {"transport": "ipc", "connection_file": f"{connection}/kernel.json"}
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
            config=Config(KernelManager=manager),
        )
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "TVP_HOME": str(folder / "home")})
    return notebook


def main() -> None:
    for file in NOTEBOOKS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(file, Path(folder))
        nbformat.write(notebook, file)
        print(f"{file.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
