"""Layouts that are found, the fastest of them, and that `gpt train` accepts each."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.cost.hardware import Gpu, Precision, find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.layout import check_division as check_layout_of
from gptcli.cost.memory import RECOMPUTE, Recompute, StateRecipe
from gptcli.cost.planner import (
    MICRO_BATCHES,
    fewest_gpus,
    grids,
    interleaves,
    layouts,
    make_plan,
    nearest_that_fits,
    plans,
    recipe_of,
    rounds_of,
    step_configs,
)
from gptcli.cost.rank_memory import StepConfig, rank_memory
from gptcli.cost.step_time import TRAINERS, StepTime, Trainer, step_time
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import MODELS
from gptcli.trainer.memory import check_division
from gptcli.trainer.optimizer import check_precision

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
        assert rank_memory(config, plan.layout, plan.work) == replace(plan.memory, undivided=0)
        assert plan.memory.total <= A100.memory_bytes
        assert plan.work.micro_batch * plan.work.micro_batches * plan.layout.replicas >= 1024
    assert len({plan.layout for plan in found}) == len(found)
    assert plans(config, A100, 64, 1024, "bf16", most=3) == found[:3]


def test_plans_count_what_is_kept_undivided() -> None:
    """A sharded plan of `gpt train` fills the room that its GPUs have; other trainers' do not."""
    config = paper("1.3B")
    plan = make_plan(config, Layout(shard=8), StepConfig(micro_batch=2), H100)
    assert plan.memory.undivided == 6 * config.parameters
    assert plan.memory.total <= H100.memory_bytes
    other = make_plan(config, Layout(shard=8), StepConfig(micro_batch=2), H100, trainer="fsdp")
    assert replace(plan.memory, undivided=0) == other.memory
    assert make_plan(config, Layout(dp=8), StepConfig(), H100).memory.undivided == 0


def test_a_model_that_cannot_fit_has_no_plan() -> None:
    assert plans(paper("175B"), A100, 8, 1536, "bf16") == []


def test_the_fewest_gpus_that_hold_a_model() -> None:
    for size, gpu, sequences in (("175B", A100, 1536), ("13B", H100, 1024), ("gpt2", A100, 512)):
        found = fewest_gpus(paper(size), gpu, sequences, "bf16")
        assert found is not None
        layout, work = found
        assert rank_memory(paper(size), layout, work).total <= gpu.memory_bytes
        n = layout.processes
        assert plans(paper(size), gpu, n, sequences, "bf16", most=1)
        if n > 1:
            assert not plans(paper(size), gpu, n - 1, sequences, "bf16", most=1)
    assert fewest_gpus(paper("175B"), find_gpu("t4"), 1, "fp16") is None, "one sequence, few ranks"


SIZES = [model.name for model in MODELS]
COUNTS = sorted(
    {*range(1, 20), *(2**n for n in range(5, 15)), 63, 65, 960, 992, 1000, 2047, 20_000}
)


@pytest.mark.parametrize(
    ("size", "trainer"),
    [*((size, "gpt") for size in SIZES), ("gpt2", "megatron"), ("13B", "megatron")],
)
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=6))
def test_another_gpu_never_makes_it_slower(size: str, trainer: Trainer, counts: list[int]) -> None:
    """And what fits on some GPUs fits on more; the counts next to powers of two among them."""
    config, batch = paper(size), find_size(size).batch_tokens
    sequences, before = batch // config.n_ctx, math.inf
    for gpus in sorted({*counts, *(n + 1 for n in counts), counts[0] | 7, (counts[0] | 7) + 1}):
        found = plans(config, H100, gpus, sequences, "bf16", most=1, trainer=trainer)
        if not found:
            assert before == math.inf, "what fitted before"
            continue
        assert found[0].layout.processes <= gpus
        assert found[0].time.total <= before
        before = found[0].time.total


