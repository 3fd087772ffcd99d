"""Batches of a shard folder as tensors, for a PyTorch training loop of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gptcli.errors import UsageError
from gptcli.shards.manifest import Split
from gptcli.shards.order import open_order

STATE = ("split", "n_ctx", "seed", "position")


class DataLoader:
    """Endless shuffled batches (x, y) of a split: int64 tensors of shape (batch_size, n_ctx).

    `y` is `x` one token later. The order is that of `gpt train`: every window of `n_ctx` tokens
    once per epoch, in an order that depends on `seed` alone, so any position can be resumed
    exactly and any number of processes reads the same global batches. Process `rank` of
    `world_size` reads its share: `batch_size` sequences of each global batch of
    `batch_size * world_size`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int,
        n_ctx: int,
        split: Split = "train",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        verify: bool = True,
    ) -> None:
        """Open the shards of `split` ("train" or "val") in `folder`.

        `verify` compares every shard with its SHA-256. Raises InputError if the shards are damaged
        or too short for one window, UsageError for an impossible `batch_size` or `rank`.
        """
        if batch_size < 1:
            raise UsageError(
                f"{batch_size} is less than 1", field="batch_size", code="out_of_range"
            )
        if not 0 <= rank < world_size:
            raise UsageError(
                f"{rank} is not a rank of {world_size} processes",
                field="rank",
                code="out_of_range",
                hint=f"use 0 to {world_size - 1}",
            )
        self.order = open_order(Path(folder), split, n_ctx, seed, verify=verify)
        self.batch_size, self.n_ctx, self.split, self.seed = batch_size, n_ctx, split, seed
        self.rank, self.world_size = rank, world_size
        self.position = 0
        """Sequences that all processes together have read."""

    @property
    def windows(self) -> int:
        """Number of sequences in an epoch."""
        return self.order.windows

    @property
    def epoch(self) -> float:
        """Epochs read so far, with their fraction."""
        return self.position / self.windows

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this process's part of each global batch, from the current position on."""
        while True:
            first = self.position + self.rank * self.batch_size
            x, y = self.order.batch(first, self.batch_size)
            self.position += self.batch_size * self.world_size
            yield torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the order, the same on every process."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, with any batch size and number of processes.

        Raises UsageError if it is the state of another split, context or seed.
        """
        for name in STATE[:-1]:
            if state.get(name) != getattr(self, name):
                raise UsageError(
                    f"the state was saved with {name}={state.get(name)!r}, "
                    f"and this loader has {name}={getattr(self, name)!r}",
                    field=name,
                    code="another_order",
                )
        self.position = int(state["position"])
