from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.model.source import INIT
from gptcli.trainer.checkpoint import checkpoint_folder
from gptcli.trainer.initial_weights import begun_folder, keep_initial_weights
from gptcli.trainer.loop import train

CPU = RankContext(torch.device("cpu"))


class KilledAt(Events):
    def __init__(self, tokens):
        self.tokens = tokens

    def progress(self, task, done, *args, **facts):
        if done == self.tokens:
            raise Killed


class StoppedAt(KilledAt):
    def progress(self, task, done, *args, **facts):
        if done == self.tokens:
            signal.raise_signal(signal.SIGTERM)


class Killed(BaseException):
    pass


@pytest.fixture
def source(make_run):
    """A run stopped at step 11, with checkpoints of steps 8 and 11."""
    run = make_run("source", checkpoint_every=4)
    train(run, CPU, StoppedAt(640))
    return run


def test_a_resume_needs_nothing_of_the_run_that_it_started_from(make_run, train_here, source):
    options = {"init_from": source.out, "init_step": 8, "seed": 5}
    whole, broken = make_run("whole", **options), make_run("broken", **options)
    for run in (whole, broken):
        assert keep_initial_weights(source.out, run.out, 8, SILENT, newest=False) == 8
    train_here(whole)
    assert not (whole.out / INIT).exists()
    with pytest.raises(Killed):
        train(broken, CPU, KilledAt(192))  # before its first checkpoint
    shutil.rmtree(source.out)
    train_here(replace(broken, resume=True))
    assert (whole.out / "model.safetensors").read_bytes() == (
        broken.out / "model.safetensors"
    ).read_bytes()
    other = make_run("other", seed=5)
    train_here(other)
    assert (whole.out / "model.safetensors").read_bytes() != (
        other.out / "model.safetensors"
    ).read_bytes()


def test_the_newest_is_taken_when_the_step_has_gone_meanwhile(source, tmp_path):
    shutil.rmtree(checkpoint_folder(source.out, 8))
    assert keep_initial_weights(source.out, tmp_path / "new", 8, SILENT, newest=True) == 11
    assert begun_folder(tmp_path / "new") == tmp_path / "new" / INIT
    with pytest.raises(InputError, match="no checkpoint of step 8"):
        keep_initial_weights(source.out, tmp_path / "other", 8, SILENT, newest=False)
    assert not (tmp_path / "other" / INIT).exists()


def test_copies_where_there_are_no_links(source, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(18, "Invalid cross-device link")

    keep_initial_weights(source.out, tmp_path / "linked", 8, SILENT, newest=False)
    monkeypatch.setattr("gptcli.trainer.initial_weights.os.link", refused)
    keep_initial_weights(source.out, tmp_path / "copied", 8, SILENT, newest=False)
    linked, copied = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tmp_path / "linked", tmp_path / "copied")
    )
    assert linked == copied
    assert not any("optimizer" in str(name) for name in linked)
