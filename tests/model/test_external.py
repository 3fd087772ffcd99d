"""Checkpoints of nanoGPT and llm.c, against models of their form written here."""

from __future__ import annotations

import json
import math
import pickle
import shlex
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import gptcli
from gptcli.errors import InputError, UsageError
from gptcli.model.external import LLMC_ORDER
from gptcli.model.hf import is_padded, read_model_config
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.source import find_model

N_LAYER, N_HEAD, C, T, V, ROWS = 2, 3, 24, 16, 300, 384
IDX = torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(0))


GREEDY = gptcli.SamplingParams(greedy=True)
CHARACTERS = "\n ,.Nabcö文xyz"


def save_meta(path: Path) -> None:
    """Write the vocabulary as nanoGPT's data/shakespeare_char/prepare.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    itos = dict(enumerate(CHARACTERS))
    stoi = {character: number for number, character in itos.items()}
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": stoi}
    path.write_bytes(pickle.dumps(meta))


def greedy_logits(nano: NanoGPT, ids: list[int]) -> Any:
    """Return the logits after each of `ids`, which are padded to the form's fixed length."""
    padded = torch.tensor([[*ids, *([0] * (T - len(ids)))]])
    return nano(padded)[0]


class NanoBlock(nn.Module):
    """A layer in nanoGPT's form: linear layers, q, k and v split by width."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(C, bias=bias) for _ in range(2))
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(C, 3 * C, bias=bias), "c_proj": nn.Linear(C, C, bias=bias)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(C, 4 * C, bias=bias), "c_proj": nn.Linear(4 * C, C, bias=bias)}
        )

    def forward(self, x: Any, form: str) -> Any:
        qkv: Any = self.attn["c_attn"](self.ln_1(x))
        q, k, v = (part.unflatten(2, (N_HEAD, -1)).transpose(1, 2) for part in qkv.split(C, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // N_HEAD)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        x = x + self.attn["c_proj"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=form)
        return x + self.mlp["c_proj"](hidden)


class NanoGPT(nn.Module):
    def __init__(self, bias: bool, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, C),
                "wpe": nn.Embedding(T, C),
                "h": nn.ModuleList(NanoBlock(bias) for _ in range(N_LAYER)),
                "ln_f": nn.LayerNorm(C, bias=bias),
            }
        )
        self.lm_head = nn.Linear(C, rows, bias=False)
        wte: Any = self.transformer["wte"]
        self.lm_head.weight = wte.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.1, 0.3)

    @torch.no_grad()
    def forward(self, idx: torch.Tensor, form: str = "none") -> torch.Tensor:
        part: Any = self.transformer
        x = part["wte"](idx) + part["wpe"](torch.arange(T))
        for block in part["h"]:
            x = block(x, form)
        return self.lm_head(part["ln_f"](x))


def save_nanogpt(path: Path, model: NanoGPT, bias: bool, /, **changes: Any) -> None:
    """Write a checkpoint with what nanoGPT's train.py puts into it."""
    args: dict[str, Any] = {
        "n_layer": N_LAYER,
        "n_head": N_HEAD,
        "n_embd": C,
        "block_size": T,
        "bias": bias,
    }
    args |= {"vocab_size": len(model.lm_head.weight), "dropout": 0.1}
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        "model": {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 10,
        "best_val_loss": torch.tensor(3.0),
        "config": {"out_dir": "out", "learning_rate": 6e-4},
        **changes,
    }
    torch.save(checkpoint, path)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_checkpoint_has_the_same_logits(tmp_path: Path, bias: bool) -> None:
    model = NanoGPT(bias, ROWS)
    (tmp_path / "out").mkdir()
    save_nanogpt(tmp_path / "out/ckpt.pt", model, bias)
    ours = load_model(tmp_path / "out")  # the folder names the checkpoint in it
    assert find_model(tmp_path / "out").folder == tmp_path / "out/ckpt.pt"
    assert ours.config.gelu == "exact"
    assert is_padded(ours.config.vocab_size, V)
    with torch.no_grad():
        assert (ours(IDX) - model(IDX)).abs().max() < 1e-5
        # the forms of GELU differ by more than this, so that the test can tell them apart
        assert (ours(IDX) - model(IDX, "tanh")).abs().max() > 1e-4


def test_nanogpt_becomes_a_transformers_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = NanoGPT(False, ROWS)
    save_nanogpt(tmp_path / "ckpt.pt", model, False)
    ours = load_model(tmp_path / "ckpt.pt")
    save_model(tmp_path / "folder", ours, ours.config)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert theirs.config.activation_function == "gelu"
    assert load_model(tmp_path / "folder").config == ours.config
    with torch.no_grad():
        assert (theirs.eval()(IDX).logits - model(IDX)).abs().max() < 1e-5


