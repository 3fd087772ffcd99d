"""Documents to shards: tokenise in units, shuffle globally, write shards; in bounded memory, by many processes, resumable.

The bytes of the shards depend on the inputs' contents and order, the tokenizer, the seed, the share of validation and the shard size;
never on the number of workers or on where a build was interrupted. Everything on the way to a shard lives in `.work` inside the
output folder: a unit or shard that is whole is never made twice. `manifest.json` is written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.corpus.readers import COMPRESSED, DOCUMENTS, STDIN, Document, read_documents
from gptcli.corpus.report import write_report
from gptcli.corpus.shuffle import ShardPlan, plan_shards, write_planned
from gptcli.corpus.units import SPLIT_RULE, Unit, UnitTask, grouped, tokenize_unit
from gptcli.corpus.workers import Workers
from gptcli.errors import InputError, UsageError, nearest
from gptcli.events import SILENT, Events
from gptcli.files import claim_output, read_json, write_json
from gptcli.shards.format import MAX_TOKENS, index_path, open_shard, token_dtype
from gptcli.shards.manifest import MANIFEST, SPLITS, Manifest, Shard, Source, read_manifest, write_manifest
from gptcli.tokenizer.tokenizer import Tokenizer

WORK = ".work"
RECORD = "resume.json"  # what this folder was built from; --resume compares it
UNIT_CHARACTERS = (1 << 18, 1 << 25)  # least and most in a unit; in between, so many that there are about a thousand units


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """All that the shards' bytes depend on. Raises UsageError or InputError where it cannot be met."""

    inputs: list[str]
    """As `find_inputs` lists them."""
    tokenizer: Tokenizer
    val_fraction: float = 0.001
    """The expected share of documents that become validation."""
    shard_tokens: int = 100_000_000
    """The most tokens in a shard."""
    documents: str = "file"
    """What a document of a text file is: "file", "line" or "paragraph"."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokenizer.eot_id is None:
            raise InputError(
                "the tokenizer has no <|endoftext|>, which stands before each document",
                where="--tokenizer",
                hint="train one with gpt tokenize train, or add the token",
            )
        if self.documents not in DOCUMENTS:
            raise UsageError(f"unknown kind of document {self.documents!r}", where="--documents", hint=nearest(self.documents, DOCUMENTS))
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"{self.val_fraction} is not from 0 up to, but not including, 1", where="--val-fraction")
        if not 1 <= self.shard_tokens <= MAX_TOKENS:
            raise UsageError(f"{self.shard_tokens} is not from 1 to {MAX_TOKENS}", where="--shard-tokens")

    def input_bytes(self) -> int | None:
        """The size of all inputs as they lie on disk; None where standard input is one of them."""
        return None if STDIN in self.inputs else sum(Path(path).stat().st_size for path in self.inputs)

    def compressed(self) -> bool:
        """Whether the text is larger than the files."""
        return any(path.lower().endswith(COMPRESSED) for path in self.inputs)

    def unit_characters(self) -> int:
        """About how much text a unit holds. The shards do not depend on it."""
        least, most = UNIT_CHARACTERS
        return min(max((self.input_bytes() or 0) // 1024, least), most)

    def record(self) -> dict[str, Any]:
        """What must be unchanged for a resume."""
        stats = {str(Path(path).resolve()): Path(path).stat() for path in self.inputs if path != STDIN}
        return {
            "tokenizer": self.tokenizer.sha256,
            "val_fraction": self.val_fraction,
            "shard_tokens": self.shard_tokens,
            "documents": self.documents,
            "seed": self.seed,
            "inputs": {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()},
        }


def begin(build: Build, out: Path, *, resume: bool, force: bool) -> bool:
    """Claim the output folder. False where `resume` finds the finished shards of this very build: nothing is left to do.

    Raises UsageError where the folder is not empty and neither `resume` nor `force` is given, where it belongs to another build, or
    where an input lies inside it; InputError where its finished shards are damaged.
    """
    for path in build.inputs:
        if path != STDIN and Path(path).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the input {path} lies inside the output folder", where=out, hint="choose another output with -o")
    record = build.record()
    claim_output(out, resume=resume, force=force)
    if any(out.iterdir()):
        if not (out / RECORD).exists():
            raise UsageError("there is no build to resume in it", where=out, hint="--force empties it, or choose another output with -o")
        if STDIN in build.inputs:
            raise UsageError(
                "a build from standard input cannot be resumed", where=out, hint="save the text to a file, or start over with --force"
            )
        _refuse_changes(read_json(out / RECORD), record, out)
        if (out / MANIFEST).exists():
            for shard in read_manifest(out).shards:
                open_shard(out / shard.file)
            shutil.rmtree(out / WORK, ignore_errors=True)
            return False
    write_json(out / RECORD, record)
    return True


def _refuse_changes(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    changes = [f"{name} was {old.get(name)}, now {new[name]}" for name in new if name != "inputs" and old.get(name) != new[name]]
    before, after = old.get("inputs", {}), new["inputs"]
    changes += [f"{path} is no longer an input" for path in before if path not in after]
    changes += [f"{path} is a new input" for path in after if path not in before]
    changes += [f"{path} has changed" for path in after if path in before and before[path] != after[path]]
    if changes:
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UsageError(
            f"what it was built from is not what is asked for now: {'; '.join(changes[:3])}{more}",
            where=out,
            hint="undo that to resume, or start over with --force",
        )


def finish(build: Build, out: Path, *, workers: int = 1, events: Events = SILENT) -> Manifest:
    """Make the shards of `build` in `out`, a folder that `begin` has claimed, going on where an earlier attempt ended.

    Raises InputError on a broken input (and empties the folder), RunError where a worker dies.
    """
    if workers < 1:
        raise UsageError(f"{workers} is less than 1", where="--workers")
    size = build.input_bytes()
    small = size is not None and size <= UNIT_CHARACTERS[0]  # one unit: a second process would cost more than it gives
    try:
        with Workers(1 if small else workers, build.tokenizer) as pool:
            units = _tokenize(build, out / WORK, pool, events)
            _check_splits(build, units, events)
            shards = _write_shards(build, out, units, pool, events)
    except InputError:
        shutil.rmtree(out, ignore_errors=True)  # the input has to change, so nothing here is of use
        raise
    assert build.tokenizer.eot_id is not None  # Build refuses one without
    manifest = Manifest(
        tokenizer_sha256=build.tokenizer.sha256,
        vocab_size=build.tokenizer.vocab_size,
        eot_id=build.tokenizer.eot_id,
        seed=build.seed,
        val_fraction=build.val_fraction,
        split_rule=SPLIT_RULE,
        shards=shards,
        sources=[_source(units)],
    )
    build.tokenizer.save(out / "tokenizer.json")
    write_report(out, manifest, build.inputs, build.tokenizer)
    write_manifest(out, manifest)
    shutil.rmtree(out / WORK)
    return manifest


def _tokenize(build: Build, work: Path, pool: Workers, events: Events) -> list[Unit]:
    """Bring every document into a unit on disk; units that are there stay."""
    dtype = token_dtype(build.tokenizer.vocab_size)
    size = build.input_bytes()
    total = None if size is None or build.compressed() else size / 1e6
    units: list[Unit] = []
    done = {"documents": 0, "tokens": 0}
    text_bytes = 0

    def add(unit: Unit) -> None:
        nonlocal text_bytes
        units.append(unit)
        text_bytes += unit.text_bytes
        done["documents"] += unit.kept
        done["tokens"] += unit.tokens
        events.progress("tokenize", text_bytes / 1e6, total, "MB", **done)

    def missing() -> Iterator[UnitTask]:
        characters, first = build.unit_characters(), 0
        for number, run in enumerate(grouped(_documents(build), characters)):
            path = work / f"unit-{characters}-{number:06d}"  # units of another size are no use
            if path.exists():
                add(Unit(path, dtype))
            else:
                yield UnitTask(path, first, run, build.seed, build.val_fraction)
            first += len(run)

    for unit in pool.map(tokenize_unit, missing()):
        add(unit)
    events.finish("tokenize")
    return units


def _documents(build: Build) -> Iterator[Document]:
    for path in build.inputs:
        yield from read_documents(path, documents=build.documents)


def _check_splits(build: Build, units: list[Unit], events: Events) -> None:
    """Raise InputError where nothing is left to train on; warn where nothing is left to validate on."""
    train, val = (sum(unit.documents[split] for unit in units) for split in SPLITS)
    if not train + val:
        raise InputError("there is no text in the inputs", where=", ".join(build.inputs[:3]))
    if not train:
        raise InputError(
            f"all {val} documents fell to validation and none is left to train on", hint="give more documents or a smaller --val-fraction"
        )
    if build.val_fraction and not val:
        share = min(0.5, 10 / train)
        what_to_do = f"raise it: at {share:.1g} about {round(share * train)} of them would"
        if train < 20 and build.documents == "file":
            what_to_do = "cut the text into more of them with --documents paragraph"
        events.warn(
            f"the validation split is empty: of {train} document{'s' * (train != 1)} none fell to it at --val-fraction "
            f"{build.val_fraction:g}\n  {what_to_do}"
        )


@dataclass(frozen=True, slots=True)
class _ShardTask:
    out: Path
    units: list[Unit]
    plan: ShardPlan

    @property
    def record(self) -> Path:
        """Where the shard's entry of the manifest is kept once it is whole."""
        return self.out / WORK / f"{self.plan.file}.json"

    def done(self) -> bool:
        shard = self.out / self.plan.file
        return self.record.exists() and shard.exists() and index_path(shard).exists()


