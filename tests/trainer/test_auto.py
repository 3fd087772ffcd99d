from __future__ import annotations

import platform
import shutil
import sysconfig
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gptcli import optional_kernels
from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import auto, memory
from gptcli.trainer.memory import Extras, check_memory

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=128, n_ctx=64)
GPT2 = ModelConfig.from_paper(find_size("gpt2"))
pytestmark = pytest.mark.usefixtures("cpu_alone")


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
    return auto.auto_layout(model, sequences, "bf16", recompute="auto", micro_batch="auto")[0]


def give_gpus(monkeypatch, count, memory=80 * 10**9):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA of tomorrow")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=memory)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (memory, memory))


@pytest.mark.parametrize(
    ("layout", "world", "expected"),
    [
        (Layout(dp=4), 3, Layout(dp=3)),
        (Layout(dp=4), 1, Layout()),
        (Layout(dp=4, tp=2), 4, Layout(dp=2, tp=2)),
        (Layout(dp=2, shard=2), 2, Layout(shard=2)),
        (Layout(tp=2), 1, None),
        (Layout(dp=2, pp=2), 3, None),
    ],
)
def test_dp_follows_the_hosts_with_which_torchrun_starts_again(
    monkeypatch, layout, world, expected
):
    launch(monkeypatch, 0, world)
    assert auto.layout_after_restart(layout) == layout, "a first start must fit"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    after = auto.layout_after_restart(layout)
    assert after == (expected or layout)
    if expected is None:
        with pytest.raises(UsageError) as caught:
            auto.check_processes(after)
        assert "only dp can follow" in str(caught.value.hint)
    else:
        auto.check_processes(after)


def test_layout_of_a_cpu_and_of_torchrun(monkeypatch):
    assert auto_layout() == Layout()
    launch(monkeypatch, rank=3, world_size=16)
    assert auto_layout() == Layout(shard=16)


def test_a_layout_that_nobody_gave_divides_the_batch_or_names_the_batch(monkeypatch):
    launch(monkeypatch, rank=1, world_size=4)
    assert auto_layout(SMALL, 4) == Layout(shard=4)
    assert auto_layout(SMALL, 2) == Layout(shard=2, tp=2)
    assert auto_layout(SMALL, 1) == Layout(tp=4)
    launch(monkeypatch, rank=1, world_size=3)
    with pytest.raises(UsageError, match="a batch of 2 sequences is too small to divide") as error:
        auto_layout(SMALL, 2)
    assert error.value.field == "batch_tokens"
    assert error.value.hint == "raise {option:batch_tokens} to 192, or start fewer processes"
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    give_gpus(monkeypatch, 3)
    with pytest.raises(UsageError, match="3 GPUs") as error:
        auto_layout(SMALL, 2)
    assert "one of them: {option:layout} dp=1" in str(error.value.hint)


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
    layout, why = auto.auto_layout(large, 512, "bf16", recompute="auto", micro_batch="auto")
    assert (layout, why) == (Layout(shard=8), "no layout of 8 GPUs with 74.4 GB holds the model")
    with pytest.raises(
        UsageError, match=r"a process of shard=8 needs .* GB of memory, and has 74\.4 GB"
    ) as error:
        check_memory(large, layout, make_run(precision="bf16").train, 512)
    assert "the largest paper size that fits here is 13B" in str(error.value.hint)


def test_memory_decides_micro_batch_and_recomputation(monkeypatch):
    give_gpus(monkeypatch, 1, 4 * 10**9)
    small = auto.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")
    give_gpus(monkeypatch, 1)
    large = auto.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")
    assert small[0] < large[0]
    assert large[1] == "none"
    give_gpus(monkeypatch, 1, 10**9)
    assert auto.auto_micro_batch(GPT2, Layout(), 512, "bf16", "auto")[:2] == (1, "full")


@pytest.mark.parametrize("extras", [Extras(ema=True, compiled=True), Extras(muon=True)])
def test_what_is_chosen_holds_the_average_and_the_optimizer(monkeypatch, make_run, extras):
    """Layout, micro-batch and recomputation by "auto" pass the check of memory that follows."""
    model = ModelConfig.from_paper(find_size("760M"))
    changes = {"ema": 0.99 * extras.ema, "compile": extras.compiled}
    if extras.muon:
        changes |= {"optimizer": "muon"}
    train = replace(make_run(precision="bf16").train, **changes)
    chosen = []
    for processes in (1, 4):
        give_gpus(monkeypatch, processes)
        for has in range(6, 30, 6):
            monkeypatch.setattr(memory, "device_memory", lambda processes, has=has: has * 10**9)
            layout, _ = auto.auto_layout(
                model, 64, "bf16", recompute="auto", micro_batch="auto", extras=extras
            )
            micro_batch, recompute, why = auto.auto_micro_batch(
                model, layout, 64, "bf16", "auto", extras
            )
            if why.startswith("nothing fits"):
                continue
            step = replace(train, micro_batch=micro_batch, recompute=recompute)
            check_memory(model, layout, step, 64)
            chosen.append((micro_batch, recompute))
    assert len({*chosen}) > 2


