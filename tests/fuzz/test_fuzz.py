"""A short session of `python -m tests.fuzz` with every reader; and that the fuzzer finds what it
looks for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.extent import WHOLE

ROOT = Path(__file__).parents[2]
PLANTED = """
import sys
from pathlib import Path
from gptcli.files import sha256
from tests.fuzz.engine import Target, fuzz

def escape(folder):
    return sha256(folder / (folder / "a").read_text())

def deep(folder):
    data = (folder / "a").read_bytes()
    sha256(folder / "a")
    if data[:1] == b"\\xff":
        bytearray(10**15)
    if b"9999" in data:
        raise KeyError("planted")

target = Target("planted", {"a": b"a"}, {"escape": escape, "deep": deep}[sys.argv[2]])
found = fuzz(target, Path(sys.argv[1]), seconds=float("inf"), seed=0, runs=4000)
print(sorted(where.split()[-1] for where in found.crashes))
"""


def fuzzed(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_no_reader_crashes() -> None:
    assert fuzzed("-m", "tests.fuzz", "--inputs", 1000 if WHOLE else 100).endswith(" 0")


def test_the_fuzzer_sees_crashes_memory_and_escapes(tmp_path: Path) -> None:
    assert fuzzed("-c", PLANTED, tmp_path / "one", "deep") == "['KeyError', 'MemoryError']"
    assert "EscapeError" in fuzzed("-c", PLANTED, tmp_path / "two", "escape")
