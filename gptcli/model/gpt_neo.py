"""Conversion of banded models to and from transformers' GPT-Neo.

GPT-Neo has no query, key or value bias and does not scale its scores. The conversion is exact in
exact arithmetic. In each layer, with x the output of LayerNorm, g and b its gain and bias, and
z = (x - b)/g:

- W_q absorbs the factor 1/sqrt(D).
- The key bias is dropped: it adds the same value to all scores of a query, which softmax ignores.
- The value bias moves to the output projection: the weights of a query sum to 1, so W_o·b_v is
  added to the bias of W_o.
- The query bias becomes a rank-one update of W_q. Since z sums to 0, u·x with u = 1/g is the same
  number c at every position, and W_q + b_q·uᵀ/c computes W_q·x + b_q. If b is 0, so is c; b is
  therefore first shifted by g or -g, away from 0. That shifts keys by a constant (ignored by
  softmax), values (absorbed by the bias of W_o) and queries (absorbed by b_q before the update).

Shifting b by W_q⁻¹·b_q instead would need a W_q that is far from singular, which training does not
guarantee. The conversion is computed in float64 and stored in fp32; `safetensors_io.neo_report`
measures the error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch

from gptcli.model.config import ModelConfig
from gptcli.model.hf import HEAD, Read, Tensors, qkv_rows_from_hf, qkv_rows_to_hf

PREFIX = "transformer."
NEO_OUT = "attn.attention.out_proj"


def to_gpt_neo(
    names: Collection[str], read: Read, config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors `names` of a model as those of GPT-Neo, in fp32.

    Each layer is loaded by `read` only when it is converted.
    """
    for name in names:
        if not (name.startswith("h.") or (name == HEAD and config.tied)):
            yield (
                name if name == HEAD else f"{PREFIX}{name}",
                read(name).detach().float().contiguous(),
            )
    for layer in range(config.n_layer):
        yield from layer_to_gpt_neo(layer, names, read, config).items()


def layer_to_gpt_neo(
    layer: int, names: Collection[str], read: Read, config: ModelConfig
) -> Tensors:
    """Return the GPT-Neo tensors of one layer, as `to_gpt_neo` does."""
    at = f"h.{layer}."
    ours = [name.removeprefix(at) for name in names if name.startswith(at)]
    folded = _fold(
        {
            name: read(at + name).detach().double()
            for name in ours
            if name.startswith(("ln_1.", "attn."))
        },
        config,
    )
    same = {
        name: read(at + name).detach()
        for name in ours
        if name not in folded and not name.startswith("attn.")
    }
    return {
        f"{PREFIX}{at}{name}": tensor.float().contiguous()
        for name, tensor in {**same, **folded}.items()
    }


def _fold(block: Tensors, config: ModelConfig) -> Tensors:
    """Return the tensors of a layer that differ in GPT-Neo, in float64."""
    gain, bias = block["ln_1.weight"], block["ln_1.bias"]
    w_q, w_k, w_v = qkv_rows_to_hf(".c_attn.weight", block["attn.c_attn.weight"], config).chunk(3)
    b_q, _, b_v = qkv_rows_to_hf(".c_attn.bias", block["attn.c_attn.bias"], config).chunk(3)
    w_o, b_o = block["attn.c_proj.weight"], block["attn.c_proj.bias"]
    if not b_q.is_meta and b_q.any():  # on the meta device, only shapes matter
        u, direction = 1 / gain, gain
        if not gain.all():  # a feature with gain 0 is already constant
            u = direction = torch.nn.functional.one_hot(gain.abs().argmin(), len(gain)).double()
        shift = direction * (-1.0 if u @ bias < 0 else 1.0)
        w_q = w_q + torch.outer(b_q - w_q @ shift, u / (u @ (bias + shift)))
        bias, b_v = bias + shift, b_v - w_v @ shift
    return {
        "ln_1.bias": bias,
        "attn.attention.q_proj.weight": w_q / math.sqrt(config.d_head),
        "attn.attention.k_proj.weight": w_k,
        "attn.attention.v_proj.weight": w_v,
        f"{NEO_OUT}.weight": w_o,
        f"{NEO_OUT}.bias": b_o + w_o @ b_v,
    }


def from_gpt_neo(
    stored: Mapping[str, torch.Tensor], config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a GPT-Neo as those of a GPT: biases 0, queries times sqrt(D).

    Unknown tensors keep their names.
    """
    parts: dict[str, Tensors] = {}
    for name, tensor in stored.items():
        name = name.removeprefix(PREFIX)
        head, attention, rest = name.partition("attn.attention.")
        if not attention:
            yield name, tensor
        elif rest.startswith("out_proj."):
            yield f"{head}attn.c_proj.{rest.removeprefix('out_proj.')}", tensor
        elif rest in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            parts.setdefault(head, {})[rest[0]] = tensor
        elif rest not in ("bias", "masked_bias"):  # buffers in old files
            yield name, tensor
    for head, part in parts.items():
        if part.keys() == {"q", "k", "v"}:
            rows = torch.cat(
                [
                    (part["q"].double() * math.sqrt(config.d_head)).to(part["q"].dtype),
                    part["k"],
                    part["v"],
                ]
            )
            yield f"{head}attn.c_attn.weight", qkv_rows_from_hf(".c_attn.weight", rows, config)
            yield f"{head}attn.c_attn.bias", rows.new_zeros(len(rows))
