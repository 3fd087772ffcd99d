"""Documents to shards: clean, deduplicate, tokenise in units, shuffle globally, write; in bounded memory, by many processes, resumable.

The bytes of the shards depend on the inputs' contents and order, the recipe, the tokenizer, the seed, the share of validation and the
shard size; never on the number of workers, on the encoder or on where a build was interrupted. Everything on the way to a shard lives in
`.work` inside the output folder: a unit or shard that is whole is never made twice. `manifest.json` is written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.corpus.decontaminate import MOST_DOCUMENTS, item_grams
from gptcli.corpus.dedup import find_duplicates, plan_dedup
from gptcli.corpus.passes import Context, TextTask, finish_text, model_path, read_span, sample_texts
from gptcli.corpus.quality import train_classifier
from gptcli.corpus.recipe import Source as Recipe
from gptcli.corpus.report import write_report
from gptcli.corpus.shuffle import ShardPlan, plan_shards, write_planned
from gptcli.corpus.spans import Span, divide
from gptcli.corpus.streams import COMPRESSED, STDIN, fingerprint, is_url
from gptcli.corpus.textunits import TextUnit
from gptcli.corpus.units import SPLIT_RULE, Tally, Unit
from gptcli.corpus.workers import Workers
from gptcli.errors import InputError, UsageError, nearest
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, claim_output, read_json, write_json
from gptcli.shards.format import MAX_TOKENS, index_path, open_shard
from gptcli.shards.manifest import DEFAULT_SOURCE, MANIFEST, RECORD, SPLITS, Manifest, Shard, Source, read_manifest, write_manifest
from gptcli.tokenizer.encoders import ENCODERS
from gptcli.tokenizer.tokenizer import Tokenizer

WORK = ".work"
UNIT_CHARACTERS = (1 << 22, 1 << 25)  # least and most in a unit; in between, so many that there are about a thousand units
FAST_BYTES = 1 << 21  # below, importing a faster encoder takes longer than the slowest one does


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """All that the shards' bytes depend on. Raises UsageError or InputError where it cannot be met."""

    sources: list[Recipe]
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
                where="--tokenizer",
                hint="train one with gpt tokenize train, or add the token",
            )
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"{self.val_fraction} is not from 0 up to, but not including, 1", where="--val-fraction")
        if not 1 <= self.shard_tokens <= MAX_TOKENS:
            raise UsageError(f"{self.shard_tokens} is not from 1 to {MAX_TOKENS}", where="--shard-tokens")
        if self.encoder not in ENCODERS:
            raise UsageError(f"unknown encoder {self.encoder!r}", where="--encoder", hint=nearest(self.encoder, ENCODERS))
        if not self.evaluation and (names := [source.name for source in self.sources if source.decontaminate]):
            raise UsageError(
                f"{names[0]} is to be decontaminated, but against nothing", where="decontaminate", hint='[decontaminate] files = ["eval/"]'
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

    def methods(self) -> list[str | None]:
        """How each source is hashed for deduplication: its own method, or that of the sources it is compared with."""
        found: list[str | None] = []
        for source in self.sources:
            those = {other.dedup.method for other in self.sources if other.dedup and source.name in (other.name, *other.dedup.against)}
            if len(those) > 1:
                raise UsageError(
                    f"{source.name} would be compared by two methods", where="dedup", hint="use one method for sources that are compared"
                )
            found.append(those.pop() if those else None)
        return found

    def record(self) -> dict[str, Any]:
        """What must be unchanged for a resume."""
        facts = {name: getattr(self, name) for name in ("val_fraction", "shard_tokens", "seed", "mixture_tokens")}
        record = {"tokenizer": self.tokenizer.sha256, **facts, "evaluation": [[path, *fingerprint(path)] for path in self.evaluation]}
        inputs: dict[str, list[Any]] = {}
        for source in self.sources:
            prefix = "" if source.name == DEFAULT_SOURCE else f"{source.name}."
            told = source.record()
            inputs |= {f"{path if is_url(path) else Path(path).resolve()}": stat for path, stat in told.pop("inputs").items()}
            record |= {f"{prefix}{name}": value for name, value in told.items()}
        return {**record, "inputs": inputs}


def begin(build: Build, out: Path, *, resume: bool, force: bool) -> bool:
    """Claim the output folder. False where `resume` finds the finished shards of this very build: nothing is left to do.

    Raises UsageError where the folder is not empty and neither `resume` nor `force` is given, where it belongs to another build, or
    where an input lies inside it; InputError where its finished shards are damaged.
    """
    for path in build.inputs:
        if path != STDIN and not is_url(path) and Path(path).resolve().is_relative_to(out.resolve()):
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
    if size is None or size <= UNIT_CHARACTERS[0]:
        workers = 1  # standard input cannot be shared; and for one unit a second process would cost more than it gives
    context = Context(
        tokenizer=build.tokenizer,
        encoder_name="tokenizers" if build.encoder == "auto" and size is not None and size < FAST_BYTES else build.encoder,
        sources=build.sources,
        methods=build.methods(),
        seed=build.seed,
        val_fraction=build.val_fraction,
        characters=build.unit_characters(),
        out=out,
        work=out / WORK,
    )
    context.work.mkdir(exist_ok=True)
    try:
        _prepare(build, context, events)
        with Workers(workers, context) as pool:
            units = _tokenize(build, context, pool, workers, events)
            _check_splits(build, list(chain(*units)), events)
            shards = _write_shards(build, out, units, pool, events)
    except InputError:
        shutil.rmtree(out, ignore_errors=True)  # the input has to change, so nothing here is of use
        raise
    tallies = [_sum(unit.tally for unit in mine) for mine in units]
    manifest = _manifest(build, shards, [_source(*pair) for pair in zip(build.sources, units, tallies, strict=True)])
    build.tokenizer.save(out / "tokenizer.json")
    write_report(out, manifest, {source.name: source.inputs for source in build.sources}, tallies, build.tokenizer)
    write_manifest(out, manifest)
    shutil.rmtree(context.work)
    return manifest


def _spans(context: Context, source: int, workers: int) -> Iterator[Span]:
    recipe = context.sources[source]
    inputs = [(path, 0 if path == STDIN else fingerprint(path)[0]) for path in recipe.inputs]
    return divide(source, inputs, context.characters, workers, recipe.documents)


def _prepare(build: Build, context: Context, events: Events) -> None:
    """What has to be known before the first document is judged: the evaluation items' grams, and the quality classifiers."""
    if build.evaluation and not (context.work / "items.npy").exists():
        _save(context.work / "items.npy", item_grams(build.evaluation))
    names = [source.name for source in build.sources]
    for source in build.sources:
        path = model_path(context.out, source)
        if source.quality is None or path.exists():
            continue
        events.info(
            f"learning what {source.name} is judged by: {', '.join(source.quality.positives)} against {', '.join(source.quality.negatives)}"
        )
        samples = []
        for kind in (source.quality.positives, source.quality.negatives):
            each = -(-source.quality.sample // len(kind))
            indices = [names.index(name) for name in kind]
            samples.append([text for index in indices for text in sample_texts(context, index, _spans(context, index, 1), each)])
        classifier = train_classifier(*samples)
        events.info(f"the classifier reaches F1 {classifier.f1:.4f} on every tenth document, which it did not learn from")
        classifier.save(path)


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array)


def _tokenize(build: Build, context: Context, pool: Workers, workers: int, events: Events) -> list[list[Unit]]:
    """Bring every document into a unit on disk, source by source, in order; units that are there stay."""
    size = build.input_bytes()
    total = None if size is None or build.compressed() else size / 1e6
    found: list[list[Path]] = [[] for _ in build.sources]
    units: list[list[Unit]] = [[] for _ in build.sources]
    done = Tally()
    tokens = 0

    def add(source: int, path: Path) -> None:
        nonlocal tokens
        unit = Unit(path, context.dtype)
        units[source].append(unit)
        done.add(unit.tally)
        tokens += unit.tokens
        events.progress("tokenize", done.text_bytes / 1e6, total, "MB", documents=done.kept, tokens=tokens)

    spans = chain.from_iterable(_spans(context, source, workers) for source in range(len(build.sources)))
    for source, paths in pool.map(_read_span, spans):
        if context.waits(source):
            found[source] += paths
            events.progress("read", sum(map(len, found)), None, "units")
        else:
            for path in paths:
                add(source, path)
    events.finish("read")
    waiting = [sorted(paths) for paths in found]
    tasks = _text_tasks(build, context, [[TextUnit(path) for path in paths] for paths in waiting], pool, events)
    for source, path in pool.map(_finish_text, tasks):
        add(source, path)
    events.finish("tokenize")
    return [sorted(mine, key=lambda unit: unit.path.name) for mine in units]


def _read_span(context: Context, span: Span) -> tuple[int, list[Path]]:
    return span.source, read_span(context, span)


def _finish_text(context: Context, task: TextTask) -> tuple[int, Path]:
    return task.source, finish_text(context, task)


def _text_tasks(build: Build, context: Context, texts: list[list[TextUnit]], pool: Workers, events: Events) -> list[TextTask]:
    """Look at all documents together: which are duplicates, and which evaluation grams are too common to be contamination."""
    names = [source.name for source in build.sources]
    dropped: list[list[Path]] = [[] for _ in build.sources]
    for number, source in enumerate(build.sources):
        if source.dedup is not None:
            others = [unit for name in source.dedup.against for unit in texts[names.index(name)]]
            rule = source.dedup
            tasks = plan_dedup(context.work, number, rule.method, rule.within, rule.threshold, texts[number], others)
            for path in pool.map(_find_duplicates, tasks):
                dropped[number].append(path)
                events.progress(f"compare {source.name}", len(dropped[number]), None, "tables")
            events.finish(f"compare {source.name}")
    if build.evaluation and not (context.work / "contaminated.npy").exists():
        items = context.items
        documents = np.zeros(len(items), np.int64)
        for unit in chain(*texts):
            grams, counts = unit.gram_counts()
            documents[np.searchsorted(items, grams)] += counts.astype(np.int64)
        _save(context.work / "contaminated.npy", items[(documents > 0) & (documents <= MOST_DOCUMENTS)])
    return [TextTask(number, unit.path, sorted(dropped[number])) for number, mine in enumerate(texts) for unit in mine]


def _find_duplicates(_: Context, task: Any) -> Path:
    return find_duplicates(task)


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
        if train < 20 and any(source.documents == "file" for source in build.sources):
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


def _write_shard(_: Context, task: _ShardTask) -> Shard:
    shard = write_planned(task.out, task.units, task.plan)
    write_json(task.record, asdict(shard))
    return shard


def _write_shards(build: Build, out: Path, units: list[list[Unit]], pool: Workers, events: Events) -> list[Shard]:
    """Write every shard that is not there whole yet. All of them: train first, source by source, in order."""
    names = [source.name for source in build.sources]
    tasks = [
        _ShardTask(out, mine, plan)
        for split in SPLITS
        for name, mine in zip(names, units, strict=True)
        for plan in plan_shards(mine, split, build.shard_tokens, name)
    ]
    shards = [Shard(**read_json(task.record)) for task in tasks if task.done()]
    total = sum(task.plan.tokens for task in tasks)
    done = sum(shard.tokens for shard in shards)
    for shard in pool.map(_write_shard, [task for task in tasks if not task.done()]):
        shards.append(shard)
        done += shard.tokens
        events.progress("write shards", done, total, "tokens", shards=len(shards))
    events.finish("write shards")
    return sorted(shards, key=lambda shard: (SPLITS.index(shard.split), names.index(shard.source), shard.file))


def _sum(tallies: Iterator[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _source(recipe: Recipe, units: list[Unit], tally: Tally) -> Source:
    return Source(
        name=recipe.name,
        documents_in=tally.read,
        documents_kept=tally.kept,
        dropped=dict(sorted(tally.dropped.items())),
        text_bytes=tally.text_bytes,
        tokens=sum(unit.tokens for unit in units),
        cut=tally.cut,
        pieces=tally.pieces,
        weight=float(recipe.weight),
    )


def _manifest(build: Build, shards: list[Shard], sources: list[Source]) -> Manifest:
    """The manifest, each source's epochs counted from its share of the mixture."""
    assert build.tokenizer.eot_id is not None  # Build refuses one without
    manifest = Manifest(
        tokenizer_sha256=build.tokenizer.sha256,
        vocab_size=build.tokenizer.vocab_size,
        eot_id=build.tokenizer.eot_id,
        seed=build.seed,
        val_fraction=build.val_fraction,
        split_rule=SPLIT_RULE,
        shards=shards,
        sources=sources,
    )
    shares, total = manifest.shares(), build.mixture_tokens or manifest.tokens("train")
    counted = [
        replace(source, epochs=shares[source.name] * total / manifest.tokens("train", source.name))
        if source.name in shares
        else replace(source, epochs=0.0)
        for source in sources
    ]
    return replace(manifest, sources=counted)
