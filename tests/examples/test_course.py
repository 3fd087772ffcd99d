"""The course: every notebook runs, its last cell knows right answers from wrong ones."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.extent import WHOLE

COURSE = Path(__file__).parents[2] / "examples" / "course"
NOTEBOOKS = sorted(COURSE.glob("*.ipynb"))
OPEN = "still open; the hidden code of this cell has the solution"
SHORT = {  # how little each notebook trains here; without these, as much as for a reader
    "GPT_COURSE_STEPS": "8",
    "GPT_COURSE_TOKENS": "10_000",
    "GPT_COURSE_WIDTHS": "4 6 8",
}


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def run(source: str, names: dict[str, Any]) -> str:
    """Run a cell and return what it prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(source, "cell", "exec"), names)
    return printed.getvalue()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep the number of threads of the other tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_checks_its_answers(
    notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in SHORT.items() if not WHOLE else ():
        monkeypatch.setenv(name, value)
    *sources, exercises, answers = [
        "".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"
    ]
    names: dict[str, Any] = {"__name__": "__main__"}
    for source in (*sources, exercises):
        run(source, names)
    printed = run(answers, names)
    assert re.findall(r"^\d: (.*)", printed, re.MULTILINE) == [OPEN] * 3, "no answer is given away"
    right = re.findall(r"^(?:def )?right_(\d)", answers, re.MULTILINE)
    assert right == ["1", "2", "3"]
    functions = dict(
        zip("123", re.findall(r"^(?:def (\w+)|answer_\d)", exercises, re.MULTILINE), strict=True)
    )
    for number in right:
        given = functions[number] or f"answer_{number}"
        names[given] = names[f"right_{number}"]
    assert run(answers, names).count("right") == 3
    for number in right:
        given = functions[number] or f"answer_{number}"
        kept, names[given] = names[given], (lambda *_: 10**9) if functions[number] else 10**9
        with pytest.raises(AssertionError, match=f"^{number}: "):
            run(answers, names)
        names[given] = kept


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_results(notebook: Path) -> None:
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert cells(notebook)[-1]["metadata"]["jupyter"] == {"source_hidden": True}
    readme = (COURSE / "README.md").read_text(encoding="utf-8")
    assert f"]({notebook.name})" in readme
    assert "".join(cells(notebook)[0]["source"]).splitlines()[0].removeprefix("# ") in readme


def test_the_course_has_six_notebooks() -> None:
    assert len(NOTEBOOKS) == 6
