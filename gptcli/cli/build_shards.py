"""`gpt build-shards`: turn documents into shuffled, split and checksummed shards of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.command import Command, Mode, hold, read_config, releasing
from gptcli.cli.console import (
    ConsoleEvents,
    print_json,
    print_lines,
    report_columns,
    told_by_files,
    toml_columns,
    wrap_lines,
)
from gptcli.cli.messages import current_messages
from gptcli.cli.options import (
    INPUT,
    OUTPUT,
    RUN,
    Option,
    declaring,
    flag,
    read_option,
    read_options,
    readers,
    resolved_toml,
    shared,
    value,
    write_resolved,
)
from gptcli.errors import UsageError, nearest
from gptcli.files import claim_file
from gptcli.locks import own_folder, own_part
from gptcli.numbers import WEEK, amount, counted, duration, in_bytes
from gptcli.runtime import available_cores
from gptcli.settings import NUMBERS, Resolved, boolean, nonempty_text

if TYPE_CHECKING:
    from gptcli.corpus.build import JobSlice
    from gptcli.corpus.chunks import Tally
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.decontaminate import OverlapReport
    from gptcli.corpus.report import BuildEstimate
    from gptcli.shards.manifest import Manifest

SHARDS = "Shards"
SHORT_DOCUMENT_TOKENS = 64  # mean below which samples of the model will be noticeably short
# fmt: off
OPTIONS = {  # also keys of --config, beside those of a recipe
    "tokenizer": Option(INPUT),
    "documents": Option(INPUT, "file"),
    "field": Option(INPUT, "text"),
    "input_format": Option(INPUT, "auto"),
    "eot_in_text": Option(INPUT, reader=boolean),
    "on_error": Option(
        INPUT, "stop", "Action for a document that cannot be read: stop, or skip and count it.",
        "RULE"),
    "encoder": Option(
        RUN, "auto",
        "Library that encodes text: auto, tokenizers, tiktoken or gigatoken; all give the same "
        "ids.", "E"),
    "val_fraction": Option(
        SHARDS, "0.001", "Fraction of documents for validation, chosen by a hash of their text.",
        "F"),
    "shard_tokens": Option(
        SHARDS, "100M",
        "Maximum size of a shard, in tokens; a longer document is a shard of its own."),
    "seed": Option(SHARDS, "0", "Random seed of the shuffle; the same seed gives the same bytes."),
    "output": Option(
        OUTPUT, "shards", "Folder to write the shards to; manifest.json is written last.",
        "FOLDER"),
    "format": Option(
        OUTPUT, "shards",
        "Output format: shards (.bin and .idx, which llm.c and Megatron read); or shards and also "
        "nanogpt (train.bin and val.bin without headers) or megatron (one .bin and .idx per "
        "source).", "F"),
    "text_out": Option(
        OUTPUT,
        help="Also write the documents to this file (.jsonl.zst, .jsonl or .parquet), with their "
             "sources, scores and, if dropped, the reason.", metavar="FILE"),
    "text_dropped": Option(
        OUTPUT, help="Also write the dropped documents to --text-out.", reader=boolean),
    "workers": Option(
        RUN, "this machine's cores; fewer for small inputs",
        "Number of worker processes; the output does not depend on it."),
    "runner": Option(
        RUN, "local",
        "Place of the workers: local, on this machine's cores; or ray, on all cores of a running "
        "Ray cluster.", "R"),
}
# fmt: on
DEFAULTED = tuple(name for name, row in OPTIONS.items() if row.shown and name != "workers")
"""Options with a default that does not depend on the machine."""


MODES = (
    Mode("verify", "only checks finished shards", ("json",)),
    Mode("overlap", "only reads shards and test files", ("inputs", "workers", "json")),
    Mode(
        "part",
        "reads one part of the input, and continues it by itself",
        # of OPTIONS those of the whole build as well, so that all jobs share one line
        ("inputs", "config", *OPTIONS, "json", "dry_run", "force"),
        hint="leave it out here; --resume without --part completes the build",
    ),
)


class BuildCommand(Command):
    """`gpt build-shards`, whose modes check or read shards, or build a part of them."""

    modes = MODES


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("build-shards", cls=BuildCommand)(releasing(build_shards))


@declaring(OPTIONS)
def build_shards(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="Files, folders, globs or URLs of documents, or - for stdin.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        shared(
            "config",
            INPUT,
            False,
            help="TOML file that sets any of these options, and the sources of a recipe.",
        ),
    ] = None,
    resume: Annotated[bool, flag("--resume", "Continue an interrupted build.", OUTPUT)] = False,
    force: Annotated[
        bool, flag("--force", "Empty the output folder and start over.", OUTPUT)
    ] = False,
    verify: Annotated[
        Path | None,
        value("Check every byte of finished shards, and stop.", "FOLDER", OUTPUT, False),
    ] = None,
    overlap: Annotated[
        Path | None,
        value(
            "Report the share of INPUT's 8-grams that occur in the training text of these "
            "shards, as in GPT-2's Table 6, and stop.",
            *("FOLDER", OUTPUT, False),
        ),
    ] = None,
    json: Annotated[bool, shared("json", OUTPUT)] = False,
    part: Annotated[
        str | None,
        value(
            "Read only part I of N of the input, as one job of a job array; when all parts are "
            "read, run --resume without --part to complete the build.",
            *("I/N", RUN, False),
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run", "Print the configuration and the estimated size and time, and stop.", RUN
        ),
    ] = False,
    **options: Any,
) -> None:
    """Turn documents into shuffled, split and checksummed shards of tokens.

    gpt train, llm.c and Megatron read them. The output does not depend on --workers, and --resume
    continues an interrupted build.

    Examples:

        gpt build-shards corpus/ --tokenizer tokenizer.json -o shards

        gpt build-shards "crawl/*.jsonl.zst" --tokenizer gpt2 --resume

        gpt build-shards --config recipe.toml

        gpt build-shards --config recipe.toml --part $SLURM_ARRAY_TASK_ID/16

        gpt build-shards --verify shards

        gpt build-shards wikitext.test.txt lambada.jsonl --overlap shards
    """
    if verify is not None:
        from gptcli.shards.folder import verify_shards
        from gptcli.shards.manifest import MANIFEST

        print_build(verify / MANIFEST, verify_shards(verify, events=ConsoleEvents()), as_json=json)
        return
    given = read_options(OPTIONS, options)
    if overlap is not None:
        workers = given.get("workers", available_cores())
        _report_overlap(overlap, inputs or [], workers, as_json=json)
        return
    resolved = resolve({"inputs": inputs or None, **given}, config)

    from gptcli.corpus.build import begin_build, finish_build
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.pool import check_runner
    from gptcli.corpus.recipe import evaluation_of, sources_of
    from gptcli.shards.folder import EXPORT_FORMATS, EXPORTERS
    from gptcli.shards.manifest import MANIFEST, read_manifest
    from gptcli.tokenizer.load import load_tokenizer

    values = resolved.values
    refuse_url(values["output"])
    out = Path(values["output"])
    if values["format"] not in EXPORT_FORMATS:
        raise UsageError(
            f"unknown format {values['format']!r}",
            where="--format",
            hint=nearest(values["format"], EXPORT_FORMATS),
        )
    build = BuildConfig(
        sources=sources_of(values, resolved.origin.get("sources", "recipe")),
        tokenizer=load_tokenizer(values["tokenizer"]),
        encoder=values["encoder"],
        evaluation=evaluation_of(values, resolved.origin.get("decontaminate", "recipe")),
        mixture_tokens=values.get("mixture_tokens"),
        val_fraction=values["val_fraction"],
        shard_tokens=values["shard_tokens"],
        seed=values["seed"],
        text_out=Path(values["text_out"]) if "text_out" in values else None,
        text_dropped=values["text_dropped"],
    )
    if resolved.origin["workers"] == "default":
        values["workers"] = build.default_workers(values["workers"])
    if dry_run:
        from gptcli.corpus.build import parse_job_slice
        from gptcli.corpus.report import estimate_build

        if part is not None:
            read_option("part", part, parse_job_slice)
        for notice in build.notices():
            ConsoleEvents().warn(notice)
        print_estimate(resolved, estimate_build(build, values["workers"]), as_json=json)
        return
    check_runner(values["runner"])
    events = ConsoleEvents()
    if part is not None:
        if force:
            raise UsageError(
                "--force cannot be combined with --part: it would delete the other parts",
                where="--part",
                hint="empty the folder before the first part",
            )
        _build_part(build, out, part, values, events, as_json=json)
        return
    hold(own_folder(out, read_only=resume, events=events))
    if build.text_out is not None:
        refuse_url(values["text_out"])
        claim_file(build.text_out, force=force or resume)
    if begin_build(build, out, resume=resume, force=force, events=events):
        write_resolved(out / "build.toml", resolved)
        manifest = finish_build(
            build, out, workers=values["workers"], runner=values["runner"], events=events
        )
    else:
        events.info(f"{out / MANIFEST} is up to date")
        if build.text_out is not None and not build.text_out.exists():
            events.warn(
                f"{build.text_out} is not written again after a build is finished: start over "
                "with --force"
            )
        manifest = read_manifest(out)
    if values["format"] in EXPORTERS:
        EXPORTERS[values["format"]](out)
    print_build(out / MANIFEST, manifest, as_json=json)


def refuse_url(out: str) -> None:
    """Raise UsageError if an output is a URL: outputs are written to local files."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", out):
        raise UsageError(
            f"{out} is a URL, and shards are written to a local folder",
            where="--out",
            hint="write them to a folder and copy it there, or mount the bucket",
        )


