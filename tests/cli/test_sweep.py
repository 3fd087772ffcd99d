"""Make runs the sweep that was asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gptcli.cli.sweep import parse_sweep, write_sweep
from gptcli.errors import UsageError


def test_values_are_read_whether_their_commas_were_split_or_not() -> None:
    wanted = {"lr": ["1e-3", "2e-3"], "batch_tokens": ["8k"]}
    assert parse_sweep(["lr=1e-3,2e-3", "batch-tokens=8k"]) == wanted
    assert parse_sweep(["lr=1e-3", "2e-3", "--batch-tokens = 8k"]) == wanted
    for wrong in (["1e-3"], ["lr="], ["lr=1", "lr=2"], ["lr=1,,2"], ["=3"]):
        with pytest.raises(UsageError):
            parse_sweep(wrong)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_each_command_once_and_then_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/gpt"
    fake.write_text(
        '#!/bin/sh\necho "$*" >> asked\n'
        'while [ $# -gt 0 ]; do case "$1" in -o) out=$2;; esac; shift; done\n'
        'case "$out" in *.html) touch "$out";; *) mkdir -p "$out"; touch "$out/seeds.json";; esac\n'
    )
    fake.chmod(0o755)
    out = Path("sweep")
    runs = write_sweep(
        out, {"lr": ["1e-3", "2e-3"], "ema": ["0", "0.9"]}, ["--data", "a $b"], seeds=3
    )
    assert [run.name for run in runs][:2] == ["lr-1e-3,ema-0", "lr-1e-3,ema-0.9"]
    make = ["make", "-s", "-j2", "-f", "sweep/Makefile"]
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(make, check=True, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 5
    assert asked[-1].startswith("train --report sweep/lr-1e-3,ema-0 ")
    assert sorted(asked[:4])[0] == (
        "train --data a $b --lr 1e-3 --ema 0 --seeds 3 -o sweep/lr-1e-3,ema-0 --resume"
    )
    assert len((out / "commands.txt").read_text().splitlines()) == 4


def test_names_that_make_cannot_have_are_refused(tmp_path: Path) -> None:
    for folder in ("two words", "a:b", "x=y"):
        with pytest.raises(UsageError, match="make cannot"):
            write_sweep(tmp_path / folder, {"lr": ["1"]}, [])
    with pytest.raises(UsageError, match="same values"):
        write_sweep(tmp_path / "x", {"lr": ["1", "1"]}, [])
