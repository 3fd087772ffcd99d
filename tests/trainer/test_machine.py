from __future__ import annotations

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import machine

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=128, n_ctx=64)
GPT2 = ModelConfig.from_paper(find_size("gpt2"))


@pytest.fixture(autouse=True)
def _a_cpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_layout_of_a_cpu_of_torchrun_and_of_a_machine_with_gpus(monkeypatch):
    assert machine.auto_layout() == Layout()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert machine.auto_layout() == Layout(shard=8)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert machine.auto_layout() == Layout(shard=16)


def test_impossible_layouts_are_refused(monkeypatch):
    machine.check_layout(Layout(dp=2), 2)
    with pytest.raises(UsageError, match="batch is 1 sequences"):
        machine.check_layout(Layout(dp=2), 1)
    with pytest.raises(UsageError, match="1024 processes on"):
        machine.check_layout(Layout(shard=1024), 4096)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="needs 8 GPUs; this machine has 4"):
        machine.check_layout(Layout(dp=2, shard=4), 4096)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UsageError, match="8 processes, but 6 were started"):
        machine.check_layout(Layout(dp=2, shard=4), 4096)


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
    assert machine.auto_compile(GPT2, 10**9, Layout())[0]
    assert not machine.auto_compile(SMALL, 10**5, Layout())[0]
    monkeypatch.setattr(machine, "has_compiler", lambda: False)
    assert not machine.auto_compile(GPT2, 10**9, Layout())[0]


@pytest.mark.parametrize(
    ("sequences", "layout", "expected"), [(12, Layout(), 12), (512, Layout(), 64), (90, Layout(dp=3), 30), (7, Layout(dp=2), 4)]
)
def test_micro_batches_divide_a_process_share(sequences, layout, expected):
    assert machine.auto_micro_batch(SMALL, layout, sequences)[0] == expected


def test_a_context_beyond_the_room_still_gets_one_sequence():
    assert machine.auto_micro_batch(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=10**6), Layout(), 10)[0] == 1
