"""`manifest.json`: what a shard folder holds, written last, so a folder that has one is whole.

    {"format": 1, "tokenizer_sha256": hex, "vocab_size": int, "eot_id": int, "seed": int,
    "val_fraction": float, "split_rule": str,
     "shards":  [{"file": "train-webtext2-000000.bin", "split": "train", "tokens": int, "documents": int, "sha256": hex,
                  "source": "webtext2"}, ...],
     "sources": [{"name": "webtext2", "documents_in": int, "documents_kept": int, "dropped":
     {"quality": int, ...},
                  "text_bytes": int, "tokens": int, "cut": int, "pieces": int, "weight": float,
                  "epochs": float}, ...]}

A build without a recipe has one source, "inputs", and its files carry no name (`train-000000.bin`);
a recipe's sources stay apart on disk, each in shards of its own, so that a weight can change here
without a token being rewritten. Within a split, shards are listed source after source in the order
of `sources`, and by number. Weights are relative: `Manifest.shares` makes them add up to 1. Keys
that have a default (`source`, `cut`, `pieces`, `weight`, `epochs`) may be absent, as in folders
written before there were recipes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from gptcli.errors import InputError
from gptcli.files import read_json, similar, write_json

MANIFEST = "manifest.json"
RECORD = "resume.json"  # what a build is made from, for a build that has not ended
FORMAT = 1
SPLITS = ("train", "val")
DEFAULT_SOURCE = "inputs"  # of a build without a recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    file: str
    """A plain name inside the folder."""
    split: str
    tokens: int
    documents: int
    sha256: str
    """Of the `.bin`, hex."""
    source: str = DEFAULT_SOURCE
    """The `name` of one of the manifest's sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where documents came from and what became of them: `documents_in` = `documents_kept` + the
    sum of `dropped`.
    """

    name: str
    documents_in: int
    documents_kept: int
    dropped: dict[str, int]
    """Documents left out, by reason."""
    text_bytes: int
    """UTF-8 bytes of the documents kept."""
    tokens: int
    """Of the documents kept, each one's end-of-text among them."""
    cut: int = 0
    """Documents among those kept that lost text to decontamination."""
    pieces: int = 0
    """Documents in the shards besides those kept, because some were cut apart."""
    weight: float = 1.0
    """How much of the training mixture comes from here, relative to the other sources."""
    epochs: float = 1.0
    """How often its training tokens are seen when the whole mixture is as many tokens as the recipe
    says.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    format: int = FORMAT
    tokenizer_sha256: str
    vocab_size: int
    eot_id: int
    seed: int
    val_fraction: float
    split_rule: str
    """How a document's side is decided, in words."""
    shards: list[Shard]
    sources: list[Source]

    def of(self, split: str, source: str | None = None) -> list[Shard]:
        """The shards of one split, of one source or of all, in order."""
        return [
            shard
            for shard in self.shards
            if shard.split == split and source in (None, shard.source)
        ]

    def tokens(self, split: str, source: str | None = None) -> int:
        return sum(shard.tokens for shard in self.of(split, source))

    def shares(self, split: str = "train") -> dict[str, float]:
        """The part of the mixture that comes from each source that has tokens in `split`: they add
        up to 1, in the sources' order.
        """
        weights = {
            source.name: source.weight for source in self.sources if self.tokens(split, source.name)
        }
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


