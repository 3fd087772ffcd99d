"""Models travel to transformers and back, and broken folders are rejected."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptError, InputError
from gptcli.model import hf
from gptcli.model.config import ModelConfig, Norm, find_size
from gptcli.model.hf import read_model_config
from gptcli.model.safetensors_io import load_model, read_weights, save_model
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(n_layer=3, n_head=4, d_model=64, n_ctx=40, vocab_size=301)
IDX = torch.randint(0, 301, (2, 40), generator=torch.Generator().manual_seed(0))


def random_model(config: ModelConfig = CONFIG) -> GPT:
    """Return a model whose biases and gains are random too: zeros could hide mistakes."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3 if parameter.dim() == 1 else 0.0, 0.1)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_a_saved_model(leaves: Any, tied: bool) -> None:
    from transformers import GPT2LMHeadModel

    model = random_model(
        ModelConfig(n_layer=3, n_head=4, d_model=64, n_ctx=40, vocab_size=301, tied=tied)
    )
    assert leaves(model, GPT2LMHeadModel, 1e-4).config.eos_token_id == 0


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_models_of_transformers_load(tmp_path: Path, shard: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=40, vocab_size=301)
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    model = load_model(tmp_path)
    with torch.no_grad():
        assert (theirs(IDX).logits - model(IDX)).abs().max().item() < 1e-4


@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.1}, {"tied": False}, {"attention": "banded", "band": 7}, {"norm": "post"}],
)
def test_round_trip_is_exact(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = random_model(
        ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=40, vocab_size=301, **changes)
    )
    save_model(tmp_path, model, model.config)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert (again.lm_head.weight is again.wte.weight) == model.config.tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("size", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_gpt2_of_transformers_survives_a_round_trip_to_the_bit(tmp_path: Path, size: str) -> None:
    """The layers and heads of each size, at a sixteenth of the width."""
    from safetensors.torch import load_file
    from transformers import GPT2Config, GPT2LMHeadModel

    paper = find_size(size)
    width = paper.d_model // 16 // paper.n_head * paper.n_head or paper.n_head
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=paper.n_layer, n_head=paper.n_head, n_embd=width, n_positions=32, vocab_size=101
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(tmp_path / "ours", model, model.config)
    one, other = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    idx = IDX[:, :32] % 101
    with torch.no_grad():
        assert (again(idx).logits - model(idx)).abs().max().item() < 1e-4
        assert torch.equal(again(idx).logits, theirs(idx).logits)


class Lazy(Mapping[str, torch.Tensor]):
    """State dict that creates each tensor on access and counts those still in memory."""

    def __init__(self, model: GPT) -> None:
        self.state, self.made, self.most = model.state_dict(), weakref.WeakSet[torch.Tensor](), 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.most = max(self.most, sum(tensor.dim() == 2 for tensor in self.made))
        self.made.add(tensor := self.state[name].clone())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@pytest.mark.parametrize(("attention", "held"), [("dense", 1), ("banded", 6)])
def test_saving_has_few_tensors_in_memory_at_a_time(
    tmp_path: Path, attention: str, held: int
) -> None:
    """One matrix at a time, or those of a layer: once for GPT-Neo and once for its report."""
    model = random_model(
        ModelConfig(n_layer=12, n_head=2, d_model=32, n_ctx=40, vocab_size=301, attention=attention)
    )
    lazy = Lazy(model)
    save_model(tmp_path / "lazy", lazy, model.config)
    save_model(tmp_path / "whole", model, model.config)
    assert lazy.most <= held
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "lazy" / file.name).read_bytes()


