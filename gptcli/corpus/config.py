"""Configuration of a build: everything that the bytes of the shards depend on.

A build writes its configuration to `resume.json` before anything else. `--resume` compares it with
its own, so that a build is never finished with other inputs or other options.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.corpus.documents import MAX_DOCUMENT_BYTES
from gptcli.corpus.formats import find_format, named_as_text, undivided
from gptcli.corpus.formats.text import CUT_BYTES
from gptcli.corpus.input_search import left_out_line
from gptcli.corpus.inputs import COMPRESSED_SUFFIXES, SHORT_SUFFIXES, STDIN, fingerprint, is_url
from gptcli.corpus.recipe import Comparison, SourceConfig
from gptcli.corpus.text_out import Recorded, check_text_out
from gptcli.errors import InputError, UsageError
from gptcli.shards.format import MAX_TOKENS
from gptcli.shards.manifest import DEFAULT_SOURCE
from gptcli.tokenizer.encoders import EncoderName, check_encoder
from gptcli.tokenizer.tokenizer import Tokenizer

# Smallest and largest size of a chunk. In between, a build has about a thousand chunks.
CHUNK_CHARACTERS = (1 << 22, 1 << 25)
SMALL_COMPRESSED_BYTES = 1 << 26  # about 300 MB of text
WORKER_BYTES = 1 << 25  # of plain text, read and encoded in the time that a worker takes to start


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Configuration of a build. Raises UsageError or InputError if a value is invalid."""

    sources: list[SourceConfig]
    """Sources of documents."""
    tokenizer: Tokenizer
    """Tokenizer with an end-of-text token."""
    encoder: EncoderName = "auto"
    """Name of an encoder of `gptcli.tokenizer.encoders`; the shards do not depend on it."""
    evaluation: tuple[str, ...] = ()
    """Files of evaluation items, to decontaminate against."""
    mixture_tokens: int | None = None
    """Training tokens that epochs are counted for, or None for the size of the training split."""
    val_fraction: float = 0.001
    """Expected share of documents that become validation, from 0 up to but not including 1."""
    shard_tokens: int = 100_000_000
    """Maximum number of tokens in a shard."""
    seed: int = 0
    """Random seed of the shuffle and of the quality filter."""
    text_out: Path | None = None
    """File to write the documents to as text, beside the shards; None for none."""
    text_dropped: bool = False
    """Write the documents that were dropped to `text_out`, too."""

    def __post_init__(self) -> None:
        self.tokenizer.check_packages()
        if self.tokenizer.eot_id is None:
            raise InputError(
                "the tokenizer has no <|endoftext|>, which begins each document",
                field="tokenizer",
                code="no_end_of_text",
                hint="train one with gpt tokenize train, or add the token",
            )
        if not 0 <= self.val_fraction < 1:
            raise UsageError(
                f"{self.val_fraction} is not from 0 up to, but not including, 1",
                field="val_fraction",
                code="val_fraction_out_of_range",
            )
        if not 1 <= self.shard_tokens <= MAX_TOKENS:
            raise UsageError(
                f"{self.shard_tokens} is not from 1 to {MAX_TOKENS}",
                field="shard_tokens",
                code="shard_tokens_out_of_range",
            )
        check_encoder(self.encoder)
        if self.text_out is not None:
            check_text_out(self.text_out)
        elif self.text_dropped:
            raise UsageError(
                "needs a file to write the documents to",
                field="text_dropped",
                code="no_text_out",
                hint="name it with {option:text_out}",
            )
        names = [source.name for source in self.sources if source.decontaminate]
        if names and not self.evaluation:
            raise UsageError(
                f"{names[0]} has decontaminate = true, but no evaluation files are given",
                where="decontaminate",
                hint='[decontaminate] files = ["eval/"]',
            )
        self.comparisons()

    @property
    def recorded(self) -> Recorded:
        """Documents that are recorded for `text_out`."""
        return "" if self.text_out is None else "all" if self.text_dropped else "kept"

    @property
    def inputs(self) -> list[str]:
        """Paths of all inputs, source by source."""
        return [path for source in self.sources for path in source.inputs]

    def input_bytes(self) -> int | None:
        """Return the size of all input files on disk, or None if standard input is among them."""
        return None if STDIN in self.inputs else sum(fingerprint(path)[0] for path in self.inputs)

    def is_compressed(self) -> bool:
        """Return True if the text is larger than the files."""
        suffixes = (*COMPRESSED_SUFFIXES, *SHORT_SUFFIXES, ".parquet", ".zip")
        return any(path.lower().endswith(suffixes) for path in self.inputs)

    def chunk_characters(self) -> int:
        """Return the approximate number of characters in a chunk."""
        smallest, largest = CHUNK_CHARACTERS
        return min(max((self.input_bytes() or 0) // 1024, smallest), largest)

    def worker_count(self, requested: int) -> int:
        """Return how many of the requested workers are worth starting.

        Standard input and inputs of a single chunk are read by one. Raises UsageError if
        `requested` is less than 1.
        """
        if requested < 1:
            raise UsageError(
                f"{requested} is less than 1", field="workers", code="workers_out_of_range"
            )
        size = self.input_bytes()
        return 1 if size is None or size <= CHUNK_CHARACTERS[0] else requested

    def default_workers(self, cores: int) -> int:
        """Return how many workers to start if nobody asks for a number: one for each core, fewer for
        inputs that are read sooner than another worker starts.

        Two workers start in the processor time that a single small compressed file takes: half as
        much again, for seconds.
        """
        size = self.input_bytes() or 0
        is_packed = self.is_compressed()
        if len(self.inputs) == 1 and is_packed and size <= SMALL_COMPRESSED_BYTES:
            return 1
        if is_packed or any(source.has_stages for source in self.sources):
            return cores
        return min(cores, max(1, size // WORKER_BYTES))

    def check_inputs_outside(self, out: Path) -> None:
        """Raise UsageError if an input is inside the output folder, or is the file of documents, or
        if that file is inside the output folder.
        """
        if self.text_out is not None and self.text_out.resolve().is_relative_to(out.resolve()):
            raise UsageError(
                "the file to write the documents to is inside the folder of the shards",
                where=self.text_out,
                field="text_out",
                code="inside_output",
                hint="choose another {option:text_out}: {option:force} and {option:resume} own the folder",
            )
        folder, text_out = out.resolve(), self.text_out and self.text_out.resolve()
        for path in self.inputs:
            if path == STDIN or is_url(path):
                continue
            real = Path(os.path.realpath(path))
            if real == text_out:
                raise UsageError(
                    "the file to write the documents to is an input",
                    where=path,
                    hint="choose another {option:text_out}",
                )
            if real.is_relative_to(folder):
                raise UsageError(
                    f"the input {path} is inside the output folder",
                    where=out,
                    hint="choose another {option:out}",
                )

    def comparisons(self) -> list[Comparison | None]:
        """Return what the documents of each source are compared by, or None if they are not.

        It is the source's own comparison, or that of a source which is compared against it. Raises
        UsageError if the two differ.
        """
        comparisons: list[Comparison | None] = []
        for source in self.sources:
            wanted = {
                other.dedup.comparison
                for other in self.sources
                if other.dedup and source.name in (other.name, *other.dedup.against)
            }
            if len(wanted) > 1:
                raise UsageError(
                    f"{source.name} would be compared by two methods",
                    where="dedup",
                    hint="use the same method for sources that are compared with each other",
                )
            comparisons.append(wanted.pop() if wanted else None)
        return comparisons

    def notices(self) -> list[str]:
        """Return what a user should know of the inputs before they are read, in a line each."""
        left_out: Counter[str] = Counter()
        long: list[str] = []
        for source in self.sources:
            left_out += Counter(getattr(source.inputs, "left_out", {}))
            if source.documents == "file" and not source.eot_in_text:
                long += [path for path in source.inputs if _is_long_text(path, source.input_format)]
        notices = [line] if (line := left_out_line(left_out)) else []
        for source in self.sources:
            formats = {find_format(path, source.input_format) for path in source.inputs}
            notices += filter(
                None,
                (
                    named_as_text(source.inputs, source.input_format),
                    undivided(source.documents, formats),
                ),
            )
        if long:
            others = f" and {len(long) - 1:,} more" if len(long) > 1 else ""
            notices.append(
                f"{long[0]}{others}: a text of more than {MAX_DOCUMENT_BYTES >> 20} MiB is cut into "
                f"documents of up to {CUT_BYTES >> 20} MiB, at blank lines if there are any; "
                "{option:documents} line or paragraph divides it otherwise"
            )
        return notices

    def resume_record(self) -> dict[str, Any]:
        """Return the content of `resume.json`: everything that must not change before a resume."""
        record = {
            "tokenizer": self.tokenizer.sha256,
            **{
                name: getattr(self, name)
                for name in ("val_fraction", "shard_tokens", "seed", "mixture_tokens")
            },
            "evaluation": [[path, *fingerprint(path)] for path in self.evaluation],
        }
        inputs: dict[str, list[Any]] = {}
        for source in self.sources:
            prefix = "" if source.name == DEFAULT_SOURCE else f"{source.name}."
            values = source.record()
            inputs |= {
                path if is_url(path) else os.path.realpath(path): stat
                for path, stat in values.pop("inputs").items()
            }
            record |= {f"{prefix}{name}": value for name, value in values.items()}
        if self.recorded:
            record["text_out"] = self.recorded
        return {**record, "inputs": inputs}


def _is_long_text(path: str, input_format: str) -> bool:
    """Return True if a file, as far as its size on disk tells, is a text that has to be cut."""
    if path == STDIN or fingerprint(path)[0] <= MAX_DOCUMENT_BYTES:
        return False
    return find_format(path, input_format) == "text"


def check_unchanged(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    """Raise UsageError if the resume records of two builds differ, and name the first changes."""
    changes = [
        f"{name} was {old.get(name)}, now {new[name]}"
        for name in new
        if name != "inputs" and old.get(name) != new[name]
    ]
    before, after = old.get("inputs", {}), new["inputs"]
    changes += [f"{path} is no longer an input" for path in before if path not in after]
    changes += [f"{path} is a new input" for path in after if path not in before]
    changes += [
        f"{path} has changed" for path in after if path in before and before[path] != after[path]
    ]
    if changes:
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UsageError(
            f"the build in this folder was started differently: {'; '.join(changes[:3])}{more}",
            where=out,
            hint="undo the changes to resume it, or start over with {option:force}",
        )
