from __future__ import annotations

import re
import shutil
import sysconfig
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gptcli import optional_kernels
from gptcli.cost import layout as division
from gptcli.cost import planner
from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import rank_memory
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.runtime import Launch
from gptcli.trainer import auto
from gptcli.trainer.auto import Extras, check_division, check_memory, fitting

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


def test_advice_on_fp8_where_no_gpu_is_known(monkeypatch, make_run):
    """The GPU that stands for an unknown one has no fp8, and still ranks what fits."""
    monkeypatch.setattr(auto, "device_memory", lambda processes: 10**9)
    train = replace(make_run(precision="bf16").train, precision="fp8")
    assert auto.memory_advice(GPT2, Layout(dp=3), train, 512)
    small = replace(GPT2, n_layer=1)
    gpu = replace(find_gpu("a100"), memory_bytes=80 * 10**9)
    found = fitting(small, 2, 64, "fp8", gpu)
    assert found
    assert {work.precision for _, work in found} == {"fp8"}


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
            monkeypatch.setattr(auto, "device_memory", lambda processes, has=has: has * 10**9)
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
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: True)
    assert auto.auto_precision(SMALL, False)[0] == "bf16"
    assert auto.auto_precision(replace(SMALL, d_model=64), False)[0] == "fp32"
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: False)
    assert auto.auto_precision(GPT2, False)[0] == "bf16"
    assert auto.auto_precision(SMALL, False)[0] == "fp32"
    assert auto.auto_precision(SMALL, True)[0] == "bf16"
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: False)
    for features, reason in (
        ({"avx2"}, "this CPU has no bf16"),
        ({"avx512_bf16"}, "this CPU multiplies it faster than bf16"),
    ):
        monkeypatch.setattr(auto, "processor", lambda found=features: ("CPU", found))
        assert auto.auto_precision(GPT2, True) == ("fp32", reason)


def test_compile_where_there_is_a_compiler_and_work_enough(monkeypatch):
    monkeypatch.setattr(auto, "compiler_lacks", lambda: "")
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: False)
    assert auto.auto_compile(GPT2, 10**9, 1)[0]
    assert not auto.auto_compile(SMALL, 10**5, 1)[0]
    monkeypatch.undo()
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert auto.auto_compile(GPT2, 10**9, 1) == (False, "no C++ compiler here")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nothing")
    reason = "no headers of Python (Debian: python3-dev) here"
    assert auto.auto_compile(GPT2, 10**9, 1) == (False, reason)


def test_nothing_is_compiled_where_the_kernels_compute_whole_layers(monkeypatch):
    monkeypatch.setattr(auto, "compiler_lacks", lambda: "")
    monkeypatch.setattr(auto, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: True)
    assert not auto.auto_compile(GPT2, 10**9, 1)[0]
    for changed in ({"norm": "post"}, {"dropout": 0.1}, {"gelu": "exact"}):
        assert auto.auto_compile(replace(GPT2, **changed), 10**9, 1)[0]
    assert auto.auto_compile(GPT2, 10**9, 1, plain=False)[0]
    monkeypatch.setattr(optional_kernels, "can_be_built", lambda: False)
    assert auto.auto_compile(GPT2, 10**9, 1)[0]


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
    ("layout", "changes", "message"),
    [
        (Layout(tp=5), {}, "tp=5 does not divide 12 heads"),
        (Layout(tp=3), {}, "tp=3 does not divide a context of 1024"),
        (Layout(pp=13), {}, "more stages than the model's 12 layers"),
        (
            Layout(pp=8),
            {"schedule": "interleaved1f1b"},
            "16 stages of pp=8, more than the model's 12 layers",
        ),
        (Layout(dp=65), {}, "a batch is 64"),
        (Layout(dp=32, pp=4), {}, "a batch is 64 sequences"),
        (Layout(shard=5, tp=2), {}, "does not divide a width of 768"),
    ],
)
def test_layouts_that_do_not_divide_are_refused(layout, changes, message):
    with pytest.raises(UsageError, match=message):
        check_division(GPT2, layout, **{"schedule": "1f1b", "sequences": 64, **changes})


def test_a_batch_too_small_is_told_what_would_do():
    with pytest.raises(UsageError, match="reads 16 sequences at a time, but a batch is 8") as error:
        check_division(GPT2, Layout(dp=16), "1f1b", 8)
    hint = str(error.value.hint)
    assert "{option:layout}" in hint
    for text in hint.removeprefix("for example {option:layout} ").split(", or "):
        check_division(GPT2, division.parse_layout(text), "1f1b", 8)


def test_the_memory_of_a_process_counts_what_it_trains_with(make_run, monkeypatch):
    """On a CPU all of the process, on a GPU its tensors."""

    def needs(**changes):
        run = make_run(precision="bf16")
        return auto.process_memory(GPT2, Layout(), replace(run.train, **changes), 8)

    plain, matrices = needs(), 12 * 12 * 768**2
    assert needs(compile=True) > plain
    assert plain - needs(optimizer="muon") == pytest.approx(4 * matrices)
    assert needs(ema=0.99) - plain == pytest.approx(4 * GPT2.parameters)
    monkeypatch.setattr(auto, "device_type", lambda: "cuda")
    on_gpu = needs()
    assert on_gpu < plain
    assert on_gpu - needs(optimizer="muon") == 4 * matrices