def _report_overlap(folder: Path, inputs: list[str], workers: int, *, as_json: bool) -> None:
    """Print the share of each test set that occurs in the shards' training text."""
    from gptcli.corpus.decontaminate import find_overlap
    from gptcli.corpus.input_search import find_inputs

    if not inputs:
        raise UsageError("INPUT is missing", where="--overlap", hint="name the test files")
    report = find_overlap(folder, find_inputs(inputs), workers=workers, events=ConsoleEvents())
    print_overlap(report, as_json=as_json)


def _build_part(
    build: BuildConfig,
    out: Path,
    text: str,
    values: dict[str, Any],
    events: ConsoleEvents,
    *,
    as_json: bool,
) -> None:
    """Read one part of the input, and print the number of its documents."""
    from gptcli.corpus.build import (
        begin_slice,
        finish_slice,
        missing_slices,
        parse_job_slice,
    )

    job = read_option("part", text, parse_job_slice)
    hold(own_part(out, f"{job.number}-of-{job.count}", events=events))
    begin_slice(build, out, job)
    tally = finish_slice(
        build, out, job, workers=values["workers"], runner=values["runner"], events=events
    )
    print_part(job, tally, missing_slices(out, job.count), as_json=as_json)


def resolve(given: dict[str, Any], config: Path | None) -> Resolved:
    """Return the values of the options: option over file over default.

    Raises UsageError if the inputs or the tokenizer are missing, or inputs are given twice.
    """
    known = readers(OPTIONS)
    resolved = Resolved()
    defaults = {name: known[name](row.shown) for name, row in OPTIONS.items() if name in DEFAULTED}
    defaults |= {"eot_in_text": False, "text_dropped": False, "workers": available_cores()}
    resolved.put(defaults, "default")
    if config is not None:
        known |= {
            "inputs": _read_texts,
            "mixture": nonempty_text,
            "mixture_tokens": NUMBERS["mixture_tokens"],
            "sources": _read_table,
            "decontaminate": _read_table,
        }
        resolved.put(read_config(config, known, "gpt build-shards"), str(config))
    resolved.put(given, "option")
    if "inputs" in resolved.values and "sources" in resolved.values:
        raise UsageError(
            "INPUT cannot be combined with the sources of a recipe",
            hint="name all files in the recipe, or all as INPUT",
        )
    names = [name for name in ("field", "input_format", "eot_in_text") if name in given]
    if "sources" in resolved.values and names:
        raise UsageError(
            f"{{option:{names[0]}}} cannot be combined with the sources of a recipe",
            hint=f"set {names[0]} in the table of each source that needs it",
        )
    if "inputs" not in resolved.values and "sources" not in resolved.values:
        raise UsageError(
            "is missing",
            where="INPUT",
            hint="name files, folders, globs, or - for stdin: gpt build-shards corpus/ -t gpt2",
        )
    if "tokenizer" not in resolved.values:
        raise UsageError(
            "is missing",
            where="--tokenizer",
            hint="train one with gpt tokenize train, or use GPT-2's with -t gpt2",
        )
    return resolved


