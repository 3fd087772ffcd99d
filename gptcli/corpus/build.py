"""Build of a shard folder, as a whole or by the jobs of a job array.

The bytes of the shards depend on the inputs' contents and order, the recipe, the tokenizer, the
seed, the validation fraction and the shard size; never on the number of workers, the encoder, or
the moment at which a build was interrupted.

A build claims the output folder with `resume.json`, keeps chunks and finished work in `.work`, and
writes `manifest.json` last: after a crash, `finish_build` makes only what is missing.

A job array shares the output folder. Each job reads a slice of the input splits into chunks, and a
last run compares documents, tokenizes what had to wait for that, and writes the shards:

    gpt build-shards --config recipe.toml -o shards --part 3/16   in every job, with its number
    gpt build-shards --config recipe.toml -o shards --resume      after all jobs have ended
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from gptcli.corpus.chunks import SPLIT_RULE, Chunk, Tally, read_header, read_tally
from gptcli.corpus.clean import stage_order
from gptcli.corpus.config import BuildConfig, check_unchanged
from gptcli.corpus.coordinator import (
    WORK_FOLDER,
    all_input_splits,
    make_chunks,
    make_context,
    prepare_filters,
    read_task,
)
from gptcli.corpus.formats import find_format
from gptcli.corpus.inputs import STDIN, fingerprint, is_url
from gptcli.corpus.pool import Runner, open_pool, startable
from gptcli.corpus.reading_progress import ReadingProgress
from gptcli.corpus.recipe import SourceConfig
from gptcli.corpus.report import write_report
from gptcli.corpus.shuffle import write_shards
from gptcli.corpus.snapshots import refuse_snapshots
from gptcli.corpus.text_out import write_text_out
from gptcli.encodings import no_text
from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import contents, empty, read_json, write_json
from gptcli.locks import claim_owned
from gptcli.numbers import counted
from gptcli.shards.format import open_shard
from gptcli.shards.manifest import (
    MANIFEST,
    RESUME_RECORD,
    SPLITS,
    Manifest,
    Shard,
    Source,
    read_manifest,
    write_manifest,
)
from gptcli.tokenizer.tokenizer import END_OF_TEXT

MAX_EPOCHS = 16  # of a source, before a warning
MIN_VALIDATION_DOCUMENTS = 10  # a warning below it: a loss on fewer depends on which they are
SLICES = "parts"  # key of the resume record: number of slices


@dataclass(frozen=True, slots=True)
class JobSlice:
    """Share of the input splits that one job of a job array reads."""

    number: int
    """Number of the slice, from 1."""
    count: int
    """Number of slices."""

    def done_file(self, out: Path) -> Path:
        """Return the path of the file that records that this slice is done."""
        return out / WORK_FOLDER / f"part-{self.number}-of-{self.count}.json"


def parse_job_slice(text: str) -> JobSlice:
    """Return the slice that "3/16" names. Raises UsageError if `text` is not of this form."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"{text!r} is not a part I/N with I from 1 to N",
            hint="for example, 1/16 is the first of 16 parts",
        )
    return JobSlice(int(match[1]), int(match[2]))


def missing_slices(out: Path, count: int) -> list[int]:
    """Return the numbers of the slices that are not done, of `count`."""
    numbers = range(1, count + 1)
    return [number for number in numbers if not JobSlice(number, count).done_file(out).exists()]


def begin_build(
    build: BuildConfig, out: Path, *, resume: bool, force: bool, events: Events = SILENT
) -> bool:
    """Claim the output folder; return False if the shards of this very build are finished already.

    Raises UsageError if the folder is not empty and neither `resume` nor `force` is given, if it
    belongs to a different build, or if an input is inside it; InputError if its finished shards are
    damaged.
    """
    refuse_snapshots(build.inputs)
    build.check_inputs_outside(out)
    record = build.resume_record()
    claim_owned(out, resume=resume, force=force, own=MANIFEST, events=events)
    if contents(out):
        if not (out / RESUME_RECORD).exists():
            raise UsageError(
                "there is no build to resume in this folder",
                where=out,
                hint="{option:force} empties it, or choose another {option:out}",
            )
        if STDIN in build.inputs:
            raise UsageError(
                "a build from standard input cannot be resumed",
                where=out,
                hint="save the text to a file, or start over with {option:force}",
            )
        before = read_json(out / RESUME_RECORD)
        check_unchanged(before, record, out)
        if (out / MANIFEST).exists():
            for shard in read_manifest(out).shards:
                open_shard(out / shard.file)
            shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
            return False
        if SLICES in before:
            _check_slices_done(out, before[SLICES])
            record[SLICES] = before[SLICES]
    write_json(out / RESUME_RECORD, record)
    return True


