"""Many continuations in one pass: what they share stands there once, and each sees only what it continues.

A group is the sequences of one question: the same context with each of its choices, or several contexts with one ending. Its common
beginning is laid down once (the stem), and what differs follows as branches. Groups of any length stand side by side in one row, so that
next to nothing is padding, and a mask keeps them apart:

    position   0 1 2 3 4 | 5 6   5 6 7   5   | 0 1 2 3 | 4   4 5
    node       stem a    | a.0   a.1     a.2 | stem b  | b.0 b.1      a branch sees its stem and itself

Where all groups begin alike (few-shot with the same shots for every item), that beginning, the trunk, is read once for all batches; its
keys and values are kept, and every row sees them.

Shapes: R rows, T positions, P trunk positions, H heads, D d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gptcli.model.cache import KVCache
from gptcli.model.transformer import GPT

ROW = 256  # tokens of a row: longer ones would spend more on pairs that do not see each other, shorter ones leave more of it empty
NO_NODE = -1  # the stem of a stem, and what padding belongs to


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that begin alike, of each of which the last `counts[i]` tokens are scored."""

    sequences: Sequence[Sequence[int] | np.ndarray]
    counts: Sequence[int]
    """At least 1, and below the sequence's length."""
    stem: int = field(init=False)
    """Tokens that all of them begin with; the last token of a sequence, which is only foretold, does not count."""
    branches: list[np.ndarray] = field(init=False)
    """What is read after the stem, each once: equal choices are equally likely to the last bit."""
    branch_of: list[int] = field(init=False)
    """The branch of each sequence."""

    def __post_init__(self) -> None:
        stem = common_prefix([sequence[:-1] for sequence in self.sequences])
        rests = [np.asarray(sequence[stem:-1], dtype=np.int64) for sequence in self.sequences]
        numbers: dict[bytes, int] = {}
        branch_of = [numbers.setdefault(rest.tobytes(), len(numbers)) for rest in rests]
        object.__setattr__(self, "stem", stem)
        object.__setattr__(self, "branches", [rests[branch_of.index(number)] for number in range(len(numbers))])
        object.__setattr__(self, "branch_of", branch_of)

    @property
    def before(self) -> int:
        """Tokens of the stem before the first at which something scored is foretold."""
        return min(self.stem, *(len(sequence) - count - 1 for sequence, count in zip(self.sequences, self.counts, strict=True)))

    def size(self, trunk: int = 0) -> int:
        """Tokens that a pass reads for it."""
        return self.stem - trunk + sum(map(len, self.branches))


def common_prefix(sequences: Sequence[Sequence[int] | np.ndarray]) -> int:
    """How many tokens all sequences begin with."""
    shortest = min(len(sequence) for sequence in sequences)
    if len(sequences) == 1:
        return shortest
    equal = np.logical_and.reduce([np.asarray(one[:shortest]) == np.asarray(sequences[0][:shortest]) for one in sequences[1:]])
    return int(np.argmin(equal)) if not equal.all() else shortest


class Rows:
    """Groups laid out in rows: (R, T) arrays of what stands where, and for each sequence the place of each of its inputs."""

    def __init__(self, groups: Sequence[Group], trunk: int) -> None:
        sizes = [group.size(trunk) for group in groups]
        filled = _pack(sizes, max(ROW, *sizes))
        shape = (len(filled), max(sum(sizes[number] for number in row) for row in filled))
        self.tokens_RT, self.position_RT = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.node_RT, self.stem_RT = np.full(shape, NO_NODE), np.full(shape, NO_NODE - 1)  # no token is of node NO_NODE - 1
        self.places: dict[int, list[np.ndarray]] = {}
        """By group, for each sequence: where in the flattened rows the predictions of its scored tokens are read."""
        for row, numbers in enumerate(filled):
            at, node = 0, 0
            for number in numbers:
                group = groups[number]
                stem, stem_at, stem_node = group.stem, at, node
                self._put(row, at, group.sequences[0][trunk:stem], trunk, node, NO_NODE - 1)
                at += stem - trunk
                starts = []
                for branch in group.branches:
                    node += 1
                    self._put(row, at, branch, stem, node, stem_node)
                    starts.append(at)
                    at += len(branch)
                node += 1
                self.places[number] = []
                for sequence, count, branch_number in zip(group.sequences, group.counts, group.branch_of, strict=True):
                    read = np.arange(len(sequence) - 1 - count, len(sequence) - 1)
                    places = np.where(read < stem, stem_at + read - trunk, starts[branch_number] + read - stem)
                    self.places[number].append(row * shape[1] + places)
        self.plain = trunk == 0 and bool(((self.node_RT == 0) | (self.node_RT == NO_NODE)).all())
        """Every row is one sequence: the causal rule says it all."""

    def _put(self, row: int, at: int, tokens: Sequence[int] | np.ndarray, position: int, node: int, stem: int) -> None:
        where = slice(at, at + len(tokens))
        self.tokens_RT[row, where] = tokens
        self.position_RT[row, where] = np.arange(position, position + len(tokens))
        self.node_RT[row, where] = node
        self.stem_RT[row, where] = stem


