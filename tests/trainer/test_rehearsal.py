from __future__ import annotations

from dataclasses import replace

import pytest

from gptcli.cost.communication import StepTraffic
from gptcli.errors import RunError
from gptcli.events import SILENT
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import rehearsal
from gptcli.trainer.rehearsal import rehearse


@pytest.fixture
def make_large(make_run):
    def make(size: str, layout: str, **changes):
        run = make_run(layout=layout, **{"micro_batch": 1, "precision": "bf16", **changes})
        return replace(run, model=ModelConfig.from_paper(find_size(size), vocab_size=50257))

    return make


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
def test_what_is_built_is_what_cost_counts(make_large, layout):
    for untied in (False, True):
        run = make_large("gpt2", layout)
        run = replace(
            run, model=replace(run.model, tied=not untied, n_layer=7 if "pp" in layout else 2)
        )
        roles = rehearse(run, 24, SILENT)  # raises where they differ
        assert sum(role.processes for role in roles) == len(roles) * roles[0].processes
        assert all(role.traffic != StepTraffic() for role in roles)


def test_interleaved_stages(make_large):
    assert (
        len(rehearse(make_large("gpt2", "pp=2", pipeline_schedule="interleaved1f1b"), 8, SILENT))
        == 2
    )


def test_fp8_needs_neither_its_library_nor_a_gpu_of_its_own(make_large):
    assert rehearse(make_large("gpt2", "shard=2", precision="fp8"), 8, SILENT) == rehearse(
        make_large("gpt2", "shard=2"), 8, SILENT
    )


def test_a_difference_is_told(make_large, monkeypatch):
    monkeypatch.setattr(rehearsal, "rank_parameters", lambda *args, **kwargs: 5)
    with pytest.raises(RunError, match=r"process 0 holds \d+, not 5"):
        rehearse(make_large("gpt2", "shard=2"), 8, SILENT)


def test_gpt3_on_1024_processes(make_large):
    """175B: 64 of the 1,024 roles are built, all others differ in their place along dp alone."""
    roles = rehearse(make_large("175B", "dp=16,tp=8,pp=8"), 1536, SILENT)
    assert [role.processes for role in roles] == [128] * 8
    held = 8 * sum(role.parameters[1] for role in roles)
    assert held == pytest.approx(175e9, rel=0.01)


def test_13b_on_64_shards(make_large):
    (role,) = rehearse(make_large("13B", "shard=64"), 512, SILENT)
    assert role.processes == 64
    assert (
        role.parameters[0] * 64
        <= ModelConfig.from_paper(find_size("13B")).parameters
        <= role.parameters[1] * 64
    )