_PARTS = {"shards": Shard, "sources": Source}  # the manifest's lists, and what they are lists of


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder, or one made of the token files of other programs
    (`gptcli.shards.external`).

    Raises InputError where there is none, or where it is broken, unsafe or of another format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if not (folder / RECORD).exists():
            from gptcli.shards.external import describe  # which is built on this module

            if (made := describe(folder)) is not None:
                return made
        raise _no_shards(folder)
    table = read_json(path)
    if isinstance(table, dict) and table.get("format") != FORMAT:
        raise InputError(
            f"manifest format {table.get('format')!r} is not {FORMAT}, the one this program reads",
            where=path,
            hint="build the shards again",
        )
    manifest = _parse(Manifest, table, path, "the manifest")
    names = [source.name for source in manifest.sources] or [DEFAULT_SOURCE]
    if len(set(names)) < len(names):
        raise InputError("two sources have the same name", where=path)
    for source in manifest.sources:
        if not (0 < source.weight < math.inf):
            raise InputError(
                f"source {source.name!r}: weight {source.weight} is not a positive number",
                where=path,
            )
        if not all(type(count) is int for count in source.dropped.values()):
            raise InputError(
                f"source {source.name!r}: dropped is not a number of documents for each reason",
                where=path,
            )
    for shard in manifest.shards:
        # A name may not lead out of the folder, on any system.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.bin", shard.file):
            raise InputError(
                f"shard file {shard.file!r} is not a plain name ending in .bin", where=path
            )
        if shard.split not in SPLITS:
            raise InputError(
                f"{shard.file}: split {shard.split!r} is neither train nor val", where=path
            )
        if shard.tokens < 0 or shard.documents < 0:
            raise InputError(f"{shard.file}: a negative count", where=path)
        if shard.source not in names:
            raise InputError(
                f"{shard.file}: source {shard.source!r} is not one of {', '.join(map(repr, names))}",
                where=path,
            )
    if not 0 <= manifest.eot_id < manifest.vocab_size:
        raise InputError(
            f"end-of-text {manifest.eot_id} is outside the vocabulary of {manifest.vocab_size}",
            where=path,
        )
    return manifest


def _no_shards(folder: Path) -> InputError:
    """The error for a path that is no shard folder."""
    what, hint = (
        "no such shard folder",
        "gpt build-shards makes one, and {option:resume} finishes one that was interrupted",
    )
    build = f"gpt build-shards {folder} --tokenizer gpt2 -o shards makes shards of it"
    if folder.is_dir():
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{MANIFEST}"))
        what = f"not a shard folder: it has no {MANIFEST}"
        if inside:
            hint = f"name one of the shard folders in it: {', '.join(inside[:4])}"
        elif (folder / RECORD).exists():
            what, hint = (
                "the build of these shards has not ended",
                "the same gpt build-shards with {option:resume} finishes it",
            )
        elif (folder / "config.json").exists() or (folder / "run.toml").exists():
            hint = "it holds a run: name the shards that it was trained on, as its run.toml does under data"
        elif any(
            path.suffix in (".txt", ".jsonl", ".parquet", ".gz", ".zst")
            for path in folder.iterdir()
        ):
            what, hint = "holds text, not shards", build
    elif folder.exists():
        what, hint = (
            "is a file, not a shard folder",
            f"name its folder: {folder.parent}" if folder.suffix in (".bin", ".idx") else build,
        )
        if folder.name == MANIFEST:
            hint = f"name its folder: {folder.parent}"
    elif (close := similar(folder)) is not None:
        hint = f"did you mean {close}?"
    return InputError(what, where=folder, hint=hint)


def _parse(kind: type[Any], table: Any, path: Path, name: str) -> Any:
    """`table` as a dataclass of this `kind`: the same keys, each of its type. `name` says in a
    message what is read.
    """
    if not isinstance(table, dict):
        raise InputError(f"{name} is not an object", where=path)
    hints = get_type_hints(kind)
    required = [
        field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING
    ]
    if missing := [key for key in required if key not in table]:
        raise InputError(f"{name} lacks {', '.join(missing)}", where=path)
    if unknown := [key for key in table if key not in hints]:
        raise InputError(f"{name} has unknown keys: {', '.join(unknown)}", where=path)
    values: dict[str, Any] = {}
    for key, value in table.items():
        wanted = getattr(hints[key], "__origin__", hints[key])
        # JSON does not tell 1 from 1.0; and a bool is no number here.
        if isinstance(value, bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            raise InputError(f"{name}: {key} is not of type {wanted.__name__}", where=path)
        values[key] = value
    for key, part in _PARTS.items():
        if key in values:
            values[key] = [
                _parse(part, row, path, f"{key}[{number}]")
                for number, row in enumerate(values[key])
            ]
    return kind(**values)
