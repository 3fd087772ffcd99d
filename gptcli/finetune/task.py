"""Fine-tuning tasks: `task.toml`, and the files of examples that it names.

kind = "classification"             # or entailment, similarity, multiple-choice
train = "train.jsonl"               # relative to the folder of this file; one example per line, or
                                    # a table: .csv, .tsv, .json, .parquet, plain or compressed
validation = "dev.jsonl"
labels = ["negative", "positive"]   # values of `label`; multiple choice has none: there
                                    # `label` is the index of the right answer, from 0

[fields]                            # names in the files, if they differ from ours
text = "sentence"

The texts of an example become sequences by GPT-1's input transformations (Radford et al. 2018,
section 3.3):

    classification     start text end
    entailment         start premise delimiter hypothesis end
    similarity         start a delimiter b end, and start b delimiter a end
    multiple choice    start context delimiter answer end, once for each answer

Similarity adds the states at the ends of its two sequences; multiple choice scores each of its
sequences. The three special tokens have the ids after the vocabulary, in the order of the released
code. Each text is truncated to n_ctx/2 - 2 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from gptcli.errors import InputError, UsageError, nearest
from gptcli.evals.formats.files import content_suffix
from gptcli.evals.formats.tables import table_rows
from gptcli.files import read_bytes, read_toml
from gptcli.schema import read_table
from gptcli.settings import NUMBERS
from gptcli.tokenizer.tokenizer import Tokenizer, refuse_surrogates
from gptcli.toml_json import parse_json, shown

Kind = Literal["classification", "entailment", "similarity", "multiple-choice"]

SPECIAL_TOKENS = ("_start_", "_delimiter_", "_classify_")
# fields of an example's texts, in the order in which the model reads them
TEXT_FIELDS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("a", "b"),
    "multiple-choice": ("context", "answers"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneTask:
    """Fine-tuning task. Defaults are GPT-1's (Radford et al. 2018, section 4.1).

    Raises UsageError if a value is not allowed.
    """

    kind: Kind
    train: str
    """File name of the training examples."""
    validation: str
    """File name of the validation examples."""
    labels: list[Any] = field(default_factory=list)
    """Values of `label`; empty for multiple choice."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names of the fields in the files, by our names."""
    epochs: int = 3
    batch: int = 32
    """Examples per step."""
    lr: float = 6.25e-5
    """Peak learning rate."""
    lm_weight: float = 0.5
    """Weight of the auxiliary language-model loss."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Maximum norm of the gradient."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in TEXT_FIELDS:
            raise UsageError(
                f"unknown kind of task {self.kind!r}", hint=nearest(self.kind, TEXT_FIELDS)
            )
        if self.kind == "multiple-choice" and self.labels:
            raise UsageError(
                "labels are not supported for multiple choice",
                hint="`label` is the index of the right answer; remove `labels`",
            )
        if self.kind != "multiple-choice" and not self.labels:
            raise UsageError("no 'labels'", hint='labels = ["negative", "positive"]')
        known = (*TEXT_FIELDS[self.kind], "label")
        if unknown := [name for name in self.fields if name not in known]:
            raise UsageError(
                f"{self.kind} has no field {unknown[0]!r}", hint=nearest(unknown[0], known)
            )
        for label in self.labels:
            if not isinstance(label, str | int | float) or label != label:
                raise UsageError(
                    f"{shown(label)} cannot be a label",
                    hint="labels are texts, numbers, true or false",
                )
        kinds = [(type(label), label) for label in self.labels]
        if twice := [label for _, label in kinds if kinds.count((type(label), label)) > 1]:
            raise UsageError(f"the label {twice[0]!r} is given twice")
        for name in ("epochs", "batch", "lr", "clip", "lm_weight", "weight_decay", "dropout"):
            try:
                NUMBERS[name](getattr(self, name))
            except UsageError as error:
                raise UsageError(f"{name}: {error.what}", hint=error.hint) from None


def read_task(path: Path) -> FinetuneTask:
    """Read a task file.

    Raises InputError if the file is missing or broken, a key is unknown, or a value is not allowed.
    """
    return read_table(FinetuneTask, read_toml(path), path)


def read_examples(task: FinetuneTask, path: Path, transform: InputTransform) -> list[Example]:
    """Read and tokenize the examples of a file; blank lines are skipped.

    A label in CSV or TSV, which have no numbers, is one that is written as it is. Raises
    InputError, with the line number, for a line that is not an example of the task.
    """
    examples = []
    names = {name: task.fields.get(name, name) for name in (*TEXT_FIELDS[task.kind], "label")}
    example = json.dumps(dict.fromkeys(names.values(), "..."))
    n_sequences: int | None = None
    is_csv = content_suffix(path) in (".csv", ".tsv")
    for row, where in _rows(path, example):
        texts, label = _read_fields(row, names, where)
        choices = task.labels or list(range(len(texts["answers"])))
        # 1, 1.0 and True are equal, and different labels
        matching = [
            index
            for index, choice in enumerate(choices)
            if (type(choice), choice) == (type(label), label)
            or (is_csv and label == json.dumps(choice))
        ]
        if not matching:
            raise InputError(f"label {shown(label)} is not one of {choices}", where=where)
        sequences = transform.sequences(texts)
        n_sequences = n_sequences or len(sequences)
        if len(sequences) != n_sequences:
            raise InputError(
                f"{len(sequences)} answers, but the examples before have {n_sequences}",
                where=where,
                hint="give every example the same number of answers",
            )
        examples.append(Example(sequences, matching[0]))
    if not examples:
        raise InputError("the file has no examples", where=path)
    return examples


def _rows(path: Path, example: str) -> Iterator[tuple[Any, str]]:
    """Yield each example of a file and its place; `example` is a line of JSON for messages."""
    if path.is_file() and path.suffix != ".jsonl":
        yield from ((node.value, node.where) for node in table_rows(path))
        return
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        where = f"{path}:{number}"
        if line.strip():
            hint = f"one example a line, as a JSON object: {example}"
            yield parse_json(line, where, hint=hint), where


def _read_fields(row: Any, names: dict[str, str], where: str) -> tuple[dict[str, Any], Any]:
    """Return the texts of an example by our names, and its label.

    Raises InputError if a field is missing or of another type.
    """
    hint = f"a line has the fields {', '.join(names.values())}"
    if not isinstance(row, dict):
        raise InputError("not an example: not a JSON object", where=where, hint=hint)
    if missing := [file_name for file_name in names.values() if file_name not in row]:
        raise InputError(f"not an example of this task: no {missing[0]!r}", where=where, hint=hint)
    texts = {name: row[file_name] for name, file_name in names.items()}
    label = texts.pop("label")
    for name, value in texts.items():
        is_list = name == "answers"
        parts = value if is_list and isinstance(value, list) and value else [value]
        for part in parts:
            if not isinstance(part, str):
                found, wanted = json.dumps(part)[:40], "a list of texts" if is_list else "text"
                raise InputError(
                    f"{names[name]!r} is {found}, not {wanted}", where=where, hint=hint
                )
            try:
                refuse_surrogates(part)
            except InputError as error:
                raise InputError(f"{names[name]!r}: {error.what}", where=where) from None
        if is_list and not isinstance(value, list):
            raise InputError(
                f"{names[name]!r} is one text, not a list of texts", where=where, hint=hint
            )
    return texts, label


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
