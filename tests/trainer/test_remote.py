"""Copies of checkpoints: whole or not there, resumed to the same bytes, and never the run's end."""

from __future__ import annotations

import shutil
import signal
import threading
from dataclasses import replace
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import write_json
from gptcli.model.source import METRICS, RUN_TOML, STATE, step_folders
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.loop import train
from gptcli.trainer.remote import Store, check_store, copy_finished, fetch_checkpoint

CPU = RankContext(torch.device("cpu"))
URL = "memory://bucket/run"


class Heard(Events):
    """Events that keep their texts, and ask the run to stop at `tokens`."""

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens
        self.texts: list[str] = []

    def progress(self, task: str, done: float, *args: Any, **facts: Any) -> None:
        if done == self.tokens:
            signal.raise_signal(signal.SIGTERM)

    def info(self, text: str) -> None:
        self.texts.append(text)

    warn = info


class Flaky(MemoryFileSystem):
    """A store whose calls fail while `error` is set, or give no answer before `answer` is."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - of the class, as its base's
    pseudo_dirs = [""]  # noqa: RUF012
    error: Exception | None = None
    answer = threading.Event()

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        self.answer.wait()
        if self.error is not None and "w" in mode:
            raise self.error
        return super()._open(path, mode, **more)


@pytest.fixture(autouse=True)
def stores():
    """Empty stores."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.error = None
    Flaky.answer.set()
    yield
    for kind in (MemoryFileSystem, Flaky):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]


@pytest.fixture
def stored(make_run):
    """A run stopped at step 11 whose checkpoints of steps 7 and 11 are in a store."""
    run = make_run("stored", checkpoint_to=URL)
    run.out.mkdir()
    (run.out / RUN_TOML).write_text(run.resolved)
    train(run, CPU, events := Heard(640))
    assert events.texts[-1] == f"2 checkpoints copied to {URL}"
    return run


def same_bytes(folder, remote) -> bool:
    files = fsspec.filesystem("memory")
    return {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name.rpartition("/")[2]: files.cat_file(name) for name in files.ls(remote, detail=False)
    }


def test_a_run_whose_folder_is_lost_goes_on_from_the_store(make_run, train_here, stored):
    store = Store(URL)
    assert list(store.steps()) == [7, 11]
    for step, folder in step_folders(stored.out).items():
        assert same_bytes(folder, store.steps()[step])
    shutil.rmtree(stored.out)
    fetch_checkpoint(URL, stored.out, SILENT, fetches=True)
    assert (stored.out / RUN_TOML).read_text() == stored.resolved
    report = train_here(replace(stored, resume=True))
    assert report["failed_copies"] == 0
    train_here(whole := make_run("whole"))
    assert (whole.out / "model.safetensors").read_bytes() == (
        stored.out / "model.safetensors"
    ).read_bytes()
    losses = [[line["loss"] for line in read_metrics(run.out)] for run in (whole, stored)]
    assert losses[0] == losses[1]
    assert list(store.steps()) == [14, 20], "as many as are kept here"
    assert store.has_model()
    here = {path.name: path.read_bytes() for path in stored.out.iterdir() if path.is_file()}
    there = {
        name: store.files.cat_file(f"{store.path}/{name}")
        for name in here
        if not name.startswith(".")
    }
    assert there == {name: content for name, content in here.items() if name in there}
    assert {"model.safetensors", "config.json", "tokenizer.json", METRICS} <= there.keys()


def test_the_model_of_a_run_that_ended_before_its_copy_is_copied_by_a_resume(make_run, train_here):
    train_here(run := make_run("run"))
    run = replace(run, checkpoint_to=URL)
    copy_finished(run, events := Heard())
    copy_finished(run, events)
    assert events.texts == [f"the finished model is copied to {URL}"], "once"
    there = Store(URL).files.cat_file("/bucket/run/model.safetensors")
    assert there == (run.out / "model.safetensors").read_bytes()
    Flaky.error = OSError("503 Slow Down")
    copy_finished(replace(run, checkpoint_to="flaky://run"), events)
    assert events.texts[1:] == ["the finished model was not copied to flaky://run: 503 Slow Down"]


def test_a_finished_run_whose_folder_is_lost_is_finished_again_from_the_store(make_run, train_here):
    train_here(run := make_run("run", checkpoint_to=URL))
    model = (run.out / "model.safetensors").read_bytes()
    shutil.rmtree(run.out)
    run.out.mkdir()
    (run.out / RUN_TOML).write_text(run.resolved)
    fetch_checkpoint(URL, run.out, SILENT, fetches=True)
    train_here(replace(run, resume=True))
    assert (run.out / "model.safetensors").read_bytes() == model


