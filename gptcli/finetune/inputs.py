"""GPT-1's input transformations (Radford et al. 2018, section 3.3): a task's texts as sequences.

    classification     start text end
    entailment         start premise delimiter hypothesis end
    similarity         start a delimiter b end, and start b delimiter a end
    multiple choice    start context delimiter answer end, once for each answer

Similarity adds the states at the ends of its two sequences; multiple choice scores each of its
sequences. The three special tokens have the ids after the vocabulary, in the order of the released
code. Each text is truncated to n_ctx/2 - 2 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gptcli.errors import InputError
from gptcli.tokenizer.tokenizer import Tokenizer

Kind = Literal["classification", "entailment", "similarity", "multiple-choice"]

SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")
# fields of an example's texts, in the order in which the model reads them
TEXT_FIELDS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("a", "b"),
    "multiple-choice": ("context", "answers"),
}


@dataclass(frozen=True, slots=True)
class Example:
    """Tokenized example."""

    sequences: list[list[int]]
    """Token ids: one sequence, two for similarity, one per answer for multiple choice."""
    label: int
    """Index of the label, or of the right answer."""


@dataclass(frozen=True, slots=True)
class InputTransform:
    """Transformation of one kind of task's texts to token sequences."""

    kind: Kind
    tokenizer: Tokenizer
    n_ctx: int
    """Context length of the model, in tokens."""

    def sequences(self, texts: Mapping[str, Any]) -> list[list[int]]:
        """Return the sequences of one example; `texts` has the fields of TEXT_FIELDS."""
        first, *second = (texts[field] for field in TEXT_FIELDS[self.kind])
        if self.kind == "classification":
            return [self._join(first)]
        if self.kind == "entailment":
            return [self._join(first, second[0])]
        if self.kind == "similarity":
            return [self._join(first, second[0]), self._join(second[0], first)]
        return [self._join(first, answer) for answer in second[0]]

    def _join(self, *segments: str) -> list[int]:
        vocab_size = self.tokenizer.vocab_size
        start, delimiter, classify = (vocab_size + i for i in range(len(SPECIAL_TOKENS)))
        max_tokens = self.n_ctx // 2 - len(SPECIAL_TOKENS) + 1
        ids = [start]
        for number, segment in enumerate(segments):
            ids += [delimiter] * (number > 0) + self.tokenizer.encode(segment)[:max_tokens]
        return [*ids, classify]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples of a step."""

    ids: torch.Tensor
    """Token ids (N, S, T): N examples of S sequences, padded at the end with 0, which no causal
    position before it attends to.
    """
    lengths: torch.Tensor
    """Number of tokens of each sequence, (N, S)."""
    labels: torch.Tensor
    """Label of each example, (N,)."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(self.ids.to(device), self.lengths.to(device), self.labels.to(device))

    def rows(self, first: int, last: int) -> Batch:
        """Return examples `first` to `last` - 1, padded to the longest of them."""
        lengths = self.lengths[first:last]
        return Batch(
            self.ids[first:last, :, : int(lengths.max())], lengths, self.labels[first:last]
        )


def collate(examples: Sequence[Example]) -> Batch:
    """Return examples as one batch.

    Raises InputError if they do not have the same number of sequences.
    """
    counts = {len(example.sequences) for example in examples}
    if len(counts) != 1:
        raise InputError(
            f"examples of {min(counts)} and of {max(counts)} answers cannot be in one batch"
        )
    length_NS = torch.tensor(
        [[len(sequence) for sequence in example.sequences] for example in examples]
    )
    ids_NST = torch.zeros(*length_NS.shape, int(length_NS.max()), dtype=torch.long)
    for n, example in enumerate(examples):
        for s, sequence in enumerate(example.sequences):
            ids_NST[n, s, : len(sequence)] = torch.tensor(sequence)
    return Batch(ids_NST, length_NS, torch.tensor([example.label for example in examples]))
