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
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, UsageError
from gptcli.files import atomic_write, read_json, read_text, similar, write_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
# what ByteLevel splits by
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# `sha256` of GPT-2's released vocabulary
GPT2_SHA256 = "c7e6ef8519719b4c2d44d8f3560476c179c37a811e4237348f8d0ecddeeac1ff"
HUB_REPOSITORY = "openai-community/gpt2"
GPT2_NAMES = (
    HUB_REPOSITORY,
    "gpt-2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "gpt3",
    "gpt-3",
    "r50k_base",
    "p50k_base",
    "tiktoken",
)
# merges and ids, by OpenAI's names for GPT-2's and GPT-1's, and transformers' for both
RELEASES = (
    ("vocab.bpe", "encoder.json"), ("vocab_40000.bpe", "encoder_bpe_40000.json"), ("merges.txt", "vocab.json"),
)  # fmt: skip

MODEL_FILES = (".pt", ".pth", ".ckpt", ".bin")  # endings of models in a single file

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
    of a word. Raises InputError if these do not make a byte-level BPE. Picklable, so that worker processes can receive one.
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
        check_merges(merges, ids)
        self.vocab_size = len(tokens)
        self.eot_id = ids.get(END_OF_TEXT)
        self.merges = len(merges)
        facts: list[Any] = [pattern, list(tokens), [" ".join(pair) for pair in merges]]
        if words:
            facts.append([repr(_added_token(word)) for word in words])
        fingerprint = json.dumps(facts)
        self.sha256 = hashlib.sha256(fingerprint.encode()).hexdigest()
        self._special = sorted(special - plain, key=ids.__getitem__)
        self.has_words = bool(words)
        # A piece must not end inside a word, nor inside the white space that it takes along; where
        # another pattern always cuts is not known.
        self._cuts = pattern == PATTERN and not any(
            word.get("lstrip") or word.get("rstrip") or re.search(r"\s", word["content"])
            for word in words
        )
        to_byte = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
        self._bytes = [
            token.encode() if token in special else token.translate(to_byte).encode("latin-1")
            for token in tokens
        ]
        self.divides = self._cuts
        self._backend = Backend(models.BPE(vocab=ids, merges=list(merges)))
        self._backend.pre_tokenizer = word_splitter(pattern)
        self._backend.add_tokens([_added_token(word) for word in words])

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text; `<|endoftext|>` in it is ordinary text.

        Raises InputError on a lone surrogate.
        """
        return self.encode_batch([text])[0]

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

    @cached_property
    def _json(self) -> str:
        whole = Backend.from_str(self._backend.to_str())
        whole.decoder = decoders.ByteLevel()
        whole.post_processor = processors.ByteLevel(trim_offsets=False)
        whole.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self._special]
        )
        return readable_text(whole)


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


def _own_pattern(splitter: Any) -> str | None:
    """Return the pattern in the pre_tokenizer of a tokenizer.json that splits by one, or None."""
    if splitter.get("type") != "Sequence":
        return None
    steps = splitter.get("pretokenizers") or []
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, alphabet = steps
    pattern = split.get("pattern") or {}
    is_plain = split.get("behavior") == "Isolated" and not split.get("invert")
    if not is_plain or alphabet.get("add_prefix_space") or alphabet.get("use_regex", True):
        return None
    return pattern.get("Regex")


def readable_text(backend: Backend) -> str:
    """Return the backend's tokenizer.json with each merge as "a b", which every version of
    `tokenizers` reads; those below 0.20 do not read pairs.
    """
    text: str = backend.to_str()
    value = json.loads(text)
    pairs = value["model"]["merges"]
    if any(" " in token for pair in pairs for token in pair):
        return text
    value["model"]["merges"] = [" ".join(pair) for pair in pairs]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check_merges(merges: Sequence[tuple[str, str]], ids: dict[str, int]) -> None:
    """Raise InputError if a merge does not join two tokens into a third."""
    for pair in merges:
        if (
            len(pair) != 2
            or pair[0] not in ids
            or pair[1] not in ids
            or pair[0] + pair[1] not in ids
        ):
            raise InputError(f"the merge {' '.join(pair)!r} does not belong to the vocabulary")


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


def load_tokenizer(where: str | Path) -> Tokenizer:
    """Return the tokenizer in `where`: a tokenizer.json, a folder with one (a run or shards) or
    with a release's two files, or "gpt2".

    For a model in a single file (nanoGPT, llm.c), it is the tokenizer.json next to the file, or
    else GPT-2's.

    Raises InputError if there is none, or if it is neither a byte-level BPE nor of GPT-1's kind.
    """
    path = Path(where)
    if path.is_dir():
        return _load_folder(path)
    if path.name in (name for release in RELEASES for name in release):
        raise InputError(
            "is half of a tokenizer",
            where=path,
            hint=f"name the folder that holds both halves: {path.parent}",
        )
    if path.exists():
        if path.suffix in MODEL_FILES:
            beside = path.parent / TOKENIZER
            return _load_json(beside) if beside.is_file() else _load_gpt2()
        if path.suffix not in ("", ".json"):
            hint = "a tokenizer is a tokenizer.json: gpt tokenize train makes one"
            raise InputError("is not a tokenizer.json", where=path, hint=hint)
        return _load_json(path)
    if str(where) == "gpt2":
        return _load_gpt2()
    raise InputError("no such tokenizer", where=where, hint=_nearest_tokenizer(str(where), path))


def _nearest_tokenizer(name: str, path: Path) -> str:
    """Return a hint that names what to use instead of a missing tokenizer."""
    if name.lower() in GPT2_NAMES:
        return f"{name} has GPT-2's vocabulary: {{option:tokenizer}} gpt2"
    if (close := similar(path)) is not None:
        return f"did you mean {close}?"
    return "name a tokenizer.json, a folder that contains one, or gpt2"


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _load_json(folder / "tokenizer.json")
    for merges, vocab in RELEASES:
        if (folder / merges).exists() and (folder / vocab).exists():
            return _load_release(folder / merges, folder / vocab)
    raise InputError(
        "the folder holds no tokenizer",
        where=folder,
        hint=f"put a tokenizer.json there, or {' + '.join(RELEASES[0])} as released with GPT-2, or GPT-1's",
    )


def _load_release(merges: Path, vocab: Path) -> Tokenizer:
    lines = read_text(merges).split("\n")
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, blank, right = line.partition(" ")
        if not (left and blank and right) or " " in right:
            raise InputError(
                f"not a merge: {line!r}",
                where=f"{merges}:{number}",
                hint="a line of it is two tokens with a space between",
            )
        pairs.append((left, right))
    return _build(read_json(vocab), pairs, [END_OF_TEXT], where=vocab)


def _load_json(path: Path) -> Tokenizer:
    value = read_json(path)
    try:
        model = value["model"]
        merges = [
            tuple(merge.split(" ") if isinstance(merge, str) else map(str, merge))
            for merge in model["merges"]
        ]
        entries = value.get("added_tokens") or []
        added = {token["content"]: token["id"] for token in entries}
        words = [token for token in entries if not token.get("special")]
        splitter = value["pre_tokenizer"] or {}
        as_gpt2 = (
            splitter.get("type") == "ByteLevel"
            and not splitter.get("add_prefix_space")
            and splitter.get("use_regex", True)
        )
        as_gpt1 = (value.get("normalizer") or {}).get("type") == "BertNormalizer" and splitter.get(
            "type"
        ) == "BertPreTokenizer"
        pattern = PATTERN if as_gpt2 else _own_pattern(splitter)
        vocab = model["vocab"] | added
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            "is not a BPE tokenizer.json", where=path, hint="gpt tokenize train makes one"
        ) from None
    variants = (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    )
    if as_gpt1 and model.get("end_of_word_suffix") == "</w>":
        return _build(vocab, merges, list(added), where=path)
    if value.get("normalizer") or pattern is None or any(model.get(name) for name in variants):
        raise InputError(
            "is not a byte-level BPE that splits text by one pattern",
            where=path,
            hint="gpt tokenize train makes one",
        )
    return _build(vocab, merges, list(added), words, pattern, where=path)


def _build(
    vocab: Any,
    merges: list[Any],
    added: list[str],
    words: Sequence[Mapping[str, Any]] = (),
    pattern: str = PATTERN,
    *,
    where: Path,
) -> Tokenizer:
    if not isinstance(vocab, dict) or sorted(vocab.values(), key=str) != sorted(
        range(len(vocab)), key=str
    ):
        raise InputError(
            "the vocabulary does not map tokens to the ids 0, 1, 2, ... without a gap", where=where
        )
    tokens = sorted(vocab, key=vocab.__getitem__)
    try:
        if "<unk>" in vocab and not byte_alphabet().keys() <= vocab.keys():  # characters, not bytes
            from gptcli.tokenizer.gpt1 import Gpt1Tokenizer  # which is built on this module

            return Gpt1Tokenizer(tokens, merges)
        return Tokenizer(tokens, merges, added, words, pattern)
    except (InputError, UsageError) as error:
        raise InputError(error.what, where=where) from None


def _load_gpt2() -> Tokenizer:
    """Return GPT-2's released vocabulary from the hub or its local cache."""
    import urllib.request

    from huggingface_hub import hf_hub_download, hf_hub_url

    try:
        path = hf_hub_download(HUB_REPOSITORY, "tokenizer.json", local_files_only=True)
    except FileNotFoundError:
        url = hf_hub_url(HUB_REPOSITORY, "tokenizer.json")
        try:
            # the hub's own client retries for 20 s
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
            path = hf_hub_download(HUB_REPOSITORY, "tokenizer.json")
        except OSError as error:
            raise InputError(
                f"cannot reach the hub for GPT-2's vocabulary: {error}",
                hint=f"get {url} on another machine, and name that file as tokenizer or put it into "
                "the folder of the model",
            ) from None
    tokenizer = _load_json(Path(path))
    if tokenizer.sha256 != GPT2_SHA256:
        raise InputError(
            "is not GPT-2's vocabulary", where=path, hint="remove it, so that it is fetched again"
        )
    return tokenizer
