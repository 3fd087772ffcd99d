"""Count how a code base reads: how its docstrings begin, which public names lack one, how long its
lines are.

    python -m tests.prose                          this package
    python -m tests.prose gptcli ../torchtitan     several code bases, a row each

The same counts of any code base, so that ours can be compared with those that people hold up.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# a docstring that begins so is a relative clause, not a sentence
QUESTIONS = ("what", "of", "whether", "which", "how")
MAX_COLUMNS = 100
SKIPPED = {"tests", "test", "build", "dist", "third_party", "node_modules"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Counts:
    """Counts of one code base."""

    modules: int = 0
    lines: int = 0
    docstrings: int = 0
    questions: list[str] = field(default_factory=list)
    """Places of docstrings that begin with one of QUESTIONS."""
    long_lines: list[str] = field(default_factory=list)
    """Lines of more than MAX_COLUMNS."""
    undocumented: list[str] = field(default_factory=list)
    """Public functions, methods and classes without a docstring."""

    @property
    def question_share(self) -> float:
        return len(self.questions) / max(1, self.docstrings)

    @property
    def long_share(self) -> float:
        return len(self.long_lines) / max(1, self.lines)


def count(root: Path, *, tests: bool = False) -> Counts:
    """Count the Python modules below `root`, tests left out unless `tests`."""
    found = Counts()
    for path in sorted(root.rglob("*.py")):
        folders = {part.lower() for part in path.relative_to(root).parts[:-1]}
        if not tests and (SKIPPED & folders or path.name.startswith("test_")):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        found.modules += 1
        for number, line in enumerate(text.splitlines(), 1):
            found.lines += 1
            if len(line) > MAX_COLUMNS:
                found.long_lines.append(f"{path}:{number}")
        for node in [tree, *definitions(tree)]:
            name = getattr(node, "name", path.stem)
            where = f"{path}:{getattr(node, 'lineno', 1)} {name}"
            docstring = ast.get_docstring(node)
            if docstring:
                found.docstrings += 1
                if docstring.split(maxsplit=1)[0].lower().strip(",:") in QUESTIONS:
                    found.questions.append(where)
            elif isinstance(node, Definition) and not name.startswith("_"):
                found.undocumented.append(where)
    return found


def definitions(node: ast.AST) -> Iterator[Definition]:
    """Yield the classes, functions and methods of a module, but not functions inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from definitions(child)


def main() -> None:
    print(
        f"{'code base':<24}{'modules':>8}{'lines':>9}{'docstrings':>12}{'questions':>11}{'over 100':>10}{'undocumented':>14}"
    )
    for name in sys.argv[1:] or ["gptcli"]:
        found = count(Path(name))
        print(
            f"{Path(name).resolve().name:<24}{found.modules:>8,}{found.lines:>9,}{found.docstrings:>12,}"
            f"{found.question_share:>11.1%}{found.long_share:>10.1%}{len(found.undocumented):>14,}"
        )


if __name__ == "__main__":
    main()
