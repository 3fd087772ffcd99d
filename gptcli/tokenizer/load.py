"""Tokenizers by a path or a name: a tokenizer.json, a folder with one, the two files of a release,
nanoGPT's characters, or GPT-2's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError, message_of
from gptcli.files import NANOGPT_META, find_nanogpt_meta, read_json, read_text, similar
from gptcli.tokenizer.characters import CharacterTokenizer, is_character_json, read_meta
from gptcli.tokenizer.gpt1 import Gpt1Tokenizer
from gptcli.tokenizer.tokenizer import END_OF_TEXT, PATTERN, TOKENIZER, Tokenizer, byte_alphabet

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


def load_tokenizer(where: str | Path) -> Tokenizer:
    """Return the tokenizer in `where`: a tokenizer.json, a folder with one (a run or shards) or
    with a release's two files, or "gpt2".

    For a model in a single file (nanoGPT, llm.c), it is the tokenizer.json next to the file, or the
    characters in nanoGPT's meta.pkl, or else GPT-2's.

    Raises InputError if there is none, or if it is neither a byte-level BPE, nor of GPT-1's kind, nor
    one of single characters.
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
            return _load_for_file(path)
        if path.name == NANOGPT_META:
            return read_meta(path)
        if path.suffix not in ("", ".json"):
            hint = "gpt tokenize train makes one; the name gpt2 stands for GPT-2's"
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


def _load_for_file(model: Path) -> Tokenizer:
    """Return the tokenizer of a model in a single file."""
    if (beside := model.parent / TOKENIZER).is_file():
        return _load_json(beside)
    meta = find_nanogpt_meta(model) if model.suffix == ".pt" else None
    return _load_gpt2() if meta is None else read_meta(meta)


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return _load_json(folder / "tokenizer.json")
    if (folder / NANOGPT_META).is_file():
        return read_meta(folder / NANOGPT_META)
    for merges, vocab in RELEASES:
        if (folder / merges).exists() and (folder / vocab).exists():
            return _load_release(folder / merges, folder / vocab)
    raise InputError(
        "contains no tokenizer",
        where=folder,
        hint=f"copy a tokenizer.json there, or the {' and '.join(RELEASES[0])} of GPT-2, or those "
        "of GPT-1",
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


def _build_characters(vocab: dict[str, int], *, where: Path) -> Tokenizer:
    if sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str):
        raise InputError(
            "the vocabulary does not map characters to the ids 0, 1, 2, ... without a gap",
            where=where,
        )
    return CharacterTokenizer(sorted(vocab, key=vocab.__getitem__))


def _load_json(path: Path) -> Tokenizer:
    value = read_json(path)
    try:
        if is_character_json(value):
            return _build_characters(value["model"]["vocab"], where=path)
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
    if (
        not isinstance(vocab, dict)
        or any(type(number) is not int for number in vocab.values())
        or set(vocab.values()) != set(range(len(vocab)))
    ):
        raise InputError(
            "the vocabulary does not map tokens to the ids 0, 1, 2, ... without a gap", where=where
        )
    tokens = sorted(vocab, key=vocab.__getitem__)
    try:
        if "<unk>" in vocab and not byte_alphabet().keys() <= vocab.keys():  # characters, not bytes
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
                f"cannot reach the Hub for GPT-2's vocabulary: {message_of(error)}",
                hint=f"download {url} on another machine, and name that file as the tokenizer or "
                "copy it next to the model",
            ) from None
    tokenizer = _load_json(Path(path))
    if tokenizer.sha256 != GPT2_SHA256:
        raise InputError(
            "is not GPT-2's vocabulary", where=path, hint="remove it, so that it is fetched again"
        )
    return tokenizer