@pytest.mark.parametrize("size", ["gpt2", "6.7B", "175B"])
def test_a_larger_batch_takes_longer_and_a_faster_link_less(size: str) -> None:
    config = paper(size)
    for gpus in (64, 1000):
        seconds = [
            plans(config, H100, gpus, n, "bf16", most=1)[0].time.total
            for n in (128, 256, 512, 1024)
        ]
        assert seconds == sorted(seconds)
        for field in ("bandwidth", "link", "network"):
            faster = replace(H100, **{field: 2 * getattr(H100, field)})
            some, more = (plans(config, g, gpus, 512, "bf16", most=1)[0] for g in (H100, faster))
            assert more.time.total <= some.time.total


@pytest.mark.parametrize("seed", range(4))
def test_the_trainer_accepts_every_plan(seed: int) -> None:
    """200 questions drawn at random: each plan passes the checks of `gpt train --dry-run`."""
    draw = random.Random(seed)
    asked = accepted = 0
    while asked < 50:
        size = draw.choice(SIZES)
        config = paper(size)
        if draw.random() < 0.3:
            config = replace(config, n_ctx=draw.choice([512, 1000, 1024, 2048]))
        gpu = draw.choice([A100, H100, find_gpu("b200"), find_gpu("v100")])
        precision: Precision = "fp16" if gpu.name == "v100" else draw.choice(["bf16", "fp8"])
        if precision == "fp8" and gpu.fp8_flops is None:
            precision = "bf16"
        sequences = draw.choice([1, 7, 64, 300, 512, 1536])
        gpus = draw.choice(COUNTS)
        asked += 1
        for plan in plans(config, gpu, gpus, sequences, precision, most=4):
            check_division(config, plan.layout, "1f1b", sequences, precision)
            check_precision(precision, plan.layout.tp, here=False)
            assert plan.layout.processes <= gpus
            assert plan.memory.total <= gpu.memory_bytes
            accepted += 1
    assert accepted > 40


def test_megatron_interleaves_its_stages() -> None:
    """As many stages a process as it has layers, up to eight; the pipeline waits less for them."""
    assert interleaves(96, 8, "megatron") == (1, 8)
    assert interleaves(96, 16, "megatron") == (1, 6)
    assert interleaves(96, 96, "megatron") == interleaves(96, 1, "megatron") == (1,)
    assert interleaves(96, 8, "fp32") == (1,), "gpt train's stages are one or two"
    config, layout = paper("175B"), Layout(dp=8, tp=8, pp=8)
    work = StepConfig(micro_batch=1, micro_batches=9)
    plan = make_plan(config, layout, work, find_gpu("h200"), trainer="megatron")
    assert (plan.interleave, plan.work.micro_batches) == (8, 16), "rounds of eight"
    alone = step_time(config, layout, work, find_gpu("h200"), trainer="megatron")
    assert plan.time.bubble < alone.bubble / 4
    found = plans(config, H100, 1024, 1536, "bf16", most=1, trainer="megatron")[0]
    assert found.interleave > 1
    assert (
        rank_memory(config, found.layout, found.work, "megatron", interleave=found.interleave)
        == found.memory
    )
    assert "interleave" in found.as_dict()


def test_a_step_that_is_asked_for() -> None:
    found = plans(paper("1.3B"), H100, 8, 512, "bf16", micro_batch=2, recompute="full")
    assert {(plan.work.micro_batch, plan.work.recompute) for plan in found} == {(2, "full")}


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
    assert report["step_seconds"] == {**plan.time._asdict(), "total": plan.time.total}
    assert report["tokens_per_second"] == plan.tokens_per_second


