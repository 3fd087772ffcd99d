"""The demo in miniature: its chain of commands, and the commands that it ends with."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
TINY = (
    "MODEL=--size gpt2 --n-layer 1 --n-head 1 --d-model 16 --n-ctx 32 --compile off --precision fp32",
    "RECIPE=--tokens 16k --batch-tokens 1024 --lr 1e-3 --warmup-tokens 1k",
)


@pytest.fixture(scope="module")
def corpus() -> dict[str, object]:
    """The names of make_corpus.py."""
    return runpy.run_path(str(QUICKSTART / "make_corpus.py"))


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_commands_it_ends_with_work_from_where_the_user_is(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    documents = corpus["documents"](Path(json.__file__).parents[1] / "email", everything=False)
    lines = [json.dumps({"text": text}) for text, _ in zip(documents, range(100), strict=False)]
    (out / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PWD": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }

    def run(command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    shown = run(["make", "-C", str(QUICKSTART), f"OUT={out}", *TINY])
    made, after = shown.split("── Files in out ──")[1].split("── What to try next ──")
    for name in re.findall(r"^([\w.]+)/? ", made, re.MULTILINE):
        assert (out / name).exists(), name
    loss = json.loads((out / "eval.json").read_text(encoding="utf-8"))["losses"][0]
    assert f"{loss['loss']:.2f} nats per token, {loss['bits_per_byte']:.2f} bits per byte;" in made
    assert f"{loss['unigram_entropy']:.2f} nats (" in made
    commands = [line for line in after.splitlines() if line and not line.startswith(("#", "make"))]
    assert [command.endswith(" --serve") for command in commands] == [True, False, False, False]
    assert max(map(len, (made + after).splitlines())) <= 80
    for command in commands[1:]:
        assert run(["sh", "-c", command]), command


def test_a_table_is_told_from_code(corpus):
    from encodings import cp1252
    from html import entities
    from html import parser as code

    for module in (cp1252, entities):
        assert corpus["is_table"](Path(str(module.__file__)).read_text(encoding="utf-8"))
    assert not corpus["is_table"](Path(code.__file__).read_text(encoding="utf-8"))


def test_the_corpus_is_the_library_without_what_only_some_pythons_have(corpus, tmp_path):
    files = (
        "json/decoder.py",
        "idlelib/editor.py",
        "encodings/cp437.py",
        "test/test_json.py",
        "site-packages/torch.py",
    )
    for name in files:
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(f"def function_of_{path.stem}(x):\n    return x\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")

    def functions(*, everything: bool) -> list[str]:
        text = "\n".join(corpus["documents"](tmp_path, everything=everything))
        return re.findall(r"function_of_(\w+)", text)

    assert functions(everything=False) == ["decoder"]
    assert functions(everything=True) == ["cp437", "editor", "decoder"]
