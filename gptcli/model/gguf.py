"""GGUF files, the format of llama.cpp: a dense GPT-2 with its vocabulary in one file.

Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: the magic
"GGUF", version 3, the number of tensors and of properties; the properties; name, sizes, type and
offset of each tensor, the fastest-varying dimension first; the data, each tensor at a multiple of
32 bytes. Names are those of llama.cpp's architecture `gpt2`. Its vectors and positions must be in
fp32; matrices may be rounded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import torch

from gptcli.errors import UsageError, nearest
from gptcli.files import atomic_write
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.hf import GPT2, HEAD, model_type, qkv_rows_to_hf

GgufPrecision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[GgufPrecision, ...] = get_args(GgufPrecision)
ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
"""Types of properties."""
TENSOR_TYPES = {"fp32": 0, "fp16": 1, "bf16": 30}
FILE_TYPES = {"fp32": 0, "fp16": 1, "bf16": 32}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NORMAL, CONTROL, WORD = 1, 3, 4
"""Types of tokens: learned; special, never in text; recognised in text before it is split."""
TOP = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    HEAD: "output.weight",
}
OF_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """Vocabulary of a byte-level BPE, as llama.cpp stores it."""

    tokens: Sequence[str]
    """Spelling of each id."""
    types: Sequence[int]
    """NORMAL, CONTROL or WORD, for each id."""
    merges: Sequence[str]
    """Merges as "a b", first learned first."""
    eot_id: int
    """Token that ends and begins documents."""

    @classmethod
    def from_tokenizer_json(cls, table: Mapping[str, Any], eot_id: int | None) -> GgufVocabulary:
        """Return the vocabulary of a tokenizer.json.

        Raises UsageError if it is not a byte-level BPE, which llama.cpp cannot represent.
        """
        if (table.get("pre_tokenizer") or {}).get("type") != "ByteLevel":
            raise UsageError(
                "llama.cpp has no tokenizer of this kind: of GPT-1's lower-cased words, or of characters",
                code="not_representable",
                hint="only models with a byte-level BPE, GPT-2's kind, can be exported as GGUF",
            )
        added = {token["id"]: token for token in table.get("added_tokens") or []}
        ids: dict[str, int] = table["model"]["vocab"]
        spelled = {number: token for token, number in ids.items()}
        spelled |= {number: token["content"] for number, token in added.items()}
        types = [
            NORMAL if n not in added else CONTROL if added[n].get("special") else WORD
            for n in range(len(spelled))
        ]
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in table["model"]["merges"]
        ]
        return cls(
            tokens=[spelled[number] for number in range(len(spelled))],
            types=types,
            merges=merges,
            eot_id=len(spelled) - 1 if eot_id is None else eot_id,
        )


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    config: ModelConfig,
    vocabulary: GgufVocabulary,
    *,
    name: str,
    precision: GgufPrecision = "fp32",
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model to a GGUF file, whole or not at all, one tensor in memory at a time.

    `tensors` are the model's, by its own names; rows that pad the vocabulary are left out. `name`
    is the model's name in the file. `on_tensor` is called with the bytes written and those of all
    tensors. Raises UsageError if llama.cpp has no such architecture, or for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}",
            field="precision",
            code="unknown_value",
            hint=nearest(precision, PRECISIONS),
        )
    if (kind := model_type(config)) != GPT2:
        reason = (
            "layers with banded attention" if config.norm == "pre" else "LayerNorm after sub-blocks"
        )
        raise UsageError(
            f"llama.cpp cannot run a GPT with {reason} ({kind})",
            code="not_representable",
            hint="only dense models of GPT-2's kind can be exported as GGUF",
        )
    shapes = _shapes(config, len(vocabulary.tokens))
    kinds = {
        name: precision if len(shape) == 2 and name != "wpe.weight" else "fp32"
        for name, shape in shapes.items()
    }
    sizes = {name: math.prod(shapes[name]) * DTYPES[kinds[name]].itemsize for name in shapes}
    with atomic_write(path) as file:
        properties = _properties(config, vocabulary, name, FILE_TYPES[precision])
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(properties)))
        for key, (kind_id, value) in properties.items():
            file.write(_string(key) + struct.pack("<I", kind_id) + _value(kind_id, value))
        offset = 0
        for tensor, shape in shapes.items():
            file.write(_string(_gguf_name(tensor)) + struct.pack("<I", len(shape)))
            file.write(struct.pack(f"<{len(shape)}Q", *reversed(shape)))
            file.write(struct.pack("<IQ", TENSOR_TYPES[kinds[tensor]], offset))
            offset += _aligned(sizes[tensor])
        _pad(file)
        done = 0
        for tensor, shape in shapes.items():
            stored = qkv_rows_to_hf(tensor, tensors[tensor].detach(), config)[: shape[0]]
            stored = stored.to(DTYPES[kinds[tensor]]).contiguous()
            file.write(stored.view(torch.uint8).numpy().data)
            _pad(file)
            done += sizes[tensor]
            if on_tensor is not None:
                on_tensor(done, sum(sizes.values()))


def _shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's tensors, in the order of the file."""
    C, F = config.d_model, config.d_ff
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocab_size, C),
        "wpe.weight": (config.n_ctx, C),
    }
    sizes = {
        "ln_1": (C, None),
        "attn.c_attn": (3 * C, C),
        "attn.c_proj": (C, C),
        "ln_2": (C, None),
        "mlp.c_fc": (F, C),
        "mlp.c_proj": (C, F),
    }
    for layer in range(config.n_layer):
        for name, (rows, columns) in sizes.items():
            shapes[f"h.{layer}.{name}.weight"] = (rows,) if columns is None else (rows, columns)
            shapes[f"h.{layer}.{name}.bias"] = (rows,)
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return shapes if config.tied else {**shapes, HEAD: (vocab_size, C)}


def _gguf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{OF_LAYER[part]}.{kind}"


def _properties(
    config: ModelConfig, vocabulary: GgufVocabulary, name: str, file_type: int
) -> dict[str, tuple[int, Any]]:
    """Return the properties of the file, each with its type."""
    return {
        "general.architecture": (STRING, GPT2),
        "general.name": (STRING, name),
        "general.file_type": (UINT32, file_type),
        "gpt2.block_count": (UINT32, config.n_layer),
        "gpt2.context_length": (UINT32, config.n_ctx),
        "gpt2.embedding_length": (UINT32, config.d_model),
        "gpt2.feed_forward_length": (UINT32, config.d_ff),
        "gpt2.attention.head_count": (UINT32, config.n_head),
        "gpt2.attention.layer_norm_epsilon": (FLOAT32, NORM_EPS),
        "tokenizer.ggml.model": (STRING, GPT2),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, vocabulary.tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, vocabulary.types)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, vocabulary.merges)),
        "tokenizer.ggml.bos_token_id": (UINT32, vocabulary.eot_id),
        "tokenizer.ggml.eos_token_id": (UINT32, vocabulary.eot_id),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
    }


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        element, values = value
        head = struct.pack("<IQ", element, len(values))
        return head + b"".join([_value(element, one) for one in values])
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: IO[bytes]) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
