"""`gpt build-shards`: documents to shuffled, split, checksummed shards."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.build_report import print_estimate, print_overlap, print_part, print_report
from gptcli.cli.command import Command, hold, releasing
from gptcli.cli.config import number, read_config, read_option, write_resolved
from gptcli.cli.console import ConsoleEvents
from gptcli.errors import UsageError, nearest
from gptcli.locks import own_folder, own_part
from gptcli.settings import NUMBERS, Resolved

if TYPE_CHECKING:
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.recipe import SourceConfig

INPUT, SHARDS, OUTPUT, RUN = "Input", "Shards", "Output", "Run"


def register(app: typer.Typer) -> None:
    app.command("build-shards", cls=Command)(releasing(build_shards))


def build_shards(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Files, folders, globs, URLs, or - for stdin.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="T",
            show_default=False,
            rich_help_panel=INPUT,
            help="Tokenizer: a tokenizer.json, a folder with one (a run, shards) or with vocab.bpe and encoder.json, or gpt2.",
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            show_default="file",
            rich_help_panel=INPUT,
            help="Unit of a text file that is one document: file, line or paragraph.",
        ),
    ] = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            show_default="stop",
            rich_help_panel=INPUT,
            help="Rule for input that cannot be read: stop, or skip and count it.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            rich_help_panel=INPUT,
            help="TOML file with any of these options, and the sources of a recipe.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="E",
            show_default="auto",
            rich_help_panel=RUN,
            help="Library that encodes: auto, tokenizers, tiktoken or gigatoken; the ids are the same.",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            parser=number("val_fraction"),
            metavar="F",
            show_default="0.001",
            rich_help_panel=SHARDS,
            help="Share of documents for validation, chosen by their hash.",
        ),
    ] = None,
    shard_tokens: Annotated[
        int | None,
        typer.Option(
            parser=number("shard_tokens"),
            metavar="N",
            show_default="100M",
            rich_help_panel=SHARDS,
            help="Largest shard, in tokens.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=number("seed"),
            metavar="N",
            show_default="0",
            rich_help_panel=SHARDS,
            help="Random seed of the shuffle; the same seed gives the same bytes.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FOLDER",
            show_default="shards",
            rich_help_panel=OUTPUT,
            help="Folder of shards to write; manifest.json comes last.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=OUTPUT, help="Continue an interrupted build."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", rich_help_panel=OUTPUT, help="Empty the folder and start over."),
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            show_default="shards",
            rich_help_panel=OUTPUT,
            help="Format: shards, which llm.c and Megatron read; also write nanogpt (bare train.bin and val.bin) or "
            "megatron (a .bin and .idx for each source).",
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="Check every byte of finished shards, and stop.",
        ),
    ] = None,
    overlap: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            rich_help_panel=OUTPUT,
            help="Report the share of INPUT's 8-grams that the training text of these shards holds, as in GPT-2's Table 6, and stop.",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print a report as one JSON object on stdout."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=number("workers"),
            metavar="N",
            show_default="cores",
            rich_help_panel=RUN,
            help="Number of worker processes; the bytes written do not depend on it.",
        ),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            show_default="local",
            rich_help_panel=RUN,
            help="Place to run workers: local, or ray for all cores of a running Ray cluster.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            show_default=False,
            rich_help_panel=RUN,
            help="Share of the reading that this job of an array does; --resume without it finishes the build.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=RUN,
            help="Print configuration, sizes, time and memory, and stop.",
        ),
    ] = False,
) -> None:
    """Turn documents into shuffled, split, checksummed shards of tokens for gpt train, llm.c and
    Megatron.

    Examples:

        gpt build-shards corpus/ --tokenizer tokenizer.json -o shards

        gpt build-shards "crawl/*.jsonl.zst" --tokenizer gpt2 --resume

        gpt build-shards --config recipe.toml

        gpt build-shards --config recipe.toml --part $SLURM_ARRAY_TASK_ID/16

        gpt build-shards --verify shards

        gpt build-shards wikitext.test.txt lambada.jsonl --overlap shards
    """
    if verify is not None:
        from gptcli.shards.manifest import MANIFEST
        from gptcli.shards.verify import verify_shards

        print_report(verify / MANIFEST, verify_shards(verify, events=ConsoleEvents()), as_json=json)
        return
    if overlap is not None:
        _report_overlap(overlap, inputs or [], workers or _cores(), as_json=json)
        return
    options = {
        "inputs": inputs or None,
        "tokenizer": tokenizer,
        "output": output,
        "documents": documents,
        "on_error": on_error,
        "encoder": encoder,
        "format": format,
        "val_fraction": val_fraction,
        "shard_tokens": shard_tokens,
        "seed": seed,
        "workers": workers,
        "runner": runner,
    }
    resolved = _resolve(options, config)

    from gptcli.corpus.build import begin_build, finish_build
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.pool import check_runner
    from gptcli.shards.export import EXPORT_FORMATS, EXPORTERS
    from gptcli.shards.manifest import MANIFEST, read_manifest
    from gptcli.tokenizer.tokenizer import load_tokenizer

    values = resolved.values
    out = Path(values["output"])
    if values["format"] not in EXPORT_FORMATS:
        raise UsageError(
            f"unknown format {values['format']!r}",
            where="--format",
            hint=nearest(values["format"], EXPORT_FORMATS),
        )
    build = BuildConfig(
        sources=_sources(values),
        tokenizer=load_tokenizer(values["tokenizer"]),
        encoder=values["encoder"],
        evaluation=_evaluation(values),
        mixture_tokens=values.get("mixture_tokens"),
        val_fraction=values["val_fraction"],
        shard_tokens=values["shard_tokens"],
        seed=values["seed"],
    )
    if dry_run:
        from gptcli.corpus.report import estimate_build

        print_estimate(resolved, estimate_build(build, values["workers"]), as_json=json)
        return
    check_runner(values["runner"])
    events = ConsoleEvents()
    if part is not None:
        if force:
            raise UsageError(
                "--force would empty the folder under the other parts",
                where="--part",
                hint="empty it before the first",
            )
        _build_part(build, out, part, values, events, as_json=json)
        return
    hold(own_folder(out, read_only=resume, events=events))
    if begin_build(build, out, resume=resume, force=force):
        write_resolved(out / "build.toml", resolved)
        manifest = finish_build(
            build, out, workers=values["workers"], runner=values["runner"], events=events
        )
    else:
        events.info(f"{out / MANIFEST} is up to date")
        manifest = read_manifest(out)
    if values["format"] in EXPORTERS:
        EXPORTERS[values["format"]](out)
    print_report(out / MANIFEST, manifest, as_json=json)


def _report_overlap(folder: Path, inputs: list[str], workers: int, *, as_json: bool) -> None:
    """How much of the test sets stands in the shards' training text."""
    from gptcli.corpus.inputs import find_inputs
    from gptcli.corpus.overlap import find_overlap

    if not inputs:
        raise UsageError(
            "no INPUT is given", where="--overlap", hint="name the files of the test sets"
        )
    print_overlap(
        find_overlap(folder, find_inputs(inputs), workers=workers, events=ConsoleEvents()),
        as_json=as_json,
    )


