from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from gptcli.errors import UsageError
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.tracking import check_tracker

installed = importlib.util.find_spec("tensorboard") is not None


def test_what_is_unknown_or_missing_is_named(monkeypatch):
    with pytest.raises(UsageError, match="unknown tracker 'tensorbord'"):
        check_tracker("tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install.* tensorboard"):
        check_tracker("tensorboard")


@pytest.mark.skipif(not installed, reason="TensorBoard is not installed")
def test_tensorboard_holds_the_lines_figures_once_after_a_resume(make_run, train_here):
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
