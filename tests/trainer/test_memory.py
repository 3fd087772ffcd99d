from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gptcli.cost import layout as division
from gptcli.cost import planner
from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import rank_memory
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.runtime import Launch
from gptcli.trainer import memory
from gptcli.trainer.memory import check_division, check_memory, fitting

GPT2 = ModelConfig.from_paper(find_size("gpt2"))
pytestmark = pytest.mark.usefixtures("cpu_alone")


def test_advice_on_fp8_where_no_gpu_is_known(monkeypatch, make_run):
    """The GPU that stands for an unknown one has no fp8, and still ranks what fits."""
    monkeypatch.setattr(memory, "device_memory", lambda processes: 10**9)
    train = replace(make_run(precision="bf16").train, precision="fp8")
    assert memory.memory_advice(GPT2, Layout(dp=3), train, 512)
    small = replace(GPT2, n_layer=1)
    gpu = replace(find_gpu("a100"), memory_bytes=80 * 10**9)
    found = fitting(small, 2, 64, "fp8", gpu)
    assert found
    assert {work.precision for _, work in found} == {"fp8"}


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
        return memory.process_memory(GPT2, Layout(), replace(run.train, **changes), 8)

    plain, matrices = needs(), 12 * 12 * 768**2
    assert needs(compile=True) > plain
    assert plain - needs(optimizer="muon") == pytest.approx(4 * matrices)
    assert needs(ema=0.99) - plain == pytest.approx(4 * GPT2.parameters)
    monkeypatch.setattr(memory, "device_type", lambda: "cuda")
    on_gpu = needs()
    assert on_gpu < plain
    assert on_gpu - needs(optimizer="muon") == 4 * matrices


def test_a_run_that_does_not_fit_is_told_what_would(make_run, monkeypatch):
    run = make_run(precision="bf16")
    monkeypatch.setattr(memory, "device_memory", lambda processes: 12 * 10**9)
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
        fits = bool(fitting(config, 4, 4, "bf16", memory.device(4), micro_batch=1))
        assert fits == (config.parameters <= largest.parameters)


def test_advice_counts_the_average_and_the_compiler(make_run, monkeypatch):
    """What fits without an average is not advised to a run that has one."""
    run = make_run(precision="bf16")
    model, layout = ModelConfig.from_paper(find_size("760M")), Layout(dp=4)
    averaged = replace(run.train, ema=0.99, compile=True)
    ways = 0
    for has in (8, 10, 12, 14, 16):
        monkeypatch.setattr(memory, "device_memory", lambda processes, has=has: has * 10**9)
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


@pytest.mark.parametrize(("free", "expected"), [(75, 0.93 * 80), (60, 60)])
def test_a_gpu_that_is_used_already_has_less_memory(monkeypatch, free, expected):
    row = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: row)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 10**9, 80 * 10**9))
    assert memory.device_memory(1) == pytest.approx(expected * 1e9)


def test_the_smallest_of_several_gpus_counts(monkeypatch):
    sizes = [80, 40, 80]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties",
        lambda gpu: SimpleNamespace(total_memory=sizes[gpu] * 10**9),
    )  # fmt: skip
    assert memory.device_memory(3) == pytest.approx(0.93 * 40e9)


def test_a_node_has_the_gpus_that_a_launcher_uses(monkeypatch):
    """Shards and slices stay inside it: four GPUs a machine, not eight."""
    monkeypatch.setattr(memory, "device_memory", lambda _: 80 * 10**9)
    monkeypatch.setattr(memory, "launch_environment", lambda: None)
    alone = memory.device(16)
    monkeypatch.setattr(memory, "launch_environment", lambda: Launch(5, 16, 1, 4))
    four = memory.device(16)
    assert (alone.node, four.node) == (8, 4)
    medium = ModelConfig.from_paper(find_size("gpt2-medium"))
    layouts = {node: list(planner.layouts(medium, 16, node)) for node in (alone.node, four.node)}
    assert {layout.tp for layout in layouts[8]} == {1, 2, 4, 8}
    assert {layout.tp for layout in layouts[4]} == {1, 2, 4}
    assert {layout.shard for layout in layouts[4] if layout.pp == layout.tp == 1} == {16, 4, 1}