def test_a_run_folder_with_a_checkpoint_is_left_as_it_is(stored, tmp_path):
    shutil.rmtree(step_folders(stored.out)[11])
    (stored.out / METRICS).unlink()
    fetch_checkpoint(URL, stored.out, SILENT, fetches=True)
    assert list(step_folders(stored.out)) == [7]
    assert not (stored.out / METRICS).exists()
    fetch_checkpoint("memory://bucket/none", tmp_path / "new", SILENT, fetches=True)
    assert not (tmp_path / "new").exists(), "an empty store: the run begins"


def test_a_broken_copy_is_skipped_and_a_store_of_broken_ones_is_refused(stored, tmp_path):
    files, steps = fsspec.filesystem("memory"), Store(URL).steps()
    name = next(name for name in files.ls(steps[11], detail=False) if "safetensors" in name)
    files.pipe_file(name, files.cat_file(name)[:-1] + b"?")
    events = Heard()
    fetch_checkpoint(URL, tmp_path / "one", events, fetches=True)
    assert list(step_folders(tmp_path / "one")) == [7]
    assert "step 11 is broken" in events.texts[-1]
    files.pipe_file(f"{steps[7]}/{STATE}", b"{")
    with pytest.raises(InputError, match="no checkpoint there is intact"):
        fetch_checkpoint(URL, tmp_path / "two", events, fetches=True)
    assert not (tmp_path / "two" / RUN_TOML).exists()


def test_a_store_that_fails_costs_copies_and_not_the_run(make_run, train_here):
    """It fails from the second checkpoint of four on to the third."""
    run = make_run("run", checkpoint_to="flaky://run", checkpoint_every=5)

    class Weather(Heard):
        def progress(self, task: str, done: float, *args: Any, **facts: Any) -> None:
            if done in (9 * 64, 16 * 64):
                Flaky.error = OSError("503 Slow Down") if done == 9 * 64 else None

    train(run, CPU, events := Weather())
    assert (run.out / "model.safetensors").exists()
    warned = [text for text in events.texts if "was not copied" in text]
    assert len(warned) in (1, 2), "one may be left out while another is tried"
    assert "step 10 was not copied to flaky://run: OSError: 503 Slow Down (1 failed" in warned[0]
    assert f", {len(warned)} failed" in events.texts[-2]
    assert events.texts[-1] == "the finished model is copied to flaky://run"
    assert 20 in Store("flaky://run").steps()
    train_here(alone := make_run("alone", checkpoint_every=5))
    assert (alone.out / "model.safetensors").read_bytes() == (
        run.out / "model.safetensors"
    ).read_bytes()


def test_a_store_that_gives_no_sign_of_life_is_given_up(make_run):
    run = replace(make_run("run", checkpoint_to="flaky://run"), timeout=0)
    Flaky.answer.clear()
    train(run, CPU, events := Heard())
    Flaky.answer.set()
    assert (run.out / "model.safetensors").exists()
    silent = [text for text in events.texts if "no sign of life for 0 s" in text]
    assert silent[-1].startswith("the finished model was not copied")


def test_a_new_run_needs_a_store_of_its_own_that_can_be_reached(make_run, monkeypatch, tmp_path):
    check_store(run := make_run(checkpoint_to=URL), SILENT)
    write_json(tmp_path / STATE, {})
    fsspec.filesystem("memory").put_file(tmp_path / STATE, f"bucket/run/step-00000007/{STATE}")
    with pytest.raises(UsageError, match="the newest of step 7") as caught:
        check_store(run, SILENT)
    assert caught.value.field == "checkpoint_to"
    check_store(replace(run, resume=True), SILENT)
    with pytest.raises(UsageError, match="nothing"):
        check_store(replace(run, checkpoint_to="nothing://bucket"), SILENT)

    def refuse(self, path):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    with pytest.raises(RunError, match="403 Forbidden"):
        check_store(run, SILENT)
    with pytest.raises(RunError, match="403 Forbidden"):
        fetch_checkpoint(URL, tmp_path / "gone", SILENT, fetches=True)
    check_store(replace(run, resume=True), events := Heard())
    assert "403 Forbidden" in events.texts[0], "a run that goes on does without"
