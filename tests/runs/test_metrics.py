from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.model.config import ModelConfig
from gptcli.model.hf import to_transformers
from gptcli.model.source import METRICS, SAMPLES
from gptcli.runs.metrics import (
    MAX_MEAN_STEPS,
    MetricsLog,
    read_batch_tokens,
    read_metrics,
    read_run_result,
    smoothed_loss,
    window,
)
from gptcli.trainer.checkpoint import Checkpoints


def test_a_resume_removes_later_and_incomplete_lines(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / step})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    log = MetricsLog(tmp_path, before=4)
    log.write({"step": 4, "loss": 0.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    kept = read_metrics(tmp_path)[2]
    assert datetime.fromisoformat(kept.pop("time")).utcoffset() == timedelta(0)
    assert kept == {"step": 3, "loss": 1 / 3}


def test_lines_without_a_time_are_kept_unchanged(tmp_path):
    """A run of an older version goes on; other logs, whose bytes are compared, have no times."""
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    log = MetricsLog(tmp_path, before=2)
    log.write({"step": 2, "loss": 1.5})
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 2.0}
    assert second.keys() == {"step", "loss", "time"}
    assert list(log.newest) == [first, second], (
        "what a running mean of the loss needs, from before the resume too"
    )
    MetricsLog(tmp_path, name=SAMPLES).write({"step": 1})
    assert (tmp_path / SAMPLES).read_text() == '{"step": 1}\n'


def losses(*values, tokens=64):
    return [
        {"step": step, "loss": loss, "batch_tokens": tokens} for step, loss in enumerate(values, 1)
    ]


def test_a_small_last_batch_has_little_weight():
    lines = losses(*[3.0] * 99)
    lines.append({"step": 100, "loss": 9.0, "batch_tokens": 1})
    assert smoothed_loss(lines) == pytest.approx(3 + 6 / (4 * 64 + 1))
    assert smoothed_loss(losses(9.0)) == 9.0
    assert smoothed_loss([]) is None


def test_the_smoothed_loss_uses_the_newest_finite_losses():
    assert smoothed_loss(losses(*[9.0] * 95, *[2.0] * 5)) == 2.0
    assert smoothed_loss(losses(*[9.0] * 95, 2.0, None, 4.0, None, None)) == 3.0
    assert smoothed_loss(losses(None, None)) is None


@given(st.integers(1, 10**7))
def test_the_window_is_a_twentieth_from_5_to_100_steps(step):
    assert window(step) == min(step, max(5, min(100, step // 20)))
    assert window(step) <= min(step, MAX_MEAN_STEPS)


def test_a_new_run_starts_with_an_empty_log(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    MetricsLog(tmp_path)
    assert read_metrics(tmp_path) == []


def test_lines_of_a_lost_disk_block_are_skipped(tmp_path):
    (tmp_path / METRICS).write_bytes(
        b'{"step": 1}\n\0\0\0\n\xff\n[1]\n{"step": null}\n' + b"[" * 100_000 + b'\n{"step": 2}\n'
    )
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_lines_are_flushed_before_a_checkpoint(make_run, train_here, monkeypatch):
    synced, lines = [], []
    sync, save = MetricsLog.sync, Checkpoints.save
    monkeypatch.setattr(
        MetricsLog,
        "sync",
        lambda log: (
            synced.append(len(read_metrics(log.path.parent))),  # type: ignore[func-returns-value]
            sync(log),
        ),
    )
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda *given, **then: (
            lines.append(len(read_metrics(given[0].out))),  # type: ignore[func-returns-value]
            save(*given, **then),
        ),
    )
    train_here(make_run(checkpoint_every=5))
    assert synced == lines == [4, 9, 14, 19]


CONFIG = ModelConfig(n_layer=3, n_head=2, d_model=16, n_ctx=32, vocab_size=100)


def make_run(folder: Path, *lines: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_transformers(CONFIG, 99)))
    (folder / "metrics.jsonl").write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return folder


def test_loss_of_a_run_is_that_of_its_last_validation(tmp_path: Path) -> None:
    steps = [
        {"tokens": 10, "loss": 5.0, "val_loss": 4.5},
        {"tokens": 20, "loss": 4.0, "val_loss": 3.5},
        {"tokens": 30, "loss": 3.0},
    ]
    run = read_run_result(make_run(tmp_path / "a", *steps))
    assert (run.parameters, run.tokens, run.loss) == (CONFIG.parameters, 20, 3.5)
    assert run.name == str(tmp_path / "a")


def test_batch_of_a_run_is_its_largest_step(tmp_path: Path) -> None:
    """The first steps may grow, and the last has the rest."""
    sizes = [64, 128, 128, 32]
    lines = [{"step": n, "batch_tokens": size} for n, size in enumerate(sizes, 1)]
    run = make_run(tmp_path / "a", *lines)
    assert read_batch_tokens(run) == read_batch_tokens(run / "metrics.jsonl") == 128
    assert read_batch_tokens(make_run(tmp_path / "b", {"step": 1, "loss": 2.0})) is None


def test_loss_of_a_run_without_validation_is_the_running_mean(tmp_path: Path) -> None:
    run = read_run_result(
        make_run(tmp_path / "a", {"tokens": 10, "loss": 5.0}, {"tokens": 20, "loss": 4.0})
        / "metrics.jsonl"
    )
    assert (run.tokens, run.loss) == (20, 4.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no step with a positive loss"),
        ([{"tokens": 10, "loss": 5.0}, {"tokens": 20}], "metrics.jsonl:2: not a line of metrics"),
        (["{"], "metrics.jsonl:1: not a line of metrics"),
        (["[]"], "metrics.jsonl:1: not a line of metrics"),
        ([{"tokens": "x", "loss": 5.0}], "metrics.jsonl:1"),
        ([{"tokens": 10, "loss": 0.0}], "no step with a positive loss"),
        ([{"tokens": 0, "loss": 5.0}], "no step with a positive loss"),
        (['{"tokens": 10, "loss": NaN}'], "no step with a positive loss"),
        (['{"tokens": 10, "loss": Infinity}'], "no step with a positive loss"),
    ],
)
def test_broken_metrics_are_refused(tmp_path: Path, lines: list[object], message: str) -> None:
    folder = make_run(tmp_path / "a", *lines)
    with pytest.raises(InputError) as caught:
        read_run_result(folder)
    assert message in str(caught.value)


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        read_run_result(tmp_path)
    folder = make_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_run_result(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no such run"):
        read_run_result(folder)
