"""Token ids as lines of decimal numbers and as token files: written, and read back as text."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.encodings import BOM
from gptcli.errors import InputError
from gptcli.files import naming, scratch_folder, temporary_room
from gptcli.numbers import counted
from gptcli.optional_kernels import spell_ids

if TYPE_CHECKING:
    import numpy as np

    from gptcli.events import Events
    from gptcli.kernels.spell_kernel import Speller
    from gptcli.tokenizer.tokenizer import Tokenizer

    Encoded = tuple[np.ndarray, np.ndarray]  # ids of some documents, and the number of each

MAGIC_BYTES = tuple(magic.to_bytes(4, "little") for magic in (20240520, 20240801))
"""First bytes of a token file (`gptcli.shards.format`), which no text of ids begins with."""
DECODE_TOKENS = 1 << 20  # decoded at once
SPELLED_TOKENS = 1 << 16  # in decimal at once, so that they stay in a processor's cache
KERNEL_TOKENS = 1 << 21  # spelled before the kernel is started: about as long as that takes
LONG_DOCUMENT = 256  # tokens, on average
MAX_ID_DIGITS = 20


def spelled(batches: Iterable[Encoded], vocab_size: int) -> Iterator[bytes | memoryview]:
    """Yield the ids of documents in decimal, separated by blanks, a document a line.

    What is yielded is valid until the next is asked for. A few ids are not worth the start of the
    kernel.
    """
    table = None
    spell: Speller | None = None
    left = KERNEL_TOKENS if vocab_size <= 10**7 else None  # until the kernel
    for ids, counts in batches:
        if left is not None and left <= 0:
            spell, left = spell_ids(vocab_size), None
        if left is not None:
            left -= len(ids)
        if spell is not None:
            yield from _spelled_by_kernel(ids, counts, spell)
            continue
        if table is None:
            table = _rows(vocab_size)
        yield from _spelled_by_rows(ids, counts, table)


def _spelled_by_kernel(ids: np.ndarray, counts: np.ndarray, spell: Speller) -> Iterator[memoryview]:
    """Yield a batch in decimal, some ids at a time."""
    stops = counts.cumsum()
    first = before = 0
    for start in range(0, max(len(ids), 1), SPELLED_TOKENS):
        part = ids[start : start + SPELLED_TOKENS]
        last = int(stops.searchsorted(start + len(part), "right"))
        yield spell(part, stops[first:last], start, before)
        if last > first:
            first, before = last, int(stops[last - 1])


def _rows(vocab_size: int) -> np.ndarray:
    """Return a table of equal widths: a blank and the digits of each id, and a blank alone at the
    end, padded by zero bytes.
    """
    import numpy as np

    width = 8 if vocab_size <= 10**7 else 16
    digits = np.arange(vocab_size).astype(f"S{width - 1}")
    table = np.append(np.strings.add(b" ", digits), b" ").astype(f"S{width}")
    return table.view(np.uint64 if width == 8 else f"V{width}")


def _spelled_by_rows(ids: np.ndarray, counts: np.ndarray, table: np.ndarray) -> Iterator[bytes]:
    """Yield a batch in decimal by rows of the table, without their zero bytes: a sixth of the time of
    a string for each id.

    In the row that begins a document the blank becomes a newline, which ends the document before it.
    """
    import numpy as np

    stops = np.cumsum(counts)
    if not counts.all():  # a document without ids is a row without digits
        ids = np.insert(ids.astype(np.intp), stops[counts == 0], len(table) - 1)
        counts = np.maximum(counts, 1)
        stops = np.cumsum(counts)
    begins = np.zeros(len(ids), bool)
    begins[stops - counts] = True
    for start in range(0, len(ids), SPELLED_TOKENS):
        part = slice(start, start + SPELLED_TOKENS)
        rows = table.take(ids[part])
        rows.view(np.uint8).reshape(-1, table.itemsize)[begins[part], 0] = ord("\n")
        yield rows.tobytes().translate(None, b"\0")[not start :]
    if len(counts):
        yield b"\n"


def write_token_file(
    path: Path, batches: Iterable[Encoded], tokenizer: Tokenizer
) -> tuple[int, int]:
    """Write one shard, `path` (.bin) and its .idx, and return its numbers of documents and tokens.

    `<|endoftext|>` precedes each document. Tokens are spooled to an unnamed file first, because
    the header of a shard contains their number.
    """
    import tempfile
    from array import array

    import numpy as np

    from gptcli.shards.format import MAX_TOKENS, token_dtype, write_shard

    if tokenizer.eot_id is None:
        raise InputError(
            "the vocabulary has no <|endoftext|> to separate documents",
            hint="leave out -o to print the token ids on stdout",
        )
    dtype = token_dtype(tokenizer.vocab_size)
    lengths = array("q")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.TemporaryFile(dir=path.parent) as spool:
        for ids, counts in batches:
            spool.write(_with_ends(ids, counts, tokenizer.eot_id, dtype).data)
            lengths.extend((counts + 1).tolist())
        spool.flush()
        tokens = sum(lengths)
        if not tokens:
            raise InputError("the input contains no text")
        if tokens > MAX_TOKENS:
            raise InputError(
                f"{counted(tokens, 'token')} are too many for one token file",
                hint="gpt build-shards divides them into several shards",
            )
        write_shard(path, np.array(lengths), [np.memmap(spool, dtype, "r")], dtype)
    return len(lengths), tokens


def _with_ends(
    ids: np.ndarray, counts: np.ndarray, eot_id: int, dtype: np.dtype[Any]
) -> np.ndarray:
    """Return the ids of documents with the end-of-text token before each, (ids + documents,)."""
    import numpy as np

    stops = np.cumsum(counts)
    if len(ids) < LONG_DOCUMENT * len(counts):
        return np.insert(ids.astype(dtype), stops - counts, eot_id)
    # A copy for each document, several times faster if they are long.
    framed = np.empty(len(ids) + len(counts), dtype)
    start = 0
    for number, stop in enumerate(stops.tolist()):
        framed[start + number] = eot_id
        framed[start + number + 1 : stop + number + 1] = ids[start:stop]
        start = stop
    return framed


def decoded_pieces(path: str, tokenizer: Tokenizer, events: Events) -> Iterator[tuple[bool, bytes]]:
    """Yield the text of a token file or of lines of ids, whichever the file is, or stdin ("-").

    A token file is known by its first bytes, or by a name that ends in .bin.
    """
    if path == "-":
        stdin: Any = sys.stdin.buffer
        if not hasattr(stdin, "peek"):  # python -u
            stdin = io.BufferedReader(stdin)
        if _is_token_file(stdin.peek(len(MAGIC_BYTES[0]))):
            with scratch_folder() as folder:
                copy = folder / "stdin.bin"
                with temporary_room("the token file from stdin"), open(copy, "wb") as file:
                    shutil.copyfileobj(stdin, file)
                yield from from_token_file(str(copy), tokenizer, events, name="stdin")
        else:
            yield from from_lines(path, tokenizer, stdin)
        return
    if Path(path).is_file():
        with open(path, "rb") as file:
            head = file.read(len(MAGIC_BYTES[0]))
        if _is_token_file(head) or path.endswith(".bin"):
            yield from from_token_file(path, tokenizer, events)
            return
    yield from from_lines(path, tokenizer)


def _is_token_file(head: bytes) -> bool:
    return head.startswith(MAGIC_BYTES)


def from_token_file(
    path: str, tokenizer: Tokenizer, events: Events, *, name: str = ""
) -> Iterator[tuple[bool, bytes]]:
    """Yield pieces of text, and whether each begins a document; messages call the file `name`.

    Documents are divided at `<|endoftext|>`, which encoding text never produces.
    """
    import numpy as np

    from gptcli.shards.format import open_shard

    if not Path(path).exists():
        raise InputError("no such file", where=path)
    name = name or path
    try:
        tokens = open_shard(Path(path))
    except InputError as error:
        hint = "encode the text again, or build the shards again"
        raise InputError(error.what, where=name, hint=hint) from None
    if len(tokens) and tokens[0] != tokenizer.eot_id:
        events.warn(
            f"{name} does not begin with <|endoftext|> of this vocabulary: "
            "it may have been encoded with another tokenizer"
        )
    begins_document = True
    for start in range(0, len(tokens), DECODE_TOKENS):
        block = np.asarray(tokens[start : start + DECODE_TOKENS])
        head, *documents = np.split(block, np.flatnonzero(block == tokenizer.eot_id))
        if len(head):
            where = f"{name}: from token {start}"
            yield begins_document, _decoded(head.tolist(), tokenizer, where)
        for document in documents:
            yield True, _decoded(document[1:].tolist(), tokenizer, name)
        begins_document = False


def from_lines(path: str, tokenizer: Tokenizer, stdin: Any = None) -> Iterator[tuple[bool, bytes]]:
    """Yield the text of each line of token ids, from `stdin` if the path is "-"; every line is a
    document.
    """
    name = "stdin" if path == "-" else path
    if path != "-" and not Path(path).is_file():
        raise InputError(
            "is a folder, not a file of token ids" if Path(path).is_dir() else "no such file",
            where=path,
            hint="ids themselves come from another program: echo 15496 995 | gpt tokenize decode"
            if re.fullmatch(r"[\d\s,\[\]]+", path)
            else f"name the files in it: {path.rstrip('/')}/*.bin"
            if Path(path).is_dir()
            else None,
        )
    with contextlib.nullcontext(stdin) if path == "-" else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{name}:{number}"
            words = line.removeprefix(BOM).split() if number == 1 else line.split()
            for word in words:
                if not word.isdigit() or len(word) > MAX_ID_DIGITS:
                    raise _not_an_id(word, where)
            ids = [int(word) for word in words]
            yield True, _decoded(ids, tokenizer, where)


def _not_an_id(word: bytes, where: str) -> InputError:
    text = word[:40].decode(errors="backslashreplace") + ("..." if len(word) > 40 else "")
    return InputError(
        f"{text!r} is not a token id",
        where=where,
        hint="write one document per line, ids separated by spaces: 15496 995",
    )


def _decoded(ids: list[int], tokenizer: Tokenizer, where: str) -> bytes:
    try:
        return tokenizer.decode_bytes(ids)
    except InputError as error:
        raise InputError(
            error.what, where=where, hint="the ids may come from another tokenizer"
        ) from None
