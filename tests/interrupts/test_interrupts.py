"""A small sample of `python -m tests.interrupts`: Ctrl-C at a few moments of every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ["tokenize train", "tokenize encode", "build-shards", "train", "sample", "eval", "cost", "eval, a task", "finetune"]
COMMANDS += ["sample, a stream", "sample -i"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
@pytest.mark.parametrize(
    "words",
    [
        ["--moments", "3", "--fresh", "0", "--again", "3", *COMMANDS],
        ["--moments", "1", "--fresh", "1", "--again", "2", "sample, a stream"],
        ["--moments", "2", "--fresh", "0", "--again", "2", "train, 2", "build-shards, 2"],
    ],
    ids=["at work", "from the first import on", "several processes"],
)
def test_ctrl_c_is_answered_with_one_line_and_leaves_nothing_half_done(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.interrupts", "--show", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(" 0 broken promises")
