"""The house stands: imports go down its floors, never up and never sideways, and quick commands
import nothing heavy.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gptcli
from gptcli.cli import COMMANDS
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from tests.small_runs import make_shards

PACKAGE = Path(gptcli.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"finetune", "serving"},
    {"corpus", "trainer", "evals"},
    {"distributed"},
    {"sampling"},
    {"text", "runs"},
    {"cost", "shards"},
    {"tokenizer"},
    {"optional_kernels"},
    {"kernels"},
    {"model"},
    {"papers"},
    {"devices", "locks", "schema", "openmp"},
    {"runtime", "settings"},
    {"files"},
    {"toml_json"},
    {"encodings"},
    {"events"},
    {"errors", "interrupts", "numbers", "units", "__init__"},
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
    """Loaders that run code: pickle's, torch's without weights_only, numpy's with allow_pickle,
    templates, eval and exec.
    """
    unsafe = re.compile(
        r"\bpickle\b(?!d)|torch\.load\((?!.*weights_only=True)|allow_pickle=True|(?<![.\w])(?:eval|exec)\(|yaml\.|import yaml|marshal|shelve"
    )
    found = {
        path.name: match[0]
        for path in MODULES
        for line in path.read_text().splitlines()
        if (match := unsafe.search(line.split("#")[0]))
    }
    # sentences on what is not read
    names = ("checkpoint_storage.py", "external.py", "load.py", "source.py", "tensor_file.py")
    prose = dict.fromkeys(names, "pickle")
    # a reader that looks up no class and no function: tests/tokenizer/test_characters.py
    reader = (PACKAGE / "tokenizer" / "characters.py").read_text()
    assert found == prose | {"characters.py": "pickle", "errors.py": "marshal"}
    assert {*re.findall(r"pickle\.\w+", reader)} == {"pickle.Unpickler", "pickle.UnpicklingError"}


HEAVY = ("torch", "numpy", "tokenizers", "safetensors", "transformers")
UNREAD = (*HEAVY, "pydantic", "rich", "asyncio", "http", "multiprocessing", "sqlite3", "email")
"""Libraries that take long to import, and of which no help and no estimate shows anything."""
MOST_MODULES = 260
"""Most modules that a quick command may import; it takes 180 to 220 on Python 3.11."""
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
DISTRIBUTED = tuple(
    f"torch.distributed.{name}" for name in ("checkpoint", "fsdp", "pipelining", "tensor.parallel")
)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["cost", "--size", "175B"],
        *([command, "--help"] for command in COMMANDS),
        ["tokenize", "train", "-h"],
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
print([name for name in {UNREAD!r} if name in sys.modules], file=sys.stderr)
print(len(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, unneeded, count = done.stderr.splitlines()
    assert unneeded == "[]"
    assert int(count) <= MOST_MODULES


def test_the_list_of_tasks_imports_no_torch() -> None:
    program = """
import sys
sys.argv = ["gpt", "eval", "--list"]
from gptcli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print([name for name in ("torch", "tokenizers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_runs_import_what_they_need(tmp_path: Path) -> None:
    """Sampling and evaluation leave out the compiler and what distributes training; a training run
    on one process, pipeline stages. (PyTorch's optimizers import the compiler themselves.)
    """
    make_shards(tmp_path / "shards")
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=16, vocab_size=260))
    shutil.copy(tmp_path / "shards" / "tokenizer.json", tmp_path)
    save_model(tmp_path, model, model.config, eot_id=0)
    lines = [
        ("sample . ab --max-tokens 2", (*COMPILER, *DISTRIBUTED)),
        ("eval . --data shards", (*COMPILER, *DISTRIBUTED)),
        (
            "train --size gpt2 --n-layer 1 --n-head 1 --d-model 8 --n-ctx 16 --tokens 128"
            " --batch-tokens 64 --compile off --samples 0 --data shards --out run",
            ("torch.distributed.pipelining",),
        ),
    ]
    program = f"""
import sys
from gptcli.cli import main
for line, unneeded in {lines!r}:
    sys.argv = ["gpt", *line.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, line
    found = [name for name in unneeded if name in sys.modules]
    assert not found, (line, found)
assert "torch" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


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
