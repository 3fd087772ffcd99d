"""GGUF files, read back by the package of llama.cpp and by transformers."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.gguf import GgufVocabulary, write_gguf
from gptcli.model.transformer import GPT
from gptcli.tokenizer.gpt1 import train_gpt1_tokenizer
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d")]
WORD = "<|user|>"


def tokenizer(*, word: bool = False) -> Tokenizer:
    tokens = [*byte_alphabet(), *("".join(pair) for pair in MERGES), END_OF_TEXT]
    if not word:
        return Tokenizer(tokens, MERGES)
    settings = {"content": WORD, "special": False, "normalized": False}
    return Tokenizer([*tokens, WORD], MERGES, (END_OF_TEXT, WORD), [settings])


def export(path: Path, model: GPT, vocabulary: Tokenizer, precision: Any = "fp32") -> None:
    table = json.loads(vocabulary.to_json())
    stored = GgufVocabulary.from_tokenizer_json(table, vocabulary.eot_id)
    write_gguf(path, model.state_dict(), model.config, stored, name="small", precision=precision)


def random_model(vocab_size: int, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 3, "d_model": 24, "n_ctx": 16, "vocab_size": vocab_size}
    model = GPT(ModelConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    return model


@pytest.mark.parametrize(("tied", "padding"), [(True, 10), (False, 0)])
def test_transformers_computes_the_same_logits(tmp_path: Path, tied: bool, padding: int) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")  # which transformers needs to load a GGUF file
    from transformers import AutoModelForCausalLM

    vocabulary = tokenizer()
    # transformers takes the context length of a GGUF file for granted: it must be GPT-2's
    model = random_model(vocabulary.vocab_size + padding, tied=tied, n_ctx=1024)
    export(tmp_path / "small.gguf", model, vocabulary)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf")
    idx = torch.randint(0, vocabulary.vocab_size, (2, 16))
    with torch.no_grad():
        ours = model(idx)[..., : vocabulary.vocab_size]
        assert (theirs.eval()(idx).logits - ours).abs().max() < 1e-4


def test_transformers_encodes_text_alike(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoTokenizer

    vocabulary = tokenizer(word=True)
    export(tmp_path / "small.gguf", random_model(vocabulary.vocab_size), vocabulary)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="small.gguf")
    for text in ("the other hand", f"a {WORD}the", "naïve\n\n\t日本"):
        assert theirs.encode(text) == vocabulary.encode(text)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_reader_of_llama_cpp_finds_every_number(tmp_path: Path, precision: str) -> None:
    gguf = pytest.importorskip("gguf")
    vocabulary = tokenizer(word=True)
    model = random_model(vocabulary.vocab_size)
    export(tmp_path / "small.gguf", model, vocabulary, precision)
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["gpt2.context_length"] == 16
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in MERGES]
    assert fields["tokenizer.ggml.tokens"][-2:] == [END_OF_TEXT, WORD]
    kinds = gguf.TokenType
    assert fields["tokenizer.ggml.token_type"][-3:] == [
        *(kinds.NORMAL, kinds.CONTROL, kinds.USER_DEFINED)
    ]
    assert fields["tokenizer.ggml.eos_token_id"] == vocabulary.eot_id
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    # every name is one that llama.cpp has for this architecture
    known = {
        gguf.TENSOR_NAMES[kind].format(bid=layer)
        for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GPT2]
        for layer in range(2)
    }
    assert {name.rpartition(".")[0] for name in tensors} == known - {"output"}
    matrix = tensors["blk.1.ffn_up.weight"]
    read = gguf.dequantize(matrix.data, matrix.tensor_type)
    exact = model.state_dict()["h.1.mlp.c_fc.weight"]
    assert np.abs(read - exact.numpy()).max() <= {"fp32": 0, "fp16": 1e-3, "bf16": 1e-2}[precision]
    for name in ("blk.0.attn_norm.weight", "position_embd.weight", "blk.1.ffn_up.bias"):
        assert tensors[name].tensor_type == gguf.GGMLQuantizationType.F32
    # the offsets leave nothing between the tensors but padding
    assert (tmp_path / "small.gguf").stat().st_size % 32 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"attention": "banded"}, "banded attention"), ({"norm": "post"}, "LayerNorm after")],
)
def test_other_architectures_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    vocabulary = tokenizer()
    with pytest.raises(UsageError, match=message):
        export(tmp_path / "x.gguf", random_model(vocabulary.vocab_size, **changes), vocabulary)
    assert not any(tmp_path.iterdir())


def test_vocabulary_of_gpt1s_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    vocabulary = train_gpt1_tokenizer(["some words of a text, some more words"] * 20, 60)
    with pytest.raises(UsageError, match="no tokenizer of this kind"):
        export(tmp_path / "x.gguf", random_model(vocabulary.vocab_size), vocabulary)


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    vocabulary = tokenizer()
    with pytest.raises(UsageError, match="unknown precision 'q4'"):
        export(tmp_path / "x.gguf", random_model(vocabulary.vocab_size), vocabulary, "q4")


TEXTS = ["the river and the other bank\n" * 20, "def read(path):\n    return path\n" * 30]
PROMPTS = [
    *("The river", "Once upon a time", "def main(", "  indented\n\n\nlines", "naïve café"),
    *("日本語 text", "1234567 numbers", "don't you'll we've", "a\tb\tc", "<b>html</b>"),
    *("UPPER lower", "... --- !!!", "The model reads", 'I said: "no"', "x = y + 1"),
    *("end of   spaces   ", "😀 emoji", "Ünïcödé straße", "the", "\n"),
]


@pytest.mark.parametrize("vocab_size", [257, 270, 285])
def test_llama_cpp_continues_alike(tmp_path: Path, vocab_size: int) -> None:
    """python -m pip install xllamacpp runs this: llama.cpp in a wheel."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from gptcli.tokenizer.training import train_tokenizer

    vocabulary = train_tokenizer(TEXTS, vocab_size)
    assert vocabulary.vocab_size == vocab_size
    model = random_model(vocab_size, n_ctx=64)
    export(tmp_path / "small.gguf", model, vocabulary)
    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "small.gguf")
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def ask(path: str, **values: Any) -> Any:
        request = urllib.request.Request(
            f"{server.listening_address}/{path}",
            json.dumps(values).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    for prompt in PROMPTS:
        ids = vocabulary.encode(prompt)
        assert ask("tokenize", content=prompt, add_special=False)["tokens"] == ids
        made = ask(
            "completion",
            prompt=ids,
            n_predict=12,
            temperature=0,
            return_tokens=True,
            ignore_eos=True,
        )
        ours = list(ids)
        with torch.no_grad():
            for token in made["tokens"]:
                logits = model(torch.tensor([ours]))[0, -1]
                # llama.cpp rounds GELU to fp16: only closer logits than this may change places
                assert logits[token] >= logits.max() - 0.01
                ours.append(token)
        assert len(made["tokens"]) == 12
