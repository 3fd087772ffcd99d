"""What `gpt build-shards` prints: shards, a part of them, an estimate, an overlap; as lines or as
one JSON object.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.config import resolved_toml
from gptcli.cli.console import print_json
from gptcli.numbers import amount, duration
from gptcli.settings import Resolved

if TYPE_CHECKING:
    from gptcli.corpus.build import JobSlice
    from gptcli.corpus.chunks import Tally
    from gptcli.corpus.overlap import OverlapReport
    from gptcli.corpus.report import BuildEstimate
    from gptcli.shards.manifest import Manifest


def print_part(job: JobSlice, tally: Tally, missing: list[int], *, as_json: bool) -> None:
    """What became of one part's documents, and which parts are not done."""
    if as_json:
        facts = {"part": job.number, "of": job.count, "missing": missing}
        print_json(
            "build-shards",
            {**facts, "documents_in": tally.read, "dropped": dict(sorted(tally.dropped.items()))},
        )
        return
    print(
        f"part {job.number} of {job.count}: {_plural(tally.read, 'document')} read, {sum(tally.dropped.values()):,} dropped"
    )
    print(
        f"{_plural(len(missing), 'part')} to go"
        if missing
        else "all parts are done: --resume instead of --part makes the shards"
    )


def print_overlap(report: OverlapReport, *, as_json: bool) -> None:
    """How much of each test set stands in the training text."""
    if as_json:
        tests = [{**asdict(test), "share": test.share} for test in report.tests]
        print_json(
            "build-shards",
            {
                "overlap": tests,
                "train_grams": report.train_grams,
                "false_positives": report.false_positives,
            },
        )
        return
    width = max(len(test.file) for test in report.tests)
    for test in report.tests:
        print(f"{test.file:<{width}}  {test.share:7.2%} of {test.grams:,} 8-grams")
    print(
        f"against {report.train_grams:,} 8-grams of training text; at most {report.false_positives:.0e} are found by mistake"
    )


def print_report(path: Path, manifest: Manifest, *, as_json: bool) -> None:
    from gptcli.shards.manifest import SPLITS

    splits = {
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
    for split, numbers in splits.items():
        parts = [
            _plural(numbers["tokens"], "token"),
            _plural(numbers["documents"], "document"),
            _plural(numbers["shards"], "shard"),
        ]
        print(f"{split + ':':<7}{', '.join(parts)}")
    if len(manifest.sources) > 1:
        shares = manifest.shares()
        for source in manifest.sources:
            rows = f"{source.documents_kept:,} of {source.documents_in:,} documents kept"
            print(
                f"{source.name}: {rows}, {shares.get(source.name, 0):.1%} of the mixture, {source.epochs:.3g} epochs{_printed(source.name)}"
            )
    print(f"{path} describes them, report.md beside it shows them")


def _printed(source: str) -> str:
    """The epochs that Table 2.2 prints for a source of this name."""
    from gptcli.papers.mixture import GPT3_MIXTURE

    return f" (GPT-3: {GPT3_MIXTURE[source].epochs:g})" if source in GPT3_MIXTURE else ""


def print_estimate(resolved: Resolved, estimate: BuildEstimate, *, as_json: bool) -> None:
    if as_json:
        print_json(
            "build-shards",
            {"dry_run": True, "config": resolved.values, "estimate": asdict(estimate)},
        )
        return
    print(resolved_toml(resolved))
    unknown = "not known before the inputs are read"
    rows = {
        "inputs": _plural(estimate.input_files, "file")
        + ("" if estimate.input_bytes is None else f", {_bytes(estimate.input_bytes)}"),
        "text": unknown
        if estimate.bytes_per_token is None
        else f"{estimate.bytes_per_token:.2f} bytes a token, in a sample",
        "tokens": unknown
        if estimate.tokens is None
        else f"about {amount(estimate.tokens)}, in about {_plural(estimate.shards or 0, 'shard')}",
        "disk": unknown
        if estimate.disk_bytes is None
        else f"about {_bytes(estimate.disk_bytes)}, twice that while it runs",
        "memory": unknown
        if estimate.memory_bytes is None
        else f"about {_bytes(estimate.memory_bytes)} of tokens in all workers at once",
        "time": unknown
        if estimate.seconds is None
        else f"about {duration(estimate.seconds)} to tokenise",
    }
    for name, text in rows.items():
        print(f"{name:<8}{text}")


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def _bytes(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
