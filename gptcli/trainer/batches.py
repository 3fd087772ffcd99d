"""Which sequences a process reads in a step. The order is the run's own; how many processes there
are and how many sequences each runs at a time only cuts it differently."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from gptcli.distributed.context import RankContext
from gptcli.model.loss import IGNORE
from gptcli.shards.loader import TokenStream

# inputs and targets, each (micro_batch, n_ctx) int64, on the device
MicroBatch = tuple[torch.Tensor, torch.Tensor]


class Order(Protocol):
    """An endless sequence of windows: `gptcli.shards.order.ShuffledWindows`, or `InOrder`."""

    n_ctx: int

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]: ...


class InOrder:
    """The windows of a stream as they stand, for validation."""

    def __init__(self, stream: TokenStream, n_ctx: int) -> None:
        self.stream, self.n_ctx = stream, n_ctx
        self.windows = (len(stream) - 1) // n_ctx

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows first to first + count: inputs and targets (count, n_ctx) int64."""
        span = self.stream[first * self.n_ctx : (first + count) * self.n_ctx + 1].astype(np.int64)
        return span[:-1].reshape(count, self.n_ctx), span[1:].reshape(count, self.n_ctx)


def micro_batches(
    order: Order, first: int, count: int, size: int, context: RankContext
) -> list[MicroBatch]:
    """This process's part of sequences first to first + count, `size` at a time.

    Every process gets equally many micro-batches of one shape, so that collectives meet and nothing
    is compiled twice: what is missing is filled with rows whose targets count for nothing.
    """
    share = -(-count // context.replicas)
    begin = min(context.replica_rank * share, count)
    mine = min(begin + share, count) - begin
    rows = -(-share // size) * size
    both = np.zeros((2, rows, order.n_ctx), np.int64)  # inputs and targets: one copy to the device
    if mine:
        both[0, :mine], both[1, :mine] = order.batch(first + begin, mine)
    both[1, mine:] = IGNORE
    x, y = _to_device(both, context.device)
    return list(zip(x.split(size), y.split(size), strict=True))


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
