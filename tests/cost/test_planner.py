from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.memory import RECOMPUTE
from gptcli.cost.planner import (
    layouts,
    make_plan,
    nearest_that_fits,
    plans,
    step_configs,
    typical_plan,
)
from gptcli.cost.rank_memory import StepConfig, rank_memory
from gptcli.cost.step_time import step_time
from gptcli.model.config import ModelConfig, find_size

A100, H100 = find_gpu("a100"), find_gpu("h100")


def paper(size: str) -> ModelConfig:
    return ModelConfig.from_paper(find_size(size))


@pytest.mark.parametrize("gpus", [1, 6, 8, 64, 1000])
def test_every_layout_uses_every_gpu(gpus: int) -> None:
    found = list(layouts(paper("13B"), gpus))
    assert {layout.processes for layout in found} == {gpus}
    assert Layout(shard=gpus) in found


def test_tensor_slices_are_powers_of_two_inside_a_machine() -> None:
    assert {layout.tp for layout in layouts(paper("gpt2-medium"), 64)} == {1, 2, 4, 8}
    assert {layout.tp for layout in layouts(paper("gpt2"), 64)} == {1, 2, 4}, "12 heads"


def test_plans_fit_and_the_fastest_leads() -> None:
    config = paper("13B")
    found = plans(config, A100, 64, 1024, "bf16")
    assert len(found) > 10
    assert [plan.tokens_per_second for plan in found] == sorted(
        (plan.tokens_per_second for plan in found), reverse=True
    )
    for plan in found:
        assert rank_memory(config, plan.layout, plan.work) == plan.memory
        assert plan.memory.total <= A100.memory_bytes
        assert plan.work.micro_batch * plan.work.micro_batches * plan.layout.replicas >= 1024
    assert len({plan.layout for plan in found}) == len(found)
    assert plans(config, A100, 64, 1024, "bf16", most=3) == found[:3]


def test_a_model_that_cannot_fit_has_no_plan() -> None:
    assert plans(paper("175B"), A100, 8, 1536, "bf16") == []


