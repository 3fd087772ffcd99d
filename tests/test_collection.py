"""Every process that collects the suite must find the same tests in the same order: workers that
run it in parallel rely on that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COLLECT = """
import json, sys, time
from pathlib import Path

import pytest

now, now_ns, later = time.time, time.time_ns, float(sys.argv[2])
time.time, time.time_ns = lambda: now() + later, lambda: now_ns() + int(later * 1e9)


class Ids:
    def pytest_collection_finish(self, session):
        Path(sys.argv[1]).write_text(json.dumps([item.nodeid for item in session.items]))


sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist"], [Ids()]))
"""


def collected(root: Path, folder: Path, *, later: float, hash_seed: int) -> list[str]:
    """Return the ids of the suite in `root`, from a process with a clock `later` seconds ahead and
    other temporary folders and hashes.
    """
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, folder / "ids.json", str(later)],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONHASHSEED": str(hash_seed),
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ids: list[str] = json.loads((folder / "ids.json").read_text())
    return ids


def left_out(folder: str, names: list[str]) -> set[str]:
    """Return the names in a folder that are no part of the repository."""
    if Path(folder) == ROOT:
        return {name for name in names if name.startswith(".") or name in ("runs", "shards")}
    return {name for name in names if name in ("out", "__pycache__")}


def test_two_processes_at_other_times_and_places_collect_the_same_tests(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The first process is this one if it has collected the whole suite."""
    other = tmp_path / "another name"
    shutil.copytree(ROOT, other, ignore=left_out)
    config = request.config
    chosen = config.option.keyword or config.option.markexpr
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen:
        first = [item.nodeid for item in request.session.items]
    else:
        first = collected(ROOT, tmp_path / "first", later=0, hash_seed=1)
    second = collected(other, tmp_path / "second", later=86_400 * 400, hash_seed=2)
    assert len(first) > 1000
    assert [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]] == []
    assert len(set(first)) == len(first)