def _check_slices_done(out: Path, count: int) -> None:
    if missing := missing_slices(out, count):
        more = " and others" * (len(missing) > 8)
        raise UsageError(
            f"of {counted(count, 'part')} {', '.join(map(str, missing[:8]))}{more} are not done",
            where=out,
            hint=f"run the same command with {{option:part}} {missing[0]}/{count} instead of {{option:resume}} first",
        )


def finish_build(
    build: BuildConfig,
    out: Path,
    *,
    workers: int = 1,
    runner: Runner = "local",
    events: Events = SILENT,
) -> Manifest:
    """Make the shards in a folder that `begin_build` has claimed; return their manifest.

    Work that an earlier attempt finished is kept. Raises InputError on a broken input (a folder
    that no earlier attempt wrote to is removed again), RunError if a worker dies.
    """
    for notice in build.notices():
        events.warn(notice)
    is_first_attempt = not (out / WORK_FOLDER).exists()
    context = make_context(build, out)
    try:
        prepare_filters(build, context, events)
        count = startable(build.worker_count(workers), events)
        with open_pool(runner, count, context) as pool:
            jobs = read_json(out / RESUME_RECORD).get(SLICES, 1)
            chunks = make_chunks(build, context, pool, jobs, events)
            _check_splits(build, chunks, events)
            by_name = {
                source.name: mine for source, mine in zip(build.sources, chunks, strict=True)
            }
            shards = write_shards(out, context.work, by_name, build.shard_tokens, pool, events)
    except InputError:
        if is_first_attempt:
            empty(out)  # the input has to change, so nothing here can be used again
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
    if changed := _changed_inputs(build, out):
        others = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
        events.warn(
            f"{changed[0]}{others}: changed while the build read it, so that documents may be missing "
            "or cut; build again from a copy"
        )
    tallies = [_sum(chunk.tally for chunk in mine) for mine in chunks]
    if spelled := _sum(tallies).spelled:
        events.warn(
            f"{counted(spelled, 'document')} spell{'s' * (spelled == 1)} {END_OF_TEXT}, which is "
            "encoded as ordinary text: {option:eot_in_text} divides documents there"
        )
    sources = [
        _source_entry(source, mine, tally)
        for source, mine, tally in zip(build.sources, chunks, tallies, strict=True)
    ]
    manifest = _make_manifest(build, shards, sources)
    for source in manifest.sources:
        if source.epochs > MAX_EPOCHS:
            events.warn(
                f"the training tokens of {source.name} would be read {source.epochs:.3g} times: "
                f"beyond {MAX_EPOCHS} a repetition teaches next to nothing (Muennighoff et al. 2023); "
                "lower its weight, or add documents"
            )
    if build.text_out is not None:
        count = write_text_out(build.text_out, context.work)
        events.info(f"{counted(count, 'document')} -> {build.text_out}")
    build.tokenizer.save(out / "tokenizer.json")
    inputs = {source.name: source.inputs for source in build.sources}
    write_report(out, manifest, inputs, tallies, build.tokenizer)
    write_manifest(out, manifest)
    shutil.rmtree(context.work)
    return manifest


def _changed_inputs(build: BuildConfig, out: Path) -> list[str]:
    """Return the input files that are not what they were when the build began."""
    before = read_json(out / RESUME_RECORD)["inputs"]
    changed = []
    for path in build.inputs:
        if path == STDIN or is_url(path) or Path(path).is_fifo():
            continue
        try:
            now: list[object] | None = list(fingerprint(path))
        except InputError:  # it is gone
            now = None
        if before.get(os.path.realpath(path)) != now:
            changed.append(path)
    return changed


def begin_slice(build: BuildConfig, out: Path, job: JobSlice) -> None:
    """Claim a slice of the output folder.

    Raises UsageError if the folder has anything but slices of this very build in it, if an input is
    inside it, or if the input is standard input.
    """
    if STDIN in build.inputs:
        raise UsageError(
            "standard input cannot be read in parts",
            field="part",
            code="stdin_in_parts",
            hint="save the text to a file",
        )
    build.check_inputs_outside(out)
    record = {**build.resume_record(), SLICES: job.count}
    Path(os.path.realpath(out)).mkdir(parents=True, exist_ok=True)
    if not (out / RESUME_RECORD).exists():
        # Hidden files belong to another slice that is about to begin.
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise UsageError(
                "the output folder is not empty", where=out, hint="choose another {option:out}"
            )
        write_json(out / RESUME_RECORD, record)
    check_unchanged(read_json(out / RESUME_RECORD), record, out)


