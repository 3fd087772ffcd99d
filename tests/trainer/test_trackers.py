from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest

from gptcli.errors import UsageError
from gptcli.runs.metrics import read_metrics
from gptcli.trainer import trackers
from gptcli.trainer.trackers import Tracker, check_tracker

installed = importlib.util.find_spec("tensorboard") is not None


def test_an_unknown_or_missing_tracker_is_named(monkeypatch):
    with pytest.raises(UsageError, match="unknown tracker 'tensorbord'"):
        check_tracker("tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install.* tensorboard"):
        check_tracker("tensorboard")


@pytest.mark.skipif(not installed, reason="TensorBoard is not installed")
def test_tensorboard_has_every_line_once_after_a_resume(make_run, train_here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = replace(make_run(checkpoint_every=10, tokens=640), track="tensorboard")
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
    check_tracker("json")
    run = replace(make_run(), track="json")
    train_here(run)
    tracked = [json.loads(line) for line in (run.out / "tracked.jsonl").read_text().splitlines()]
    lines = read_metrics(run.out)
    assert [line["step"] for line in tracked] == [line["step"] for line in lines]
    assert [line["loss"] for line in tracked] == [line["loss"] for line in lines]
    assert all("noise_scale" not in line and "time" not in line for line in tracked)
