"""Batches of a shard folder as tensors, for a PyTorch training loop of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gptcli.errors import UsageError
from gptcli.numbers import counted
from gptcli.shards.manifest import Split, mixture_text, read_mixture
from gptcli.shards.order import Mixture, open_order

STATE = ("split", "n_ctx", "seed", "mixture", "position")


class DataLoader:
    """Endless shuffled batches (x, y) of a split: int64 tensors of shape (batch_size, n_ctx).

    `y` is `x` one token later. The order is that of `gpt train`: every window of `n_ctx` tokens
    once per epoch, in an order that depends on `seed` alone, so any position can be resumed
    exactly and any number of processes reads the same global batches. Process `rank` of
    `world_size` reads its share: `batch_size` sequences of each global batch of
    `batch_size * world_size`. Several sources are mixed by the weights of the shards, or by
    `mixture`: other weights, which may change by tokens, as in `gpt train --mixture`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int,
        n_ctx: int,
        split: Split = "train",
        seed: int = 0,
        mixture: str = "",
        rank: int = 0,
        world_size: int = 1,
        verify: bool = True,
    ) -> None:
        """Open the shards of `split` ("train" or "val") in `folder`.

        `mixture` is a text such as "web=3,books=1; 500M: web=1,books=2", for training data alone:
        the tokens are those that all processes together have read. `verify` compares every shard
        with its SHA-256. Raises InputError if the shards are damaged or too short for one window,
        UsageError for an impossible `batch_size` or `rank`, or a `mixture` of other sources.
        """
        if batch_size < 1:
            raise UsageError(
                f"{batch_size} is less than 1", field="batch_size", code="out_of_range"
            )
        if not 0 <= rank < world_size:
            raise UsageError(
                f"{rank} is not a rank of {counted(world_size, 'process')}",
                field="rank",
                code="out_of_range",
                hint=f"use 0 to {world_size - 1}",
            )
        if mixture and split != "train":
            raise UsageError(
                "a mixture is of training data: validation reads its shards as they are",
                field="mixture",
                code="mixture_of_validation",
                hint="leave it out, or open the split 'train'",
            )
        self.mixture = mixture_text(read_mixture(mixture))
        self.order = open_order(
            Path(folder), split, n_ctx, seed, mixture=self.mixture, verify=verify
        )
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

    @property
    def sources(self) -> list[str]:
        """Names of the sources that are mixed; empty for data of one source."""
        return self.order.names if isinstance(self.order, Mixture) else []

    def tokens_of_sources(self) -> dict[str, int]:
        """Return the tokens of each source of a mixture that all processes have read so far."""
        if not isinstance(self.order, Mixture):
            return {}
        counts = self.order.counts(self.position)
        return {name: count * self.n_ctx for name, count in zip(self.sources, counts, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, with any batch size and number of processes.

        Raises UsageError if it is the state of another split, context, seed or mixture. States of
        earlier versions, which name no mixture, are of the shards' own weights.
        """
        state = {"mixture": "", **state}
        for name in STATE[:-1]:
            if state.get(name) != getattr(self, name):
                raise UsageError(
                    f"the state was saved with {name}={state.get(name)!r}, "
                    f"and this loader has {name}={getattr(self, name)!r}",
                    field=name,
                    code="another_order",
                )
        self.position = int(state["position"])
