"""Weights in and out of the transformers layout, so that a run folder is a GPT-2 folder and a GPT-2 folder is a run.

On disk: GPT-2's released names under `transformer.`, the four block matrices stored [in, out] (the release's Conv1D), all queries before
all keys before all values, where our rows go head after head, a tied head stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from gptcli.errors import InputError
from gptcli.files import atomic_write, read_json, write_json
from gptcli.model.config import ModelConfig
from gptcli.model.config_json import CONFIG, read_model_config, to_transformers
from gptcli.model.transformer import GPT

WEIGHTS, GENERATION = "model.safetensors", "generation_config.json"
_STORED_IN_OUT = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old GPT-2 files carry


def save_model(folder: Path, state: GPT | Mapping[str, torch.Tensor], config: ModelConfig, *, eot_id: int | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors (fp32, each atomic) into `folder`.

    `eot_id` is the tokenizer's end-of-text, which generation starts from and stops at; GPT-2's, the last id, where not given.
    """
    from safetensors.torch import save

    tensors = state.state_dict() if isinstance(state, GPT) else state
    stored = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            if not config.tied:
                stored[name] = tensor.detach().float().contiguous()
            continue
        tensor = _kind_after_kind(name, tensor.detach().float(), config)
        stored[f"transformer.{name}"] = (tensor.T if name.endswith(_STORED_IN_OUT) else tensor).contiguous()
    end = config.vocab_size - 1 if eot_id is None else eot_id
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / CONFIG, to_transformers(config, end))
    write_json(Path(folder) / GENERATION, {"bos_token_id": end, "eos_token_id": end, "do_sample": True, "top_k": 40})
    with atomic_write(Path(folder) / WEIGHTS) as file:
        file.write(save(stored, metadata={"format": "pt"}))


def load_model(folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a run folder or a transformers GPT-2 folder, ready for inference.

    Raises InputError where files are missing or broken, or tensors do not fit the configuration.
    """
    config = read_model_config(folder)
    stored = _read_tensors(Path(folder))
    state: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        name = name.removeprefix("transformer.")
        if not name.endswith(_MASKS):
            state[name] = _head_after_head(name, tensor.T if name.endswith(_STORED_IN_OUT) else tensor, config)
    if config.tied and "wte.weight" in state:
        state["lm_head.weight"] = state["wte.weight"]
    with torch.device("meta"):
        model = GPT(config)
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise InputError(f"tensor {name} is missing", where=folder)
        if name not in expected:
            raise InputError(f"tensor {name} has no place in this model", where=folder)
        if state[name].shape != expected[name].shape:
            raise InputError(
                f"tensor {name} is {list(state[name].shape)}, the configuration says {list(expected[name].shape)}", where=folder
            )
    model.load_state_dict({name: tensor.to(device, dtype).contiguous() for name, tensor in state.items()}, assign=True)
    if config.tied:
        model.lm_head.weight = model.wte.weight
    return model.eval()


def _kind_after_kind(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The rows of c_attn as GPT-2 has them, (3, H, D), from ours, (H, 3, D); any other tensor as it is."""
    if ".c_attn." not in name:
        return tensor
    return tensor.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def _head_after_head(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The other way; a tensor of another shape, which does not fit the model, as it is."""
    if ".c_attn." not in name or len(tensor) != 3 * config.d_model:
        return tensor
    return tensor.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the files its index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / f"{WEIGHTS}.index.json"
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and index.is_file():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
        if not files or any(Path(file).name != file for file in files):
            raise InputError("the index names no files of this folder", where=index)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(folder / file))
        except FileNotFoundError:
            raise InputError(f"no {file} here", where=folder, hint="the run is not finished, or this is not a model folder") from None
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"not a readable safetensors file: {error}", where=folder / file) from None
    return tensors
