"""`manifest.json`: the content of a shard folder.

It is written last, so a folder that has one is complete.

    {"format": 1, "tokenizer_sha256": hex, "vocab_size": int, "eot_id": int, "seed": int,
     "val_fraction": float, "split_rule": str,
     "shards":  [{"file": "train-webtext2-000000.bin", "split": "train", "tokens": int,
                  "documents": int, "sha256": hex, "source": "webtext2"}, ...],
     "sources": [{"name": "webtext2", "documents_in": int, "documents_kept": int,
                  "dropped": {"quality": int, ...}, "text_bytes": int, "tokens": int, "cut": int,
                  "pieces": int, "weight": float, "epochs": float}, ...]}

A build without a recipe has one source, "inputs", which file names leave out (`train-000000.bin`).
The sources of a recipe have shards of their own, so that a weight can be changed here without
rewriting a token. Within a split, shards are listed in the order of `sources`, then by number.
Weights are relative; `Manifest.shares` normalizes them. Keys with a default (`source`, `cut`,
`pieces`, `weight`, `epochs`) may be absent, as in folders that are older than recipes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from gptcli.errors import InputError, UsageError
from gptcli.files import read_json, similar, write_json
from gptcli.numbers import counted
from gptcli.schema import read_table
from gptcli.settings import count, quantity
from gptcli.toml_json import shown

MANIFEST = "manifest.json"
RESUME_RECORD = "resume.json"  # configuration of a build, written first
FORMAT_VERSION = 1
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_SOURCE = "inputs"  # of a build without a recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Manifest entry of one shard."""

    file: str
    """Name inside the folder."""
    split: Split
    """Split, "train" or "val"."""
    tokens: int
    """Number of tokens."""
    documents: int
    """Number of documents."""
    sha256: str
    """SHA-256 of the `.bin`, hex."""
    source: str = DEFAULT_SOURCE
    """Name of one of the manifest's sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Manifest entry of one source of documents.

    `documents_in` = `documents_kept` + the sum of `dropped`.
    """

    name: str
    """Name of the source."""
    documents_in: int
    """Number of documents read."""
    documents_kept: int
    """Number of documents kept."""
    dropped: dict[str, int]
    """Number of documents dropped, by reason."""
    text_bytes: int
    """UTF-8 bytes of the documents kept."""
    tokens: int
    """Number of tokens of the documents kept, including the end-of-text of each."""
    cut: int = 0
    """Number of documents kept that lost text to decontamination."""
    pieces: int = 0
    """Number of documents added because decontamination divided some into several."""
    changed: dict[str, int] = field(default_factory=dict)
    """Number of documents whose text a stage changed, by stage."""
    weight: float = 1.0
    """Share of the training mixture, relative to the other sources."""
    epochs: float = 1.0
    """Number of times its training tokens are seen while the whole mixture is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content of a shard folder."""

    format: int = FORMAT_VERSION
    """Version of the manifest's format."""
    tokenizer_sha256: str
    """SHA-256 of the tokenizer, hex."""
    vocab_size: int
    """Number of tokens in the vocabulary."""
    eot_id: int
    """Token that begins each document."""
    seed: int
    """Random seed of the shuffle."""
    val_fraction: float
    """Expected share of validation documents."""
    split_rule: str
    """Rule that assigns documents to splits, in words."""
    shards: list[Shard]
    """Shards, in order."""
    sources: list[Source]
    """Sources, in the order of the recipe."""

    def shards_of(self, split: Split, source: str | None = None) -> list[Shard]:
        """Return the shards of one split, of one source or of all, in order."""
        return [
            shard
            for shard in self.shards
            if shard.split == split and source in (None, shard.source)
        ]

    def tokens(self, split: Split, source: str | None = None) -> int:
        """Return the number of tokens of one split, of one source or of all."""
        return sum(shard.tokens for shard in self.shards_of(split, source))

    def shares(self, split: Split = "train") -> dict[str, float]:
        """Return the share of the mixture of each source that has tokens in `split`.

        The shares add up to 1 and are in the order of the sources.
        """
        weights = {
            source.name: source.weight for source in self.sources if self.tokens(split, source.name)
        }
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def stages(self, mixture: str = "") -> list[Stage]:
        """Return the stages of the training mixture, the first of which begins at 0.

        `mixture` is a text of `read_mixture`; before its first stage, and without any, the weights
        are those of the sources. Raises UsageError if a stage does not weigh exactly the sources.
        """
        own = self.shares()
        stages = [Stage(0, own)]
        for start, weights in read_mixture(mixture):
            if len(own) < 2:
                raise _bad_mixture("the shards have one source: there is nothing to mix")
            if unknown := sorted(weights.keys() - own.keys()):
                raise _bad_mixture(
                    f"no source of the shards is named {', '.join(map(repr, unknown))}",
                    f"the sources are {', '.join(own)}",
                )
            if missing := [name for name in own if name not in weights]:
                raise _bad_mixture(
                    f"the stage at {counted(start, 'token')} has no weight of {', '.join(missing)}",
                    f"a weight of 0 leaves a source out: {missing[0]}=0",
                )
            total = sum(weights.values())
            stage = Stage(start, {name: weights[name] / total for name in own})
            stages = [*(earlier for earlier in stages if earlier.tokens < start), stage]
        return stages


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a training run with one mixture, up to the next stage."""

    tokens: int
    """Tokens that the run has read when the stage begins."""
    shares: dict[str, float]
    """Share of each source, in the order of the sources; they add up to 1."""


def tokens_by_source(stages: Sequence[Stage], tokens: int) -> dict[str, float]:
    """Return the tokens of each source among the first `tokens` of a run."""
    seen = dict.fromkeys(stages[0].shares, 0.0)
    ends = [*(stage.tokens for stage in stages[1:]), tokens]
    for stage, end in zip(stages, ends, strict=True):
        length = max(0, min(end, tokens) - stage.tokens)
        for name, share in stage.shares.items():
            seen[name] += share * length
    return seen


def read_mixture(text: str) -> list[tuple[int, dict[str, float]]]:
    """Return the stages of "web=3,books=1; 500M: web=1,books=2": their starts in tokens, and
    weights.

    A stage without a number begins at 0. Raises UsageError if the text has another form.
    """
    stages: list[tuple[int, dict[str, float]]] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        head, colon, tail = part.rpartition(":")
        try:
            start = count(head) if colon else 0
            pairs = [item.split("=") for item in tail.split(",")]
            weights = {name.strip(): quantity(weight) for name, weight in pairs}
        except (ValueError, UsageError):
            raise _bad_mixture(f"{shown(part)} is no stage of a mixture") from None
        if len(weights) < len(pairs) or not sum(weights.values()) > 0:
            raise _bad_mixture(f"{shown(part)} names a source twice, or gives no source any weight")
        if stages and start <= stages[-1][0]:
            raise _bad_mixture(
                f"the stage at {counted(start, 'token')} does not follow the one before it"
            )
        stages.append((start, weights))
    return stages


def mixture_text(stages: Sequence[tuple[int, dict[str, float]]]) -> str:
    """Return the text of stages in its one form, by which runs are compared."""
    return "; ".join(
        f"{start}: {','.join(f'{name}={weight:g}' for name, weight in weights.items())}"
        for start, weights in stages
    )


def _bad_mixture(what: str, hint: str = "") -> UsageError:
    form = (
        '{option:mixture} "web=3,books=1; 500M: web=1,books=2", each stage from that many tokens on'
    )
    return UsageError(what, field="mixture", code="not_a_mixture", hint=hint or form)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, atomically."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a shard folder, or of a folder with token files of another program.

    Raises InputError if there is neither, or if the manifest is broken, unsafe or of another
    format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if not (folder / RESUME_RECORD).exists() and (manifest := manifest_for(folder)) is not None:
            return manifest
        raise _no_shards(folder)
    table = read_json(path)
    if isinstance(table, dict) and table.get("format") != FORMAT_VERSION:
        raise InputError(
            f"manifest format {shown(table.get('format'))} is not {FORMAT_VERSION}, "
            "the one that can be read",
            where=path,
            hint="build the shards again",
        )
    manifest = read_table(Manifest, table, path, readers={}, may_be_empty=True)
    _check_sources(manifest, path)
    _check_shards(manifest, path)
    if not 0 <= manifest.eot_id < manifest.vocab_size:
        raise InputError(
            f"end-of-text {manifest.eot_id} is outside the vocabulary of {manifest.vocab_size}",
            where=path,
        )
    return manifest


def planned_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder for a plan: of token files of another program, which are not
    read for it, without checksums; None if there is no finished data in it yet.

    Raises InputError like `read_manifest`.
    """
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    return None if (folder / RESUME_RECORD).exists() else manifest_for(folder, quick=True)


