"""Micro-batches of a rank: its sequences of a step, cut from the run's one data order.

The order does not depend on the number of ranks or on the micro-batch size; they only divide it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from gptcli.distributed.context import RankContext
from gptcli.model.loss import IGNORE
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import Mixture, TokenStream, open_order, open_split
from gptcli.trainer.config import Run

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, each (micro_batch, n_ctx) int64, on the device."""


class Order(Protocol):
    """Sequence of windows to read: one of `gptcli.shards.order`, or `SequentialWindows`."""

    n_ctx: int

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of windows `first` to `first + count`, (count, n_ctx) int64."""
        ...


class SequentialWindows:
    """Windows of a token stream in their order, for validation."""

    def __init__(self, stream: TokenStream, n_ctx: int) -> None:
        self.stream, self.n_ctx = stream, n_ctx
        self.windows = (len(stream) - 1) // n_ctx
        """Number of whole windows in the stream."""

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of windows `first` to `first + count`, (count, n_ctx) int64."""
        span = self.stream[first * self.n_ctx : (first + count) * self.n_ctx + 1].astype(np.int64)
        return span[:-1].reshape(count, self.n_ctx), span[1:].reshape(count, self.n_ctx)


def open_validation(run: Run) -> SequentialWindows | Mixture | None:
    """Open the validation windows: in their order or, with several sources, mixed as in training.

    Return None if a source has less than one window of validation tokens.
    """
    manifest, n_ctx = read_manifest(run.data), run.model.n_ctx
    sources = list(manifest.shares("val"))
    if len(sources) < 2:
        if manifest.tokens("val") <= n_ctx:
            return None
        return SequentialWindows(open_split(run.data, "val", verify=False), n_ctx)
    if min(manifest.tokens("val", name) for name in sources) <= n_ctx:
        return None
    order = open_order(run.data, "val", n_ctx, seed=0, verify=False)
    assert isinstance(order, Mixture)
    return order


def micro_batches(
    order: Order, first: int, count: int, micro_batch: int, context: RankContext
) -> list[MicroBatch]:
    """Return this rank's share of sequences `first` to `first + count`, in micro-batches.

    Every rank gets the same number of micro-batches of one shape, so that collectives match and
    nothing is compiled twice. Missing sequences are padded with rows whose targets are IGNORE.
    """
    share = -(-count // context.replicas)
    begin = min(context.replica_rank * share, count)
    own = min(begin + share, count) - begin
    rows = -(-share // micro_batch) * micro_batch
    inputs_targets = np.zeros((2, rows, order.n_ctx), np.int64)  # one copy to the device
    if own:
        inputs_targets[0, :own], inputs_targets[1, :own] = order.batch(first + begin, own)
    inputs_targets[1, own:] = IGNORE
    x, y = _to_device(inputs_targets, context.device)
    return list(zip(x.split(micro_batch), y.split(micro_batch), strict=True))


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
