from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gptcli.errors import UsageError
from gptcli.runs.metrics import read_metrics
from gptcli.trainer import trackers
from gptcli.trainer.trackers import Tracker, find_tracker

installed = importlib.util.find_spec("tensorboard") is not None


def test_an_unknown_or_missing_tracker_is_named(monkeypatch):
    with pytest.raises(UsageError, match="unknown tracker 'tensorbord'"):
        find_tracker("tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install.* tensorboard"):
        find_tracker("tensorboard")


@pytest.mark.skipif(not installed, reason="TensorBoard is not installed")
def test_tensorboard_has_every_line_once_after_a_resume(make_run, train_here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = replace(make_run(checkpoint_every=10, tokens=640), track=("tensorboard",))
    train_here(run)
    train_here(replace(run, resume=True))  # its last step's line is written again
    events = EventAccumulator(str(run.out / "tensorboard"))
    events.Reload()
    lines = read_metrics(run.out)
    got = [(event.step, event.value) for event in events.Scalars("loss")]
    assert got == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("val_loss")] == [5, 10]
    assert "noise_scale" not in events.Tags()["scalars"]  # nothing measured it


class JsonTracker(Tracker):
    """Tracker that keeps numbers in a file, as a new tracker would be written."""

    title, package = "JSON", "json"

    def log(self, step: int, numbers: dict[str, float]) -> None:
        with (self.progress.run.out / "tracked.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def test_an_entry_in_the_registry_is_all_that_a_new_tracker_needs(
    make_run, train_here, monkeypatch
):
    monkeypatch.setitem(trackers.TRACKERS, "json", JsonTracker)
    find_tracker("json")
    run = replace(make_run(), track=("json", "csv"))
    train_here(run)
    tracked = [json.loads(line) for line in (run.out / "tracked.jsonl").read_text().splitlines()]
    lines = read_metrics(run.out)
    assert [line["step"] for line in tracked] == [line["step"] for line in lines]
    assert [line["loss"] for line in tracked] == [line["loss"] for line in lines]
    assert all("noise_scale" not in line and "time" not in line for line in tracked)


def test_csv_has_a_row_for_each_step_after_a_resume_too(make_run, train_here):
    run = replace(make_run(checkpoint_every=10, tokens=640), track=("csv",))
    train_here(run)
    train_here(replace(run, resume=True))
    lines = read_metrics(run.out)
    with (run.out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [line["step"] for line in lines]
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in lines]
    assert [row["val_loss"] for row in rows] == [str(line.get("val_loss", "")) for line in lines]


def test_a_callback_of_the_users_own_is_named_by_its_import_path(
    make_run, train_here, tmp_path, monkeypatch
):
    (tmp_path / "watching.py").write_text(
        "from gptcli.trainer.callbacks import Callback\n\n"
        "class Steps(Callback):\n    seen = []\n"
        "    def on_record(self, line):\n        self.seen.append(line['step'])\n"
    )
    monkeypatch.chdir(tmp_path)
    train_here(replace(make_run(), track=("watching:Steps", "csv")))
    assert find_tracker("watching:Steps").seen == list(range(1, 21))  # type: ignore[attr-defined]
    for wrong, words in (("watching:Callbacks", "cannot be"), ("json:loads", "is no subclass")):
        with pytest.raises(UsageError, match=words):
            find_tracker(wrong)


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which wandb writes after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_has_every_line_offline(make_run, train_here, monkeypatch):
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = replace(make_run(tokens=640), track=("wandb",))
    train_here(run)
    wandb.teardown()  # its service writes in a process of its own
    (path,) = run.out.glob("wandb/offline-run-*/*.wandb")
    losses = []
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or item.nested_key[0]: item.value_json for item in record.history.item
            }
            losses.append(json.loads(items["loss"]))
    assert losses == [line["loss"] for line in read_metrics(run.out)]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_has_every_line_once_after_a_resume(make_run, train_here):
    from mlflow import MlflowClient

    run = replace(make_run(checkpoint_every=10, tokens=640), track=("mlflow",))
    train_here(run)
    train_here(replace(run, resume=True))
    client = MlflowClient(tracking_uri=(run.out / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("gpt")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [
        (line["step"], line["loss"]) for line in read_metrics(run.out)
    ]
    assert found.data.params["seed"] == "1"


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="Trackio is not installed")
def test_trackio_has_every_line(make_run, train_here, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    run = replace(make_run(tokens=640), track=("trackio",))
    train_here(run)
    (name,) = SQLiteStorage.get_runs("gpt")
    logs = SQLiteStorage.get_logs("gpt", name)
    assert [row["loss"] for row in logs] == [line["loss"] for line in read_metrics(run.out)]