def test_impossible_numbers_of_processes_are_refused(monkeypatch):
    auto.check_processes(Layout(dp=2))
    with pytest.raises(UsageError, match="1,024 processes on"):
        auto.check_processes(Layout(shard=1024))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="needs 8 GPUs; this machine has 4"):
        auto.check_processes(Layout(dp=2, shard=4))
    launch(monkeypatch, rank=0, world_size=6)
    with pytest.raises(UsageError, match="8 processes, but 6 were started"):
        auto.check_processes(Layout(dp=2, shard=4))


def test_bf16_where_the_cpu_has_it_and_the_model_is_wide_or_compiled(monkeypatch):
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: True)
    assert auto.auto_precision(SMALL, False, kernels=True)[0] == "bf16"
    assert auto.auto_precision(GPT2, False, kernels=False)[0] == "bf16"
    assert auto.auto_precision(SMALL, False, kernels=False)[0] == "fp32"
    assert auto.auto_precision(SMALL, True, kernels=False)[0] == "bf16"
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: False)
    assert auto.auto_precision(SMALL, False, kernels=True)[0] == "bf16"
    assert auto.auto_precision(SMALL, True, kernels=True)[0] == "fp32", "compiled by request"
    for features, reason in (
        ({"avx2"}, "this CPU has no bf16"),
        ({"avx512_bf16"}, "this CPU multiplies it faster than bf16"),
    ):
        monkeypatch.setattr(auto, "processor", lambda found=features: ("CPU", found))
        assert auto.auto_precision(GPT2, True, kernels=False) == ("fp32", reason)


def test_compile_where_there_is_a_compiler_and_work_enough(monkeypatch):
    def chosen(model: ModelConfig, tokens: int) -> tuple[bool, str]:
        return auto.auto_compile(model, tokens, 1, kernels=False)

    monkeypatch.setattr(auto, "compiler_lacks", lambda: "")
    assert chosen(GPT2, 10**9)[0]
    assert not auto.auto_compile(GPT2, 10**9, 1, kernels=True)[0]
    assert not chosen(SMALL, 10**5)[0]
    # nanoGPT's Shakespeare recipe, a minute: 600 steps of it took 52 s compiled, 46 without
    shakespeare = ModelConfig(n_layer=4, n_head=4, d_model=128, n_ctx=64, vocab_size=257)
    assert chosen(shakespeare, 2000 * 768) == (False, "the run is short")
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert chosen(GPT2, 10**9) == (False, "no C++ compiler here")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nothing")
    reason = "no headers of Python (Debian: python3-dev) here"
    assert chosen(GPT2, 10**9) == (False, reason)


@pytest.mark.parametrize("fast", [True, False])
def test_kernels_train_what_they_can_and_are_faster_at(monkeypatch, fast):
    """Without fast bf16: on x86, in one process, up to the width at which fp32 is as fast."""
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: True)
    monkeypatch.setattr(optional_kernels, "instruction_set", lambda: "avx2")
    assert auto.kernels_train(SMALL, 1)
    for changed in ({"norm": "post"}, {"dropout": 0.1}, {"gelu": "exact"}, {"d_model": 64}):
        assert not auto.kernels_train(replace(SMALL, **changed), 1)
    assert auto.kernels_train(GPT2, 1) == fast
    assert auto.kernels_train(SMALL, 2) == fast
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert auto.kernels_train(SMALL, 1) == fast
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: False)
    monkeypatch.setattr(optional_kernels, "instruction_set", lambda: None)
    assert not auto.kernels_train(SMALL, 1)


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
    assert auto.auto_micro_batch(SMALL, layout, sequences, "bf16", "auto")[0] == expected


def test_a_context_beyond_the_room_still_gets_one_sequence():
    assert (
        auto.auto_micro_batch(
            ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=10**6), Layout(), 10, "bf16", "auto"
        )[0]
        == 1
    )


@pytest.mark.parametrize(
    ("has_bf16", "capability", "precision"),
    [
        (True, (8, 0), "bf16"),
        (False, (7, 0), "fp16"),
        (False, (7, 5), "fp16"),
        (False, (6, 1), "fp32"),
    ],
)
def test_gpus_without_bf16_take_fp16(monkeypatch, has_bf16, capability, precision):
    monkeypatch.setattr(auto, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert auto.auto_precision(GPT2, True, kernels=False)[0] == precision
