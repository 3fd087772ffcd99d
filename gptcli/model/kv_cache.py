"""Keys and values of the positions already read, so that decoding reads each token once.

Position p of a sequence lies in slot p of its row, whatever shares the batch: sequences of any
lengths stand together, padded on the right where they are read at once, and no position is ever
shifted. What lies in slots that a row has not reached is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptcli.model.config import ModelConfig


def cache_bytes(config: ModelConfig, rows: int, room: int, dtype: torch.dtype) -> int:
    """Memory of the keys and values of `rows` sequences of `room` positions."""
    return 2 * config.n_layer * rows * room * config.d_model * dtype.itemsize


class KVCache:
    """Room for `room` positions (n_ctx where not given) of each of `rows` sequences.

    Keys and values of each layer are (B, H, room, D). How far each row is filled is `length_B`,
    which whoever drives the cache sets before a pass with `place`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        room: int | None = None,
    ) -> None:
        shape = (rows, config.n_head, room or config.n_ctx, config.d_head)
        # Zeros: a slot that is masked still takes part in products, and 0 · NaN is NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)
        ]
        self.rows, self.room = rows, shape[2]
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.reach = 0
        self.start: int | None = 0

    def place(self, lengths: Sequence[int], T: int, reach: int | None = None) -> None:
        """Say how far the rows are filled before a pass of T tokens each, which will look at the
        first `reach` slots.

        Where `reach` is not given it is as short as it can be, and rows of one length need no mask.
        """
        longest = max(lengths) + T
        even = reach is None and min(lengths) == max(lengths)
        self.start = lengths[0] if even else None
        self.reach = longest if reach is None else reach
        if not even:
            self.length_B.copy_(torch.tensor(lengths), non_blocking=True)

    def positions(self, T: int) -> torch.Tensor:
        """The positions of the next T tokens: (T,) where all rows are as long, else (B, T)."""
        if self.start is not None:
            return torch.arange(self.start, self.start + T, device=self.length_B.device)
        return self.length_B[:, None] + torch.arange(T, device=self.length_B.device)

    def seen(self, T: int, band: int | None) -> torch.Tensor | None:
        """(B, 1, T, reach) booleans, True where a query may look; None where the causal rule on the
        last positions says it all.
        """
        if self.start is not None:
            return None
        slot_S = torch.arange(self.reach, device=self.length_B.device)
        query_BT1 = self.positions(T)[:, :, None]
        seen_BTS = slot_S <= query_BT1
        return (seen_BTS if band is None else seen_BTS & (slot_S > query_BT1 - band))[:, None]

    def extend(
        self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions of one layer; returns the keys and values that the pass looks at,
        (B, H, reach, D).
        """
        T, keys, values = k_BHTD.shape[2], self.keys[layer], self.values[layer]
        if self.start is not None:
            keys[:, :, self.start : self.start + T] = k_BHTD
            values[:, :, self.start : self.start + T] = v_BHTD
        else:
            row_B1, position_BT = (
                torch.arange(self.rows, device=keys.device)[:, None],
                self.positions(T),
            )
            keys[row_B1, :, position_BT] = k_BHTD.transpose(1, 2)
            values[row_B1, :, position_BT] = v_BHTD.transpose(1, 2)
        return keys[:, :, : self.reach], values[:, :, : self.reach]

    def fresh(self, rows: Sequence[int]) -> FreshRows:
        """These rows, to be filled from position 0 in one pass."""
        return FreshRows(self, rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was; rows may repeat or go (as the hypotheses of a beam
        do).
        """
        index = torch.tensor(rows, device=self.length_B.device)
        self.keys = [store.index_select(0, index) for store in self.keys]
        self.values = [store.index_select(0, index) for store in self.values]
        self.rows, self.length_B = (
            len(rows),
            torch.zeros(len(rows), dtype=torch.int64, device=self.length_B.device),
        )


class FreshRows:
    """Rows of a cache while their prompts are read: attention needs only what the pass itself
    brings.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int]) -> None:
        self.cache = cache
        whole = list(rows) == list(range(cache.rows))
        self.rows = slice(None) if whole else torch.tensor(rows, device=cache.length_B.device)

    def positions(self, T: int) -> torch.Tensor:
        return torch.arange(T, device=self.cache.length_B.device)

    def store(self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> None:
        T = k_BHTD.shape[2]
        self.cache.keys[layer][self.rows, :, :T] = k_BHTD
        self.cache.values[layer][self.rows, :, :T] = v_BHTD
