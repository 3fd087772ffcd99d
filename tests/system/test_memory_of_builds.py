"""Memory of a build, held to the bound that examples/docs/pages/how-to/own-data.md states."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from tests.run_python import run_python

OWN_DATA = Path("examples/docs/pages/how-to/own-data.md")
BUILD = "gpt build-shards a.jsonl -t tokenizer.json -o out --workers 1 --val-fraction 0"
# What the system counted for a process that it was forked from is not its own.
PROGRAM = f"""
import re, runpy, sys
from pathlib import Path
sys.argv = {BUILD.split()}
try:
    runpy.run_module("gptcli", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_document_takes_the_memory_that_is_stated(tmp_path: Path) -> None:
    stated = re.search(
        r"worker needs (\d+) MB for the program.*?(\d+) times its\s+largest document",
        OWN_DATA.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert stated is not None
    program, copies = map(int, stated.groups())
    megabytes = 24
    words = [f"word{number} " for number in range(1000)]
    # One character beyond Latin-1: Python keeps all of them in two bytes each.
    text = "".join(random.Random(0).choices(words, k=megabytes * 125_000)) + "Ω"
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(tmp_path / "tokenizer.json")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    size = (tmp_path / "a.jsonl").stat().st_size / 1e6
    peak = int(run_python("-c", PROGRAM, cwd=tmp_path, started=True).split()[-1]) * 1024 / 1e6
    assert 2 * size < peak < program + copies * size
