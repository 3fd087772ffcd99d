from __future__ import annotations

import itertools

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.distributed.context import RankContext

CPU = torch.device("cpu")
LAYOUTS = [
    Layout(),
    Layout(dp=3),
    Layout(2, 3, 2, 2),
    Layout(dp=16, tp=8, pp=8),
    Layout(shard=4, pp=3),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_and_coordinates_correspond_one_to_one(layout):
    contexts = [
        RankContext(CPU, rank, layout.processes, layout) for rank in range(layout.processes)
    ]
    roles = [(context.pp_rank, context.replica_rank, context.tp_rank) for context in contexts]
    assert sorted(roles) == list(
        itertools.product(range(layout.pp), range(layout.replicas), range(layout.tp))
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_process_of_each_replica_owns_the_loss(layout):
    contexts = [
        RankContext(CPU, rank, layout.processes, layout) for rank in range(layout.processes)
    ]
    told = [context.replica_rank for context in contexts if context.owns_loss]
    assert sorted(told) == list(range(layout.replicas))


def test_processes_without_a_layout_are_replicas():
    assert [RankContext(CPU, rank, 3).replica_rank for rank in range(3)] == [0, 1, 2]
