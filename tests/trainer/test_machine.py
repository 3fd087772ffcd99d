from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import machine
from gptcli.trainer.fit import check_memory

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=128, n_ctx=64)
GPT2 = ModelConfig.from_paper(find_size("gpt2"))


@pytest.fixture(autouse=True)
def _a_cpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch, rank, world_size):
    """The environment of a process that torchrun started."""
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 29500,
    }.items():
        monkeypatch.setenv(name, str(value))


def auto_layout(model=GPT2, sequences=512):
    return machine.auto_layout(model, sequences, "bf16", recompute="auto", micro_batch="auto")[0]


def give_gpus(monkeypatch, count, memory=80 * 10**9):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA of tomorrow")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=memory)
    )


def test_layout_of_a_cpu_and_of_torchrun(monkeypatch):
    assert auto_layout() == Layout()
    launch(monkeypatch, rank=3, world_size=16)
    assert auto_layout() == Layout(shard=16)


def test_layout_of_gpus_is_the_fastest_that_fits(monkeypatch):
    give_gpus(monkeypatch, 8)
    large = ModelConfig.from_paper(find_size("6.7B"))
    assert auto_layout().processes == auto_layout(large).processes == 8
    assert auto_layout(large).dp < 8, "a replica holds 16 bytes a parameter"


def test_a_model_that_no_layout_holds_gets_one_that_is_refused_with_what_fits(
    monkeypatch, make_run
):
    give_gpus(monkeypatch, 8)
    large = ModelConfig.from_paper(find_size("175B"))
    layout, why = machine.auto_layout(large, 512, "bf16", recompute="auto", micro_batch="auto")
    assert (layout, why) == (Layout(shard=8), "no layout of 8 GPUs with 74.4 GB holds the model")
    with pytest.raises(
        UsageError, match=r"a process of shard=8 needs .* GB of memory, and has 74\.4 GB"
    ) as error:
        check_memory(large, layout, make_run(precision="bf16").train, 512)
    assert "the largest paper size that fits here is 13B" in error.value.hint


def test_what_fits_decides_micro_batch_and_recomputation(monkeypatch):
    give_gpus(monkeypatch, 1, 4 * 10**9)
    small = machine.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")
    give_gpus(monkeypatch, 1)
    large = machine.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")
    assert small[0] < large[0]
    assert large[1] == "none"
    give_gpus(monkeypatch, 1, 10**9)
    assert machine.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")[:2] == (1, "full")


def test_impossible_numbers_of_processes_are_refused(monkeypatch):
    machine.check_layout(Layout(dp=2))
    with pytest.raises(UsageError, match="1024 processes on"):
        machine.check_layout(Layout(shard=1024))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="needs 8 GPUs; this machine has 4"):
        machine.check_layout(Layout(dp=2, shard=4))
    launch(monkeypatch, rank=0, world_size=6)
    with pytest.raises(UsageError, match="8 processes, but 6 were started"):
        machine.check_layout(Layout(dp=2, shard=4))


def test_bf16_where_the_cpu_has_it_and_the_model_is_wide_or_compiled(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert machine.auto_precision(GPT2, False)[0] == "bf16"
    assert machine.auto_precision(SMALL, False)[0] == "fp32"
    assert machine.auto_precision(SMALL, True)[0] == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert machine.auto_precision(GPT2, True)[0] == "fp32"


def test_compile_where_there_is_a_compiler_and_work_enough(monkeypatch):
    monkeypatch.setattr(machine, "has_compiler", lambda: True)
    assert machine.auto_compile(GPT2, 10**9, 1)[0]
    assert not machine.auto_compile(SMALL, 10**5, 1)[0]
    monkeypatch.setattr(machine, "has_compiler", lambda: False)
    assert not machine.auto_compile(GPT2, 10**9, 1)[0]


@pytest.mark.parametrize(
    ("sequences", "layout", "expected"),
    [
        (12, Layout(), 12),
        (512, Layout(), 64),
        (90, Layout(dp=3), 30),
        (7, Layout(dp=2), 4),
        (64, Layout(pp=4), 16),
    ],
)
def test_micro_batches_divide_a_process_share(sequences, layout, expected):
    assert machine.auto_micro_batch(SMALL, layout, sequences, "bf16", "auto")[0] == expected


def test_a_context_beyond_the_room_still_gets_one_sequence():
    assert (
        machine.auto_micro_batch(
            ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=10**6), Layout(), 10, "bf16", "auto"
        )[0]
        == 1
    )
