"""Errors for paths without a model say what is there and what to do."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from gptcli.model.not_a_model import HUB, no_weights_error, not_a_model_error


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, data: bytes | str = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)


LLMC = struct.pack("<2i", 20240326, 3) + b"\0" * 100
SHARD = struct.pack("<3i", 20240520, 1, 0) + b"\0" * 100
# files that are there, the path named, what the answer says
FILES: dict[str, tuple[dict[str, bytes | str], str, str]] = {
    "a name of the hub": ({}, "gpt2", "hf download openai-community/gpt2 config.json model.safetensors tokenizer.json --local-dir gpt2"),
    "a whole name of the hub": ({}, "some-lab/tiny-gpt", "hf download some-lab/tiny-gpt .* --local-dir tiny-gpt"),
    "a path that was mistyped": ({"runs/small/x": "x"}, "runs/smal", "did you mean runs/small?"),
    "a run without its folder": ({"runs/350M/x": "x"}, "350M", "did you mean runs/350M?"),
    "nothing": ({}, "runs/350M", "no such folder\n  a model is a run folder"),
    "a quoted home": ({}, "~/runs/a", "remove the quotes"),
    "weights alone": ({"m/model.safetensors": "x"}, "m/model.safetensors", "one file of a model.*\n  name its folder: m"),
    "a configuration": ({"m/config.json": "{}"}, "m/config.json", "name its folder: m"),
    "a .pt file": ({"model.pt": b"PK\x03\x04"}, "model.pt", "model.pt is a pickle.*never loaded\n  if you trust it"),
    "a checkpoint without an ending": ({"model": b"\x80\x02"}, "model", "is a pickle"),
    "pytorch_model.bin": ({"m/pytorch_model.bin": b"PK\x03\x04", "m/config.json": "{}"}, "m/pytorch_model.bin", "M.from_pretrained"),
    "nanoGPT's folder": ({"out/ckpt.pt": b"PK\x03\x04"}, "out", "it looks like a checkpoint of nanoGPT"),
    "the folder above it": ({"nano/out/ckpt.pt": b"PK\x03\x04"}, "nano", "it looks like a checkpoint of nanoGPT"),
    "llm.c's model": ({"gpt2_124M.bin": LLMC}, "gpt2_124M.bin", "llm.c's own format"),
    "a token file": ({"s/train.bin": SHARD}, "s/train.bin", "token file, not a model\n  gpt train --data s"),
    "a GGUF": ({"m/m.gguf": b"GGUF"}, "m", "GGUF"),
    "shards": ({"shards/manifest.json": "{}"}, "shards", "contains token shards, not a model\n  gpt train --data shards"),
    "a run that has not ended": ({"r/run.toml": ""}, "r", "has not ended.*\n  gpt train --resume --out r"),
    "weights without a configuration": ({"m/model.safetensors": "x"}, "m", "no config.json"),
    "a LoRA adapter": ({"m/adapter_config.json": "{}", "m/adapter_model.safetensors": "x"}, "m", "LoRA adapter"),
    "a folder of runs": ({"runs/a/config.json": "{}", "runs/b/config.json": "{}"}, "runs", "name one of the models in it: runs/a, runs/b"),
    "the hub's cache": ({"models--a--b/snapshots/0/config.json": "{}"}, "models--a--b", "models--a--b/snapshots/0"),
    "any file": ({"notes": "x"}, "notes", "is a file; a model is a folder"),
    "any folder": ({"d/notes": "x"}, "d", "contains no config.json\n  a model is a run folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_error_says_what_the_path_is_and_what_to_do(case: str) -> None:
    files, named, answer = FILES[case]
    for path, data in files.items():
        write(path, data)
    error = not_a_model_error(Path(named))
    assert error.where == named
    assert re.search(answer.replace("?", r"\?"), f"{error.what}\n  {error.hint}"), error


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    assert "is an empty folder" in not_a_model_error(tmp_path).what


@pytest.mark.parametrize("name", HUB)
def test_every_hub_name_gets_a_download_command(name: str) -> None:
    assert f"hf download {HUB[name]} " in str(not_a_model_error(Path(name)).hint)


def test_folder_without_weights_is_reported() -> None:
    write("a/config.json")
    assert "contains no model.safetensors" in no_weights_error(Path("a")).what
    write("a/pytorch_model.bin", b"PK\x03\x04")
    assert "from_pretrained('a').save_pretrained('a-safetensors')" in str(
        no_weights_error(Path("a")).hint
    )