def manifest_for(folder: Path, *, quick: bool = False) -> Manifest | None:
    """Return a manifest for the token files of another program; None if the folder has none.

    If `quick`, it has no checksums, and the files are not read for it.
    Raises InputError like `gptcli.shards.format.read_external_folder`.
    """
    # Imported here because numpy and the tokenizer are slow to import, and seldom needed.
    from gptcli.shards.format import read_external_folder

    found = read_external_folder(folder, quick=quick)
    if found is None:
        return None
    documents = sum(file.documents for file in found.files)
    source = Source(
        name=DEFAULT_SOURCE,
        documents_in=documents,
        documents_kept=documents,
        dropped={},
        text_bytes=0,
        tokens=sum(file.tokens for file in found.files),
    )
    val_documents = sum(file.documents for file in found.files if file.split == "val")
    return Manifest(
        tokenizer_sha256=found.tokenizer.sha256,
        vocab_size=found.tokenizer.vocab_size,
        eot_id=found.eot_id,
        seed=0,
        val_fraction=val_documents / max(1, documents),
        split_rule="by the names of the files",
        shards=[Shard(**dataclasses.asdict(file)) for file in found.files],
        sources=[source],
    )


def _check_sources(manifest: Manifest, path: Path) -> None:
    names = [source.name for source in manifest.sources]
    if len(set(names)) < len(names):
        raise InputError("two sources have the same name", where=path)
    for source in manifest.sources:
        if not (0 < source.weight < math.inf):
            raise InputError(
                f"source {source.name!r}: weight {source.weight} is not a positive number",
                where=path,
            )


