"""A small sample of `python -m tests.interrupts`: Ctrl-C at a few moments of every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.extent import WHOLE

ROOT = Path(__file__).parents[2]
AT_WORK = ["tokenize train", "tokenize encode", "build-shards", "train", "finetune", "cost"]
AT_WORK += ["sample", "sample -i", "eval", "eval, a task"]
FROM_THE_FIRST_IMPORT_ON = ["sample, a stream=4/1"]
SEVERAL_PROCESSES = ["build-shards, 2=2", "train, 2=1"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
def test_ctrl_c_is_answered_with_one_line_and_leaves_nothing_half_done() -> None:
    """In a process of its own: forks of one that has already run threads would hang."""
    names = [*AT_WORK, *FROM_THE_FIRST_IMPORT_ON, *SEVERAL_PROCESSES]
    words = ["--show", "--moments", "10" if WHOLE else "2", "--fresh", "0", "--again", "3", *names]
    program = [sys.executable, "-m", "tests.interrupts", *words]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(" 0 broken promises")
