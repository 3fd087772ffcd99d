"""GPT-2's byte-level BPE (Radford et al. 2019, section 2.2): text to ids and back, exactly.

Differences from plain use of the `tokenizers` library:

- `<|endoftext|>` and other special tokens are never recognised in text: a document that contains
  them gets ordinary ids. A prompt that spells them gets them (`encode_prompt`). Words that were
  added to a vocabulary and are not special are recognised everywhere.
- A vocabulary may have a pattern of its own, with which text is split into words before the merges.
- A long text is encoded in pieces, cut where GPT-2's pattern always cuts. The ids are the same, but
  the library needs some 160 bytes of memory for each byte of text that it is given at once.
- Decoding is a table of bytes, so it is exact for any ids, even if they end within a character.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, UsageError
from gptcli.files import atomic_write, write_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
# what ByteLevel splits by
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PIECE = 1 << 14  # characters of a long text encoded at once
# characters and pieces handed to the library's threads at once
GROUP, GROUP_PIECES = 1 << 19, 1 << 12
# always the start of a match of PATTERN, and no match before it looks that far
_BORDER = re.compile(r"(?<=\S)[ \n]")


def byte_alphabet() -> dict[str, int]:
    """Return the character that represents each byte in a vocabulary, in GPT-2's order, which is
    also that of the first 256 ids.

    Printable bytes represent themselves; the others, white space among them, are shifted to U+0100
    and above.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut `text` into pieces of about `size` characters that encode to the same ids as the whole."""
    start = 0
    while len(text) - start > size:
        border = _BORDER.search(text, start + size)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


class Tokenizer:
    """A vocabulary and its merges.

    `tokens` spells each id in the alphabet of `byte_alphabet`. `merges` are pairs of spellings,
    first learned first. `added` are those of `tokens` that no merge makes, spelt as plain text,
    which other programs treat as special, except those of `words`, which are recognised in text as
    `tokenizers` does: the settings of each in a tokenizer.json. `pattern` is the regular expression
    of a word. Raises InputError if these do not make a byte-level BPE. Picklable, so that worker
    processes can receive one.
    """

    vocab_size: int
    eot_id: int | None
    """Id of `<|endoftext|>`, or None if the vocabulary lacks it."""
    unknown: str | None = None
    """Token for text that no other token spells, or None if there is no such text."""
    merges: int
    """Number of merges."""
    has_words: bool = False
    """True if words of the vocabulary are recognised in text before it is split."""
    divides: bool = True
    """True if the `pieces` of a long text encode to the same ids as the whole."""
    _cuts: bool = True
    sha256: str
    """Fingerprint of ids, merges and pattern: the same for every file they are loaded from."""

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]],
        added: Sequence[str] = (END_OF_TEXT,),
        words: Sequence[Mapping[str, Any]] = (),
        pattern: str = PATTERN,
    ) -> None:
        ids = {token: number for number, token in enumerate(tokens)}
        alphabet = byte_alphabet()
        plain = {word["content"] for word in words}
        special = {token for token in added if token in ids}
        refuse_surrogates("".join(special))
        if len(ids) != len(tokens):
            raise InputError("two ids of the vocabulary have the same spelling")
        if missing := len(alphabet.keys() - ids.keys()):
            raise InputError(
                f"the vocabulary lacks {missing} of the 256 bytes: it is not a byte-level BPE"
            )
        if foreign := set("".join(ids.keys() - special)) - alphabet.keys():
            raise InputError(
                f"the vocabulary spells tokens with {min(foreign)!r}: it is not a byte-level BPE"
            )
        self._pairs = ids_of_merges(merges, ids)
        self.vocab_size = len(tokens)
        self.eot_id = ids.get(END_OF_TEXT)
        self.merges = len(merges)
        self._tokens = list(tokens)
        facts: list[Any] = [pattern, self._tokens, [" ".join(pair) for pair in merges]]
        if words:
            facts.append([repr(_added_token(word)) for word in words])
        fingerprint = json.dumps(facts)
        self.sha256 = hashlib.sha256(fingerprint.encode()).hexdigest()
        self._special = sorted(special - plain, key=ids.__getitem__)
        self.has_words = bool(words)
        self._words, self._splitter = list(words), word_splitter(pattern)
        # A piece must not end inside a word, nor inside the white space that it takes along; where
        # another pattern always cuts is not known.
        self._cuts = pattern == PATTERN and not any(
            word.get("lstrip") or word.get("rstrip") or re.search(r"\s", word["content"])
            for word in words
        )
        self._added = special
        self.divides = self._cuts

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process receives: not what is made when it is first needed."""
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }

    @cached_property
    def _bytes(self) -> list[bytes]:
        """Return the bytes of each id, (vocab_size,)."""
        alphabet = byte_alphabet()
        to_byte = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
        return [
            token.encode() if token in self._added else token.translate(to_byte).encode("latin-1")
            for token in self._tokens
        ]

    def _merged(self) -> Iterator[tuple[str, str]]:
        """Yield the merges, as pairs of spellings."""
        spelling = self._tokens.__getitem__
        return zip(map(spelling, self._pairs[::2]), map(spelling, self._pairs[1::2]), strict=True)

    def _ids(self) -> dict[str, int]:
        """Return the id of each spelling."""
        return {token: number for number, token in enumerate(self._tokens)}

    @cached_property
    def _backend(self) -> Backend:
        """Return the library's tokenizer. Much is done without: it takes long to make."""
        return self._backend_of(self._ids(), list(self._merged()))

    def _backend_of(self, ids: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
        """Return a backend of some of the tokens, with their ids, and of the merges."""
        backend = Backend(models.BPE(vocab=ids, merges=merges))
        backend.pre_tokenizer = self._splitter
        backend.add_tokens([_added_token(word) for word in self._words])
        return backend

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text; `<|endoftext|>` in it is ordinary text.

        Raises InputError on a lone surrogate.
        """
        return self.encode_batch([text])[0]

    def check_packages(self) -> None:
        """Raise UsageError if a package that encoding needs is missing."""

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt, in which special tokens are recognised as `tokenizers` does."""
        if not (special := getattr(self, "_special", None)):
            return self.encode(text)
        longest_first = sorted(special, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self._backend.token_to_id(part) or 0)  # there is always one
            elif part:
                ids += self.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, on the library's threads (`TOKENIZERS_PARALLELISM=false`
        uses one).
        """
        ids: list[list[int]] = [[] for _ in texts]
        for group in _groups(texts, PIECE if self._cuts else sys.maxsize):
            encodings = self._backend.encode_batch_fast(
                [piece for _, piece in group], add_special_tokens=False
            )
            for (index, _), encoding in zip(group, encodings, strict=True):
                ids[index].extend(encoding.ids)
        return ids

    def encode_few(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of a few short texts, in a fraction of the time that a backend of all merges
        takes to make: a merge that makes no part of their words changes nothing.
        """
        if self.has_words or type(self) is not Tokenizer:
            return self.encode_batch(texts)
        words = {word for text in texts for word, _ in self._splitter.pre_tokenize_str(text)}
        spelled = " ".join(words)  # a blank is not in the alphabet
        parts, before, merges = {*spelled} - {" "}, 0, list[tuple[str, str]]()
        # more than once, because a later merge may make what an earlier one joins
        while len(parts) > before:
            before, merges = len(parts), []
            for left, right in self._merged():
                if left in parts and right in parts and (joined := left + right) in spelled:
                    parts.add(joined)
                    merges.append((left, right))
        ids = {token: number for number, token in enumerate(self._tokens) if token in parts}
        backend = self._backend_of(ids, merges)
        return [backend.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8, such as half a character, become
        U+FFFD.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return exactly the bytes of `ids`. Raises InputError on an id outside the vocabulary."""
        for number in ids:
            if not 0 <= number < self.vocab_size:
                raise InputError(
                    f"the id {number} is outside the vocabulary (0 to {self.vocab_size - 1})"
                )
        return b"".join([self._bytes[number] for number in ids])

    def save(self, path: Path) -> None:
        """Write a tokenizer.json that `tokenizers` and transformers load."""
        with atomic_write(path, "w") as file:
            file.write(self.to_json())

    def save_for_model(self, folder: Path, n_ctx: int) -> None:
        """Write tokenizer.json and tokenizer_config.json next to a model of context length `n_ctx`.

        The second makes transformers load the first as it is; otherwise the model family decides,
        and GPT-1's requires `<unk>`.
        """
        self.save(folder / TOKENIZER)
        end = None if self.eot_id is None else self._backend.id_to_token(self.eot_id)
        special = {"bos_token": end, "eos_token": end, "unk_token": self.unknown}
        table: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: token for name, token in special.items() if token is not None},
            "model_max_length": n_ctx,
            # GPT-2 would add token types to its embeddings
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / TOKENIZER_CONFIG, table)

    def to_json(self) -> str:
        """Return a tokenizer.json in which `<|endoftext|>` is declared special."""
        return self._json

    def merges_json(self) -> str:
        """Return a tokenizer.json of the vocabulary and its merges, with no special token."""
        return json.dumps(self._facts(), ensure_ascii=False, separators=(",", ":"))

    def _facts(self) -> Any:
        """Return the contents of the tokenizer.json that a backend of all merges writes."""
        if self.has_words:
            return json.loads(self._backend.to_str())
        value = json.loads(self._backend_of({}, []).to_str())
        value["model"]["vocab"] = self._ids()
        # the library counts a merge that is named twice where it is named last
        last = dict.fromkeys(reversed(list(self._merged())))
        value["model"]["merges"] = list(reversed(last))
        return value

    @cached_property
    def _json(self) -> str:
        """Return the tokenizer.json of the backend, completed."""
        value = self._facts()
        if any(" " in token for token in self._added):
            return readable_text(self._completed(Backend.from_str(self.merges_json())))
        # A backend of the special tokens alone spells them; one of all merges takes long to make.
        special = {token: value["model"]["vocab"][token] for token in self._special}
        small = self._completed(Backend(models.BPE(vocab=special, merges=[])))
        facts = json.loads(small.to_str())
        value |= {name: facts[name] for name in ("post_processor", "decoder")}
        entries = [*value["added_tokens"], *facts["added_tokens"]]
        value["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
        return _with_joined_merges(value)

    def _completed(self, backend: Backend) -> Backend:
        """Return a backend with decoder, post-processor and special tokens."""
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self._special]
        )
        return backend


def word_splitter(pattern: str = PATTERN) -> Any:
    """Return the part of `tokenizers` that splits text into words, spelt in the byte alphabet.

    Raises UsageError if `pattern` is not a regular expression.
    """
    if pattern == PATTERN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises no other
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}",
            field="pattern",
            code="not_a_pattern",
            hint=f"GPT-2's is {PATTERN}",
        ) from None
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def readable_text(backend: Backend) -> str:
    """Return the backend's tokenizer.json with each merge as "a b", which every version of
    `tokenizers` reads; those below 0.20 do not read pairs.
    """
    text: str = backend.to_str()
    value = json.loads(text)
    pairs = value["model"]["merges"]
    if any(" " in token for pair in pairs for token in pair):
        return text
    return _with_joined_merges(value)


def _with_joined_merges(value: Any) -> str:
    """Return a tokenizer.json with each merge as "a b"."""
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def ids_of_merges(merges: Sequence[tuple[str, str]], ids: dict[str, int]) -> array[int]:
    """Return the ids of the two tokens of each merge, one merge after another.

    Raises InputError if one does not join two tokens into a third.
    """
    found: list[int] = []
    for pair in merges:
        try:
            left, right = pair
            found += ids[left], ids[right]
            ids[left + right]
        except (KeyError, ValueError):
            what = f"the merge {' '.join(pair)!r} does not belong to the vocabulary"
            raise InputError(what) from None
    return array("I", found)


def _added_token(word: Mapping[str, Any]) -> AddedToken:
    """Return a word of a tokenizer.json that is recognised in text."""
    names = ("single_word", "lstrip", "rstrip", "normalized")
    settings = {name: bool(word.get(name, name == "normalized")) for name in names}
    return AddedToken(word["content"], special=False, **settings)


def _groups(texts: list[str], piece_characters: int) -> Iterator[list[tuple[int, str]]]:
    """Yield pieces of the texts, each with the index of its text, in groups of about GROUP
    characters.
    """
    group: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        refuse_surrogates(text)
        for piece in pieces(text, piece_characters):
            group.append((index, piece))
            size += len(piece)
            if size >= GROUP or len(group) >= GROUP_PIECES:
                yield group
                group, size = [], 0
    yield group


def refuse_surrogates(text: str) -> None:
    """Raise InputError if `text` is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            f"the text holds a lone surrogate, {surrogate}, at character {error.start}: it is not valid Unicode"
        ) from None