def test_a_model_too_large_takes_more_gpus() -> None:
    plan = typical_plan(paper("175B"), A100, 1, 1536, "bf16")
    assert plan is not None
    assert 32 < plan.layout.processes <= 64
    assert plans(paper("175B"), A100, plan.layout.processes // 2, 1536, "bf16") == []


def test_the_nearest_that_fits() -> None:
    config, layout, work = paper("6.7B"), Layout(dp=8), StepConfig(micro_batch=4, micro_batches=32)
    assert make_plan(config, layout, work, A100).memory.total > A100.memory_bytes
    found = nearest_that_fits(config, layout, work, A100)
    assert found is not None
    other, way = found
    assert other.processes == 8
    assert rank_memory(config, other, way).total <= A100.memory_bytes
    assert nearest_that_fits(paper("175B"), Layout(dp=8), work, A100) is None


def test_a_layout_that_fits_is_its_own_nearest() -> None:
    config, layout, work = (
        paper("1.3B"),
        Layout(shard=8),
        StepConfig(micro_batch=4, micro_batches=16),
    )
    assert nearest_that_fits(config, layout, work, H100) == (layout, work)


def test_the_layouts_of_48_gpus_by_hand() -> None:
    """12 heads and 3 layers: slices of 1, 2 or 4, one stage or two; the rest sharded, sharded in a
    machine, or replicas.
    """
    config = ModelConfig(n_layer=3, n_head=12, d_model=12, n_ctx=8)
    rest = {(1, 1): 48, (1, 2): 24, (2, 1): 24, (2, 2): 12, (4, 1): 12, (4, 2): 6}
    wanted = {
        Layout(shard=shard, dp=n // shard, tp=tp, pp=pp)
        for (tp, pp), n in rest.items()
        for shard in (n, 1)
    }
    in_a_machine = {(1, 1): 8, (1, 2): 8, (2, 1): 8, (2, 2): 4, (4, 1): 4, (4, 2): 2}
    wanted |= {
        Layout(shard=shard, dp=rest[key] // shard, tp=key[0], pp=key[1])
        for key, shard in in_a_machine.items()
    }
    found = list(layouts(config, 48))
    assert set(found) == wanted
    assert len(found) == len(wanted) == 18
    eight = ModelConfig(n_layer=3, n_head=8, d_model=8, n_ctx=8)
    assert {layout.tp for layout in layouts(eight, 48)} == {1, 2, 4, 8}
    assert {layout.tp for layout in layouts(eight, 12)} == {1, 2, 4}, (
        "12 GPUs are no machines of 8 slices"
    )
    assert {layout.pp for layout in layouts(replace(eight, n_layer=4), 48)} == {1, 2, 4}


def test_micro_batches_of_a_replica() -> None:
    """At most as many at a time as there are; what is left over makes one round more."""
    ways = [(way.micro_batch, way.micro_batches, way.recompute) for way in step_configs(5, "fp16")]
    assert ways == [
        (each, rounds, again) for each, rounds in ((1, 5), (2, 3), (4, 2)) for again in RECOMPUTE
    ]
    assert {way.precision for way in step_configs(5, "fp16")} == {"fp16"}
    assert [way.micro_batch for way in step_configs(100, "bf16")][::3] == [1, 2, 4, 8, 16, 32, 64]


def test_a_plan_by_hand() -> None:
    config, layout, work = (
        paper("1.3B"),
        Layout(shard=4, dp=2),
        StepConfig(micro_batch=4, micro_batches=16),
    )
    plan = make_plan(config, layout, work, A100)
    assert plan.tokens_per_second == pytest.approx(
        4 * 16 * 8 * 2048 / step_time(config, layout, work, A100).total
    )
    report = plan.as_dict()
    assert (report["layout"], report["micro_batch"], report["micro_batches"]) == (
        "dp=2,shard=4",
        4,
        16,
    )
    assert report["memory_bytes"] == {**asdict(plan.memory), "total": plan.memory.total}
    assert report["step_seconds"] == {**asdict(plan.time), "total": plan.time.total}
    assert report["tokens_per_second"] == plan.tokens_per_second


@pytest.mark.parametrize("sequences", [5, 8, 16])
def test_each_layout_with_its_best_way_against_trying_all(sequences: int) -> None:
    """Speed counts the sequences that are there, not the last round's empty places; a layout needs
    a sequence for every replica.
    """
    config = paper("1.3B")
    best: dict[Layout, float] = {}
    for layout in layouts(config, 8):
        for way in (
            step_configs(math.ceil(sequences / layout.replicas), "bf16")
            if layout.replicas <= sequences
            else ()
        ):
            if rank_memory(config, layout, way).total <= A100.memory_bytes:
                best[layout] = max(
                    best.get(layout, 0.0),
                    sequences * 2048 / step_time(config, layout, way, A100).total,
                )
    found = plans(config, A100, 8, sequences, "bf16")
    assert {plan.layout: plan.tokens_per_second for plan in found} == pytest.approx(best)
    assert (Layout(shard=8) in best) == (sequences >= 8)


def test_memory_may_be_filled_to_the_last_byte() -> None:
    config, layout, work = paper("1.3B"), Layout(), StepConfig(recompute="full")
    n_bytes = rank_memory(config, layout, work).total
    for spare, count in ((0, 1), (-1, 0)):
        gpu = replace(A100, memory_bytes=n_bytes + spare)
        assert len(plans(config, gpu, 1, 1, "bf16")) == count
        assert (nearest_that_fits(config, layout, work, gpu) is not None) == (count == 1)


def test_no_more_than_64_gpus_to_a_sequence() -> None:
    for gpus in (1, 64):
        plan = typical_plan(paper("175B"), A100, gpus, 1, "bf16")
        assert plan is not None
        assert plan.layout == Layout(tp=8, pp=8)
    assert plans(paper("175B"), A100, 128, 1, "bf16"), "which could be done"
    assert typical_plan(paper("175B"), A100, 128, 1, "bf16") is None
    assert (
        typical_plan(paper("1.3B"), A100, 8, 512, "bf16")
        == plans(paper("1.3B"), A100, 8, 512, "bf16", most=1)[0]
    )


@pytest.mark.parametrize(
    ("size", "layout", "work", "nearest", "way"),
    [
        (
            "1.3B",
            Layout(dp=8),
            StepConfig(micro_batch=32, micro_batches=2),
            Layout(dp=8),
            (8, 8, "none"),
        ),
        (
            "2.7B",
            Layout(dp=2, pp=2),
            StepConfig(micro_batch=32, micro_batches=2),
            Layout(dp=2, pp=2),
            (8, 8, "none"),
        ),
        (
            "6.7B",
            Layout(dp=8),
            StepConfig(micro_batch=4, micro_batches=32),
            Layout(dp=4, tp=2),
            (4, 64, "none"),
        ),
    ],
)
def test_the_smallest_change_by_hand(
    size: str, layout: Layout, work: StepConfig, nearest: Layout, way: tuple[int, int, str]
) -> None:
    """Two halvings of the micro-batch, where one does not fit, and one with recomputation does not
    either or is slower; where none helps, half of the replicas become slices. Every step less does
    not fit."""
    config = paper(size)
    found = nearest_that_fits(config, layout, work, A100)
    assert found is not None
    assert (found[0], (found[1].micro_batch, found[1].micro_batches, found[1].recompute)) == (
        nearest,
        way,
    )
    half = replace(work, micro_batch=work.micro_batch // 2, micro_batches=2 * work.micro_batches)
    selective = replace(work, recompute="selective")
    assert all(
        rank_memory(config, layout, less).total > A100.memory_bytes
        for less in (work, half, selective)
    )


def test_a_change_keeps_the_batch_and_never_grows_the_micro_batch() -> None:
    config = paper("6.7B")
    for micro_batch, micro_batches in ((1, 1), (2, 1), (1, 64)):
        found = nearest_that_fits(
            config,
            Layout(dp=8),
            StepConfig(micro_batch=micro_batch, micro_batches=micro_batches),
            A100,
        )
        assert found is not None
        layout, way = found
        assert layout.processes == 8
        assert way.micro_batch <= micro_batch
        assert (
            way.micro_batch * way.micro_batches * layout.replicas == 8 * micro_batch * micro_batches
        )
