"""Score many continuations in one forward pass, computing each shared prefix once.

A group contains the sequences of one request: one context with each of its choices, or several
contexts with one ending. The tokens that all of them begin with, the group prefix, are computed
once; the continuations follow, and an attention mask separates them from each other. Groups of any
length are packed into one row, with little padding:

    position   0 1 2 3 4 | 5 6   5 6 7   5   | 0 1 2 3 | 4   4 5
    segment    prefix a  | a.0   a.1     a.2 | prefix b| b.0 b.1

A continuation attends to its group prefix and to itself.

If all groups begin with the same tokens (the same few-shot examples for every item), that prefix is
computed once for all batches. Its keys and values are cached, and every row attends to them.

Shapes: R rows, T positions, P cached prefix positions, C d_model, H heads, D d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from gptcli.model.kv_cache import KVCache, SharedPrefixView
from gptcli.model.transformer import GPT

# Tokens per row. Longer rows waste attention on masked pairs, shorter rows have more padding.
ROW_TOKENS = 256
NO_SEGMENT = -1  # the parent of a group prefix, and the segment of padding


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with a common prefix, and the number of scored tokens at the end of each."""

    sequences: Sequence[Sequence[int] | np.ndarray]
    """Tokens of each sequence."""
    counts: Sequence[int]
    """Number of scored tokens of each sequence: at least 1, and fewer than its length."""
    prefix_len: int = field(init=False)
    """Number of tokens that all sequences begin with, their last tokens excluded, which are
    predicted but never read.
    """
    continuations: list[np.ndarray] = field(init=False)
    """Distinct inputs after the prefix; equal choices share one, so that their scores are equal."""
    continuation_of: list[int] = field(init=False)
    """Index into `continuations` of each sequence."""

    def __post_init__(self) -> None:
        prefix_len = common_prefix_len([sequence[:-1] for sequence in self.sequences])
        rests = [np.asarray(sequence[prefix_len:-1], dtype=np.int64) for sequence in self.sequences]
        numbers: dict[bytes, int] = {}
        continuation_of = [numbers.setdefault(rest.tobytes(), len(numbers)) for rest in rests]
        continuations = [rests[continuation_of.index(number)] for number in range(len(numbers))]
        object.__setattr__(self, "prefix_len", prefix_len)
        object.__setattr__(self, "continuations", continuations)
        object.__setattr__(self, "continuation_of", continuation_of)

    @property
    def unscored_prefix_len(self) -> int:
        """Number of prefix tokens before the first position that predicts a scored token."""
        starts = (
            len(sequence) - count - 1
            for sequence, count in zip(self.sequences, self.counts, strict=True)
        )
        return min(self.prefix_len, *starts)

    def size(self, cached: int = 0) -> int:
        """Return the tokens in a forward pass over this group without its `cached` first."""
        return self.prefix_len - cached + sum(map(len, self.continuations))


def common_prefix_len(sequences: Sequence[Sequence[int] | np.ndarray]) -> int:
    """Return how many tokens all sequences begin with."""
    shortest = min(len(sequence) for sequence in sequences)
    if len(sequences) == 1:
        return shortest
    first = np.asarray(sequences[0][:shortest])
    equal = np.logical_and.reduce([np.asarray(one[:shortest]) == first for one in sequences[1:]])
    return int(np.argmin(equal)) if not equal.all() else shortest


