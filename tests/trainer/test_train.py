"""A run is checked, its folder claimed and its configuration recorded before it is trained."""

from __future__ import annotations

import shutil
import signal
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, Interrupted, UsageError
from gptcli.events import SILENT, Events
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import load_model
from gptcli.model.source import INIT, begun_folder
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import checkpoint_folder
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.loop import train as train_on_rank
from gptcli.trainer.train import interrupted, keep_initial_weights, settings_of, train

SHAPE = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=16)


def config(**changes: Any) -> TrainConfig:
    values = {
        "tokens": 640,
        "batch_tokens": 64,
        "lr": 1e-3,
        "micro_batch": 4,
        "eval_tokens": 64,
        "checkpoint_every": 5,
        **changes,
    }
    return TrainConfig(**values)


def test_run_folder_records_the_configuration_and_the_model(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = train(config(), data=shards, out=out, model=SHAPE, measure=lambda model: {"seven": 7})
    assert (report["step"], report["tokens"], report["interrupted"]) == (10, 640, False)
    table = tomllib.loads((out / "run.toml").read_text())
    assert (table["data"], table["out"]) == (str(shards), str(out))
    assert (table["n_layer"], table["lr"], table["compile"]) == (1, 1e-3, "off")
    assert load_model(out).config.vocab_size == 260  # of the shards
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["step"] for line in lines if line.get("seven") == 7] == [5, 10]


def test_folder_in_use_is_refused_resumed_or_replaced_as_asked(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(config(), data=shards, out=out, model=SHAPE)
    weights = (out / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        train(config(), data=shards, out=out, model=SHAPE)
    with pytest.raises(UsageError, match="is finished") as caught:
        train(config(), data=shards, out=out, model=SHAPE, resume=True)
    assert (caught.value.field, caught.value.code) == ("resume", "finished")
    assert (out / "model.safetensors").read_bytes() == weights
    train(config(seed=1), data=shards, out=out, model=SHAPE, force=True)
    assert (out / "model.safetensors").read_bytes() != weights


def test_run_starts_from_the_weights_of_another(shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(config(), data=shards, out=first, model=SHAPE)
    train(config(lr=1e-9), data=shards, out=second, model=SHAPE, init_from=first)
    for name, tensor in load_model(first).state_dict().items():
        assert (load_model(second).state_dict()[name] - tensor).abs().max() < 1e-6, name
    assert f'init_from = "{first}"' in (second / "run.toml").read_text()


def test_impossible_run_leaves_no_folder(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="unknown size"):
        train(config(), data=shards, out=out, model="360M")
    with pytest.raises(InputError):
        train(config(), data=tmp_path / "absent", out=out, model=SHAPE)
    with pytest.raises(UsageError, match="10 tokens are less than one sequence of 16"):
        train(config(tokens=10), data=shards, out=out, model=SHAPE)
    assert not out.exists()


def test_stopped_run_names_its_step_and_how_to_go_on(tmp_path: Path) -> None:
    error = interrupted({"step": 1234}, tmp_path)
    assert isinstance(error, Interrupted)
    assert "stopped after step 1,234" in error.what
    assert error.hint == "{option:resume} goes on"


def test_settings_of_a_configuration_have_every_field(tmp_path: Path) -> None:
    found = settings_of(config(compile=True), SHAPE, data=tmp_path, out=tmp_path / "run")
    assert found.values["compile"] == "on"
    assert found.values["d_model"] == 8
    assert "vocab_size" not in found.values
    assert set(found.origin.values()) == {"argument"}


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
    monkeypatch.setattr("gptcli.trainer.train.os.link", refused)
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
