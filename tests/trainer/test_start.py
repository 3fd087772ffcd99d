"""A run starts from the weights of another one, or goes on from its whole checkpoint."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.model.source import INIT, begun_folder, step_folders
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import checkpoint_folder, read_best
from gptcli.trainer.loop import train as train_on_rank
from gptcli.trainer.start import continued_state, copy_checkpoint, keep_initial_weights

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
    train_on_rank(run, CPU, StoppedAt(640))
    return run


def test_a_resume_does_not_need_the_run_of_its_initial_weights(make_run, train_here, source):
    options = {"init_from": source.out, "init_step": 8, "seed": 5}
    whole, broken = make_run("whole", **options), make_run("broken", **options)
    for run in (whole, broken):
        assert keep_initial_weights(source.out, run.out, 8, SILENT, newest=False) == 8
    train_here(whole)
    assert not (whole.out / INIT).exists()
    with pytest.raises(Killed):
        train_on_rank(broken, CPU, KilledAt(192))  # before its first checkpoint
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


def test_the_newest_checkpoint_replaces_one_that_was_removed_meanwhile(source, tmp_path):
    shutil.rmtree(checkpoint_folder(source.out, 8))
    assert keep_initial_weights(source.out, tmp_path / "new", 8, SILENT, newest=True) == 11
    assert begun_folder(tmp_path / "new") == tmp_path / "new" / INIT
    with pytest.raises(InputError, match="no checkpoint of step 8"):
        keep_initial_weights(source.out, tmp_path / "other", 8, SILENT, newest=False)
    assert not (tmp_path / "other" / INIT).exists()


def test_files_are_copied_if_links_fail(source, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(18, "Invalid cross-device link")

    keep_initial_weights(source.out, tmp_path / "linked", 8, SILENT, newest=False)
    monkeypatch.setattr("gptcli.trainer.start.os.link", refused)
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


WSD = {"lr_schedule": "wsd", "cooldown_tokens": 320, "tokens": 1920}


def go_on(run):
    """Return the run with the checkpoint that it continues in its folder."""
    continued_state(run)
    copy_checkpoint(run, SILENT)
    return replace(run, resume=True)


@pytest.fixture
def trunk(make_run, train_here):
    """A run of constant learning rate, with all checkpoints."""
    run = make_run("trunk", lr_schedule="constant", keep=9, optimizer="muon", ema=0.9)
    train_here(run)
    return run


def test_a_branch_under_wsd_equals_a_run_of_its_length_bit_for_bit(make_run, train_here, trunk):
    options = {**WSD, "keep": 9, "optimizer": "muon", "ema": 0.9}
    whole = make_run("whole", **options)
    branch = make_run("branch", init_from=trunk.out, init_step=14, continues=True, **options)
    train_here(whole)
    train_here(go_on(branch))
    assert (whole.out / "model.safetensors").read_bytes() == (
        branch.out / "model.safetensors"
    ).read_bytes()
    for name in ("loss", "lr", "noise_scale"):
        assert [line[name] for line in read_metrics(whole.out)] == [
            line[name] for line in read_metrics(branch.out)
        ]
    assert sorted(step_folders(branch.out)) == [14, 21, 28, 30]
    assert sorted(step_folders(trunk.out)) == [7, 14, 20], "the trunk keeps its own"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"seed": 7}, "another_run", "seed was 1, now 7"),
        ({"optimizer": "adamw"}, "another_run", "optimizer was muon, now None"),
        ({"tokens": 896, "decay_tokens": 896}, "already_read", "896 tokens already"),
        ({"lr": 1e-3}, "another_schedule", "at 64 tokens the learning rate was 0.0015"),
        ({"lr_schedule": "wsd", "cooldown_tokens": 1000}, "another_schedule", "lies before that"),
        ({"batch_tokens": 128}, "another_schedule", "the batch was 64 tokens, and now 128"),
    ],
)
def test_a_branch_that_would_cheat_is_refused(make_run, trunk, changes, code, words):
    options = {"lr_schedule": "constant", "tokens": 1920, "optimizer": "muon", "ema": 0.9}
    branch = make_run(
        "branch", init_from=trunk.out, init_step=14, continues=True, **{**options, **changes}
    )
    if "another_schedule" in code and "lies" in words:
        branch = replace(branch, init_step=20)
    with pytest.raises(UsageError) as caught:
        continued_state(branch)
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "rate was" not in str(caught.value) or "batch_tokens" not in changes, "it did not change"
    assert not branch.out.exists()


def test_a_branch_may_go_on_with_another_mixture_and_not_have_begun_with_it(
    make_run, train_here, write_sources
):
    """As for a cooldown on better data."""
    data = write_sources(a=1.0, b=1.0)
    options = {"data": data, "lr_schedule": "constant"}
    trunk = make_run("trunk", keep=9, **options)
    train_here(trunk)
    options |= {"init_from": trunk.out, "init_step": 14, "continues": True, "tokens": 1920}
    branch = make_run("branch", mixture="896: a=0,b=1", **options)
    train_here(go_on(branch))
    lines = read_metrics(branch.out)
    assert lines[13]["tokens_a"] == lines[-1]["tokens_a"]
    assert lines[:13] == read_metrics(trunk.out)[:13]
    with pytest.raises(UsageError) as caught:
        continued_state(make_run("other", mixture="895: a=0,b=1", **options))
    assert caught.value.code == "another_mixture"


def test_checkpoints_of_some_steps_and_the_best_one_are_kept(make_run, train_here):
    options = {"checkpoint_every": 2, "eval_every": 2, "keep": 1, "keep_every": 6, "lr": 0.05}
    run = make_run(keep_best="val_loss", clip=1e9, **options)
    train_here(run)
    measured = {
        line["step"]: line["val_loss"] for line in read_metrics(run.out) if "val_loss" in line
    }
    best = min(measured, key=lambda step: (measured[step], step))
    assert read_best(run.out) == {"step": best, "metric": "val_loss", "value": measured[best]}
    assert sorted(step_folders(run.out)) == sorted({6, 12, 18, 20, best})


def test_a_run_without_a_new_minimum_ends_early_with_its_model(make_run, train_here):
    run = make_run(eval_every=1, lr=10.0, clip=1e9, warmup_tokens=0, spike=0, stop_early=3)
    report = train_here(run)
    losses = [line["val_loss"] for line in read_metrics(run.out)]
    assert report["step"] == len(losses) < 20
    assert min(losses) == losses[-4]
    assert (run.out / "model.safetensors").is_file()
    assert max(step_folders(run.out)) == report["step"]


def test_further_validation_sets_and_checkpoints_by_the_clock(
    make_run, train_here, write_shards, tmp_path
):
    other = write_shards(tmp_path / "other", val=100)
    run = make_run(val={"other": other}, checkpoint_minutes=1e-9, checkpoint_every=100, keep=99)
    train_here(run)
    lines = [line for line in read_metrics(run.out) if "val_loss" in line]
    assert len(lines) == 4
    assert all(line["val_loss_other"] != line["val_loss"] for line in lines)
    assert sorted(step_folders(run.out)) == list(range(1, 21))
