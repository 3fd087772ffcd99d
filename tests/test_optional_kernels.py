"""The model is plain PyTorch, and every command works without `gptcli/kernels`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gptcli
from gptcli import optional_kernels
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from tests.small_runs import make_shards

PACKAGE = Path(gptcli.__file__).parent


def test_the_model_imports_neither_kernels_nor_ctypes_nor_cli() -> None:
    modules = [
        f"gptcli.model.{path.stem}".removesuffix(".__init__")
        for path in sorted((PACKAGE / "model").glob("*.py"))
    ]
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
ours = [name for name in sys.modules if name.split(".")[0] == "gptcli"]
print([name for name in ours if name.split(".")[1:2] in (["kernels"], ["cli"], ["optional_kernels"])])
print([name for name in ours if "ctypes" in vars(sys.modules[name])])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


SIZES = "--n-layer 1 --n-head 1 --d-model 8 --n-ctx 16"
COMMANDS = [
    "cost --size 124M",
    f"train --size 124M {SIZES} --tokens 640 --batch-tokens 64 --precision bf16 --recompute selective"
    " --data shards --out run",
    "sample run ab --max-tokens 4 --quantize int8",
    "eval run --data shards",
]


def test_every_command_works_without_the_kernels(tmp_path: Path) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "gptcli", ignore=shutil.ignore_patterns("kernels", "__pycache__")
    )
    make_shards(tmp_path / "shards")
    program = f"""
import sys
import gptcli
from gptcli.cli import main
assert gptcli.__file__.startswith({str(tmp_path)!r}), gptcli.__file__
for command in {COMMANDS!r}:
    sys.argv = ["gpt", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, command
assert not [name for name in sys.modules if name.startswith("gptcli.kernels")]
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_without_the_package_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_kernels, "KERNELS", "gptcli.removed")
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=4, vocab_size=5))
    before = [dict(module.__dict__) for module in model.modules()]
    optional_kernels.install(model, fuse_blocks=True)
    optional_kernels.uninstall(model)
    assert [dict(module.__dict__) for module in model.modules()] == before
    assert optional_kernels.kernels() is None
    assert not optional_kernels.available("linear")
    assert optional_kernels.instruction_set() is None
    assert optional_kernels.compiler_failure() is None
    assert optional_kernels.decode_step(model) is None
