"""Every encoder gives the reference's ids, or is not used."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import RunError, UsageError
from gptcli.tokenizer import encoders
from gptcli.tokenizer.encoders import UNICODE_17, Encoder, EncoderName, knows_more, open_encoder
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from gptcli.tokenizer.training import train_tokenizer

NAMES = ("gigatoken", "tiktoken")
NEWER = [chr(point) for first, last in UNICODE_17 for point in range(first, last + 1)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Merges that cross from each kind of character to the new ones, so that a cut in another place
    shows.
    """
    new = chr(0x16EA0)
    return train_tokenizer(
        [f"the cat's 12 mats... a{new}b a{new}b  .{new} .{new} {new}{new} \n\n they'll " * 9] * 3,
        600,
    )


def opened(tokenizer: Tokenizer, name: EncoderName) -> Encoder:
    pytest.importorskip(name)
    encoder = open_encoder(tokenizer, name)
    assert encoder.name == name
    return encoder


def rows(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    ids, counts = encoder.encode(texts)
    assert ids.dtype == np.uint32
    assert counts.sum() == len(ids)
    return [row.tolist() for row in np.split(ids, np.cumsum(counts)[:-1])]


@pytest.mark.parametrize(
    ("name", "first_texts"), [*((name, 50_000) for name in NAMES), ("gigatoken", 0)]
)
def test_the_same_ids(
    tokenizer: Tokenizer, name: EncoderName, first_texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "FIRST_TEXTS", first_texts)
    encoder = opened(tokenizer, name)
    words = st.text(
        st.sampled_from("the cats 's12 .\n\t'll\u00e9\u3000你👩\ufeff\x00" + "".join(NEWER[::400])),
        max_size=40,
    )

    @given(st.lists(st.one_of(st.text(max_size=40), words), min_size=1, max_size=8))
    @settings(max_examples=150, deadline=None)
    def check(texts: list[str]) -> None:
        texts = [text.encode("utf-8", "ignore").decode() for text in texts]
        assert rows(encoder, texts) == tokenizer.encode_batch(texts)

    check()
    assert rows(encoder, ["", END_OF_TEXT, ""]) == tokenizer.encode_batch(["", END_OF_TEXT, ""])
    assert tokenizer.eot_id not in rows(encoder, [END_OF_TEXT])[0]


def test_the_guard_is_unicode_17_exactly() -> None:
    """None of them was assigned before; and where this Python has them, they are what Unicode 17
    added.
    """
    assert len(NEWER) == 4657
    known = tuple(map(int, unicodedata.unidata_version.split(".")))
    assert {unicodedata.category(point) for point in NEWER} == {"Cn"} or known >= (17, 0)
    gigatoken = pytest.importorskip("gigatoken")
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for point in [
        *NEWER[::13],
        *(chr(first - 1) for first, _ in UNICODE_17 if first != 0x16EBB),
        "\u0890",
        "\u3400",
        "\U0001f600",
    ]:
        text = f"a{point}1{point}.{point} "
        ours = [len(piece) for piece, _ in splitter.pre_tokenize_str(text)]  # a character a byte
        alike = ours == [len(bytes(piece)) for piece in gigatoken.pretokenizer(text.encode())]
        assert alike != knows_more(text), hex(ord(point))


def test_documents_with_a_newer_character_go_to_the_reference(tokenizer: Tokenizer) -> None:
    encoder = opened(tokenizer, "gigatoken")
    texts = ["the cat", f"a{chr(0x16EA0)}b", "", f"a.{chr(0x16EA0)} 12", "the mats"]
    assert rows(encoder, texts) == tokenizer.encode_batch(texts)
    backend = encoder._backend  # type: ignore[attr-defined]
    assert any(backend.encode(text).tolist() != tokenizer.encode(text) for text in texts), (
        "the guard guards against nothing"
    )


def test_a_newer_character_is_found_wherever_it_is_in_a_long_text() -> None:
    """Texts are looked through in parts of SCANNED bytes, and a character may be in two of them."""
    for newer in UNICODE_17:
        for point in newer:
            for before in range(encoders.SCANNED - 4, encoders.SCANNED + 1):
                assert knows_more("é" + "a" * (before - 2) + chr(point) + "é")
    assert not knows_more("é" + "a\u088e\u3400\U0001f600" * encoders.SCANNED)


def test_gigatoken_gets_batches_after_the_first_texts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = opened(tokenizer, "gigatoken")
    batches: list[int] = []
    together = encoders._Gigatoken._together

    def counted(self: encoders._Gigatoken, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        batches.append(len(texts))
        return together(self, texts)

    monkeypatch.setattr(encoders._Gigatoken, "_together", counted)
    monkeypatch.setattr(encoders, "FIRST_TEXTS", len(encoders.PROBES) + 3)
    texts = ["the cat", "", "12 mats"]
    for _ in range(3):
        assert rows(encoder, texts) == tokenizer.encode_batch(texts)
    assert batches == [len(encoders.PROBES), 3, 3]
    other = opened(tokenizer, "gigatoken")
    monkeypatch.setattr(encoders, "FIRST_CHARACTERS", 0)
    monkeypatch.setattr(other, "_together", lambda texts: _Wrong().encode(texts), raising=False)
    with pytest.raises(RunError, match="other ids for a batch"):
        other.encode(texts)


def test_few_texts_need_no_awkward(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    tokenizer.save(tmp_path / "tokenizer.json")
    program = (
        "import sys\nfrom gptcli.tokenizer.encoders import open_encoder\n"
        "from gptcli.tokenizer.load import load_tokenizer\n"
        f"encoder = open_encoder(load_tokenizer({str(tmp_path)!r}), 'gigatoken')\n"
        "encoder.encode(['the cat', ''])\nassert 'awkward' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_gigatoken_forgets(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = opened(tokenizer, "gigatoken")
    monkeypatch.setattr(encoders, "RENEW_BYTES", 100)
    backends = set()
    for number in range(6):
        text = f"the cat {number} " * 5
        assert rows(encoder, [text]) == [tokenizer.encode(text)]
        backends.add(id(encoder._backend))  # type: ignore[attr-defined]
    assert len(backends) > 1


def test_auto_takes_the_fastest_that_agrees(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_encoder(tokenizer).name in ENCODER_ORDER
    monkeypatch.setitem(encoders._OPENERS, "gigatoken", _missing)
    assert open_encoder(tokenizer).name == "tiktoken"
    monkeypatch.setitem(encoders._OPENERS, "tiktoken", lambda *_: _Wrong())
    assert open_encoder(tokenizer).name == "tokenizers"
    with pytest.raises(RunError, match="gives other ids"):
        open_encoder(tokenizer, "tiktoken")
    with pytest.raises(UsageError, match="gigatoken is not installed"):
        open_encoder(tokenizer, "gigatoken")
    with pytest.raises(UsageError, match="unknown encoder 'fast'"):
        open_encoder(tokenizer, "fast")  # type: ignore[arg-type]


ENCODER_ORDER = ("gigatoken", "tiktoken", "tokenizers")


def _missing(*_: object) -> Encoder:
    raise ImportError


class _Wrong:
    name = "wrong"

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(1, np.uint32), np.zeros(len(texts), np.int64)


def test_ids_out_of_merge_order_are_not_for_tiktoken() -> None:
    tokenizer = Tokenizer([*byte_alphabet(), "bc", "ab", END_OF_TEXT], [("a", "b"), ("b", "c")])
    assert tokenizer.encode("abc") == [257, ord("c") - 33]
    with pytest.raises(UsageError, match="not in the order of its merges"):
        open_encoder(tokenizer, "tiktoken")
    assert rows(open_encoder(tokenizer), ["abc"]) == [tokenizer.encode("abc")]


@pytest.mark.real_data
@pytest.mark.parametrize("name", NAMES)
def test_gpt2_on_real_text(real_data: Path, name: EncoderName) -> None:
    tokenizer = load_tokenizer(real_data / "gpt2-vocab")
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in sorted((real_data / "tinyshakespeare").glob("*.txt"))
    )
    texts = text.split("\n\n")
    assert rows(opened(tokenizer, name), texts) == tokenizer.encode_batch(texts)
