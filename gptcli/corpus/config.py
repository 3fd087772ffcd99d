"""What a build is asked for: all that the shards' bytes depend on, checked, and recorded so that a
resume can tell another build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.corpus.recipe import Source
from gptcli.corpus.streams import COMPRESSED, STDIN, fingerprint, is_url
from gptcli.errors import InputError, UsageError, nearest
from gptcli.shards.format import MAX_TOKENS
from gptcli.shards.manifest import DEFAULT_SOURCE
from gptcli.tokenizer.encoders import ENCODERS
from gptcli.tokenizer.tokenizer import Tokenizer

# least and most in a unit; in between, so many that there are about a thousand units
UNIT_CHARACTERS = (1 << 22, 1 << 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """All that the shards' bytes depend on. Raises UsageError or InputError where it cannot be
    met.
    """

    sources: list[Source]
    tokenizer: Tokenizer
    encoder: str = "auto"
    """Of `gptcli.tokenizer.encoders`; the bytes do not depend on it."""
    evaluation: tuple[str, ...] = ()
    """Files of items that documents are not to share text with."""
    mixture_tokens: int | None = None
    """How much training the epochs are counted for; None: as much as there is."""
    val_fraction: float = 0.001
    """The expected share of documents that become validation."""
    shard_tokens: int = 100_000_000
    """The most tokens in a shard."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokenizer.eot_id is None:
            raise InputError(
                "the tokenizer has no <|endoftext|>, which stands before each document",
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
        if self.encoder not in ENCODERS:
            raise UsageError(
                f"unknown encoder {self.encoder!r}",
                field="encoder",
                code="unknown_encoder",
                hint=nearest(self.encoder, ENCODERS),
            )
        if not self.evaluation and (
            names := [source.name for source in self.sources if source.decontaminate]
        ):
            raise UsageError(
                f"{names[0]} is to be decontaminated, but against nothing",
                where="decontaminate",
                hint='[decontaminate] files = ["eval/"]',
            )
        self.methods()

    @property
    def inputs(self) -> list[str]:
        return [path for source in self.sources for path in source.inputs]

    def input_bytes(self) -> int | None:
        """The size of all inputs as they lie on disk; None where standard input is one of them."""
        return None if STDIN in self.inputs else sum(fingerprint(path)[0] for path in self.inputs)

    def compressed(self) -> bool:
        """Whether the text is larger than the files."""
        return any(path.lower().endswith((*COMPRESSED, ".parquet")) for path in self.inputs)

    def unit_characters(self) -> int:
        """About how much text a unit holds. The shards do not depend on it."""
        least, most = UNIT_CHARACTERS
        return min(max((self.input_bytes() or 0) // 1024, least), most)

    def workers(self, asked: int) -> int:
        """How many of the workers asked for are worth their start. Raises UsageError on less than
        one.
        """
        if asked < 1:
            raise UsageError(
                f"{asked} is less than 1",
                field="workers",
                code="workers_out_of_range",
            )
        size = self.input_bytes()
        # standard input cannot be shared, nor can one unit
        return 1 if size is None or size <= UNIT_CHARACTERS[0] else asked

    def refuse_inputs_in(self, out: Path) -> None:
        """Raises UsageError where an input lies inside the output folder."""
        for path in self.inputs:
            if (
                path != STDIN
                and not is_url(path)
                and Path(path).resolve().is_relative_to(out.resolve())
            ):
                raise UsageError(
                    f"the input {path} lies inside the output folder",
                    where=out,
                    hint="choose another {option:out}",
                )

    def methods(self) -> list[str | None]:
        """How each source is hashed for deduplication: its own method, or that of the sources it is
        compared with.
        """
        found: list[str | None] = []
        for source in self.sources:
            those = {
                other.dedup.method
                for other in self.sources
                if other.dedup and source.name in (other.name, *other.dedup.against)
            }
            if len(those) > 1:
                raise UsageError(
                    f"{source.name} would be compared by two methods",
                    where="dedup",
                    hint="use one method for sources that are compared",
                )
            found.append(those.pop() if those else None)
        return found

    def record(self) -> dict[str, Any]:
        """What must be unchanged for a resume."""
        facts = {
            name: getattr(self, name)
            for name in ("val_fraction", "shard_tokens", "seed", "mixture_tokens")
        }
        record = {
            "tokenizer": self.tokenizer.sha256,
            **facts,
            "evaluation": [[path, *fingerprint(path)] for path in self.evaluation],
        }
        inputs: dict[str, list[Any]] = {}
        for source in self.sources:
            prefix = "" if source.name == DEFAULT_SOURCE else f"{source.name}."
            told = source.record()
            inputs |= {
                f"{path if is_url(path) else Path(path).resolve()}": stat
                for path, stat in told.pop("inputs").items()
            }
            record |= {f"{prefix}{name}": value for name, value in told.items()}
        return {**record, "inputs": inputs}


def refuse_changes(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    """Raises UsageError where the records of two builds differ, and says in what."""
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
            f"what it was built from is not what is asked for now: {'; '.join(changes[:3])}{more}",
            where=out,
            hint="undo that to resume, or start over with {option:force}",
        )
