"""GPT-1's tokenizer (Radford et al. 2018, section 4.1): a BPE of characters within words.

Text is repaired, lower-cased and split into words; the last piece of each word ends in `</w>`.
Case, accents and the kind of white space are lost by design.

OpenAI's own encoding split words with spaCy. Here words are split as in transformers'
OpenAIGPTTokenizer, with BERT's rules: every punctuation mark is a word, while spaCy keeps `n't`,
`'s`, `...`, `mr.` and the like together; accents are stripped, while OpenAI's encoding keeps them;
and a line break is white space, while OpenAI's encoding has `<unk>`, because its vocabulary lacks
one.

Unlike in transformers, text passes through ftfy and the release's replacements first, as in the
paper, and the text `<unk>` is ordinary text. None of SST-2's 9,613 lines is encoded differently
because of that; of WikiText-2's 5,352 (validation and test), 4,134 are: 3,401 only because of the
`<unk>` that marks rare words in that corpus, 682 because a dash or an ellipsis is replaced, 51
because ftfy straightens a curly quotation mark. Given the repaired text, and `<unk>` as text,
transformers returns the same ids for every line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, UsageError, install_hint
from gptcli.events import SILENT, Events
from gptcli.numbers import counted
from gptcli.tokenizer.tokenizer import (
    END_OF_TEXT,
    PIECE,
    Tokenizer,
    ids_of_merges,
    pieces,
    readable_text,
    refuse_surrogates,
)
from gptcli.tokenizer.training import check_largest

UNKNOWN, END_OF_WORD = "<unk>", "</w>"
VOCAB_SIZE = 40478
CHARACTERS = 238  # of GPT-1's alphabet: a rarer one is unknown
REPEATED = 1000  # words in a piece of training text
WORD = 1 << 10  # characters of a word that are learned from at once
# by the released code, before it splits
REPLACED = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})


def standardise(text: str) -> str:
    """Return text ready for splitting: encoding errors repaired by ftfy, dashes and ellipses in
    ASCII.

    Raises UsageError if ftfy is missing.
    """
    try:
        from ftfy import fix_text
    except ImportError:
        raise _without_ftfy() from None
    return fix_text(text).translate(REPLACED)


def check_ftfy() -> None:
    """Raise UsageError if ftfy is missing, before work that would fail at its first text."""
    if importlib.util.find_spec("ftfy") is None:
        raise _without_ftfy()


def _without_ftfy() -> UsageError:
    return UsageError(
        "GPT-1's tokenizer repairs text with ftfy, which is not installed",
        hint=install_hint("ftfy"),
    )


class Gpt1Tokenizer(Tokenizer):
    """A vocabulary of word pieces.

    Documents end with `<|endoftext|>` if the vocabulary has it, otherwise with `<unk>`, which a
    line break was in GPT-1's training. Raises InputError if vocabulary and merges do not match.
    """

    unknown = UNKNOWN
    divides = False  # text is repaired as a whole

    def __init__(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        ids = {token: number for number, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            raise InputError("two ids of the vocabulary have the same spelling")
        if UNKNOWN not in ids or not any(token.endswith(END_OF_WORD) for token in tokens):
            raise InputError(
                f"the vocabulary lacks {UNKNOWN} or pieces that end in {END_OF_WORD}: it is not GPT-1's kind"
            )
        refuse_surrogates("".join(tokens))
        self._pairs, self._tokens = ids_of_merges(merges, ids), list(tokens)
        self.vocab_size = len(tokens)
        self.eot_id = ids.get(END_OF_TEXT, ids[UNKNOWN])
        self.merges = len(merges)
        fingerprint = json.dumps(["gpt1", list(tokens), [" ".join(pair) for pair in merges]])
        self.sha256 = hashlib.sha256(fingerprint.encode()).hexdigest()
        self._special = [token for token in (UNKNOWN, END_OF_TEXT) if token in ids]

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [self._spelt(token).encode() for token in self._tokens]

    @cached_property
    def _backend(self) -> Backend:
        merges = list(self._merged())
        return _backend(
            models.BPE(self._ids(), merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        )

    def check_packages(self) -> None:
        """Raise UsageError if ftfy is missing, which encoding needs and decoding does not."""
        check_ftfy()

    def _spelt(self, token: str) -> str:
        return f"{token} " if token in self._special else token.replace(END_OF_WORD, " ")

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, standardised first."""
        for text in texts:
            refuse_surrogates(text)
        return super().encode_batch([standardise(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of `ids`, separated by spaces."""
        return super().decode(ids).removesuffix(" ")

    def to_json(self) -> str:
        """Return a tokenizer.json; transformers then encodes alike, apart from ftfy and the
        replacements.
        """
        whole = Backend.from_str(self._backend.to_str())
        whole.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
        whole.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self._special]
        )
        return readable_text(whole)


def _backend(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def train_gpt1_tokenizer(
    texts: Iterable[str], vocab_size: int, *, events: Events = SILENT
) -> Gpt1Tokenizer:
    """Learn `vocab_size` entries: `<unk>`, characters inside and at the end of words, merges from
    the most frequent pair on, `<|endoftext|>`.

    The same texts give the same tokenizer in any order. Raises UsageError if the size leaves no
    room for merges or is too large, InputError if there is no text.
    """
    check_largest(vocab_size)
    check_ftfy()
    words = _count_words(texts, events)
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update(dict.fromkeys(word, count))
    alphabet = sorted(
        sorted(characters, key=lambda character: (-characters[character], character))[:CHARACTERS]
    )
    rare = dict.fromkeys(map(ord, characters.keys() - set(alphabet)))
    # as "special" tokens they get the first ids in this order; the library's own would follow a
    # hash table's
    first = [UNKNOWN, *alphabet, *(f"{character}{END_OF_WORD}" for character in alphabet)]
    if vocab_size <= len(first) + 1:
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small",
            hint=f"the characters of this text need {len(first) + 2} or more",
        )
    backend = _backend(models.BPE(unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, special_tokens=first, end_of_word_suffix=END_OF_WORD, show_progress=False
    )  # fmt: skip
    backend.train_from_iterator(_repeated(words, rare), trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokenizer = Gpt1Tokenizer([*tokens, END_OF_TEXT], [tuple(merge) for merge in model["merges"]])
    if tokenizer.vocab_size < vocab_size:
        events.warn(
            f"the text has pairs for a vocabulary of {tokenizer.vocab_size:,} only, not {vocab_size:,}: give more text"
        )
    return tokenizer


def _count_words(texts: Iterable[str], events: Events) -> Counter[str]:
    """Count the lower-cased words; memory grows with the number of distinct ones only."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words: Counter[str] = Counter()
    characters = 0
    for text in texts:
        for piece in pieces(standardise(text), PIECE):
            words.update(normalizer.normalize_str(piece).split())
        characters += len(text)
        events.progress("reading text", characters, unit="characters")
    events.finish("reading text")
    if not words:
        raise InputError("there is no text to learn from")
    events.info(f"learning merges from {counted(characters, 'character')}")
    return words


def _repeated(words: Counter[str], rare: dict[int, None]) -> Iterator[str]:
    """Yield each word as often as it occurred, without its rare characters, in batches."""
    for word, count in sorted(words.items()):
        word = word.translate(rare)
        # The time the library takes is quadratic in the length of a word. Of one that is cut, a
        # pair is miscounted at each cut.
        parts = [word[at : at + WORD] for at in range(0, len(word), WORD)]
        for part in parts:
            for start in range(0, count, REPEATED):
                yield f"{part} " * min(REPEATED, count - start)