def _pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """First fit, the largest first: the numbers of the groups in each row of `room` tokens."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        fit = next((row for row, free in enumerate(left) if free >= sizes[number]), None)
        if fit is None:
            fit = len(rows)
            rows.append([])
            left.append(room)
        rows[fit].append(number)
        left[fit] -= sizes[number]
    return rows


class Grove(KVCache):
    """A trunk's keys and values, and the rows that grow from it. Without a trunk it holds none."""

    def __init__(self, model: GPT, trunk: Sequence[int]) -> None:
        weight = model.wte.weight
        super().__init__(model.config, 1, weight.device, weight.dtype, room=max(1, len(trunk)))
        self.model, self.trunk = model, len(trunk)
        self._rows: Rows | None = None
        self._seen: dict[int | None, torch.Tensor] = {}
        if trunk:
            self.place([0], len(trunk))
            model.hidden(torch.tensor([trunk], device=weight.device), self)

    def hidden_of(self, rows: Rows) -> torch.Tensor:
        """What the head reads at every place of the rows, (R·T, C)."""
        idx_RT = torch.from_numpy(rows.tokens_RT).to(self.length_B.device)
        if rows.plain:
            return self.model.hidden(idx_RT).flatten(0, 1)
        self._rows, self._seen = rows, {}
        x_RTC = self.model.hidden(idx_RT, self)
        self._rows, self._seen = None, {}
        return x_RTC.flatten(0, 1)

    def positions(self, T: int) -> torch.Tensor:
        if self._rows is None:
            return super().positions(T)
        return torch.from_numpy(self._rows.position_RT).to(self.length_B.device)

    def seen(self, T: int, band: int | None) -> torch.Tensor | None:
        if self._rows is None:
            return super().seen(T, band)
        if band not in self._seen:  # the same for all layers of a band
            self._seen[band] = self._mask(self._rows, band)
        return self._seen[band]

    def _mask(self, rows: Rows, band: int | None) -> torch.Tensor:
        """(R, 1, T, P + T) booleans, True where a query may look."""
        device = self.length_B.device
        position_RT, node_RT, stem_RT = (torch.from_numpy(array).to(device) for array in (rows.position_RT, rows.node_RT, rows.stem_RT))
        query_RT1, key_R1T = position_RT[:, :, None], position_RT[:, None, :]
        own = (node_RT[:, :, None] == node_RT[:, None, :]) | (stem_RT[:, :, None] == node_RT[:, None, :])
        seen = own & (key_R1T <= query_RT1)
        trunk_P = torch.arange(self.trunk, device=device)
        seen_trunk = torch.ones(*position_RT.shape, self.trunk, dtype=torch.bool, device=device)
        if band is not None:
            seen &= query_RT1 - key_R1T < band
            seen_trunk = query_RT1 - trunk_P < band
        return torch.cat([seen_trunk, seen], dim=2)[:, None]

    def extend(self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rows is None:
            return super().extend(layer, k_BHTD, v_BHTD)
        if not self.trunk:
            return k_BHTD, v_BHTD
        k_1HPD, v_1HPD = self.keys[layer], self.values[layer]
        shape = (k_BHTD.shape[0], *k_1HPD.shape[1:])
        return torch.cat([k_1HPD.expand(shape), k_BHTD], dim=2), torch.cat([v_1HPD.expand(shape), v_BHTD], dim=2)