@pytest.mark.parametrize("sequences", [5, 8, 16])
def test_the_best_plan_against_trying_all(sequences: int) -> None:
    """Every layout of up to 8 GPUs that the trainer accepts, with every step."""
    config = paper("1.3B")
    best = math.inf
    for processes in range(1, 9):
        for layout in every_layout(processes):
            try:
                check_layout_of(layout, config, sequences)
            except UsageError:
                continue
            for way in step_configs(math.ceil(sequences / layout.replicas), "bf16"):
                padded = replace(way, micro_batches=max(way.micro_batches, layout.pp))
                if rank_memory(config, layout, padded).total <= A100.memory_bytes:
                    best = min(best, step_time(config, layout, padded, A100).total)
    found = plans(config, A100, 8, sequences, "bf16", most=1)[0]
    assert found.time.total == pytest.approx(best)
    assert found.tokens_per_second == pytest.approx(sequences * 2048 / best)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_drawn_plans_against_trying_all(trainer: Trainer) -> None:
    """80 questions of small models on GPUs of memories near what is needed: every layout that a
    search over all of them finds, with its time; the fastest; and the fewest GPUs.
    """
    fitting = 0
    for number in range(80):
        draw = random.Random(f"{trainer} {number}")
        n_head = draw.choice([1, 2, 3, 4, 6, 8, 12])
        config = ModelConfig(
            n_layer=draw.randint(1, 9),
            n_head=n_head,
            d_model=n_head * draw.choice([8, 32, 64, 128]),
            n_ctx=draw.choice([16, 64, 256, 1000, 1024]),
            vocab_size=draw.choice([64, 1000, 50257]),
        )
        gpus, sequences = draw.randint(1, 12), draw.choice([1, 2, 3, 5, 8, 12, 16, 31])
        precision: Precision = draw.choice(["fp32", "bf16", "fp16", "fp8"])
        state = 16 * config.parameters / draw.randint(1, gpus) * math.exp(draw.uniform(-0.2, 1.5))
        layers = 34 * config.n_layer * config.n_ctx * config.d_model
        n_bytes = round(state + draw.random() ** 3 * draw.choice([1, 64]) * layers)
        gpu = replace(H100, memory_bytes=n_bytes)
        asked: dict[str, Any] = {}
        if draw.random() < 0.2:
            asked["micro_batch"] = draw.choice([1, 2, 3, 8])
        if draw.random() < 0.2:
            asked["recompute"] = draw.choice(RECOMPUTE)
        best = every_plan(config, gpu, gpus, sequences, precision, trainer, **asked)
        found = plans(config, gpu, gpus, sequences, precision, trainer=trainer, **asked)
        assert {plan.layout: plan.time.total for plan in found} == best, number
        first = plans(config, gpu, gpus, sequences, precision, most=1, trainer=trainer, **asked)
        assert [plan.time.total for plan in first] == sorted(best.values())[:1], number
        if not asked:
            fewest = fewest_gpus(config, gpu, sequences, precision, trainer)
            least = math.inf if fewest is None else fewest[0].processes
            if best:
                assert min(layout.processes for layout in best) == least, number
            else:
                assert least > gpus, number
        fitting += bool(best)
    assert 30 < fitting < 80


def every_plan(
    config: ModelConfig,
    gpu: Gpu,
    gpus: int,
    sequences: int,
    precision: Precision,
    trainer: Trainer,
    micro_batch: int | None = None,
    recompute: Recompute | None = None,
) -> dict[Layout, float]:
    """Return the layouts that fit with the seconds of their fastest step, by trying every step."""
    recipe, found = recipe_of(trainer), dict[Layout, float]()
    for tp, pp, limit in grids(config, gpus, sequences, precision):
        shares = {math.ceil(sequences / n): n for n in range(limit, 0, -1)}  # fewest replicas
        for share, replicas in shares.items():
            for layout in every_sharding(config, replicas, tp, pp, recipe):
                for size, kind, v in itertools.product(
                    [n for n in ([micro_batch] if micro_batch else MICRO_BATCHES) if n <= share],
                    [recompute] if recompute else RECOMPUTE,
                    interleaves(config.n_layer, pp, recipe),
                ):
                    work = StepConfig(
                        micro_batch=size,
                        micro_batches=rounds_of(math.ceil(share / size), pp, v),
                        precision=precision,
                        recompute=kind,
                    )
                    memory = rank_memory(config, layout, work, recipe, interleave=v)
                    if memory.total <= gpu.memory_bytes:
                        time = step_time(config, layout, work, gpu, trainer=trainer, interleave=v)
                        found[layout] = min(time.total, found.get(layout, math.inf))
    return found