def _write_shard(_: Tokenizer, task: _ShardTask) -> Shard:
    shard = write_planned(task.out, task.units, task.plan)
    write_json(task.record, asdict(shard))
    return shard


def _write_shards(build: Build, out: Path, units: list[Unit], pool: Workers, events: Events) -> list[Shard]:
    """Write every shard that is not there whole yet. All of them, train first, in order."""
    tasks = [_ShardTask(out, units, plan) for split in SPLITS for plan in plan_shards(units, split, build.shard_tokens)]
    shards = [Shard(**read_json(task.record)) for task in tasks if task.done()]
    total = sum(task.plan.tokens for task in tasks)
    done = sum(shard.tokens for shard in shards)
    for shard in pool.map(_write_shard, [task for task in tasks if not task.done()]):
        shards.append(shard)
        done += shard.tokens
        events.progress("write shards", done, total, "tokens", shards=len(shards))
    events.finish("write shards")
    return sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.file))


def _source(units: list[Unit]) -> Source:
    read, kept = sum(unit.documents_read for unit in units), sum(unit.kept for unit in units)
    return Source(
        name="inputs",
        documents_in=read,
        documents_kept=kept,
        dropped={"blank": read - kept},
        text_bytes=sum(unit.text_bytes for unit in units),
        tokens=sum(unit.tokens for unit in units),
    )
