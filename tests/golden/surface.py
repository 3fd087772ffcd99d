"""Describe what users rely on, as values that can be compared: options, file names, JSON keys and
exit codes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from gptcli.cli import COMMANDS, build_app

TINY = [
    *("--n-layer", "1", "--n-head", "2", "--d-model", "8", "--n-ctx", "32", "--tokens", "5120"),
    *("--batch-tokens", "256", "--lr", "1e-2", "--warmup-tokens", "512", "--eval-tokens", "128"),
    *("--compile", "off", "--precision", "fp32", "--samples", "0", "--checkpoint-every", "10"),
]  # fmt: skip
CHAIN: dict[str, list[str]] = {  # what runs, in this order, in a folder that holds documents.jsonl
    "tokenize train": ["tokenize", "train", "documents.jsonl", "--vocab-size", "280", "-o", "tokenizer.json"],
    "tokenize encode": ["tokenize", "encode", "documents.jsonl", "-t", "tokenizer.json", "-o", "ids.bin"],
    "build-shards": ["build-shards", "documents.jsonl", "-t", "tokenizer.json", "-o", "shards", "--val-fraction", "0.1"],
    "train": ["train", "--data", "shards", "--out", "run", *TINY, "--json"],
    "train again": ["train", "--data", "shards", "--out", "run", *TINY],
    "train resume": ["train", "--data", "shards", "--out", "run", *TINY, "--resume"],
    "train dry run": ["train", "--data", "shards", "--out", "new", *TINY, "--dry-run", "--json"],
    "sample": ["sample", "run", "the river", "--max-tokens", "4", "--greedy", "--json"],
    "eval": ["eval", "run", "--data", "shards", "-o", "eval.json", "--json"],
    "eval of nothing": ["eval", "nothing"],
    "cost": ["cost", "--size", "175B", "--json"],
    "cost of a budget": ["cost", "--flops", "3.14e23", "--gpu", "v100", "--tflops", "28", "--price", "1.5", "--json"],
    "no such command": ["frobnicate"],
    "no such option": ["cost", "--frobnicate"],
}  # fmt: skip


def options() -> dict[str, dict[str, Any]]:
    """Return every option and argument of every command: its names, default, whether it is a flag
    or repeats.
    """
    found: dict[str, dict[str, Any]] = {}
    for command in COMMANDS:
        top: Any = get_command(build_app([command])).commands[command]  # type: ignore[attr-defined]
        for name, leaf in getattr(top, "commands", {"": top}).items():
            found[f"{command} {name}".strip()] = {
                "/".join(sorted(parameter.opts)): {
                    "default": _plain(parameter.default),
                    "shown": _plain(getattr(parameter, "show_default", None)),
                    "flag": bool(getattr(parameter, "is_flag", False)),
                    "repeats": bool(parameter.multiple or parameter.nargs == -1),
                    "required": parameter.required,
                }
                for parameter in leaf.params
                if not getattr(parameter, "hidden", False)
            }
    return found


def outputs(folder: Path) -> dict[str, Any]:
    """Run CHAIN in `folder`; return each command's exit code and JSON keys, and the files that are
    left with theirs.
    """
    codes, reports = {}, {}
    for name, words in CHAIN.items():
        done = subprocess.run(
            [sys.executable, "-m", "gptcli", *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
        )
        codes[name] = done.returncode
        if "--json" in words and done.returncode == 0:
            report = json.loads(done.stdout)
            reports[name] = {"schema": report["schema"], "keys": keys(report)}
    files = {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"exit codes": codes, "reports": reports, "files": files}


def keys(value: Any, prefix: str = "") -> list[str]:
    """Return the paths of all keys in a JSON value, sorted; `[]` is every entry of a list, PATH a
    file's name.
    """
    found: set[str] = set()
    if isinstance(value, dict):
        for key, part in value.items():
            name = "PATH" if "/" in key else key
            found |= {f"{prefix}{name}", *keys(part, f"{prefix}{name}.")}
    elif isinstance(value, list):
        found |= {key for part in value for key in keys(part, f"{prefix.removesuffix('.')}[].")}
    return sorted(found)


def _content(path: Path) -> list[str]:
    """Return the keys of a JSON or TOML file; nothing for other files, and for an index, whose keys
    are tensors.
    """
    if path.suffix == ".json" and path.name not in ("index.json", "tokenizer.json"):
        return keys(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl" and path.name != "documents.jsonl":
        return sorted(
            {
                key
                for line in path.read_text(encoding="utf-8").splitlines()
                for key in keys(json.loads(line))
            }
        )
    if path.suffix == ".toml":
        import tomllib

        return keys(tomllib.loads(path.read_text(encoding="utf-8")))
    return []


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