def test_a_run_that_does_not_fit_is_told_what_would(make_run, monkeypatch):
    run = make_run(precision="bf16")
    monkeypatch.setattr(auto, "device_memory", lambda processes: 12 * 10**9)
    check_memory(run.model, Layout(dp=4), run.train, 64)
    large = ModelConfig.from_paper(find_size("760M"))
    with pytest.raises(
        UsageError, match=r"a process of dp=4 needs .* GB of memory, and has 12 GB"
    ) as error:
        check_memory(large, Layout(dp=4), run.train, 64)
    ways = str(error.value.hint).split("; or ")
    named = [re.findall(r"\{option:\S+\} (\S+)", text) for text in ways]
    assert len(named) > 1
    for layout, micro_batch, recompute in named:
        work = replace(run.train, layout=layout, micro_batch=int(micro_batch), recompute=recompute)
        check_memory(large, division.parse_layout(layout), work, 64)
    with pytest.raises(UsageError) as error:
        check_memory(ModelConfig.from_paper(find_size("13B")), Layout(dp=4), run.train, 64)
    assert "use more processes" in str(error.value.hint)
    found = re.search(r"the largest paper size that fits here is (\S+);", str(error.value.hint))
    assert found is not None
    largest = ModelConfig.from_paper(find_size(found[1]))
    for name in (found[1], "1558M", "2.7B"):
        config = ModelConfig.from_paper(find_size(name))
        fits = bool(fitting(config, 4, 4, "bf16", auto.device(4), micro_batch=1))
        assert fits == (config.parameters <= largest.parameters)


def test_advice_counts_the_average_and_the_compiler(make_run, monkeypatch):
    """What fits without an average is not advised to a run that has one."""
    run = make_run(precision="bf16")
    model, layout = ModelConfig.from_paper(find_size("760M")), Layout(dp=4)
    averaged = replace(run.train, ema=0.99, compile=True)
    ways = 0
    for has in (8, 10, 12, 14, 16):
        monkeypatch.setattr(auto, "device_memory", lambda processes, has=has: has * 10**9)
        with pytest.raises(UsageError) as error:
            check_memory(model, layout, averaged, 64)
        for advised in re.findall(
            r"\{option:layout\} (\S+) \{option:micro_batch\} (\d+) \{option:recompute\} (\S+)(?:;|$)",
            str(error.value.hint),
        ):
            way = replace(
                averaged, layout=advised[0], micro_batch=int(advised[1]), recompute=advised[2]
            )
            check_memory(model, division.parse_layout(advised[0]), way, 64)
            ways += 1
    assert ways > 2


def test_fitting_layouts_fit_and_divide():
    gpu = replace(find_gpu("a100"), memory_bytes=16 * 10**9)
    model = ModelConfig.from_paper(find_size("1.3B"))
    found = fitting(model, 8, 64, "bf16", gpu)
    assert len({layout for layout, _ in found}) == len(found) > 3
    for layout, work in found:
        check_division(model, layout, "1f1b", 64)
        assert rank_memory(model, layout, work).total <= gpu.memory_bytes


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
    assert auto.auto_precision(GPT2, True)[0] == precision


@pytest.mark.parametrize(("free", "expected"), [(75, 0.93 * 80), (60, 60)])
def test_a_gpu_that_is_used_already_has_less_memory(monkeypatch, free, expected):
    row = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: row)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 10**9, 80 * 10**9))
    assert auto.device_memory(1) == pytest.approx(expected * 1e9)


def test_the_smallest_of_several_gpus_counts(monkeypatch):
    sizes = [80, 40, 80]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties",
        lambda gpu: SimpleNamespace(total_memory=sizes[gpu] * 10**9),
    )  # fmt: skip
    assert auto.device_memory(3) == pytest.approx(0.93 * 40e9)


def test_a_node_has_the_gpus_that_a_launcher_uses(monkeypatch):
    """Shards and slices stay inside it: four GPUs a machine, not eight."""
    monkeypatch.setattr(auto, "device_memory", lambda _: 80 * 10**9)
    monkeypatch.setattr(auto, "launch_environment", lambda: None)
    alone = auto.device(16)
    monkeypatch.setattr(auto, "launch_environment", lambda: Launch(5, 16, 1, 4))
    four = auto.device(16)
    assert (alone.node, four.node) == (8, 4)
    medium = ModelConfig.from_paper(find_size("gpt2-medium"))
    layouts = {node: list(planner.layouts(medium, 16, node)) for node in (alone.node, four.node)}
    assert {layout.tp for layout in layouts[8]} == {1, 2, 4, 8}
    assert {layout.tp for layout in layouts[4]} == {1, 2, 4}
    assert {layout.shard for layout in layouts[4] if layout.pp == layout.tp == 1} == {16, 4, 1}