def finish_slice(
    build: BuildConfig,
    out: Path,
    job: JobSlice,
    *,
    workers: int = 1,
    runner: Runner = "local",
    events: Events = SILENT,
) -> Tally:
    """Read the documents of a slice into chunks; return their tally.

    Chunks of an earlier attempt are kept. Raises InputError on a broken input, RunError if a worker
    dies; finished chunks stay in the folder in both cases.
    """
    tally = Tally()
    if (out / MANIFEST).exists():
        return tally
    context = make_context(build, out)
    prepare_filters(build, context, events)
    splits = islice(all_input_splits(context, job.count), job.number - 1, None, job.count)
    size = build.input_bytes()
    share = None if size is None else size // job.count
    reading = ReadingProgress(context.work, share, events, f"part {job.number}")
    count = startable(build.worker_count(workers), events)
    with (
        open_pool(runner, count, context) as pool,
        reading.during(pool),
    ):
        for _, paths, name in pool.map(read_task, reading.hand_out(splits)):
            reading.finish(name)
            for path in paths:
                tally.add(read_tally(read_header(path)[0]))
    write_json(job.done_file(out), {"documents": tally.read})
    return tally


def _check_splits(build: BuildConfig, chunks_of: list[list[Chunk]], events: Events) -> None:
    """Check that documents are left to train on and to validate on.

    Raises InputError if there are none to train on; warns if a source has none, or if there are
    few to validate on.
    """
    chunks = list(chain(*chunks_of))
    train, val = (sum(chunk.documents[split] for chunk in chunks) for split in SPLITS)
    if not train + val:
        dropped = _sum(chunk.tally for chunk in chunks).dropped
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items()))
        raise no_text(build.inputs, f"dropped: {reasons}" if dropped else "")
    if not train:
        raise InputError(
            f"validation has all {counted(val, 'document')}, and none is left to train on",
            hint="give more documents or a smaller {option:val_fraction}",
        )
    for source, mine in zip(build.sources, chunks_of, strict=True):
        if not sum(chunk.documents["train"] for chunk in mine):
            events.warn(
                f"{source.name} has no documents left to train on: "
                f"its weight of {source.weight:g} goes to the other sources"
            )
    if build.val_fraction and val < MIN_VALIDATION_DOCUMENTS:
        events.warn(_thin_validation(build, train, val))


def _thin_validation(build: BuildConfig, train: int, val: int) -> str:
    """Return a warning that the validation split has few documents, and what to do about it."""
    is_text = any(
        source.documents == "file"
        and path.endswith(".txt")
        and find_format(path, source.input_format) == "text"
        for source in build.sources
        for path in source.inputs
    )
    documents = train + val
    if documents < 20 * MIN_VALIDATION_DOCUMENTS and is_text:
        advice = "divide the text into more documents with {option:documents} paragraph"
    elif documents < 2:
        advice = "add documents: at least one is needed for each split"
    else:
        share = float(f"{min(0.5, MIN_VALIDATION_DOCUMENTS / documents):.2g}")
        chosen = counted(round(share * documents), "document")
        advice = f"raise it: {share:g} would choose about {chosen}"
    what, chose = "is empty", f"none of {counted(documents, 'document')}"
    if val:
        what = "is small, and a loss on it says little"
        chose = f"{val:,} of {counted(documents, 'document')}"
    return (
        f"the validation split {what}: {{option:val_fraction}} {build.val_fraction:g} chose "
        f"{chose}\n  {advice}"
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _source_entry(source: SourceConfig, chunks: list[Chunk], tally: Tally) -> Source:
    """Return the manifest entry of a source, its dropped documents in the order of the stages."""
    reasons = sorted(tally.dropped, key=stage_order(source))
    return Source(
        name=source.name,
        documents_in=tally.read,
        documents_kept=tally.kept,
        dropped={reason: tally.dropped[reason] for reason in reasons},
        text_bytes=tally.text_bytes,
        tokens=sum(chunk.tokens for chunk in chunks),
        cut=tally.cut,
        pieces=tally.pieces,
        changed=dict(sorted(tally.changed.items())),
        weight=float(source.weight),
    )


def _make_manifest(build: BuildConfig, shards: list[Shard], sources: list[Source]) -> Manifest:
    """Return the manifest, with the epochs of each source counted from its share of the mixture."""
    assert build.tokenizer.eot_id is not None  # BuildConfig checks it
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
    with_epochs = [
        replace(source, epochs=shares[source.name] * total / manifest.tokens("train", source.name))
        if source.name in shares
        else replace(source, epochs=0.0)
        for source in sources
    ]
    return replace(manifest, sources=with_epochs)
