from __future__ import annotations

import pytest

from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.plans import layouts, make_plan, nearest_that_fits, plans, typical_plan
from gptcli.cost.rank import Work, rank_memory
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
    assert [plan.tokens_per_second for plan in found] == sorted((plan.tokens_per_second for plan in found), reverse=True)
    for plan in found:
        assert rank_memory(config, plan.layout, plan.work) == plan.memory
        assert plan.memory.total <= A100.memory_bytes
        assert plan.work.micro_batch * plan.work.micro_batches * plan.layout.replicas >= 1024
    assert len({plan.layout for plan in found}) == len(found)
    assert plans(config, A100, 64, 1024, "bf16", most=3) == found[:3]


def test_what_cannot_fit_has_no_plan() -> None:
    assert plans(paper("175B"), A100, 8, 1536, "bf16") == []


def test_a_model_too_large_takes_more_gpus() -> None:
    plan = typical_plan(paper("175B"), A100, 1, 1536, "bf16")
    assert plan is not None
    assert 32 < plan.layout.processes <= 64
    assert plans(paper("175B"), A100, plan.layout.processes // 2, 1536, "bf16") == []


def test_the_nearest_that_fits() -> None:
    config, layout, work = paper("6.7B"), Layout(dp=8), Work(micro_batch=4, micro_batches=32)
    assert make_plan(config, layout, work, A100).memory.total > A100.memory_bytes
    found = nearest_that_fits(config, layout, work, A100)
    assert found is not None
    other, way = found
    assert other.processes == 8
    assert rank_memory(config, other, way).total <= A100.memory_bytes
    assert nearest_that_fits(paper("175B"), Layout(dp=8), work, A100) is None


def test_what_fits_is_its_own_nearest() -> None:
    config, layout, work = paper("1.3B"), Layout(shard=8), Work(micro_batch=4, micro_batches=16)
    assert nearest_that_fits(config, layout, work, H100) == (layout, work)