def save_llmc(path: Path, model: NanoGPT, version: int = 3) -> None:
    """Write a checkpoint as llm.c does; the rows of the vocabulary above V are padding."""
    dtype = {3: torch.float32, 5: torch.bfloat16}[version]
    named = dict(model.named_parameters())
    order = ["wte.weight", "wpe.weight"]
    order += [f"h.{layer}.{name}" for name in LLMC_ORDER for layer in range(N_LAYER)]
    header = [20240326, version, T, V, N_LAYER, N_HEAD, C, ROWS] + [0] * 248
    with path.open("wb") as file:
        file.write(struct.pack("<256i", *header))
        for name in [*order, "ln_f.weight", "ln_f.bias"]:
            tensor = named[f"transformer.{name}"].detach().to(dtype)
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def test_llmc_order_is_that_of_its_writer() -> None:
    # llm.c, train_gpt2.py, write_tensors
    assert [name.removesuffix(".weight") for name in LLMC_ORDER[::2]] == [
        *("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    ]


@pytest.mark.parametrize("version", [3, 5])
def test_llmc_checkpoint_has_the_same_logits(tmp_path: Path, version: int) -> None:
    model = NanoGPT(True, ROWS)
    save_llmc(tmp_path / "gpt2_124M.bin", model, version)
    if version == 5:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    ours = load_model(tmp_path / "gpt2_124M.bin")
    assert (ours.config.vocab_size, ours.config.gelu) == (V, "tanh")
    with torch.no_grad():
        assert (ours(IDX) - model(IDX, "tanh")[..., :V]).abs().max() < 1e-5


def test_old_transformers_weights_are_read(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs: Any = GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=300,
            activation_function="gelu",
        )
    ).eval()  # fmt: skip
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert (load_model(tmp_path)(IDX) - theirs(IDX).logits).abs().max() < 1e-5


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("run"),))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = NanoGPT(True, ROWS)
    save_nanogpt(tmp_path / "ckpt.pt", model, True, config=Harmful())
    with pytest.raises(InputError, match="it could run code, and is refused"):
        load_model(tmp_path / "ckpt.pt")
    assert not Path("run").exists()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another program's": ({"model_args": None}, "it has no model_args and model"),
    "changed": ({"model_args": {"use_rmsnorm": True}}, "model_args has 'use_rmsnorm'"),
    "incomplete": ({"model_args": {"n_layer": 2}}, "model_args does not describe a model"),
    "heads": (
        {"model_args": {"n_layer": 1, "n_head": 7, "n_embd": C, "block_size": T, "vocab_size": V}},
        "24 is not a multiple of n_head 7",
    ),
    "a missing tensor": ({"model": {}}, "tensor h.0.attn.c_attn.bias is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_nanogpt_checkpoint_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = BROKEN[case]
    if case == "a missing tensor":
        stored = NanoGPT(True, V).state_dict()
        changes = {"model": {name: stored[name] for name in list(stored)[:5]}}
    save_nanogpt(tmp_path / "ckpt.pt", NanoGPT(True, V), True, **changes)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "ckpt.pt")


def test_characters_that_are_not_known_are_refused_with_what_helps(tmp_path: Path) -> None:
    out = tmp_path / "out-shakespeare-char"
    out.mkdir()
    save_nanogpt(out / "ckpt.pt", NanoGPT(True, len(CHARACTERS)), True)
    with pytest.raises(InputError, match=f"a vocabulary of {len(CHARACTERS)} characters") as caught:
        read_model_config(out / "ckpt.pt")
    _, command = str(caught.value.hint).splitlines()
    data = tmp_path / "data" / "shakespeare_char"
    save_meta(data / "meta.pkl")
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    assert read_model_config(out / "ckpt.pt").vocab_size == len(CHARACTERS)


@pytest.mark.parametrize("where", ["out-tiny-char/meta.pkl", "data/tiny_char/meta.pkl"])
def test_characters_of_nanogpt_are_sampled_and_exported(tmp_path: Path, where: str) -> None:
    """nanoGPT's layout: out-NAME-char/ckpt.pt and data/NAME_char/meta.pkl."""
    from transformers import AutoTokenizer

    out = tmp_path / "out-tiny-char"
    out.mkdir()
    nano = NanoGPT(True, len(CHARACTERS))
    save_nanogpt(out / "ckpt.pt", nano, True)
    save_meta(tmp_path / where)
    prompt = "Nö, 文"
    text = gptcli.generate(out, prompt, max_tokens=8, params=GREEDY)
    ids = [CHARACTERS.index(character) for character in prompt]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(greedy_logits(nano, ids)[len(ids) - 1].argmax()))
    assert text == "".join(CHARACTERS[number] for number in ids[-8:])
    with pytest.raises(InputError, match="13 characters, and 'q' is not one of them"):
        gptcli.generate(out, "q")

    gptcli.export_model(out, tmp_path / "run")
    assert gptcli.generate(tmp_path / "run", prompt, max_tokens=8, params=GREEDY) == text
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer(prompt)["input_ids"] == ids[: len(prompt)]
    assert tokenizer.decode(ids) == prompt + text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["eos_token_id"] is None
    with pytest.raises(UsageError, match="no tokenizer of this kind"):
        gptcli.export_model(out, tmp_path / "x.gguf")


@pytest.mark.parametrize("size", [0, 3, 40])
def test_truncated_pickle_is_refused(tmp_path: Path, size: int) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", NanoGPT(True, V), True)
    whole = (tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(whole[:-size] if size else b"PK\x03\x04")
    with pytest.raises(InputError, match="not a readable file of torch"):
        load_model(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[:-4], "is cut short"),
        (lambda data: data + b"\0", "is too long"),
        (lambda data: data[:4] + struct.pack("<i", 1) + data[8:], "is version 1 of llm.c's"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], "does not describe a model"),
        (lambda data: data[:20] + struct.pack("<i", 5) + data[24:], "does not describe a model"),
        (lambda data: data[:28] + struct.pack("<i", 1) + data[32:], "does not describe a model"),
        (lambda data: data[:12] + struct.pack("<i", 65) + data[16:], "vocabulary of 65"),
        (lambda data: data[:500], "not a checkpoint of llm.c"),
    ],
)
def test_broken_llmc_checkpoint_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    save_llmc(tmp_path / "model.bin", NanoGPT(True, ROWS))
    (tmp_path / "model.bin").write_bytes(edit((tmp_path / "model.bin").read_bytes()))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "model.bin")