def every_sharding(
    config: ModelConfig, replicas: int, tp: int, pp: int, recipe: StateRecipe
) -> set[Layout]:
    """Return the layouts without shards, with the most, and with the most inside a node of 8."""
    shards = [
        n
        for n in range(1, replicas + 1)
        if replicas % n == 0 and (tp == 1 or config.d_model % (tp * n) == 0)
    ]
    wanted = {1} if recipe == "megatron" else {1, shards[-1], max(n for n in shards if n * tp <= 8)}
    return {Layout(dp=replicas // shard, shard=shard, tp=tp, pp=pp) for shard in wanted}


def every_layout(processes: int) -> list[Layout]:
    sizes = [n for n in range(1, processes + 1) if processes % n == 0]
    return [
        Layout(dp=dp, shard=shard, tp=tp, pp=pp)
        for dp in sizes
        for shard in sizes
        for tp in sizes
        for pp in sizes
        if dp * shard * tp * pp == processes
    ]


def test_memory_may_be_filled_to_the_last_byte() -> None:
    config, layout, work = paper("1.3B"), Layout(), StepConfig(recompute="full")
    n_bytes = rank_memory(config, layout, work).total
    for spare, count in ((0, 1), (-1, 0)):
        gpu = replace(A100, memory_bytes=n_bytes + spare)
        assert len(plans(config, gpu, 1, 1, "bf16")) == count
        assert (nearest_that_fits(config, layout, work, gpu) is not None) == (count == 1)


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


@pytest.mark.parametrize(("size", "gpus"), [("1.3B", 5), ("gpt2-xl", 7)])
def test_stages_just_above_the_root_of_the_layers_are_tried(size: str, gpus: int) -> None:
    """24 layers over 5 stages, 48 over 7: the slowest has fewer layers than with one stage less."""
    layers = paper(size).n_layer
    assert -(-layers // gpus) < -(-layers // (gpus - 1))
    found = plans(paper(size), H100, gpus, 512, "bf16")
    assert Layout(pp=gpus) in {plan.layout for plan in found}


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_useful_numbers_of_replicas_by_trying_all(sequences: int, gpus: int) -> None:
    """A model of one layer on GPUs without links: each number of sequences a replica, once."""
    config = ModelConfig(n_layer=1, n_head=1, d_model=64, n_ctx=8, vocab_size=64)
    limit = min(sequences, gpus)
    wanted = {
        min(n for n in range(1, limit + 1) if -(-sequences // n) == share)
        for share in {-(-sequences // n) for n in range(1, limit + 1)}
    }
    with pytest.MonkeyPatch.context() as patch:
        seen: set[int] = set()

        def priced(config: ModelConfig, layout: Layout, *args: Any, **kwargs: Any) -> StepTime:
            seen.add(layout.replicas)
            return step_time(config, layout, *args, **kwargs)

        patch.setattr("gptcli.cost.planner.step_time", priced)
        plans(config, H100, gpus, sequences, "bf16", micro_batch=1, recompute="none")
    assert seen == wanted


@pytest.mark.parametrize(
    ("trainer", "gpus", "most"),
    [("gpt", 44, 100), ("gpt", 1024, 140), ("gpt", 4096, 170), ("megatron", 1024, 140)],
)
def test_few_layouts_of_175b_are_priced(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, gpus: int, most: int
) -> None:
    """Only those whose lower bound is under the best: 70, 95 and 116 with `gpt train`, of some
    thousands. `gpt cost` answers in a fraction of a second for it.
    """
    counts = {"step_time": 0, "rank_memory": 0}
    for name, function in (("step_time", step_time), ("rank_memory", rank_memory)):

        def counted(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(f"gptcli.cost.planner.{name}", counted)
    assert plans(paper("175B"), H100, gpus, 1536, "bf16", most=1, trainer=trainer)
    assert 1 <= counts["rank_memory"] <= counts["step_time"] <= most
