from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptcli.cost.layout import Layout, layers_of
from gptcli.cost.memory import SCHEDULES
from gptcli.cost.step_time import StepTraffic, step_traffic
from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT
from gptcli.model.config import ModelConfig, find_size
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.training import train_tokenizer
from gptcli.trainer import preflight
from gptcli.trainer.memory import work_of
from gptcli.trainer.preflight import (
    check_data,
    check_resume,
    check_run,
    differences,
    dry_run,
    mesh_coordinates,
    uncompiled,
)
from tests.extent import WHOLE
from tests.trainer.fake_step import measure_step


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
    manifest = read_manifest(copied)
    number = [shard.file for shard in manifest.shards].index(path.name)
    parts = len(manifest.shards) + 1  # one of them is empty
    for part in range(parts):
        with (
            pytest.raises(InputError, match=r"train-000000\.bin: altered")
            if part == number
            else nullcontext()
        ):
            check_data(make_run(data=copied), manifest, part, parts)
    with pytest.raises(InputError, match=r"train-000000\.bin: altered"):
        check_data(make_run(data=copied), manifest)


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


def test_a_metric_that_no_step_has_and_an_optimizer_that_nobody_has(make_run, shards):
    manifest = read_manifest(shards)
    for run in (
        make_run(keep_best="val_loss"),
        replace(make_run(keep_best="val_loss_other"), val={"other": shards}),
        replace(make_run(keep_best="mine"), measure=lambda model: {"mine": 1.0}),
    ):
        check_run(run, manifest)
    for metric in ("foo", "val_loss_other"):
        with pytest.raises(UsageError, match=f"{metric} is not measured in this run") as caught:
            check_run(make_run(keep_best=metric), manifest)
        assert "val_loss" in str(caught.value.hint)
        assert ("measure" in str(caught.value.hint)) == (metric == "foo")
    measured = replace(make_run(keep_best="val_loss_othr"), measure=lambda model: {"mine": 1.0})
    with pytest.raises(UsageError, match="val_loss_othr is not measured in this run"):
        check_run(measured, manifest)  # whatever else is measured
    with pytest.raises(UsageError, match="nosuch:make cannot be imported"):
        check_run(make_run(optimizer="nosuch:make"), manifest)


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
        ways = str(caught.value.hint).split("\n")
        assert ways[0].startswith(
            f"to train another run from its weights: {{option:init_from}} {run.out}"
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


@pytest.fixture
def make_large(make_run):
    def make(size: str, layout: str, **changes):
        run = make_run(layout=layout, **{"micro_batch": 1, "precision": "bf16", **changes})
        return replace(run, model=ModelConfig.from_paper(find_size(size), vocab_size=50257))

    return make


def check_traffic(run, sequences, roles):
    """Measure a step once for stages with the same layers, the first and the last apart.

    Bytes are those of whole tensors, which are the same for all that take part in a collective.
    """
    layout, run = run.layout, uncompiled(run)
    work = work_of(layout, run.train, sequences)
    each = SCHEDULES[run.train.pipeline_schedule]
    kinds: dict[Any, Any] = {}
    for rank in range(layout.processes):
        context = RankContext(torch.device("cpu"), rank, layout.processes, layout)
        stage, *others = mesh_coordinates(context)
        if others == [0, 0, 0]:
            layers = layers_of(run.model, layout.pp, stage, each)
            kinds.setdefault((stage == 0, stage == layout.pp - 1, layers), context)
    measure = partial(measure_step, run, work.micro_batches)
    measured = dict(zip(kinds, preflight.in_processes(measure, kinds.values()), strict=True))
    for kind, context in kinds.items():
        stage = context.pp_rank
        assert measured[kind] == step_traffic(run.model, layout, work, stage, each=each)
    for role in roles:
        layers = layers_of(run.model, layout.pp, role.stage, each)
        kind = (role.stage == 0, role.stage == layout.pp - 1, layers)
        assert role.traffic == measured[kind]


@pytest.mark.parametrize(
    "layout",
    [
        "dp=4",
        "shard=8",
        "tp=4",
        "pp=3",
        "dp=2,shard=4",
        "shard=4,tp=2",
        "dp=2,pp=2",
        "shard=2,pp=2",
        "dp=2,tp=2,pp=2",
    ],
)
def test_processes_hold_and_send_what_cost_counts(make_large, layout):
    for untied in (False, True):
        run = make_large("gpt2", layout)
        # stages of one layer and of two
        n_layer = run.layout.pp + 1
        run = replace(run, model=replace(run.model, tied=not untied, n_layer=n_layer))
        roles = dry_run(run, 24, SILENT)  # raises RunError if parameters differ
        assert sum(role.processes for role in roles) == len(roles) * roles[0].processes
        assert all(role.traffic != StepTraffic() for role in roles)
        check_traffic(run, 24, roles)


def test_interleaved_stages_hold_and_send_what_cost_counts(make_large):
    run = make_large("gpt2", "pp=2", pipeline_schedule="interleaved1f1b")
    roles = dry_run(run, 8, SILENT)
    assert len(roles) == 2
    check_traffic(run, 8, roles)


def test_fp8_needs_neither_its_library_nor_a_gpu(make_large):
    run = make_large("gpt2", "shard=2", precision="fp8")
    roles = dry_run(run, 8, SILENT)
    assert roles == dry_run(make_large("gpt2", "shard=2"), 8, SILENT)
    check_traffic(run, 8, roles)


def test_a_difference_from_cost_is_an_error(make_large, monkeypatch):
    monkeypatch.setattr(preflight, "rank_parameters", lambda *args, **kwargs: 5)
    with pytest.raises(RunError, match=r"process 0 holds \d+, not 5"):
        dry_run(make_large("gpt2", "shard=2"), 8, SILENT)


def test_gpt3_on_1024_processes(make_large):
    """Build those that do not differ in their coordinate along dp alone: 16, or all 64 of README."""
    dp, tp, pp = (16, 8, 8) if WHOLE else (64, 4, 4)
    run = with_layers(make_large("175B", f"dp={dp},tp={tp},pp={pp}"), 16)
    roles = dry_run(run, 1536, SILENT)
    assert [role.processes for role in roles] == [1024 // pp] * pp
    held = tp * sum(role.parameters[1] for role in roles)
    # The head's copy on the last stage and what every slice repeats weigh more in a shallow model.
    share = 0.01 if WHOLE else 0.03
    assert held == pytest.approx(175e9 if WHOLE else run.model.parameters, rel=share)
    check_traffic(run, 1536, roles)


def test_13b_on_64_processes(make_large):
    shard = 64 if WHOLE else 16
    run = with_layers(make_large("13B", f"dp={64 // shard},shard={shard}"), 4)
    (role,) = roles = dry_run(run, 512, SILENT)
    assert role.processes == 64
    assert role.parameters[0] * shard <= run.model.parameters <= role.parameters[1] * shard
    check_traffic(run, 512, roles)


def with_layers(run, n_layer):
    """The run with all its widths and fewer layers, each of which repeats the work of the others."""
    return run if WHOLE else replace(run, model=replace(run.model, n_layer=n_layer))


def test_a_process_of_the_dry_run_that_dies_or_raises_is_an_error() -> None:
    contexts = [RankContext(torch.device("cpu"), rank, 3, Layout(dp=3)) for rank in range(3)]
    with pytest.raises(RunError, match="ended with code 3"):
        list(preflight.in_processes(lambda context: os._exit(3), contexts))
    with pytest.raises(ZeroDivisionError):
        list(preflight.in_processes(lambda context: {"": {(1 // context.rank,): 1}}, contexts))
    made = preflight.in_processes(lambda context: {"": {(context.rank,): 1}}, contexts)
    assert [held[""] for held in made] == [{(0,): 1}, {(1,): 1}, {(2,): 1}]
