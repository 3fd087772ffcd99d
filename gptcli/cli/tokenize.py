"""`gpt tokenize`: train a tokenizer, and convert text to token ids and back."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptcli.cli import options
from gptcli.cli.command import Command, Group, own_output, releasing
from gptcli.cli.console import ConsoleEvents, print_file, print_json
from gptcli.cli.options import INPUT, OUTPUT, quantity, shared, value
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import atomic_write
from gptcli.numbers import counted
from gptcli.shards.token_ids import decoded_pieces, spelled, write_token_file

if TYPE_CHECKING:
    from gptcli.corpus.documents import Document
    from gptcli.corpus.formats import DocumentKind
    from gptcli.corpus.formats.recognize import FormatName
    from gptcli.events import Events
    from gptcli.shards.token_ids import Encoded
    from gptcli.tokenizer.encoders import EncoderName
    from gptcli.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 1 << 12  # encoded at once
SAMPLE_CHARACTERS = 1 << 17  # of the training text, to measure bytes per token
KINDS = ("gpt2", "gpt1")
# text between documents, and at the end
SEPARATORS = {"file": ("", ""), "line": ("\n", "\n"), "paragraph": ("\n\n", "\n")}

HELP = """Train a BPE tokenizer; convert text to token ids and back.

Examples:

    gpt tokenize train corpus/ --vocab-size 4096 -o tokenizer.json

    echo "Hello world" | gpt tokenize encode --tokenizer tokenizer.json