def _build_part(
    build: BuildConfig,
    out: Path,
    text: str,
    values: dict[str, Any],
    events: ConsoleEvents,
    *,
    as_json: bool,
) -> None:
    """Read one part of a build, and report what became of its documents."""
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


def _sources(values: dict[str, Any]) -> list[SourceConfig]:
    """The recipe's sources, weighted; or the one source that INPUT is."""
    from gptcli.corpus.inputs import find_inputs
    from gptcli.corpus.recipe import SourceConfig, preset_weights, read_sources

    if "sources" not in values:
        return [
            SourceConfig(
                inputs=find_inputs(values["inputs"]),
                documents=values["documents"],
                on_error=values["on_error"],
            )
        ]
    sources = read_sources(values["sources"])
    if "mixture" in values:
        weights = preset_weights(values["mixture"], [source.name for source in sources])
        sources = [replace(source, weight=weights[source.name]) for source in sources]
    return sources


def _evaluation(values: dict[str, Any]) -> tuple[str, ...]:
    from gptcli.corpus.recipe import read_decontaminate

    return tuple(read_decontaminate(values["decontaminate"])) if "decontaminate" in values else ()


def _resolve(options: dict[str, Any], config: Path | None) -> Resolved:
    """Options over the file's values over defaults. Raises UsageError where something that has no
    default is missing.
    """
    resolved = Resolved()
    defaults = {
        "output": "shards",
        "documents": "file",
        "on_error": "stop",
        "encoder": "auto",
        "format": "shards",
        "runner": "local",
        "val_fraction": 0.001,
        "shard_tokens": 100_000_000,
        "seed": 0,
    }
    resolved.put({**defaults, "workers": _cores()}, "default")
    if config is not None:
        names = dict.fromkeys(
            (
                "tokenizer",
                "output",
                "documents",
                "on_error",
                "encoder",
                "format",
                "runner",
                "mixture",
            ),
            _text,
        )
        numbers = {
            name: NUMBERS[name]
            for name in ("val_fraction", "shard_tokens", "seed", "workers", "mixture_tokens")
        }
        tables = {"sources": _table, "decontaminate": _table}
        resolved.put(
            read_config(
                config, {"inputs": _texts, **names, **numbers, **tables}, "gpt build-shards"
            ),
            str(config),
        )
    resolved.put(options, "option")
    if "inputs" in resolved.values and "sources" in resolved.values:
        raise UsageError(
            "both INPUT and a recipe's sources are given", hint="name the files in one of them"
        )
    if "inputs" not in resolved.values and "sources" not in resolved.values:
        raise UsageError(
            "is missing",
            where="INPUT",
            hint="name files, folders, globs, or - for stdin: gpt build-shards corpus/ -t gpt2",
        )
    if "tokenizer" not in resolved.values:
        raise UsageError(
            "no tokenizer is given",
            where="--tokenizer",
            hint="gpt tokenize train makes one; gpt2 is GPT-2's",
        )
    return resolved


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not a table")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of strings")
    return [_text(item) for item in value]


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
