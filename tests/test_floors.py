"""The house stands: imports go down its floors, never up and never sideways, and quick commands
import nothing heavy.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptcli

PACKAGE = Path(gptcli.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"finetune"},
    {"corpus", "trainer", "evals"},
    {"distributed"},
    {"sampling"},
    {"text", "runs"},
    {"cost", "shards"},
    {"optional_kernels"},
    {"kernels"},
    {"tokenizer", "model"},
    {"papers"},
    {"devices", "locks", "schema", "openmp"},
    {"runtime", "settings"},
    {"files"},
    {"toml_json"},
    {"encodings"},
    {"events"},
    {"errors", "interrupts", "numbers", "__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"


def imports_of(path: Path) -> set[str]:
    """Every module of ours that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gptcli"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    if room == "__init__":  # names the library's parts, and imports them on first use
        return
    assert room in FLOOR_OF, f"{room} has no floor"
    for module in imports_of(path):
        other = room_of(module)
        assert other == room or FLOOR_OF[other] > FLOOR_OF[room], (
            f"{path.name} ({room}) imports {module}"
        )


def test_no_utils() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]


def test_nothing_unpickles_or_runs_what_a_file_says() -> None:
    """Loaders that run code: pickle's, torch's, numpy's with allow_pickle, templates, eval and
    exec.
    """
    unsafe = re.compile(
        r"\bpickle\b(?!d)|torch\.load\(|allow_pickle=True|(?<![.\w])(?:eval|exec)\(|yaml|marshal|shelve"
    )
    found = {
        path.name: match[0]
        for path in MODULES
        for line in path.read_text().splitlines()
        if (match := unsafe.search(line.split("#")[0]))
    }
    # sentences on what is not read
    prose = dict.fromkeys(("checkpoint_storage.py", "source.py", "tensor_file.py"), "pickle")
    assert found == prose


HEAVY = ("torch", "numpy", "tokenizers", "safetensors", "transformers")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["cost", "--size", "175B"],
        ["cost", "--help"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_quick_commands_import_nothing_heavy(words: list[str]) -> None:
    program = f"""
import sys
sys.argv = {["gpt", *words]!r}
from gptcli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_cost_runs_and_papers_need_neither_torch_nor_numpy() -> None:
    modules = [
        ".".join(("gptcli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0]
        in (
            "cost",
            "papers",
            "runs",
            "files.py",
            "locks.py",
            "runtime.py",
            "settings.py",
            "errors.py",
            "events.py",
            "cli",
        )
    ]
    program = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint({{*{HEAVY!r}}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
