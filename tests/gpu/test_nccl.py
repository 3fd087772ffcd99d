"""Transfers between the stages of a pipeline, on a model of NCCL's streams."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.distributed import pipeline_parallel
from gptcli.distributed.context import RankContext
from gptcli.distributed.pipeline_parallel import Pipeline, Transfer, evaluation_ticks
from gptcli.model.config import ModelConfig

CONFIG = ModelConfig(n_layer=2, n_head=1, d_model=4, n_ctx=3, vocab_size=5)


def drains(groups: list[list[list[Transfer]]]) -> bool:
    """Return whether all transfers end, on a model of NCCL's streams.

    `groups` are each process's transfers in order, those of a group started together. A process
    goes on to its next group once the last one has ended. A send ends with the receive that it
    meets; both sides take the transfers of a pair in order.
    """
    waiting = [deque(deque(group) for group in process if group) for process in groups]

    def meets(rank: int, transfer: Transfer) -> bool:
        if not waiting[transfer.peer]:
            return False
        theirs = [t for t in waiting[transfer.peer][0] if t.peer == rank and not t.is_send]
        if not theirs or (theirs[0].stage, theirs[0].batch) != (transfer.stage, transfer.batch):
            return False
        waiting[transfer.peer][0].remove(theirs[0])
        return True

    moved = True
    while moved:
        moved = False
        for rank, process in enumerate(waiting):
            if not process:
                continue
            blocked = set()  # a later send to the same process waits for the earlier one
            for transfer in list(process[0]):
                if transfer.is_send and transfer.peer not in blocked:
                    if meets(rank, transfer):
                        process[0].remove(transfer)
                        moved = True
                    else:
                        blocked.add(transfer.peer)
        for process in waiting:
            while process and not process[0]:
                process.popleft()
                moved = True
    return not any(waiting)


@pytest.mark.parametrize("stages_here", [1, 2, 3])
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_an_evaluation_never_hangs_and_has_every_input(pp: int, stages_here: int) -> None:
    for batches in (1, 2, pp, 2 * pp + 1):
        ticks = [evaluation_ticks(rank, pp, stages_here, batches) for rank in range(pp)]
        assert drains([[tick.transfers for tick in process] for process in ticks])
        passes: Counter[tuple[int, int]] = Counter()
        for rank, process in enumerate(ticks):
            received: set[tuple[int, int]] = set()
            computed: set[tuple[int, int]] = set()
            for tick in process:
                for stage, batch in tick.passes:
                    assert stage % pp == rank
                    assert stage == 0 or (stage - 1, batch) in received
                computed.update(tick.passes)
                passes.update(tick.passes)
                for transfer in tick.transfers:
                    if transfer.is_send:
                        assert (transfer.stage, transfer.batch) in computed
                    else:
                        received.add((transfer.stage, transfer.batch))
        stages = pp * stages_here
        assert passes == Counter((s, b) for s in range(stages) for b in range(batches))


def test_the_same_transfers_one_by_one_can_hang() -> None:
    """Two stages a process, each transfer a kernel of its own in one stream."""

    def one_by_one(rank: int) -> list[list[Transfer]]:
        # stage by stage, each with all its micro-batches: receive, then send
        found = []
        for stage in range(rank, 4, 2):
            for batch in range(2):
                if stage:
                    found.append([Transfer(False, (stage - 1) % 2, stage - 1, batch)])
                if stage < 3:
                    found.append([Transfer(True, (stage + 1) % 2, stage, batch)])
        return found

    assert not drains([one_by_one(rank) for rank in range(2)])


class Dist:
    """Stands in for torch.distributed: notes the transfers that are started together."""

    def __init__(self) -> None:
        self.groups: list[list[Transfer]] = []

    def isend(self, _: torch.Tensor, dst: int | None = None, **words: Any) -> Any:
        return self.alone(True, dst, words)

    def irecv(self, _: torch.Tensor, src: int | None = None, **words: Any) -> Any:
        return self.alone(False, src, words)

    def alone(self, is_send: bool, peer: int | None, words: dict[str, Any]) -> Any:
        number = peer if peer is not None else words.get("group_dst", words.get("group_src"))
        assert number is not None
        self.groups.append([Transfer(is_send, number, 0, 0)])
        return SimpleNamespace(wait=lambda: None)

    def P2POp(self, function: Any, _: torch.Tensor, *, group: Any, group_peer: int) -> Transfer:
        return Transfer(function == self.isend, group_peer, 0, 0)

    def batch_isend_irecv(self, transfers: list[Transfer]) -> list[Any]:
        self.groups.append(transfers)
        return []


class Stage(torch.nn.Module):
    """Stage that computes nothing."""

    def __init__(self, number: int, stages: int) -> None:
        super().__init__()
        self.wpe = object() if number == 0 else None
        self.lm_head = object() if number == stages - 1 else None

    def forward(self, x: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
        return torch.zeros(()) if self.lm_head else torch.zeros(1, 3, 4)


@pytest.mark.parametrize(("pp", "stages_here"), [(2, 1), (2, 2), (3, 2), (4, 2)])
def test_an_evaluation_starts_its_transfers_together(
    pp: int, stages_here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline itself does so, with one stage a process and with several (interleaved)."""
    groups = []
    batch = torch.zeros(1, 3, dtype=torch.long)
    for rank in range(pp):
        dist = Dist()
        monkeypatch.setattr(pipeline_parallel, "dist", dist)
        pipeline: Any = Pipeline.__new__(Pipeline)
        pipeline.context = RankContext(torch.device("cpu"), rank, pp, Layout(pp=pp))
        pipeline.config, pipeline.eot_id, pipeline.group = CONFIG, None, None
        stages = pp * stages_here
        pipeline.stages = [Stage(number, stages) for number in range(rank, stages, pp)]
        pipeline.loss([(batch, batch)] * 3, contextlib.nullcontext)
        groups.append(dist.groups)
    assert any(groups)
    assert drains(groups)
