"""A vocabulary of single characters, as in nanoGPT's data/shakespeare_char.

nanoGPT keeps it in meta.pkl next to the tokens: a pickle of `stoi` and `itos`, from characters to
ids and back. Pickles can run code; this one is read without any: dictionaries, texts and numbers
need none, and everything else is refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from gptcli.errors import InputError, message_of
from gptcli.numbers import counted
from gptcli.tokenizer.tokenizer import Tokenizer, refuse_surrogates

MAX_META_BYTES = 64 << 20
"""More than all characters of Unicode, twice, need."""


class CharacterTokenizer(Tokenizer):
    """A vocabulary in which each id is one character.

    It has no `<|endoftext|>`, and text with any other character cannot be encoded. Raises
    InputError if a token is not one character.
    """

    divides = True

    def __init__(self, tokens: Sequence[str]) -> None:
        ids = {token: number for number, token in enumerate(tokens)}
        if len(ids) != len(tokens) or any(len(token) != 1 for token in tokens):
            raise InputError("the vocabulary is not one of single characters, each with one id")
        refuse_surrogates("".join(tokens))
        self.vocab_size = len(tokens)
        self.eot_id, self.merges, self._special = None, 0, []
        self.sha256 = hashlib.sha256(json.dumps(["characters", *tokens]).encode()).hexdigest()
        self._tokens, self._numbers = list(tokens), ids

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [token.encode() for token in self._tokens]

    @cached_property
    def _backend(self) -> Backend:
        # without merges a word, here the whole text, stays in characters
        backend = Backend(models.BPE(vocab=self._numbers, merges=[]))
        backend.decoder = decoders.Fuse()
        return backend

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text. Raises InputError for a character without an id."""
        try:
            return [[self._numbers[character] for character in text] for text in texts]
        except KeyError as error:
            character = error.args[0]
            raise InputError(
                f"the vocabulary has {counted(self.vocab_size, 'character')}, and {character!r} "
                "is not "
                "one of them",
                hint=f"it has {self.shown()}",
            ) from None

    def shown(self) -> str:
        """Return the first characters, for a message."""
        tokens = "".join(sorted(self._numbers)).strip()
        return tokens if len(tokens) <= 100 else f"{tokens[:100]} ..."

    def to_json(self) -> str:
        """Return a tokenizer.json, with which `tokenizers` encodes alike."""
        text: str = self._backend.to_str()
        return text


def is_character_json(value: dict[str, Any]) -> bool:
    """Return whether a parsed tokenizer.json is one of a `CharacterTokenizer`."""
    model = value.get("model") or {}
    vocab, parts = model.get("vocab"), ("normalizer", "pre_tokenizer", "added_tokens")
    return (
        isinstance(vocab, dict)
        and bool(vocab)
        and model.get("type", "BPE") == "BPE"
        and not (model.get("merges") or any(value.get(name) for name in parts))
        and all(len(token) == 1 for token in vocab)
    )


class _Values(pickle.Unpickler):
    """Reads values that need no code: no class or function is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """Raise UnpicklingError for any class or function."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_meta(path: Path) -> CharacterTokenizer:
    """Return the vocabulary in a meta.pkl of nanoGPT.

    Raises InputError if it is anything else than dictionaries, texts and numbers, or no vocabulary
    of characters.
    """
    if path.stat().st_size > MAX_META_BYTES:
        raise InputError("is too large for a vocabulary of characters", where=path)
    try:
        with open(path, "rb") as file:
            value = _Values(file).load()
    except OSError:
        raise
    except Exception as error:
        # a broken pickle raises nearly anything
        raise InputError(
            f"cannot be read as nanoGPT's vocabulary: {message_of(error)}",
            where=path,
            hint="it may contain code, and none was run; copy it again from nanoGPT's data folder",
        ) from None
    table: Any = value.get("itos") if isinstance(value, dict) else None
    good = isinstance(table, dict) and all(
        type(number) is int and type(token) is str for number, token in table.items()
    )
    if not good or not table or sorted(table) != list(range(len(table))):
        raise InputError(
            "has no vocabulary: nanoGPT's meta.pkl has itos, a character for each of the ids 0, 1, ...",
            where=path,
        )
    try:
        return CharacterTokenizer([table[number] for number in range(len(table))])
    except InputError as error:
        raise InputError(error.what, where=path) from None
