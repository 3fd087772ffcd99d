"""`gpt tokenize`: learn a vocabulary, turn text into ids and ids back into text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.command import Command, Group
from gptcli.cli.config import number
from gptcli.cli.console import ConsoleEvents, print_file, print_json
from gptcli.encodings import BOM
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import atomic_write, claim_file

if TYPE_CHECKING:
    from gptcli.corpus.documents import Document
    from gptcli.events import Events
    from gptcli.tokenizer.tokenizer import Tokenizer

BATCH, BATCH_DOCUMENTS = 1 << 20, 1 << 12  # characters and documents encoded at once
ID_DIGITS = 20  # of an id at most
TOKENS = 1 << 20  # tokens decoded at once
KINDS = ("gpt2", "gpt1")
SAMPLE = 1 << 20  # characters of the training text that bytes per token are measured on
# written between documents, and at the end
SEPARATORS = {"file": ("", ""), "line": ("\n", "\n"), "paragraph": ("\n\n", "\n")}

HELP = """Learn a BPE; turn text into ids and back.

Examples:

    gpt tokenize train corpus/ --vocab-size 4096 -o tokenizer.json

    echo "Hello world" | gpt tokenize encode --tokenizer tokenizer.json
"""
INPUT, OUTPUT = "Input", "Output"
TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer", "-t", metavar="T", rich_help_panel=INPUT,
        help="Tokenizer: a tokenizer.json, a folder with one (a run, shards) or with GPT-2's or GPT-1's two files, or gpt2.",
    ),
]  # fmt: skip
DocumentsOption = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        rich_help_panel=INPUT,
        help="Unit of a text file that is one document: file, line or paragraph.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace the output file.")
]


def register(app: typer.Typer) -> None:
    tokenize = typer.Typer(cls=Group, help=HELP, no_args_is_help=True)
    for command in (train, encode, decode):
        tokenize.command(cls=Command)(command)
    app.add_typer(tokenize, name="tokenize")


def train(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Files (.txt, .jsonl, .gz, .zst), folders, globs, or - for stdin."
        ),
    ],
    documents: DocumentsOption = "file",
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            rich_help_panel=OUTPUT,
            help="Kind of tokenizer: gpt2 (byte-level, exact) or gpt1 (lower-cased words, lossy).",
        ),
    ] = "gpt2",
    vocab_size: Annotated[
        int | None,
        typer.Option(
            parser=number("vocab_size"),
            metavar="N",
            show_default="50257; gpt1: 40478",
            rich_help_panel=OUTPUT,
            help="Size of the vocabulary: 256 bytes (gpt1: characters), the merges, and <|endoftext|>.",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="File to write the tokenizer to; - is stdout.",
        ),
    ] = "tokenizer.json",
    force: ForceOption = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print a report as one JSON object on stdout."
        ),
    ] = False,
) -> None:
    """Learn a byte-level BPE with GPT-2's pattern, or GPT-1's kind.

    Examples:

        gpt tokenize train corpus/ --vocab-size 4096 -o tokenizer.json

        zcat crawl.gz | gpt tokenize train - --vocab-size 32k
    """
    from gptcli.corpus.inputs import find_inputs
    from gptcli.tokenizer.gpt1 import VOCAB_SIZE, train_gpt1_tokenizer
    from gptcli.tokenizer.training import train_tokenizer

    if kind not in KINDS:
        raise UsageError(
            f"unknown kind of tokenizer {kind!r}", where="--kind", hint=nearest(kind, KINDS)
        )
    if output == "-" and json:
        raise UsageError("--json and -o - both want stdout", hint="write the tokenizer to a file")
    if output != "-":
        claim_file(Path(output), force=force)
    events = ConsoleEvents()
    sample: list[str] = []
    texts = _sampled(_documents(find_inputs(inputs), documents), sample)
    if kind == "gpt1":
        tokenizer: Tokenizer = train_gpt1_tokenizer(texts, vocab_size or VOCAB_SIZE, events=events)
    else:
        tokenizer = train_tokenizer(texts, vocab_size or 50257, events=events)
    if output == "-":
        print_file(tokenizer.to_json())
    else:
        tokenizer.save(Path(output))
    sample_bytes = sum(len(text.encode()) for text in sample)
    bytes_per_token = sample_bytes / sum(map(len, tokenizer.encode_batch(sample)))
    events.info(
        f"{tokenizer.vocab_size:,} entries, {tokenizer.merges:,} merges, {bytes_per_token:.2f} bytes per token -> {output}"
    )
    if json:
        report = {
            "output": output,
            "vocab_size": tokenizer.vocab_size,
            "merges": tokenizer.merges,
            "sha256": tokenizer.sha256,
        }
        print_json(
            "tokenize.train",
            {**report, "bytes_per_token": bytes_per_token, "sample_bytes": sample_bytes},
        )


def encode(
    tokenizer: TokenizerOption,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            show_default="-",
            help="Files (.txt, .jsonl, .gz, .zst), folders, globs, or - for stdin.",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FILE.bin",
            rich_help_panel=OUTPUT,
            help="Token file to write, in the format of shards; - prints ids on stdout.",
        ),
    ] = "-",
    documents: DocumentsOption = "file",
    force: ForceOption = False,
) -> None:
    """Turn text into ids: a document a line on stdout, or a token file.

    Examples:

        echo "Hello world" | gpt tokenize encode --tokenizer gpt2

        gpt tokenize encode books/ --tokenizer tokenizer.json -o tokens.bin
    """
    from gptcli.corpus.inputs import find_inputs
    from gptcli.tokenizer.tokenizer import load_tokenizer

    events = ConsoleEvents()
    if output != "-":
        _claim_token_file(Path(output), force=force)
    vocabulary = load_tokenizer(tokenizer)
    encoded = _encoded(vocabulary, _documents(find_inputs(inputs or ["-"]), documents), events)
    if output == "-":
        for ids in encoded:
            sys.stdout.write(" ".join(map(str, ids)) + "\n")
        sys.stdout.flush()
    else:
        number, tokens = _write_token_file(Path(output), encoded, vocabulary)
        events.info(f"{number:,} documents, {tokens:,} tokens -> {output}")


def decode(
    tokenizer: TokenizerOption,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            show_default="-",
            help="Token files (.bin), files of ids (a document a line), or - for stdin.",
        ),
    ] = None,
    documents: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            rich_help_panel=OUTPUT,
            help="Unit of a text file that was one document: puts back what separated documents.",
        ),
    ] = "file",
    output: Annotated[
        str,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="File to write the text to; - is stdout.",
        ),
    ] = "-",
    force: ForceOption = False,
) -> None:
    """Turn ids back into text, byte for byte.

    Examples:

        echo "15496 995" | gpt tokenize decode --tokenizer gpt2

        gpt tokenize decode tokens.bin --tokenizer tokenizer.json > books.txt
    """
    from gptcli.tokenizer.tokenizer import load_tokenizer

    if documents not in SEPARATORS:
        raise UsageError(
            f"unknown kind of document {documents!r}",
            where="--documents",
            hint=nearest(documents, SEPARATORS),
        )
    between, end = (text.encode() for text in SEPARATORS[documents])
    if output != "-":
        claim_file(Path(output), force=force)
    vocabulary = load_tokenizer(tokenizer)
    events = ConsoleEvents()
    started = False
    with (
        contextlib.nullcontext(sys.stdout.buffer)
        if output == "-"
        else atomic_write(Path(output)) as out
    ):
        for path in inputs or ["-"]:
            for begins, data in (
                _from_token_file(path, vocabulary, events)
                if path.endswith(".bin")
                else _from_lines(path, vocabulary)
            ):
                out.write(between + data if begins and started else data)
                started = True
        if started:
            out.write(end)
        out.flush()


def _documents(paths: Iterable[str], documents: str) -> Iterator[Document]:
    from gptcli.corpus.formats import read_documents

    for path in paths:
        yield from read_documents(path, documents=documents)


def _sampled(documents: Iterable[Document], sample: list[str]) -> Iterator[str]:
    """The texts; the first SAMPLE characters of them are kept in `sample`."""
    room = SAMPLE
    for document in documents:
        if room > 0:
            sample.append(document.text[:room])
            room -= len(document.text)
        yield document.text


def _encoded(
    tokenizer: Tokenizer, documents: Iterable[Document], events: Events
) -> Iterator[list[int]]:
    """The ids of each document, encoded many at a time."""
    batch: list[str] = []
    waiting = done = 0
    for document in documents:
        batch.append(document.text)
        waiting += len(document.text)
        if waiting >= BATCH or len(batch) >= BATCH_DOCUMENTS:
            yield from tokenizer.encode_batch(batch)
            done += waiting
            batch, waiting = [], 0
            events.progress("encoding", done, unit="characters")
    yield from tokenizer.encode_batch(batch)
    events.finish("encoding")


def _claim_token_file(path: Path, *, force: bool) -> None:
    if path.suffix != ".bin":
        raise UsageError(
            "the name of a token file ends in .bin",
            where=path,
            hint=f"-o {path.with_suffix('.bin')}",
        )
    claim_file(path, force=force)


def _write_token_file(
    path: Path, documents: Iterable[list[int]], tokenizer: Tokenizer
) -> tuple[int, int]:
    """One shard, `path` (.bin), with its .idx: `<|endoftext|>` before each document. Returns how
    many documents and tokens.

    The tokens wait in an unnamed file beside it, because a shard tells its size first.
    """
    import tempfile
    from array import array

    import numpy as np

    from gptcli.shards.format import MAX_TOKENS, token_dtype, write_shard

    if tokenizer.eot_id is None:
        raise InputError(
            "the vocabulary has no <|endoftext|> to put before documents",
            hint="without -o, ids go to stdout",
        )
    dtype = token_dtype(tokenizer.vocab_size)
    lengths = array("q")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        for ids in documents:
            spool.write(np.array([tokenizer.eot_id, *ids], dtype).data)
            lengths.append(len(ids) + 1)
        spool.flush()
        tokens = sum(lengths)
        if not tokens:
            raise InputError("the input holds no text")
        if tokens > MAX_TOKENS:
            raise InputError(
                f"{tokens:,} tokens are too many for one token file",
                hint="gpt build-shards spreads them over several",
            )
        write_shard(path, np.array(lengths), [np.memmap(spool, dtype, "r")], dtype)
    return len(lengths), tokens


def _from_token_file(
    path: str, tokenizer: Tokenizer, events: Events
) -> Iterator[tuple[bool, bytes]]:
    """Stretches of text, and whether each begins a document: at every `<|endoftext|>`, which text
    alone never becomes.
    """
    import numpy as np

    from gptcli.shards.format import open_shard

    tokens = open_shard(Path(path))
    if len(tokens) and tokens[0] != tokenizer.eot_id:
        events.warn(
            f"{path} does not begin with this vocabulary's <|endoftext|>: was it encoded with another one?"
        )
    begins = True
    for start in range(0, len(tokens), TOKENS):
        block = np.asarray(tokens[start : start + TOKENS])
        head, *documents = np.split(block, np.flatnonzero(block == tokenizer.eot_id))
        if len(head):
            yield begins, _decoded(head.tolist(), tokenizer, f"{path}: from token {start}")
        for document in documents:
            yield True, _decoded(document[1:].tolist(), tokenizer, path)
        begins = False


def _from_lines(path: str, tokenizer: Tokenizer) -> Iterator[tuple[bool, bytes]]:
    """The text of each line of ids."""
    name = "stdin" if path == "-" else path
    if path != "-" and not Path(path).is_file():
        raise InputError(
            "is a folder, not a file of ids" if Path(path).is_dir() else "no such file", where=path
        )
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{name}:{number}"
            words = line.removeprefix(BOM).split() if number == 1 else line.split()
            if other := next(
                (word for word in words if not word.isdigit() or len(word) > ID_DIGITS), None
            ):
                spelt = other[:40].decode(errors="backslashreplace") + (
                    "..." if len(other) > 40 else ""
                )
                raise InputError(
                    f"{spelt!r} is not an id",
                    where=where,
                    hint="a line is one document, ids with blanks between: 15496 995",
                )
            ids = [int(word) for word in words]
            yield True, _decoded(ids, tokenizer, where)


def _decoded(ids: list[int], tokenizer: Tokenizer, where: str) -> bytes:
    try:
        return tokenizer.decode_bytes(ids)
    except InputError as error:
        raise InputError(
            error.what, where=where, hint="are these the ids of another vocabulary?"
        ) from None