def _read_table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not a table")
    return value


def _read_texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of strings")
    return [nonempty_text(item) for item in value]


def print_build(path: Path, manifest: Manifest, *, as_json: bool) -> None:
    """Print the size of each split, and the documents of each source if there are several."""
    from gptcli.shards.manifest import SPLITS

    splits: dict[str, dict[str, int]] = {
        split: {
            "tokens": manifest.tokens(split),
            "documents": sum(shard.documents for shard in manifest.shards_of(split)),
            "shards": len(manifest.shards_of(split)),
        }
        for split in SPLITS
    }
    if as_json:
        sources = [asdict(source) for source in manifest.sources]
        print_json("build-shards", {"manifest": str(path), **splits, "sources": sources})
        return
    with told_by_files():
        _print_summary(path, manifest, splits)


def _print_summary(path: Path, manifest: Manifest, splits: Mapping[str, Mapping[str, int]]) -> None:
    from gptcli.papers.models import GPT3_MIXTURE

    for split, counts in splits.items():
        sizes = [counted(count, name.removesuffix("s")) for name, count in counts.items()]
        print_lines(f"{split + ':':<7}{', '.join(sizes)}")
    if len(manifest.sources) > 1:
        shares = manifest.shares()
        for source in manifest.sources:
            paper = GPT3_MIXTURE.get(source.name)
            print_lines(
                f"{source.name}: {source.documents_kept:,} of "
                f"{counted(source.documents_in, 'document')} "
                f"kept, {shares.get(source.name, 0):.1%} of the mixture, {source.epochs:.3g} epochs"
                + ("" if paper is None else f" (GPT-3: {paper.epochs:g})")
            )
    else:
        read = sum(source.documents_in for source in manifest.sources)
        if dropped := read - sum(source.documents_kept for source in manifest.sources):
            print_lines(f"dropped: {dropped:,} of {counted(read, 'document')}; report.md says why")
    print_lines(f"{path} lists the shards; report.md next to it describes them")
    documents = splits["train"]["documents"]
    short = documents and splits["train"]["tokens"] / documents < SHORT_DOCUMENT_TOKENS
    if short and not current_messages().quiet:
        mean = round(splits["train"]["tokens"] / documents)
        print_lines(
            f"the documents are short, {counted(mean, 'token')} on average: samples of the model "
            "will end as soon. A document is a file, a line or a paragraph: --documents"
        )