class PackedRows:
    """Groups packed into rows: (R, T) arrays of tokens, positions, segments and their parents."""

    def __init__(self, groups: Sequence[Group], cached: int) -> None:
        """Pack `groups`, whose first `cached` tokens are in the cache."""
        sizes = [group.size(cached) for group in groups]
        filled = _pack(sizes, max(ROW_TOKENS, *sizes))
        shape = (len(filled), max(sum(sizes[number] for number in row) for row in filled))
        self.tokens_RT, self.position_RT = (
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
        )
        # A token attends to its own segment and to its parent; no segment is NO_SEGMENT - 1.
        self.segment_RT, self.parent_RT = np.full(shape, NO_SEGMENT), np.full(shape, NO_SEGMENT - 1)
        self.scored_positions: dict[int, list[np.ndarray]] = {}
        """By group, for each sequence: indices into the flattened rows at which its scored tokens
        are predicted.
        """
        for row, numbers in enumerate(filled):
            at, segment = 0, 0
            for number in numbers:
                group = groups[number]
                prefix_len, prefix_at, prefix_segment = group.prefix_len, at, segment
                self._put(
                    row, at, group.sequences[0][cached:prefix_len], cached, segment, NO_SEGMENT - 1
                )
                at += prefix_len - cached
                starts = []
                for continuation in group.continuations:
                    segment += 1
                    self._put(row, at, continuation, prefix_len, segment, prefix_segment)
                    starts.append(at)
                    at += len(continuation)
                segment += 1
                self.scored_positions[number] = []
                for sequence, count, continued in zip(
                    group.sequences, group.counts, group.continuation_of, strict=True
                ):
                    read = np.arange(len(sequence) - 1 - count, len(sequence) - 1)
                    in_prefix, after = (
                        prefix_at + read - cached,
                        starts[continued] + read - prefix_len,
                    )
                    positions = np.where(read < prefix_len, in_prefix, after)
                    self.scored_positions[number].append(row * shape[1] + positions)
        one_segment = (self.segment_RT == 0) | (self.segment_RT == NO_SEGMENT)
        self.is_causal = cached == 0 and bool(one_segment.all())
        """True if every row is a single sequence, which needs only the causal mask."""

    def _put(
        self,
        row: int,
        at: int,
        tokens: Sequence[int] | np.ndarray,
        position: int,
        segment: int,
        parent: int,
    ) -> None:
        where = slice(at, at + len(tokens))
        self.tokens_RT[row, where] = tokens
        self.position_RT[row, where] = np.arange(position, position + len(tokens))
        self.segment_RT[row, where] = segment
        self.parent_RT[row, where] = parent


def _pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the indices of the groups in each row of `capacity` tokens (first fit decreasing)."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        row = next((row for row, space in enumerate(free) if space >= sizes[number]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(capacity)
        rows[row].append(number)
        free[row] -= sizes[number]
    return rows


class SharedPrefixCache:
    """Keys and values of a prefix that all groups share, which packed rows attend to."""

    def __init__(self, model: GPT, prefix: Sequence[int]) -> None:
        """Compute `prefix`, which may be empty."""
        weight = model.wte.weight
        self.model, self.device, self.prefix_len = model, weight.device, len(prefix)
        self.cache: KVCache | None = None
        """Cache of the prefix in its only row; None if the prefix is empty."""
        if prefix:
            self.cache = KVCache(model.config, 1, weight.device, weight.dtype, max_len=len(prefix))
            self.cache.set_positions([0], len(prefix))
            model.hidden(torch.tensor([prefix], device=weight.device), self.cache)

    def hidden_states(self, rows: PackedRows) -> torch.Tensor:
        """Return the input of the output head at every position of the rows, (R·T, C)."""
        idx_RT = torch.from_numpy(rows.tokens_RT).to(self.device)
        if rows.is_causal:
            return self.model.hidden(idx_RT).flatten(0, 1)
        position_RT = torch.from_numpy(rows.position_RT).to(self.device)
        view = SharedPrefixView(self.cache, position_RT, partial(self._attn_mask, rows))
        return self.model.hidden(idx_RT, view).flatten(0, 1)

    def _attn_mask(self, rows: PackedRows, band: int | None) -> torch.Tensor:
        """Return (R, 1, T, P + T) booleans, True where a query attends."""
        arrays = (rows.position_RT, rows.segment_RT, rows.parent_RT)
        position_RT, segment_RT, parent_RT = (
            torch.from_numpy(array).to(self.device) for array in arrays
        )
        query_RT1, key_R1T = position_RT[:, :, None], position_RT[:, None, :]
        visible_RTT = segment_RT[:, :, None] == segment_RT[:, None, :]
        visible_RTT |= parent_RT[:, :, None] == segment_RT[:, None, :]
        mask_RTT = visible_RTT & (key_R1T <= query_RT1)
        prefix_P = torch.arange(self.prefix_len, device=self.device)
        mask_RTP = torch.ones(
            *position_RT.shape, self.prefix_len, dtype=torch.bool, device=self.device
        )
        if band is not None:
            mask_RTT &= query_RT1 - key_R1T < band
            mask_RTP = query_RT1 - prefix_P < band
        return torch.cat([mask_RTP, mask_RTT], dim=2)[:, None]
