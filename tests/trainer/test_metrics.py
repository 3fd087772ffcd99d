from __future__ import annotations

from gptcli.trainer.checkpoint import Checkpoints
from gptcli.trainer.metrics import METRICS, MetricsLog, read_metrics


def test_a_resume_cuts_off_what_came_after_and_what_was_left_unfinished(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / step})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    log = MetricsLog(tmp_path, before=4)
    log.write({"step": 4, "loss": 0.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[2] == {"step": 3, "loss": 1 / 3}


def test_a_fresh_run_starts_with_none(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    MetricsLog(tmp_path)
    assert read_metrics(tmp_path) == []


def test_lines_that_a_lost_disk_block_left_are_passed_over(tmp_path):
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n\0\0\0\n\xff\n[1]\n{"step": null}\n' + b"[" * 100_000 + b'\n{"step": 2}\n')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_checkpoint_never_outlives_the_lines_before_it(make_run, train_here, monkeypatch):
    synced, lines = [], []
    sync, save = MetricsLog.sync, Checkpoints.save
    monkeypatch.setattr(MetricsLog, "sync", lambda log: (synced.append(len(read_metrics(log.path.parent))), sync(log)))
    monkeypatch.setattr(Checkpoints, "save", lambda *given: (lines.append(len(read_metrics(given[0].out))), save(*given)))
    train_here(make_run(checkpoint_every=5))
    assert synced == lines == [4, 9, 14, 19]
