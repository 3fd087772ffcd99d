"""The acceptance script, tried at a tiny size on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu_acceptance
from tests.benchmarks.gpu_acceptance import PREDICTED, STAGES, TOTAL_S, Setting, drive


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "acceptance.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_and_says_something(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NANOGPT", raising=False)
    STAGES[stage][1](Setting("cpu", True, tmp_path))
    lines = lines_of(tmp_path)
    assert lines
    assert {line["stage"] for line in lines} == {stage}
    if stage == "correctness":
        assert all(line["cosine"] > 0.99 and line["loss_away"] < 3e-3 for line in lines)
    if stage == "same-bits":
        assert all(line["equal"] for line in lines)
    if stage == "engines":
        assert lines[0]["fsdp_away"] < 1e-5
        assert lines[1]["resumed_away"] == 0
        assert lines[1]["same_tokens"]


def test_a_stage_that_hangs_or_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fails at once, because its process knows no such stage."""
    monkeypatch.setitem(STAGES, "unknown", (30, lambda _: None))
    drive(Setting("cpu", True, tmp_path), ["unknown", "nanoGPT"], total=120)
    lines = lines_of(tmp_path)
    assert lines[0]["stage"] == "predictions"
    assert [line["failed"] for line in lines if "failed" in line] == [2]
    assert [line["stage"] for line in lines if "seconds" in line] == ["unknown", "nanoGPT"]


def test_no_time_left_is_said(tmp_path: Path) -> None:
    drive(Setting("cpu", True, tmp_path), ["int8"], total=1)
    assert lines_of(tmp_path)[-1] == {"stage": "int8", "skipped": "no time is left"}


def test_predictions_are_printed_beside_what_was_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = PREDICTED["train-124M"]["tokens_per_second"]
    Setting("cpu", True, tmp_path).say("train-124M", tokens_per_second=predicted / 2)
    capsys.readouterr()
    gpu_acceptance.main(["--compare", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"tokens_per_second predicted {predicted:,}, {predicted / 2:,.4g}, 0.50 of it" in printed
    assert "not seen" in printed


def test_the_limits_are_those_of_a_quarter_of_an_hour() -> None:
    assert TOTAL_S == 470
    assert sum(limit for limit, _ in STAGES.values()) <= TOTAL_S + 30