def test_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_model(tmp_path / folder, random_model(), CONFIG)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("attention", ["dense", "banded"])
def test_loading_has_one_tensor_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    """Reordering c_attn makes copies; none exists before its turn or after it."""
    config = replace(CONFIG, attention=attention, band=4)
    model = random_model(config)
    save_model(tmp_path, model, config)
    copies: list[weakref.ref[torch.Tensor]] = []

    def made(
        name: str, tensor: torch.Tensor, config: ModelConfig, make: Any = hf.qkv_rows_from_hf
    ) -> torch.Tensor:
        tensor = make(name, tensor, config)
        if ".c_attn." in name:
            copies.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(hf, "qkv_rows_from_hf", made)
    expected, seen = model.state_dict(), 0
    for name, tensor in read_weights(tmp_path):
        assert torch.equal(tensor, expected[name])
        seen += ".c_attn." in name
        assert len(copies) == seen
        del tensor
        assert sum(copy() is not None for copy in copies) <= 1
    assert seen == 2 * config.n_layer


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "models of type 'llama' are not supported"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_embd": None}, "'n_embd' is missing or not an integer"),
        ({"n_layer": 4}, "tensor h.3.attn.c_attn.bias is missing"),
        ({"n_layer": 2}, "tensor h.2.attn.c_attn.bias is not part"),
        (
            {"vocab_size": 302},
            r"tensor wte.weight has the shape \[301, 64\]; the configuration requires \[302, 64\]",
        ),
        ({"n_head": 5}, "is not a multiple of n_head 5"),
    ],
)
def test_mismatched_folders_are_rejected(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_model(tmp_path, random_model(), CONFIG)
    edit(tmp_path, **changes)
    with pytest.raises(GptError, match=message):
        load_model(tmp_path)


def test_missing_and_broken_weights_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        read_model_config(tmp_path)
    save_model(tmp_path, random_model(), CONFIG)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        InputError, match="the file is cut short: it has 1,000 bytes, and its header alone"
    ):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"contains no model\.safetensors"):
        load_model(tmp_path)


def test_layers_without_tensors_are_never_created(tmp_path: Path) -> None:
    save_model(tmp_path, random_model(), CONFIG)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(table | {"n_layer": 10**8}))
    with pytest.raises(InputError, match="too few for the 100,000,000 layers"):
        load_model(tmp_path)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Return the folder with changed tensors in its file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_tied_tensor_may_have_either_name(tmp_path: Path, norm: Norm) -> None:
    model = random_model(replace(CONFIG, norm=norm))
    save_model(tmp_path, model, model.config)
    embedding = "transformer.wte.weight" if norm == "pre" else "transformer.tokens_embed.weight"

    def both(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors[embedding].clone()

    with torch.no_grad():
        assert torch.equal(load_model(rewritten(tmp_path, both))(IDX), model(IDX))
        assert torch.equal(
            load_model(rewritten(tmp_path, lambda tensors: tensors.pop(embedding)))(IDX), model(IDX)
        )


def test_untied_head_is_never_dropped(tmp_path: Path) -> None:
    model = random_model()
    save_model(tmp_path, model, CONFIG)
    rewritten(
        tmp_path,
        lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 1}),
    )
    with pytest.raises(InputError, match=r"the head .* differs from the embedding") as caught:
        load_model(tmp_path)
    assert '"tie_word_embeddings": false' in str(caught.value.hint)
    edit(tmp_path, tie_word_embeddings=False)
    untied = load_model(tmp_path)
    assert torch.equal(untied.lm_head.weight, untied.wte.weight + 1)


def test_tensor_under_two_names_is_rejected(tmp_path: Path) -> None:
    save_model(tmp_path, random_model(), CONFIG)
    rewritten(
        tmp_path,
        lambda tensors: tensors.update({"ln_f.bias": tensors["transformer.ln_f.bias"] + 1}),
    )
    with pytest.raises(InputError, match=r"ln_f\.bias is stored twice"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}'],
)
def test_index_without_files_is_rejected(tmp_path: Path, index: str) -> None:
    save_model(tmp_path, random_model(), CONFIG)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="does not name files of this folder"):
        load_model(tmp_path)


def test_tensor_in_two_files_is_rejected(tmp_path: Path) -> None:
    save_model(tmp_path, random_model(), CONFIG)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    with pytest.raises(InputError, match="also in another file"):
        load_model(tmp_path)
