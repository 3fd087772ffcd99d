"""The package uses no private name of torch: one with an underscore, or below a private module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gptcli

PACKAGE = Path(gptcli.__file__).parent
ALLOWED = {  # without a public name that does the same
    "torch.ops.mkldnn._linear_pointwise.default": "a product fused with GELU",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "whether it can be",
    "torch._dynamo.config.optimize_ddp": "compiled blocks are not split at DDP's buckets",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def private_names(text: str) -> set[str]:
    """Return the private names of torch in a program, however they are imported."""
    tree, found = ast.parse(text), set()
    roots = {"torch": "torch"}  # a name in the program, and what it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                roots[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    roots[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    found.add(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, base = [node.attr], node.value
            while isinstance(base, ast.Attribute):
                parts.insert(0, base.attr)
                base = base.value
            if isinstance(base, ast.Name) and base.id in roots:
                found.add(".".join([roots[base.id], *parts]))
    private = {
        name
        for name in found
        if any(part[0] == "_" and not part.startswith("__") for part in name.split("."))
    }
    # torch.a._b.c is reported once, not for torch.a._b too
    return {name for name in private if not any(o.startswith(f"{name}.") for o in private)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_torch(path: Path) -> None:
    assert private_names(path.read_text(encoding="utf-8")) <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import torch\ntorch._foreach_mul_([], 2)", {"torch._foreach_mul_"}),
        ("import torch._dynamo.config as c\nc.limit = 1", {"torch._dynamo.config.limit"}),
        ("from torch.cpu import _init_amx", {"torch.cpu._init_amx"}),
        ("from torch import cpu as c\nc._init_amx()", {"torch.cpu._init_amx"}),
        ("import torch.distributed as dist\ndist._x.y()", {"torch.distributed._x.y"}),
        ("import torch\ntorch.__version__\nself._local()", set()),
    ],
)
def test_private_names_are_found(program: str, found: set[str]) -> None:
    assert private_names(program) == found
