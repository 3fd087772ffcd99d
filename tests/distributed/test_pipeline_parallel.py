"""Stages of a pipeline; tests/system/test_layouts.py runs them."""

from __future__ import annotations

from collections import Counter, deque

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.cost.memory import SCHEDULES
from gptcli.distributed.context import RankContext
from gptcli.distributed.pipeline_parallel import (
    SCHEDULE_CLASSES,
    Transfer,
    evaluation_ticks,
    merge_stages,
    split_stages,
)
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(n_layer=11, n_head=2, d_model=8, n_ctx=8, vocab_size=50)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 3, 5])
def test_every_parameter_is_held_once_under_its_plain_name(pp, schedule, tied):
    config = ModelConfig(**{**CONFIG.as_dict(), "tied": tied})
    held: Counter[str] = Counter()
    layers = []
    for rank in range(pp):
        with torch.device("meta"):
            model = GPT(config)
            stages = split_stages(
                model, RankContext(torch.device("cpu"), rank, pp, Layout(pp=pp)), schedule
            )
        assert len(stages) == SCHEDULES[schedule]
        held.update(name for name, _ in merge_stages(stages).named_parameters())
        layers += [len(stage.h) for stage in stages]
    plain = Counter(name for name, _ in GPT(config).named_parameters())
    if tied:  # the first and the last stage
        assert held.pop("wte.weight") == 2
        plain.pop("wte.weight")
    assert held == plain
    assert max(layers) - min(layers) <= 1


def test_every_schedule_runs():
    assert SCHEDULE_CLASSES.keys() == SCHEDULES.keys()


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
