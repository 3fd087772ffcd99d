"""Limits of prose: they are lowered with each step, never raised."""

from __future__ import annotations

import ast
from pathlib import Path

import gptcli
from tests.prose import QUESTIONS, count

SAMPLE = (
    '''"""Of a module that begins badly."""

def good():
    """Return nothing."""
    def inside(): ...

def _private(): ...

class Bare:
    def method(self):
        """Whether it counts."""
'''
    + f"wide = {'1' * 100}\n"
)


def test_counts(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SAMPLE)
    (tmp_path / "test_a.py").write_text(SAMPLE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "b.py").write_text(SAMPLE)
    found = count(tmp_path)
    assert (found.modules, found.docstrings, len(found.long_lines)) == (1, 3, 1)
    assert [where.split()[-1] for where in found.questions] == ["a", "method"]
    assert [where.split()[-1] for where in found.undocumented] == ["Bare"]


def test_the_package_reads_no_worse_than_before() -> None:
    found = count(Path(gptcli.__file__).parent)
    assert found.question_share < 0.01, found.questions
    assert found.long_share < 0.01
    assert len(found.undocumented) < 4, found.undocumented


def test_docstrings_of_tests_say_what_is_and_ask_nothing() -> None:
    found = count(Path(__file__).parent, tests=True)
    assert found.question_share < 0.01, found.questions


def test_names_of_tests_are_claims() -> None:
    names = {
        node.name: path
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    questions = [name for name in names if name.split("_")[1] in QUESTIONS]
    assert len(questions) < 0.01 * len(names), questions
