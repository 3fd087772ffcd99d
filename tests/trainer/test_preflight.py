from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.training import train_tokenizer
from gptcli.trainer.preflight import check_data, check_resume, check_run, differences


@pytest.fixture
def copied(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def test_a_run_that_can_be_met_passes(make_run, shards):
    check_run(make_run(), read_manifest(shards))
    check_data(make_run(), read_manifest(shards))


def test_an_altered_shard(make_run, copied):
    path = copied / "train-000000.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-000000\.bin: altered"):
        check_data(make_run(data=copied), read_manifest(copied))


def test_another_tokenizer(make_run, copied):
    train_tokenizer(["other words other words"], 262).save(copied / "tokenizer.json")
    with pytest.raises(InputError, match="not the one the shards were made with"):
        check_run(make_run(data=copied), read_manifest(copied))


def test_too_few_tokens_for_one_window(make_run, shards):
    with pytest.raises(
        InputError, match=r"the data has 6,000 tokens, too few for a context of 8,192\n.*n_ctx"
    ):
        check_run(make_run(n_ctx=8192, tokens=8192), read_manifest(shards))


def test_more_processes_than_sequences(make_run, shards):
    with pytest.raises(UsageError, match="layout: "):
        check_run(make_run(layout="dp=8"), read_manifest(shards))


def test_a_run_folder_that_holds_the_shards(make_run, copied):
    for out in (copied, copied.parent):
        with pytest.raises(UsageError, match="contains the shards"):
            check_run(replace(make_run(data=copied), out=out), read_manifest(copied))


def test_a_disk_without_room_for_a_checkpoint(make_run, shards, monkeypatch):
    run = make_run()
    # checkpoints, one more while it is written, the model and its copy
    free = (3 * 12 + 2 * 4) * run.model.parameters
    monkeypatch.setattr(shutil, "disk_usage", lambda where: SimpleNamespace(free=free))
    check_run(run, read_manifest(shards))
    free -= 1
    with pytest.raises(UsageError, match=r"take .* kB of disk, and .* kB are free"):
        check_run(run, read_manifest(shards))


def test_a_resume_of_another_run_is_refused_naming_the_difference(make_run, train_here):
    run = make_run()
    assert not check_resume(run)
    train_here(run)
    assert check_resume(run)
    changes: dict[str, dict[str, Any]] = {
        "lr was 0.003, now 0.001": {"lr": 1e-3},
        "seed was 1, now 2": {"seed": 2},
        "tokens was 1280, now 2560": {"tokens": 2560},
        "n_layer was 2, now 3": {"n_layer": 3},
        "the data changed": {"data_sha256": "0"},
        "the tokenizer changed": {"tokenizer_sha256": "0"},
    }
    for message, change in changes.items():
        with pytest.raises(UsageError, match=message) as caught:
            check_resume(make_run(**change))
        ways = str(caught.value.hint).split("\n  ")
        assert ways[0].startswith(
            f"to train on from its weights: {{option:init_from}} {run.out}"
        ) == (change.keys() <= {"lr", "seed", "tokens", "data_sha256"})
        assert ("leave out {option:lr}" in str(caught.value.hint)) == ("lr" in change)
        assert ways[-1] == "{option:force} deletes it and starts over"
    assert check_resume(make_run(keep=5, layout="dp=2", micro_batch=1))


def test_differences_in_both_directions():
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": 4}) == [
        "a was 1, now None",
        "b was 2, now 3",
        "c was None, now 4",
    ]
