"""Key-value cache: keys and values of the positions already processed, for decoding.

Position p of a sequence is always stored in slot p of its row, whatever else is in the batch. Rows
may therefore have any lengths: prompts are padded on the right, and no entry ever moves. Slots
beyond the length of a row are never attended to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from gptcli.model.config import ModelConfig


def cache_bytes(config: ModelConfig, rows: int, max_len: int, dtype: torch.dtype) -> int:
    """Return the memory, in bytes, of a cache for `rows` sequences of `max_len` positions."""
    return 2 * config.n_layer * rows * max_len * config.d_model * dtype.itemsize


class KVCache:
    """Key-value cache for `rows` sequences of up to `max_len` positions (default n_ctx).

    `keys` and `values` contain one tensor (B, H, max_len, D) per layer. The caller declares the
    length of each row before every forward pass, with `set_positions`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        max_len: int | None = None,
    ) -> None:
        """Allocate the cache, filled with zeros."""
        shape = (rows, config.n_head, max_len or config.n_ctx, config.d_head)
        # zeros because masked slots still take part in products, and 0 · NaN is NaN
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)
        ]
        self._allocated = self.keys, self.values
        self.rows, self.max_len = rows, shape[2]
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=device)
        """Positions in each row, if the rows differ in length."""
        self.visible_len = 0
        """Slots, from slot 0, that the next forward pass reads."""
        self.masks: dict[int | None, torch.Tensor] | None = None
        """Masks of the forward pass under way, if it is declared to be one (`one_pass`)."""
        self.start: int | None = 0
        """Positions in every row; None if the rows differ in length."""

    def set_positions(self, lengths: Sequence[int], T: int, visible_len: int | None = None) -> None:
        """Set the length of each row before a pass that appends T tokens to each.

        The pass reads the first `visible_len` slots. By default that is the longest row after the
        pass, and rows of equal length then need no mask.
        """
        longest = max(lengths) + T
        equal = visible_len is None and min(lengths) == max(lengths)
        self.start = lengths[0] if equal else None
        self.visible_len = longest if visible_len is None else visible_len
        if not equal:
            self.length_B.copy_(torch.tensor(lengths), non_blocking=True)

    def positions(self, T: int) -> torch.Tensor:
        """Return the positions of the next T tokens: (T,) for rows of equal length, else (B, T)."""
        if self.start is not None:
            return torch.arange(self.start, self.start + T, device=self.length_B.device)
        return self.length_B[:, None] + torch.arange(T, device=self.length_B.device)

    def attn_mask(self, T: int, band: int | None) -> torch.Tensor | None:
        """Return the mask (B, 1, T, visible_len) of a pass over T tokens; True: the query attends.

        Return None for rows of equal length: the causal rule of `attention` is then enough.
        """
        if self.start is not None:
            return None
        if self.masks is not None and band in self.masks:
            return self.masks[band]
        slot_S = torch.arange(self.visible_len, device=self.length_B.device)
        query_BT1 = self.positions(T)[:, :, None]
        mask_BTS = slot_S <= query_BT1
        if band is not None:
            mask_BTS = mask_BTS & (slot_S > query_BT1 - band)
        if self.masks is not None:
            self.masks[band] = mask_BTS[:, None]
        return mask_BTS[:, None]

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Compute each mask once in this context, for all layers of one forward pass."""
        self.masks = {}
        try:
            yield
        finally:
            self.masks = None

    def update(
        self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of T new positions; return all visible ones.

        Both results are (B, H, visible_len, D).
        """
        T, keys, values = k_BHTD.shape[2], self.keys[layer], self.values[layer]
        if self.start is not None:
            keys[:, :, self.start : self.start + T] = k_BHTD
            values[:, :, self.start : self.start + T] = v_BHTD
        else:
            row_B1 = torch.arange(self.rows, device=keys.device)[:, None]
            position_BT = self.positions(T)
            keys[row_B1, :, position_BT] = k_BHTD.transpose(1, 2)
            values[row_B1, :, position_BT] = v_BHTD.transpose(1, 2)
        return keys[:, :, : self.visible_len], values[:, :, : self.visible_len]

    def prefill_view(self, rows: Sequence[int]) -> PrefillView:
        """Return a view of these rows that one pass fills from position 0."""
        return PrefillView(self, rows)

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`; rows may repeat or disappear, as in beam search."""
        index = torch.tensor(rows, device=self.length_B.device)
        self.keys = [store.index_select(0, index) for store in self.keys]
        self.values = [store.index_select(0, index) for store in self.values]
        self._allocated = self.keys, self.values
        self._set_rows(len(rows))

    def resize(self, rows: int) -> None:
        """Use the first `rows` of the rows that are allocated. Nothing is copied."""
        self.keys, self.values = ([store[:rows] for store in kind] for kind in self._allocated)
        self._set_rows(rows)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]

    def _set_rows(self, rows: int) -> None:
        self.rows = rows
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=self.length_B.device)


class PrefillView:
    """Rows of a cache during prefill, whose queries attend only to keys of the same pass."""

    def __init__(self, cache: KVCache, rows: Sequence[int]) -> None:
        """Select `rows` of `cache`."""
        self.cache = cache
        all_rows = list(rows) == list(range(cache.rows))
        self.rows = slice(None) if all_rows else torch.tensor(rows, device=cache.length_B.device)

    def positions(self, T: int) -> torch.Tensor:
        """Return the positions of the T tokens of the prefill, (T,)."""
        return torch.arange(T, device=self.cache.length_B.device)

    def store(self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> None:
        """Store the keys and values of one layer in slots 0 to T - 1 of the rows."""
        T = k_BHTD.shape[2]
        self.cache.keys[layer][self.rows, :, :T] = k_BHTD
        self.cache.values[layer][self.rows, :, :T] = v_BHTD


class SharedPrefixView:
    """Rows that attend to one cached prefix, with given positions and masks; nothing is stored."""

    def __init__(
        self,
        cache: KVCache | None,
        position_BT: torch.Tensor,
        attn_mask: Callable[[int | None], torch.Tensor],
    ) -> None:
        """Attend to the single row of `cache`, if there is one.

        `attn_mask` returns the mask of layers with a band (None if dense): (B, 1, T, P + T) for a
        prefix of P positions, True where a query attends.
        """
        self.cache, self.position_BT = cache, position_BT
        self._mask_of = attn_mask
        self._masks: dict[int | None, torch.Tensor] = {}

    def positions(self, T: int) -> torch.Tensor:
        """Return the positions of the T tokens, (B, T)."""
        return self.position_BT

    def attn_mask(self, T: int, band: int | None) -> torch.Tensor:
        """Return the mask of a layer with this band, (B, 1, T, P + T)."""
        if band not in self._masks:  # computed once for all layers with the same band
            self._masks[band] = self._mask_of(band)
        return self._masks[band]

    def update(
        self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of the prefix and the T tokens, (B, H, P + T, D)."""
        if self.cache is None:
            return k_BHTD, v_BHTD
        k_1HPD, v_1HPD = self.cache.keys[layer], self.cache.values[layer]
        shape = (k_BHTD.shape[0], *k_1HPD.shape[1:])
        return torch.cat([k_1HPD.expand(shape), k_BHTD], dim=2), torch.cat(
            [v_1HPD.expand(shape), v_BHTD], dim=2
        )
