"""`report.md`: what a build made, for a person."""

from __future__ import annotations

from pathlib import Path

from gptcli.corpus.chunks import Tally
from gptcli.files import atomic_write
from gptcli.papers.mixture import GPT3_MIXTURE
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import SPLITS, Manifest, Source
from gptcli.tokenizer.tokenizer import Tokenizer

LISTED = 10  # inputs and shards named one by one
SAMPLES = {"train": 3, "val": 2}  # documents shown
SAMPLE_TOKENS = 64
SAMPLE_WIDTH = 100  # characters of a document that was dropped


def write_report(
    folder: Path,
    manifest: Manifest,
    inputs: dict[str, list[str]],
    tallies: list[Tally],
    tokenizer: Tokenizer,
) -> None:
    """Write `report.md` about the shards in `folder`; it depends on them, on the inputs' names and
    on samples of what was dropped.
    """
    lines = ["# Shards", "", "## What went in"]
    for source, tally in zip(manifest.sources, tallies, strict=True):
        lines += _funnel(source, inputs[source.name], tally, alone=len(tallies) == 1)
    lines += _mixture(manifest) if len(tallies) > 1 else []
    with atomic_write(folder / "report.md", "w") as file:
        file.write(
            "\n".join([*lines, *_shards(manifest), *_samples(folder, manifest, tokenizer), ""])
        )


def _funnel(source: Source, inputs: list[str], tally: Tally, *, alone: bool) -> list[str]:
    lines = [] if alone else ["", f"### {source.name}"]
    lines += ["", f"{len(inputs):,} input{'s' * (len(inputs) != 1)}:", ""]
    lines += [f"- `{name}`" for name in inputs[:LISTED]]
    lines += [f"- and {len(inputs) - LISTED:,} more"] * (len(inputs) > LISTED)
    lines += ["", "| documents | |", "|---|---:|", f"| read | {source.documents_in:,} |"]
    lines += [f"| dropped: {reason} | {count:,} |" for reason, count in source.dropped.items()]
    lines += [f"| kept | {source.documents_kept:,} |", ""]
    if source.cut:
        lines += [
            f"{source.cut:,} of those kept lost text to decontamination; {source.pieces:,} more documents came of cutting.",
            "",
        ]
    if source.documents_kept:
        lines += [
            f"{source.text_bytes:,} bytes of text became {source.tokens:,} tokens, the end-of-text before each document among them: "
            f"{source.text_bytes / source.tokens:.2f} bytes a token, {source.tokens / source.documents_kept:,.1f} tokens a document."
        ]
    for reason, samples in sorted(tally.samples.items()):
        lines += ["", f"Dropped as {reason}:", ""]
        lines += [
            f"    {where}: {' '.join(text.split())[:SAMPLE_WIDTH]}" for where, text in samples
        ]
    return lines


def _mixture(manifest: Manifest) -> list[str]:
    """Weights and epochs, beside Table 2.2's where a source has its name."""
    lines = [
        "",
        "## The mixture",
        "",
        "| source | training tokens | share | epochs | GPT-3's epochs |",
        "|---|---:|---:|---:|---:|",
    ]
    shares = manifest.shares()
    for source in manifest.sources:
        paper = f"{GPT3_MIXTURE[source.name].epochs:g}" if source.name in GPT3_MIXTURE else "-"
        share = f"{shares.get(source.name, 0):.1%} | {source.epochs:.3g}"
        lines.append(
            f"| {source.name} | {manifest.tokens('train', source.name):,} | {share} | {paper} |"
        )
    return lines


def _shards(manifest: Manifest) -> list[str]:
    lines = [
        "",
        "## What came out",
        "",
        "| split | shards | documents | tokens |",
        "|---|---:|---:|---:|",
    ]
    for split in SPLITS:
        shards = manifest.of(split)
        lines.append(
            f"| {split} | {len(shards):,} | {sum(shard.documents for shard in shards):,} | {manifest.tokens(split):,} |"
        )
    return [
        *lines,
        "",
        f"Vocabulary {manifest.vocab_size:,}, end-of-text {manifest.eot_id}, tokenizer `{manifest.tokenizer_sha256[:16]}`.",
        f"Seed {manifest.seed}.",
        f"Split: {manifest.split_rule}; val_fraction is {manifest.val_fraction:g}.",
    ]


def _samples(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    """How the first documents of each split begin, indented so that nothing in them is markup."""
    lines = []
    for split, count in SAMPLES.items():
        for shard in manifest.of(split)[:1]:
            tokens, start = open_shard(folder / shard.file), 0
            for number, length in enumerate(
                document_lengths(folder / shard.file)[:count].tolist(), 1
            ):
                text = tokenizer.decode(
                    tokens[start + 1 : start + min(length, SAMPLE_TOKENS)].tolist()
                )
                start += length
                lines += [
                    "",
                    f"## {split}, document {number}",
                    "",
                    *(f"    {line}" for line in text.splitlines()),
                ]
    return lines
