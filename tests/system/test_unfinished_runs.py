"""A run that was stopped or is still going on is a model: its newest checkpoint, or the one asked
for, in gpt and in transformers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.model import safetensors_io
from gptcli.model.config import ModelConfig
from gptcli.model.hf import read_model_config
from gptcli.model.safetensors_io import load_model, open_model, save_unfinished
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.model.transformer import GPT
from gptcli.sampling.load import load
from gptcli.trainer import export
from gptcli.trainer.checkpoint import Checkpoints, CheckpointState, checkpoint_folder
from gptcli.trainer.export import prepare_run_folder, write_card
from gptcli.trainer.loop import train
from gptcli.trainer.schedule import Position

CPU = RankContext(torch.device("cpu"))
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "untied": {"tied": False},
    "banded": {"attention": "banded", "band": 5},
    "gpt1": {"norm": "post"},
}
TOLERANCE = {"banded": 1e-3}  # a GPT-Neo computes the same from other numbers
IDX = torch.arange(32).view(2, 16) * 5 % 256


class Told(Events):
    """Keeps what is said; sends this process `number` once `tokens` are done, or raises if it is
    None.
    """

    def __init__(self, tokens: float = float("inf"), number: int | None = None) -> None:
        self.tokens, self.number = tokens, number
        self.texts: list[str] = []

    def info(self, text):
        self.texts.append(text)

    def warn(self, text):
        self.texts.append(f"warning: {text}")

    def progress(self, task, done, total=None, unit="", **facts):
        if done == self.tokens:
            if self.number is None:
                raise Killed
            os.kill(os.getpid(), self.number)


class Killed(BaseException):
    pass


@torch.no_grad()
def logits(model):
    out = model(IDX)
    return out if isinstance(out, torch.Tensor) else out.logits


def of_checkpoint(run, step):
    """The logits of the tensors in a checkpoint of one process, read without any of gpt's
    readers.
    """
    model = GPT(run.model).eval()
    state = load_file(checkpoint_folder(run.out, step) / "model.safetensors")
    model.load_state_dict(state, strict=False)
    assert model.state_dict().keys() - state.keys() <= {"lm_head.weight"}
    return logits(model)


def in_transformers(out):
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(out).eval())


def copied_step(out):
    with safe_open(out / "unfinished.safetensors", "pt") as file:
        return int(file.metadata()["step"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_loads_here_and_in_transformers(make_run, train_here, kind):
    run = make_run(checkpoint_every=4, **KINDS[kind])
    assert train(run, CPU, Told(640, signal.SIGTERM))["step"] == 11
    events = Told()
    loaded = load(run.out, events=events, device="cpu", precision="fp32")
    assert events.texts == [f"reading step 11 of {run.out}, an unfinished run"]
    assert (loaded.source.step, loaded.source.checkpoint) == (11, checkpoint_folder(run.out, 11))
    # in loops of our own
    torch.testing.assert_close(logits(loaded.model), of_checkpoint(run, 11), atol=1e-5, rtol=0)
    newest = logits(load_model(run.out))
    assert torch.equal(newest, of_checkpoint(run, 11))
    assert torch.equal(logits(load_model(run.out, step=8)), of_checkpoint(run, 8))
    assert torch.equal(logits(load_model(checkpoint_folder(run.out, 8))), of_checkpoint(run, 8))
    assert not torch.equal(of_checkpoint(run, 8), of_checkpoint(run, 11))
    assert copied_step(run.out) == 11
    torch.testing.assert_close(
        in_transformers(run.out), of_checkpoint(run, 11), atol=TOLERANCE.get(kind, 1e-5), rtol=0
    )
    card = (run.out / "README.md").read_text()
    assert "Unfinished: training is still running, or was stopped" in card
    assert "| Trained on | 704 tokens in 11 steps" in card

    shutil.rmtree(run.out / "checkpoints")  # as one copies a folder to another machine
    events = Told()
    assert load(run.out, events=events, device="cpu", precision="fp32").source.step == 11
    assert events.texts == [f"reading step 11 of {run.out}, an unfinished run"]
    torch.testing.assert_close(
        logits(load_model(run.out)), newest, atol=TOLERANCE.get(kind, 0), rtol=0
    )


def test_a_finished_run_has_no_unfinished_copy(make_run, train_here):
    run = make_run(checkpoint_every=4)
    train_here(run)
    assert not (run.out / "unfinished.safetensors").exists()
    assert not (run.out / "model.safetensors.index.json").exists()
    assert "Unfinished" not in (run.out / "README.md").read_text()
    events = Told()
    assert load(run.out, events=events, device="cpu", precision="fp32").source.step is None
    assert events.texts == []
    assert torch.equal(logits(load_model(run.out)), of_checkpoint(run, 20))
    assert (
        load(run.out, checkpoint=16, events=events, device="cpu", precision="fp32").source.step
        == 16
    )
    assert events.texts == [f"reading step 16 of {run.out}"]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 9, 17])
def test_a_run_killed_at_any_step_loads_its_newest_checkpoint(make_run, step):
    from transformers import AutoTokenizer

    run = make_run(checkpoint_every=4, keep=20)
    with pytest.raises(Killed):
        train(run, CPU, Told(step * 64))
    assert AutoTokenizer.from_pretrained(run.out).vocab_size > 0
    newest = step // 4 * 4
    if not newest:
        (run.out / "run.toml").write_text("checkpoint_every = 4")
        with pytest.raises(InputError, match="no checkpoint yet"):
            load(run.out)
        assert "| Trained on | nothing yet |" in (run.out / "README.md").read_text()
        return
    model, source = open_model(run.out)
    assert source.step == newest
    assert (
        f"| Trained on | {newest * 64:,} tokens in {newest} steps"
        in (run.out / "README.md").read_text()
    )
    assert torch.equal(logits(model), of_checkpoint(run, newest))
    if (run.out / "model.safetensors.index.json").exists():  # written in the background
        torch.testing.assert_close(
            in_transformers(run.out), of_checkpoint(run, copied_step(run.out)), atol=1e-5, rtol=0
        )


def test_a_resumed_run_starts_with_the_card_of_its_checkpoint(make_run):
    run = make_run(checkpoint_every=4)
    with pytest.raises(Killed):
        train(run, CPU, Told(9 * 64))
    for resume, trained in ((True, "512 tokens in 8 steps"), (False, "nothing yet")):
        prepare_run_folder(replace(run, resume=resume))
        assert f"| Trained on | {trained}" in (run.out / "README.md").read_text()


def test_a_full_disk_leaves_the_card_of_an_earlier_step(make_run, monkeypatch):
    run, wrote = make_run(checkpoint_every=4), []

    def write(run, text):
        wrote.append(text)
        if len(wrote) == 4:  # the start of the run, then steps 4, 8 and 12
            raise OSError(errno.ENOSPC, "No space left on device")
        write_card(run, text)

    monkeypatch.setattr(export, "write_card", write)
    with pytest.raises(Killed):
        train(run, CPU, Told(13 * 64))
    assert open_model(run.out)[1].step == 12
    assert (
        "| State | unfinished, at step 8 when this was written"
        in (run.out / "README.md").read_text()
    )


def test_a_running_run_loads_at_every_step(make_run):
    run, read = make_run(checkpoint_every=3, keep=20), []

    class Reading(Events):
        def progress(self, task, done, *args, **facts):
            step = done // 64
            if step >= 3 and step < 20:
                model, source = open_model(run.out)
                read.append((step, source.step))
                assert torch.equal(logits(model), of_checkpoint(run, step // 3 * 3))

    train(run, CPU, Reading())
    assert read == [(step, step // 3 * 3) for step in range(3, 20)]


def save(store, model, step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if name != "lm_head.weight"
    }
    store.save(
        CheckpointState(Position(step, step), {}, {}),
        parameters,
        torch.optim.SGD(model.parameters(), 1.0),
    )
    store.wait()


@pytest.fixture
def written(tmp_path):
    """A run folder, and how to write a checkpoint whose weights are all its step; one is kept."""
    config = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=16, vocab_size=260)
    safetensors_io.save_config(tmp_path, config)
    store, model = Checkpoints(tmp_path, CPU, keep=1), GPT(config)
    return tmp_path, lambda step: save(store, model, step)


def test_a_writer_that_removes_checkpoints_never_breaks_a_reader(written):
    out, write = written
    write(1)
    done = threading.Event()

    def writing():
        step = 1
        while not done.is_set():
            write(step := step + 1)

    writer = threading.Thread(target=writing)
    writer.start()
    last = 0
    try:
        for _ in range(40):
            model, source = open_model(out)
            assert {parameter.unique().item() for parameter in model.parameters()} == {source.step}
            assert source.step is not None
            assert source.step >= last
            last = source.step
    finally:
        done.set()
        writer.join()


def test_a_reader_of_a_removed_checkpoint_moves_to_the_next(written, monkeypatch):
    out, write = written
    write(7)
    right = CheckpointStateDict.__getitem__

    def removed(self, name):
        if self.folder.name.endswith("7") and name == "ln_f.weight":
            write(8)
        return right(self, name)

    monkeypatch.setattr(CheckpointStateDict, "__getitem__", removed)
    events = Told()
    model, source = open_model(out, events=events)
    assert source.step == 8
    assert model.wte.weight.unique().item() == 8
    assert events.texts == []  # nothing is wrong
    shutil.rmtree(checkpoint_folder(out, 8))
    write(7)
    with pytest.raises(InputError, match="no checkpoint of step 7") as caught:
        open_model(out, step=7)
    assert caught.value.hint == "there is a checkpoint of step 8"


@pytest.mark.parametrize("file", ["model.safetensors", "index.json", "state.json"])
def test_a_broken_checkpoint_is_skipped_with_a_warning(written, file):
    out, write = written
    write(7)
    shutil.copytree(checkpoint_folder(out, 7), checkpoint_folder(out, 9))
    path = checkpoint_folder(out, 9) / file
    path.write_bytes(path.read_bytes()[:40])
    events = Told()
    assert open_model(out, events=events)[1].step == 7
    assert len(events.texts) == 1
    assert "step-00000009" in events.texts[0]
    assert "a checkpoint is damaged: " in events.texts[0]
    assert events.texts[0].endswith("; trying that of step 7")
    with pytest.raises(InputError):
        open_model(out, step=9)
    shutil.rmtree(checkpoint_folder(out, 7))
    with pytest.raises(InputError, match="no checkpoint can be read"):
        open_model(out, events=events)
    assert "trying" not in events.texts[-1], "there is none before it"


def test_a_kill_at_any_moment_leaves_a_folder_that_transformers_loads(written, monkeypatch):
    """Each call by which a file becomes whole is the last one in turn."""
    out, _ = written
    config = read_model_config(out)
    tensors = {
        step: {n: torch.full_like(t, step / 50) for n, t in GPT(config).state_dict().items()}
        for step in (1, 2)
    }
    save_unfinished(out, tensors[1], config, 1)
    steps = [
        call_and_die(out, monkeypatch, at, lambda: save_unfinished(out, tensors[2], config, 2))
        for at in range(1, 4)
    ]
    assert steps == [1, 1, 2], (
        "before the file is on disk, before it has its name, and before the folder is on disk"
    )
    save_unfinished(out, tensors[2], config, 2)

    def finish():
        safetensors_io.save_model(out, tensors[2], config)
        safetensors_io.remove_unfinished(out)

    steps = [call_and_die(out, monkeypatch, at, finish) for at in range(1, 13)]
    assert None in steps, "the last of them come after model.safetensors"


def call_and_die(out, monkeypatch, at, call):
    """The step of the copy that transformers reads after `call` died at call number `at`, None if
    it reads the finished model.
    """
    from transformers import AutoModelForCausalLM

    left = [at]

    def dying(right):
        def counted(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return right(*args, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with contextlib.suppress(Killed):
            call()
    model = AutoModelForCausalLM.from_pretrained(out)
    step = None if (out / "model.safetensors").exists() else copied_step(out)
    expected = 2 if step is None else step
    wte = model.get_parameter("transformer.wte.weight")
    assert wte.unique().item() == pytest.approx(expected / 50)
    return step


def test_an_index_cannot_name_files_outside_the_folder(written):
    out, _ = written
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "../unfinished.safetensors"}})
    )
    with pytest.raises(InputError, match="does not name files of this folder"):
        load_model(out)


def test_a_full_disk_costs_the_copy_and_not_the_run(make_run, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptcli.trainer.export.save_unfinished", full)
    run, events = make_run(checkpoint_every=10), Told()
    train(run, CPU, events)
    assert (run.out / "model.safetensors").exists()
    assert any("no copy for transformers from step" in text for text in events.texts)


def test_a_large_model_is_not_copied(make_run, train_here, monkeypatch):
    monkeypatch.setattr("gptcli.trainer.export.SMALL_MODEL", 1)
    run = make_run(checkpoint_every=4)
    train(run, CPU, Told(640, signal.SIGTERM))
    assert not (run.out / "unfinished.safetensors").exists()
    assert open_model(run.out)[1].step == 11
