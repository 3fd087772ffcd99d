"""A run is checked, its folder claimed and its configuration recorded before it is trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError, Interrupted, UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import load_model
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.train import interrupted, settings_of, train

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


def test_damaged_weights_of_a_finished_run_are_written_again(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(), data=shards, out=out, model=SHAPE)
    weights = out / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:1000], b"", whole[:-1]):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="cut short") as caught:
            load_model(out)
        assert f"gpt train --resume --out {out} writes it again" in str(caught.value.hint)
        assert "{option:checkpoint} 10" in str(caught.value.hint)
        load_model(out, step=10)
        train(config(), data=shards, out=out, model=SHAPE, resume=True)
        assert weights.read_bytes() == whole


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
    with pytest.raises(UsageError, match="a run of 10 tokens is less than one sequence of 16"):
        train(config(tokens=10), data=shards, out=out, model=SHAPE)
    assert not out.exists()


def test_stopped_run_names_its_step_and_how_to_go_on(tmp_path: Path) -> None:
    error = interrupted({"step": 1234}, tmp_path)
    assert isinstance(error, Interrupted)
    assert "stopped after step 1,234" in error.what
    assert error.hint == "{option:resume} continues it"


def test_settings_of_a_configuration_have_every_field(tmp_path: Path) -> None:
    found = settings_of(config(compile=True), SHAPE, data=tmp_path, out=tmp_path / "run")
    assert found.values["compile"] == "on"
    assert found.values["d_model"] == 8
    assert "vocab_size" not in found.values
    assert set(found.origin.values()) == {"argument"}


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_another_host_refuses_leaves_the_folder_as_it_was(
    shards: Path, tmp_path: Path, monkeypatch, force: bool
) -> None:
    out = tmp_path / "runs" / "run"
    if force:
        train(config(), data=shards, out=out, model=SHAPE)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    def refuse(run: object, events: object) -> None:
        raise UsageError("started differently")

    monkeypatch.setattr("gptcli.trainer.train.join", refuse)
    with pytest.raises(UsageError, match="started differently"):
        train(config(seed=1), data=shards, out=out, model=SHAPE, force=force)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert force or not out.exists()