def print_part(job: JobSlice, tally: Tally, missing: list[int], *, as_json: bool) -> None:
    """Print the documents of one part, and the parts that are not done."""
    if as_json:
        report = {
            "part": job.number,
            "of": job.count,
            "missing": missing,
            "documents_in": tally.read,
            "dropped": dict(sorted(tally.dropped.items())),
        }
        print_json("build-shards", report)
        return
    dropped = sum(tally.dropped.values())
    read = counted(tally.read, "document")
    print(f"part {job.number} of {job.count}: {read} read, {dropped:,} dropped")
    print(
        f"{counted(len(missing), 'part')} to go"
        if missing
        else "all parts are done: write the shards with --resume instead of --part"
    )


def print_overlap(report: OverlapReport, *, as_json: bool) -> None:
    """Print the share of each test set's 8-grams that occur in the training text."""
    if as_json:
        result = {
            "overlap": [{**asdict(test), "share": test.share} for test in report.tests],
            "train_grams": report.train_grams,
            "false_positives": report.false_positives,
        }
        print_json("build-shards", result)
        return
    width = max(len(test.file) for test in report.tests)
    for test in report.tests:
        print(f"{test.file:<{width}}  {test.share:7.2%} of {test.grams:,} 8-grams")
    print(
        f"of {report.train_grams:,} 8-grams of training text; "
        f"a false positive rate of at most {report.false_positives:.0e}"
    )


