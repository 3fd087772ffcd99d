"""Documents to shards: clean, deduplicate, tokenise in units, shuffle globally, write; in bounded
memory, by many processes, resumable.

The bytes of the shards depend on the inputs' contents and order, the recipe, the tokenizer, the
seed, the share of validation and the shard size; never on the number of workers, on the encoder or
on where a build was interrupted. Everything on the way to a shard lives in `.work` inside the
output folder: a unit or shard that is whole is never made twice. `manifest.json` is written last.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from gptcli.corpus.chunks import SPLIT_RULE, Tally, Unit
from gptcli.corpus.config import Build, refuse_changes
from gptcli.corpus.coordinator import WORK, context_of, prepare, tokenize
from gptcli.corpus.parts import PARTS, missing_parts
from gptcli.corpus.recipe import Source as Recipe
from gptcli.corpus.report import write_report
from gptcli.corpus.shuffle import write_shards
from gptcli.corpus.streams import STDIN
from gptcli.corpus.workers import open_pool
from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import claim_output, contents, empty, read_json, write_json
from gptcli.shards.format import open_shard
from gptcli.shards.manifest import (
    MANIFEST,
    RECORD,
    SPLITS,
    Manifest,
    Shard,
    Source,
    read_manifest,
    write_manifest,
)


def begin(build: Build, out: Path, *, resume: bool, force: bool) -> bool:
    """Claim the output folder. False where `resume` finds the finished shards of this very build:
    nothing is left to do.

    Raises UsageError where the folder is not empty and neither `resume` nor `force` is given, where
    it belongs to another build, or where an input lies inside it; InputError where its finished
    shards are damaged.
    """
    build.refuse_inputs_in(out)
    record = build.record()
    claim_output(out, resume=resume, force=force)
    if contents(out):
        if not (out / RECORD).exists():
            raise UsageError(
                "there is no build to resume in it",
                where=out,
                hint="{option:force} empties it, or choose another {option:out}",
            )
        if STDIN in build.inputs:
            raise UsageError(
                "a build from standard input cannot be resumed",
                where=out,
                hint="save the text to a file, or start over with {option:force}",
            )
        before = read_json(out / RECORD)
        refuse_changes(before, record, out)
        if (out / MANIFEST).exists():
            for shard in read_manifest(out).shards:
                open_shard(out / shard.file)
            shutil.rmtree(out / WORK, ignore_errors=True)
            return False
        if PARTS in before:
            if missing := missing_parts(out, before[PARTS]):
                raise UsageError(
                    f"of {before[PARTS]} parts {', '.join(map(str, missing[:8]))}{' and others' * (len(missing) > 8)} are not done",
                    where=out,
                    hint=f"first run the same build with {{option:part}} {missing[0]}/{before[PARTS]} "
                    "instead of {option:resume}",
                )
            record[PARTS] = before[PARTS]
    write_json(out / RECORD, record)
    return True


def finish(
    build: Build, out: Path, *, workers: int = 1, runner: str = "local", events: Events = SILENT
) -> Manifest:
    """Make the shards of `build` in `out`, a folder that `begin` has claimed, going on where an
    earlier attempt ended.

    Raises InputError on a broken input (a folder that no earlier attempt wrote into is removed
    again), RunError where a worker dies.
    """
    fresh = not (out / WORK).exists()
    context = context_of(build, out)
    try:
        prepare(build, context, events)
        with open_pool(runner, build.workers(workers), context) as pool:
            units = tokenize(
                build, context, pool, read_json(out / RECORD).get(PARTS, pool.count), events
            )
            _check_splits(build, units, events)
            named = {source.name: mine for source, mine in zip(build.sources, units, strict=True)}
            shards = write_shards(out, context.work, named, build.shard_tokens, pool, events)
    except InputError:
        if fresh:
            empty(out)  # the input has to change, so nothing here is of use
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    tallies = [_sum(unit.tally for unit in mine) for mine in units]
    manifest = _manifest(
        build, shards, [_source(*pair) for pair in zip(build.sources, units, tallies, strict=True)]
    )
    build.tokenizer.save(out / "tokenizer.json")
    write_report(
        out,
        manifest,
        {source.name: source.inputs for source in build.sources},
        tallies,
        build.tokenizer,
    )
    write_manifest(out, manifest)
    shutil.rmtree(context.work)
    return manifest


def _check_splits(build: Build, units_of: list[list[Unit]], events: Events) -> None:
    """Raise InputError where nothing is left to train on; warn where nothing of a source is, or
    nothing to validate on.
    """
    units = list(chain(*units_of))
    train, val = (sum(unit.documents[split] for unit in units) for split in SPLITS)
    if not train + val:
        dropped = _sum(unit.tally for unit in units).dropped
        told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items()))
        raise InputError(
            f"there is no text in the inputs{f' ({told})' if dropped else ''}",
            where=", ".join(build.inputs[:3]),
        )
    if not train:
        raise InputError(
            f"all {val} documents fell to validation and none is left to train on",
            hint="give more documents or a smaller {option:val_fraction}",
        )
    for source, mine in zip(build.sources, units_of, strict=True):
        if not sum(unit.documents["train"] for unit in mine):
            events.warn(
                f"nothing of {source.name} is left to train on: its weight of {source.weight:g} falls to the other sources"
            )
    if build.val_fraction and not val:
        share = min(0.5, 10 / train)
        what_to_do = f"raise it: at {share:.1g} about {round(share * train)} of them would"
        if train < 20 and any(
            source.documents == "file" and path.endswith(".txt")
            for source in build.sources
            for path in source.inputs
        ):
            what_to_do = "cut the text into more of them with {option:documents} paragraph"
        events.warn(
            f"the validation split is empty: of {train} document{'s' * (train != 1)} none fell to it "
            f"at {{option:val_fraction}} {build.val_fraction:g}\n  {what_to_do}"
        )


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
