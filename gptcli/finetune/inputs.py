"""GPT-1's input transformations (Radford et al. 2018, section 3.3): any task as token sequences
that a language model reads.

    classification     start text end
    entailment         start premise delimiter hypothesis end
    similarity         start a delimiter b end, and start b delimiter a end: the two end states are added
    multiple choice    start context delimiter answer end, once for each answer: one score each

The three special tokens follow the vocabulary, in the order of the released code; each segment is
cut to n_ctx/2 - 2 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptcli.errors import InputError
from gptcli.tokenizer.tokenizer import Tokenizer

SPECIAL = ("_start_", "_delimiter_", "_classify_")
KINDS = {  # the fields of an example's texts, in the order in which they are read
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("a", "b"),
    "multiple-choice": ("context", "answers"),
}


@dataclass(frozen=True, slots=True)
class Example:
    sequences: list[list[int]]
    """One; for similarity two; for multiple choice one an answer."""
    label: int


@dataclass(frozen=True, slots=True)
class Transformation:
    """Turns the texts of one kind of task into sequences."""

    kind: str
    tokenizer: Tokenizer
    n_ctx: int

    def sequences(self, texts: Mapping[str, Any]) -> list[list[int]]:
        """Those of one example, whose `texts` are named as in KINDS; the answers are a list."""
        first, *second = (texts[field] for field in KINDS[self.kind])
        if self.kind == "classification":
            return [self._joined(first)]
        if self.kind == "entailment":
            return [self._joined(first, second[0])]
        if self.kind == "similarity":
            return [self._joined(first, second[0]), self._joined(second[0], first)]
        return [self._joined(first, answer) for answer in second[0]]

    def _joined(self, *segments: str) -> list[int]:
        start, delimiter, classify = (
            self.tokenizer.vocab_size + number for number in range(len(SPECIAL))
        )
        most = self.n_ctx // 2 - len(SPECIAL) + 1
        ids = [start]
        for number, segment in enumerate(segments):
            ids += [delimiter] * (number > 0) + self.tokenizer.encode(segment)[:most]
        return [*ids, classify]


@dataclass(frozen=True, slots=True)
class Batch:
    ids: torch.Tensor
    """(N, S, T): N examples of S sequences, padded at the end with 0: no real position looks that
    far.
    """
    lengths: torch.Tensor
    """(N, S)"""
    labels: torch.Tensor
    """(N,)"""

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.lengths.to(device), self.labels.to(device))

    def rows(self, first: int, last: int) -> Batch:
        """Examples first to last - 1, padded no further than they need."""
        lengths = self.lengths[first:last]
        return Batch(
            self.ids[first:last, :, : int(lengths.max())], lengths, self.labels[first:last]
        )


def collate(examples: Sequence[Example]) -> Batch:
    """Examples of equally many sequences as one batch. Raises InputError where they are not."""
    counts = {len(example.sequences) for example in examples}
    if len(counts) != 1:
        raise InputError(
            f"examples of {min(counts)} and of {max(counts)} answers do not go into one batch"
        )
    length_NS = torch.tensor(
        [[len(sequence) for sequence in example.sequences] for example in examples]
    )
    ids_NST = torch.zeros(*length_NS.shape, int(length_NS.max()), dtype=torch.long)
    for n, example in enumerate(examples):
        for s, sequence in enumerate(example.sequences):
            ids_NST[n, s, : len(sequence)] = torch.tensor(sequence)
    return Batch(ids_NST, length_NS, torch.tensor([example.label for example in examples]))
