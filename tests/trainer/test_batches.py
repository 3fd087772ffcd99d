from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.distributed.context import RankContext
from gptcli.model.loss import IGNORE
from gptcli.shards.order import ShuffledWindows, TokenStream
from gptcli.trainer.batches import SequentialWindows, micro_batches

ORDER = ShuffledWindows(TokenStream([np.arange(4 * 50 + 1)]), 4, seed=3)
CPU = torch.device("cpu")


@given(
    first=st.integers(0, 200),
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    world=st.integers(1, 6),
)
def test_ranks_and_micro_batches_partition_the_data_order(first, count, size, world):
    parts = [
        micro_batches(ORDER, first, count, size, RankContext(CPU, rank, world))
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {tuple(x.shape) for part in parts for x, _ in part} == {(size, 4)}
    rows = [
        (x, y)
        for part in parts
        for xs, ys in part
        for x, y in zip(xs, ys, strict=True)
        if (y != IGNORE).all()
    ]
    x, y = ORDER.batch(first, count)
    assert torch.equal(torch.stack([row for row, _ in rows]), torch.from_numpy(x))
    assert torch.equal(torch.stack([row for _, row in rows]), torch.from_numpy(y))
    filler = sum(int((ys[:, 0] == IGNORE).sum()) for part in parts for _, ys in part)
    assert filler + count == sum(len(part) for part in parts) * size


def test_validation_windows_are_sequential():
    order = SequentialWindows(TokenStream([np.arange(7), np.arange(7, 14)]), 4)
    assert order.windows == 3
    x, y = order.batch(1, 2)
    assert x.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert y.tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]