def _check_shards(manifest: Manifest, path: Path) -> None:
    names = [source.name for source in manifest.sources] or [DEFAULT_SOURCE]
    for shard in manifest.shards:
        # No name may lead out of the folder, on any system.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.bin", shard.file):
            raise InputError(
                f"shard file {shard.file!r} is not a plain name ending in .bin", where=path
            )
        if shard.tokens < 0 or shard.documents < 0:
            raise InputError(f"{shard.file}: a negative count", where=path)
        if shard.source not in names:
            raise InputError(
                f"{shard.file}: source {shard.source!r} is not one of "
                f"{', '.join(map(repr, names))}",
                where=path,
            )


def _no_shards(folder: Path) -> InputError:
    """Return the error for a path that is not a shard folder, with the likely mistake as a hint."""
    what, hint = (
        "no such shard folder",
        "make it with gpt build-shards; if a build was interrupted, continue it with {option:resume}",
    )
    build = f"gpt build-shards {folder} --tokenizer gpt2 -o shards makes shards of it"
    if folder.is_dir():
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{MANIFEST}"))
        what = f"not a shard folder: it has no {MANIFEST}"
        if inside:
            hint = f"name one of the shard folders in it: {', '.join(inside[:4])}"
        elif (folder / RESUME_RECORD).exists():
            what = "the build of these shards is not finished"
            hint = "run the same gpt build-shards with {option:resume} to finish it"
        elif (folder / "config.json").exists() or (folder / "run.toml").exists():
            hint = (
                "it is a run: name the shards that it was trained on, "
                "which its run.toml lists under data"
            )
        elif any(
            path.suffix in (".txt", ".jsonl", ".parquet", ".gz", ".zst")
            for path in folder.iterdir()
        ):
            what, hint = "contains text, not shards", build
    elif folder.exists():
        what = "is a file, not a shard folder"
        if folder.suffix in (".bin", ".idx") or folder.name == MANIFEST:
            hint = f"name its folder: {folder.parent}"
        else:  # a tokenizer is no text, and one of a model's files neither
            hint = hint if folder.suffix in (".json", ".toml", ".safetensors", ".pt") else build
    elif (close := similar(folder)) is not None:
        hint = f"did you mean {close}?"
    return InputError(what, where=folder, hint=hint)
