"""The library as a program and a notebook use it: examples/api.py, examples/api.ipynb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.run_python import run_python

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "api.ipynb"


def code_cells() -> list[str]:
    """Return the source of the notebook's code cells."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_example_goes_from_a_text_to_a_score(tmp_path: Path) -> None:
    out = run_python(EXAMPLES / "api.py", cwd=tmp_path)
    assert "validation loss" in out
    assert "GPT-3 175B on 1,024 H100s" in out


def test_notebook_runs_cell_by_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    torch.set_num_threads(1)
    names: dict[str, object] = {"__name__": "__main__"}
    for source in code_cells():
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert "validation loss" in capsys.readouterr().out


def test_notebook_takes_the_steps_of_the_example() -> None:
    example = (EXAMPLES / "api.py").read_text(encoding="utf-8")
    steps = [line.strip() for line in "\n".join(code_cells()[1:]).splitlines() if line.strip()]
    assert len(steps) > 15
    assert [line for line in steps if line not in example] == []