"""
TEXT_INPUT = (
    "Text files (.txt, .jsonl, .json, .csv, ...; .gz, .zst), folders, globs, or - for stdin."
)
TokenizerOption = Annotated[str, shared("tokenizer", INPUT)]
DocumentsOption = Annotated[str, shared("documents", INPUT)]
FieldOption = Annotated[str, shared("field", INPUT)]
FormatOption = Annotated[str, shared("input_format", INPUT)]
EotOption = Annotated[bool, shared("eot_in_text", INPUT, False)]
ForceOption = Annotated[bool, options.force("Replace the output file.")]


def register(app: typer.Typer) -> None:
    """Add the command with its subcommands to the command line."""
    tokenize = typer.Typer(cls=Group, help=HELP, no_args_is_help=True)
    for command in (train, encode, decode):
        tokenize.command(cls=Command)(releasing(command))
    app.add_typer(tokenize, name="tokenize")


def train(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help=TEXT_INPUT)],
    documents: DocumentsOption = "file",
    field: FieldOption = "text",
    input_format: FormatOption = "auto",
    eot_in_text: EotOption = False,
    kind: Annotated[
        str,
        value(
            "Kind of tokenizer: gpt2 (byte-level, lossless) or gpt1 (lower-case words, lossy).",
            *("KIND", OUTPUT),
        ),
    ] = "gpt2",
    vocab_size: Annotated[
        int | None,
        quantity(
            "vocab_size",
            "Vocabulary size, including the 256 bytes (gpt1: the characters) and the special "
            "tokens.",
            *(OUTPUT, "50257; gpt1: 40478"),
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        value(
            "Regular expression that splits text into words; merges stay within a word.",
            *("REGEX", OUTPUT, "GPT-2's"),
        ),
    ] = None,
    special_token: Annotated[
        list[str] | None,
        value(
            "Special token in addition to <|endoftext|>; only a prompt that spells it is encoded "
            "to it, never other text; repeat the option for several.",
            *("TOKEN", OUTPUT, False),
        ),
    ] = None,
    output: Annotated[
        str, options.out("File to write the tokenizer to; - is stdout.")
    ] = "tokenizer.json",
    force: ForceOption = False,
    json: Annotated[bool, shared("json", OUTPUT)] = False,
) -> None:
    """Train a byte-level BPE tokenizer like GPT-2's, or a BPE of words like GPT-1's.

    Examples:

        gpt tokenize train corpus/ --vocab-size 4096 -o tokenizer.json

        zcat crawl.gz | gpt tokenize train - --vocab-size 32k

        gpt tokenize train corpus/ --special-token "<|user|>" --special-token "<|bot|>"
    """
    from gptcli.tokenizer.gpt1 import VOCAB_SIZE, train_gpt1_tokenizer
    from gptcli.tokenizer.tokenizer import PATTERN
    from gptcli.tokenizer.training import train_tokenizer

    if kind not in KINDS:
        raise UsageError(
            f"unknown kind of tokenizer {kind!r}", where="--kind", hint=nearest(kind, KINDS)
        )
    if kind == "gpt1" and (pattern or special_token):
        raise UsageError("--pattern and --special-token belong to the kind gpt2", where="--kind")
    if output == "-" and json:
        raise UsageError(
            "--json and -o - would both write to stdout", hint="write the tokenizer to a file"
        )
    if output != "-":
        own_output(Path(output), force=force)
    events = ConsoleEvents()
    sample: list[str] = []
    reading = {"field": field, "input_format": input_format, "eot_in_text": eot_in_text}
    texts = _sampled(_documents(inputs, documents, events, **reading), sample)
    if kind == "gpt1":
        tokenizer: Tokenizer = train_gpt1_tokenizer(texts, vocab_size or VOCAB_SIZE, events=events)
    else:
        tokenizer = train_tokenizer(
            texts,
            vocab_size or 50257,
            pattern=pattern or PATTERN,
            special=special_token or (),
            events=events,
        )
    if output == "-":
        print_file(tokenizer.to_json())
    else:
        tokenizer.save(Path(output))
    sample_bytes = sum(len(text.encode()) for text in sample)
    bytes_per_token = sample_bytes / sum(map(len, tokenizer.encode_batch(sample)))
    events.info(
        f"{tokenizer.vocab_size:,} entries, {counted(tokenizer.merges, 'merge')}, "
        f"{bytes_per_token:.2f} bytes per token -> {output}"
    )
    if json:
        report = {
            "output": output,
            "vocab_size": tokenizer.vocab_size,
            "merges": tokenizer.merges,
            "sha256": tokenizer.sha256,
            "bytes_per_token": bytes_per_token,
            "sample_bytes": sample_bytes,
        }
        print_json("tokenize.train", report)


def encode(
    tokenizer: TokenizerOption,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", show_default="-", help=TEXT_INPUT),
    ] = None,
    output: Annotated[
        str,
        options.out(
            "Token file to write, in the format of shards; - prints token ids on stdout.",
            "FILE.bin",
        ),
    ] = "-",
    documents: DocumentsOption = "file",
    field: FieldOption = "text",
    input_format: FormatOption = "auto",
    eot_in_text: EotOption = False,
    encoder: Annotated[
        str,
        value(
            "Library that encodes text: auto, tokenizers, tiktoken or gigatoken; all give the "
            "same ids.",
            *("E", OUTPUT, "auto"),
        ),
    ] = "auto",
    force: ForceOption = False,
) -> None:
    """Convert text to token ids: one document per line on stdout, or a token file.

    Examples:

        echo "Hello world" | gpt tokenize encode --tokenizer gpt2

        gpt tokenize encode books/ --tokenizer tokenizer.json -o tokens.bin
    """
    from gptcli.tokenizer.encoders import check_encoder
    from gptcli.tokenizer.load import load_tokenizer

    events = ConsoleEvents()
    check_encoder(encoder)
    if output != "-":
        _claim_token_file(Path(output), force=force)
    vocabulary = load_tokenizer(tokenizer)
    vocabulary.check_packages()
    if (text := _text_for_a_file(inputs or [])) is not None:
        raise InputError(
            "no such file or folder",
            where=text,
            hint="a text itself comes from another program: echo TEXT | gpt tokenize encode",
        )
    reading = {"field": field, "input_format": input_format, "eot_in_text": eot_in_text}
    texts = _documents(inputs or ["-"], documents, events, **reading)
    encoded = _encoded(vocabulary, cast("EncoderName", encoder), texts, events)
    if output == "-":
        for lines in spelled(encoded, vocabulary.vocab_size):
            sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
    else:
        number, tokens = write_token_file(Path(output), encoded, vocabulary)
        events.info(f"{counted(number, 'document')}, {counted(tokens, 'token')} -> {output}")


def _text_for_a_file(inputs: list[str]) -> str | None:
    """Return the first input that is text with blanks, or a word without a suffix, and no file,
    pattern or URL.
    """
    return next(
        (
            name
            for name in inputs
            if not re.search(r"[/\\*?~.]" if " " not in name.strip() else r"[/*?]", name)
            and name.strip()
            and name != "-"
            and not Path(name).exists()
            and not Path(" ".join(inputs)).exists()
        ),
        None,
    )


def decode(
    tokenizer: TokenizerOption,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            show_default="-",
            help="Token files (.bin), text files with the ids of one document per line, or -.",
        ),
    ] = None,
    documents: Annotated[
        str,
        shared(
            "documents",
            OUTPUT,
            help="Separator written after each document: nothing (file), a newline (line) or an "
            "empty line (paragraph). Text that encode divided by lines or paragraphs comes back "
            "without empty documents, and with \\n at the end of each.",
        ),
    ] = "file",
    output: Annotated[str, options.out("File to write the text to; - is stdout.")] = "-",
    force: ForceOption = False,
) -> None:
    """Convert token ids back to text, byte for byte.

    Examples:

        echo "15496 995" | gpt tokenize decode --tokenizer gpt2

        gpt tokenize decode tokens.bin --tokenizer tokenizer.json > books.txt
    """
    from gptcli.tokenizer.load import load_tokenizer

    if documents not in SEPARATORS:
        raise UsageError(
            f"unknown kind of document {documents!r}",
            where="--documents",
            hint=nearest(documents, SEPARATORS),
        )
    separator, end = (text.encode() for text in SEPARATORS[documents])
    if output != "-":
        own_output(Path(output), force=force)
    vocabulary = load_tokenizer(tokenizer)
    events = ConsoleEvents()
    started = False
    with (
        contextlib.nullcontext(sys.stdout.buffer)
        if output == "-"
        else atomic_write(Path(output)) as out
    ):
        for path in inputs or ["-"]:
            for begins_document, data in decoded_pieces(path, vocabulary, events):
                out.write(separator + data if begins_document and started else data)
                started = True
        if started:
            out.write(end)
        else:
            events.warn("there are no token ids in the inputs, so there is no text")
        out.flush()


def _documents(
    inputs: list[str], documents: str, events: Events, **reading: Any
) -> Iterator[Document]:
    """Yield the documents of the inputs; say what was left out of folders, and how much is read."""
    from gptcli.corpus.formats import find_format, named_as_text, read_documents, undivided
    from gptcli.corpus.formats.recognize import DISGUISES
    from gptcli.corpus.input_search import find_inputs, left_out_line
    from gptcli.corpus.inputs import STDIN, fingerprint, watch_reads
    from gptcli.encodings import no_text
    from gptcli.tokenizer.tokenizer import END_OF_TEXT

    paths = find_inputs(inputs, every_suffix=reading["input_format"] != "auto")
    for line in (left_out_line(paths.left_out), named_as_text(paths, reading["input_format"])):
        if line:
            events.warn(line)
    formats = {find_format(path, reading["input_format"]) for path in paths}
    if line := undivided(documents, formats):
        events.warn(line)
    total = None if STDIN in paths else sum(fingerprint(path)[0] for path in paths) / 1e6
    spelled, done, has_text, no_documents = 0, 0.0, False, Counter[str]()

    def recognized(kind: FormatName) -> None:
        if kind != "text":
            events.info(
                f"{'stdin' if path == STDIN else path} is read as {DISGUISES[kind]}: {{option:input_format}} text reads it as it stands"
            )
            if line := undivided(documents, {kind}):
                events.warn(line)

    def read(count: int) -> None:
        nonlocal done
        done += count / 1e6
        events.progress("read", done if total is None else min(done, total), total, "MB")

    with watch_reads(read):
        for path in paths:
            kind = cast("DocumentKind", documents)
            found = read_documents(
                path, documents=kind, left_out=no_documents, recognized=recognized, **reading
            )
            for document in found:
                has_text = True
                spelled += END_OF_TEXT in document.text
                yield document
    events.finish("read")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(no_documents.items()))
    if not has_text:
        raise no_text(paths, reasons)
    if reasons:
        events.warn(f"not counted as documents: {reasons}")
    if spelled:
        events.warn(
            f"{counted(spelled, 'document')} spell{'s' * (spelled == 1)} {END_OF_TEXT}, which is "
            "ordinary text: --eot-in-text divides documents there"
        )


def _sampled(documents: Iterable[Document], sample: list[str]) -> Iterator[str]:
    """Yield the texts, and copy their first SAMPLE_CHARACTERS characters to `sample`."""
    left = SAMPLE_CHARACTERS
    for document in documents:
        if left > 0:
            sample.append(document.text[:left])
            left -= len(document.text)
        yield document.text


def _encoded(
    tokenizer: Tokenizer, encoder: EncoderName, documents: Iterable[Document], events: Events
) -> Iterator[Encoded]:
    """Yield documents encoded in batches.

    A thread encodes a batch while the next is read and the last is written: the encoders leave
    Python to other threads meanwhile.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    from gptcli.tokenizer.encoders import open_encoder

    batches = _batches(documents)
    first = list(islice(batches, 2))
    if encoder == "auto" and len(first) < 2:
        encoder = "tokenizers"  # importing a faster one takes longer than encoding a small text
    backend = open_encoder(tokenizer, encoder)
    done = 0
    last: Future[Encoded] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in chain(first, batches):
            encoding = thread.submit(backend.encode, batch)
            if last is not None:
                yield last.result()
            last = encoding
            done += sum(map(len, batch))
            events.progress("encoding", done, unit="characters")
        if last is not None:
            yield last.result()
    events.finish("encoding")


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Yield the texts in batches of about BATCH_CHARACTERS."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document.text)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _claim_token_file(path: Path, *, force: bool) -> None:
    if path.suffix != ".bin":
        raise UsageError(
            "the name of a token file must end in .bin",
            where=path,
            hint=f"-o {path.with_suffix('.bin')}",
        )
    own_output(path, force=force)
