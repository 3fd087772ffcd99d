"""Mutants of a Python file: one operator, comparison, number, condition, return value or call that
is another.

Texts stay as they are, and so do annotations: what a message says is not what these tests are for.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
}  # fmt: skip
PASSED_OVER = ("annotation", "returns", "decorator_list", "type_params")
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    path: Path
    what: str
    """Line, and what is there instead of what; empty: the file as it is."""
    number: int
    """Among the mutants of its file."""

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}:{self.what}"


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        Mutant(path, f"{line}: {before} -> {after}", number)
        for number, (line, before, after) in enumerate(map(_told, _changes(tree)))
    ]


def plant(mutant: Mutant) -> None:
    """From now on, this process imports the mutant in the place of its module."""
    tree = ast.parse(mutant.path.read_text(encoding="utf-8"))
    if mutant.what:
        parent, field, index, new, _ = list(_changes(tree))[mutant.number]
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new
    code = compile(ast.fix_missing_locations(tree), str(mutant.path), "exec", dont_inherit=True)
    sys.meta_path.insert(
        0, _Finder(".".join(mutant.path.with_suffix("").parts[-3:]), str(mutant.path), code)
    )


# the parent, its field, the place in it, what comes there, the line
Change = tuple[ast.AST, str, int | None, ast.AST, int]


def _changes(parent: ast.AST) -> Iterator[Change]:
    """In the order of the file."""
    for field, value in ast.iter_fields(parent):
        if field in PASSED_OVER:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                line = getattr(child, "lineno", getattr(parent, "lineno", 0))
                for new in _instead(field, child):
                    yield parent, field, index, new, line
                yield from _changes(child)


def _instead(field: str, node: ast.AST) -> Iterator[ast.AST]:
    if type(node) in OPERATORS:
        yield OPERATORS[type(node)]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield ast.Call(ast.Name(CALLS[node.func.id], ast.Load()), node.args, node.keywords)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Break | ast.Continue):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    # of if, while and x if y else z
    if field == "test" and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
        assert isinstance(node, ast.expr)
        yield ast.UnaryOp(ast.Not(), node)


def _told(change: Change) -> tuple[int, str, str]:
    """The line, and what stands around the change, before and after; a statement stands by
    itself.
    """
    parent, field, index, new, line = change
    value = getattr(parent, field)
    if isinstance(new, ast.stmt):
        return line, _short(value[index]), _short(new)
    after: Any = copy.copy(parent)
    setattr(after, field, new if index is None else [*value[:index], new, *value[index + 1 :]])
    return line, _short(parent), _short(after)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 70 else f"{text[:67]}..."


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, whose code is at hand."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(name, self.path, loader=self)
            if name == self.name
            else None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(self.code, module.__dict__)