def cpu_hours(seconds: float) -> str:
    """Return hours in three digits, without an exponent."""
    hours = float(f"{seconds / 3600:.3g}")
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:g}"


def print_estimate(resolved: Resolved, estimate: BuildEstimate, *, as_json: bool) -> None:
    """Print the configuration of a build and its estimated size and time."""
    if as_json:
        report = {"dry_run": True, "config": resolved.values, "estimate": asdict(estimate)}
        print_json("build-shards", report)
        return
    print(resolved_toml(resolved, toml_columns()))

    def known(number: float | None, text: Callable[[float], str]) -> str:
        return "unknown before the inputs are read" if number is None else text(number)

    files = counted(estimate.input_files, "file")
    if estimate.input_bytes is not None:
        files += f", {in_bytes(estimate.input_bytes)}"
    shards = counted(estimate.shards or 0, "shard")
    crawl = (
        {}
        if estimate.pages is None
        else {
            "crawl": f"{counted(estimate.pages, 'page')}, as published; the sample is of one of its "
            "WARC files if that is an INPUT too, else of English pages made up"
        }
    )
    kept = (
        {}
        if estimate.documents is None
        else {
            "kept": f"about {counted(estimate.documents, 'document', amount)}, before any comparison"
        }
    )
    workers = resolved.values["workers"]
    by = f"by {counted(workers, 'worker')}"
    longest = max(estimate.seconds or 0, (estimate.cpu_seconds or 0) / workers)
    more = "; more --workers, or --part I/N on N machines, divide it" if longest > WEEK else ""
    rows = {
        "inputs": files,
        **crawl,
        **kept,
        "text": known(estimate.bytes_per_token, lambda n: f"{n:.2f} bytes per token, in a sample"),
        "tokens": known(estimate.tokens, lambda n: f"about {amount(n)}, in about {shards}"),
        "disk": known(
            estimate.disk_bytes, lambda n: f"about {in_bytes(n)}, twice that during the build"
        ),
        "memory": known(
            estimate.memory_bytes, lambda n: f"about {in_bytes(n)} for tokens in all workers"
        ),
        "time": known(estimate.seconds, lambda n: f"about {duration(n)} to tokenize {by}{more}"),
        "cpu": known(
            estimate.cpu_seconds,
            lambda n: (
                f"about {cpu_hours(n)} CPU hours to read, filter, compare and tokenize, "
                f"{duration(n / workers)} {by}"
            ),
        ),
        "worker": known(
            estimate.worker_bytes, lambda n: f"about {in_bytes(n)} of memory beside the program"
        ),
        "shuffle": known(
            estimate.shuffle_bytes,
            lambda n: f"about {in_bytes(n)} written to the work folder and read again",
        ),
    }
    for name, text in rows.items():
        print(f"{name:<8}" + wrap_lines(text, report_columns() - 8).replace("\n", "\n" + " " * 8))
