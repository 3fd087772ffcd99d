"""Model folders of transformers and OpenAI: config.json, and the names and layouts of weights.

    gpt2          pre-norm, dense: GPT-2
    openai-gpt    post-norm, dense: GPT-1
    gpt_neo       pre-norm, with banded layers: GPT-3 (see `gptcli.model.gpt_neo`)

The weights of GPT-2 and GPT-1 have the released names under `transformer.`. The files store the
four matrices of a block as [in, out] (the release's Conv1D) and the rows of c_attn as (3, H, D):
all queries, then all keys, then all values. The model has them as [out, in] and (H, 3, D). A tied
head is stored once. OpenAI's release of GPT-1 has no config.json; its params_shapes.json contains
the same information.

Imports no torch, so that `gpt cost RUN` stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, TypeAlias

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.source import CONFIG, is_model_file, not_a_model_error
from gptcli.numbers import counted
from gptcli.toml_json import shown

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"
Read: TypeAlias = "Callable[[str], torch.Tensor]"
RELEASED_SHAPES = "params_shapes.json"
GPT2, GPT1, NEO = "gpt2", "openai-gpt", "gpt_neo"
_GPT2_NAMES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "n_ctx": "n_positions",
    "vocab_size": "vocab_size",
}
NAMES = {  # ModelConfig -> config.json
    GPT2: _GPT2_NAMES,
    GPT1: _GPT2_NAMES,
    NEO: {
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "d_model": "hidden_size",
        "n_ctx": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "band": "window_size",
    },
}
CLASSES = {GPT2: "GPT2LMHeadModel", GPT1: "OpenAIGPTLMHeadModel", NEO: "GPTNeoForCausalLM"}
ACTIVATION = {GPT2: "activation_function", GPT1: "afn", NEO: "activation_function"}
DROPOUTS = {
    GPT2: ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    GPT1: ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    NEO: ("resid_dropout", "embed_dropout", "attention_dropout"),
}
MAX_SIZE = 1 << 28
"""Largest size accepted from a file; products of two of them fit into 64 bits."""
PADDINGS = tuple(2**n for n in range(3, 11))
"""Multiples to which vocabularies are padded; 50,304 is a multiple of 128."""
MAX_ADDED_ROWS = 64
"""Number of rows, exclusive, that programs add to a vocabulary for special tokens."""
KINDS = {"dense": "global", "banded": "local"}
"""Attention kinds of ModelConfig and GPT-Neo's names for them."""
HEAD = "lm_head.weight"
CONV1D_WEIGHTS = (
    "attn.c_attn.weight",
    "attn.c_proj.weight",
    "mlp.c_fc.weight",
    "mlp.c_proj.weight",
)
BUFFERS = (".attn.bias", ".attn.masked_bias", "position_ids")
"""Endings of buffers in old files, which are skipped."""
GPT1_NAMES = {"wte.weight": "tokens_embed.weight", "wpe.weight": "positions_embed.weight"}
RELEASED_BLOCK = (  # tensors of a layer in the order of OpenAI's GPT-1 release
    *(f"attn.{layer}.{part}" for layer in ("c_attn", "c_proj") for part in ("weight", "bias")),
    *("ln_1.weight", "ln_1.bias"),
    *(f"mlp.{layer}.{part}" for layer in ("c_fc", "c_proj") for part in ("weight", "bias")),
    *("ln_2.weight", "ln_2.bias"),
)
RELEASED_PARTS = 10
"""Number of params_N.npy files in the release."""


def model_type(config: ModelConfig) -> str:
    """Return the model type of transformers that computes the same function."""
    if config.norm == "post":
        return GPT1
    return GPT2 if config.attention == "dense" else NEO


def to_transformers(config: ModelConfig, eot_id: int | None) -> dict[str, Any]:
    """Return the config.json of a model; `eot_id` starts and ends its texts, if there is such."""
    kind = model_type(config)
    table: dict[str, Any] = {"architectures": [CLASSES[kind]], "model_type": kind}
    table |= {theirs: getattr(config, ours) for ours, theirs in NAMES[kind].items()}
    if kind == GPT2:
        # also in OpenAI's config.json, and required by llama.cpp's converter
        table["n_ctx"] = config.n_ctx
    if kind == NEO:
        layers = [
            KINDS["dense" if config.band_of(layer) is None else "banded"]
            for layer in range(config.n_layer)
        ]
        table |= {
            "attention_types": [[[layer], 1] for layer in layers],
            "attention_layers": layers,
            "intermediate_size": config.d_ff,
        }
    return table | {
        # GPT-1's name for the tanh form is "gelu", the others' for the exact form
        ACTIVATION[kind]: "gelu" if kind == GPT1 or config.gelu == "exact" else "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        **dict.fromkeys(DROPOUTS[kind], config.dropout),
        "tie_word_embeddings": config.tied,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }


def read_model_config(folder: Path) -> ModelConfig:
    """Return the architecture of a run folder, a transformers folder, OpenAI's GPT-1 release, or a
    file of nanoGPT or llm.c.

    Raises InputError if the folder contains no model, or a model of another family.
    """
    if is_model_file(Path(folder)):
        from gptcli.model.external import read_file_config  # which is built on this module

        return read_file_config(Path(folder))
    path = Path(folder) / CONFIG
    if not path.is_file():
        if (Path(folder) / RELEASED_SHAPES).is_file():
            return _released_config(Path(folder) / RELEASED_SHAPES)
        raise not_a_model_error(folder)
    table, kind = _table(path)
    missing = [theirs for theirs in NAMES[kind].values() if not _is_size(table.get(theirs))]
    if missing:
        raise InputError(
            f"{missing[0]!r} is missing or not an integer from 1 to {MAX_SIZE:,}", where=path
        )
    tied, dropout = table.get("tie_word_embeddings", True), table.get(DROPOUTS[kind][0], 0.0)
    if not isinstance(tied, bool) or not isinstance(dropout, int | float):
        raise InputError(
            f"tie_word_embeddings is {shown(tied)} and {DROPOUTS[kind][0]} is "
            f"{shown(dropout)}; they must be "
            "true or false, and a number",
            where=path,
        )
    shape = {ours: table[theirs] for ours, theirs in NAMES[kind].items()}
    for key, known in {
        ACTIVATION[kind]: ("gelu", "gelu_new")
        if kind == GPT1
        else ("gelu", "gelu_pytorch_tanh", "gelu_new"),
        "layer_norm_epsilon": (NORM_EPS,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": (None, 4 * shape["d_model"]),
        "intermediate_size": (None, 4 * shape["d_model"]),
    }.items():
        if key in table and table[key] not in known:
            raise InputError(
                f"{key} is {shown(table[key])}; only GPT's value {shown(known[-1])} is supported",
                where=path,
            )
    return ModelConfig(
        **shape,
        attention=_pattern(table, shape["n_layer"], path) if kind == NEO else "dense",
        norm="post" if kind == GPT1 else "pre",
        tied=tied,
        dropout=float(dropout),
        gelu="exact" if kind != GPT1 and table.get(ACTIVATION[kind]) == "gelu" else "tanh",
    )


def is_padded(rows: int, entries: int) -> bool:
    """Return whether a vocabulary of `rows` is that of a tokenizer with `entries`, plus padding.

    It is if `rows` is the next multiple of a power of two from 8 to 1,024, as in nanoGPT (50,304),
    llm.c and Megatron, or if fewer than MAX_ADDED_ROWS rows are added. Otherwise model and
    tokenizer do not belong together.
    """
    return entries < rows and (
        rows - entries < MAX_ADDED_ROWS
        or any(rows == -(-entries // size) * size for size in PADDINGS)
    )


def read_model_type(folder: Path) -> str:
    """Return the model type in a folder's config.json: GPT2, GPT1 or NEO.

    Raises InputError as `read_model_config` does.
    """
    return _table(Path(folder) / CONFIG)[1]


def _table(path: Path) -> tuple[dict[str, Any], str]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError("not a model configuration: a JSON object is expected", where=path)
    kind = table.get("model_type", GPT2)
    if not isinstance(kind, str) or kind not in NAMES:
        raise InputError(
            f"models of type {shown(kind)} are not supported",
            where=path,
            hint="use a GPT-1, GPT-2, GPT-3 or GPT-Neo model",
        )
    return table, kind


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIZE


def _pattern(table: dict[str, Any], n_layer: int, path: Path) -> str:
    """Return the shortest attention pattern that the layers of a GPT-Neo repeat."""
    try:
        repeats = [(kinds, times) for kinds, times in table["attention_types"]]
        # checked before a list of this length is made
        if sum(len(kinds) * times for kinds, times in repeats) != n_layer:
            raise InputError(
                f"attention_types does not describe {counted(n_layer, 'layer')}, the value of "
                "num_layers",
                where=path,
            )
        layers = [kind for kinds, times in repeats for _ in range(times) for kind in kinds]
        ours = [{theirs: kind for kind, theirs in KINDS.items()}[layer] for layer in layers]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            'attention_types must be a list such as [[["global", "local"], 6]]',
            where=path,
        ) from None
    period = next(n for n in range(1, n_layer + 1) if ours == (ours[:n] * n_layer)[:n_layer])
    # "banded" alone means dense and banded layers in turn
    pattern = ours[:period] if period > 1 or ours[0] == "dense" else ours[:1] * 2
    return "banded" if pattern == ["dense", "banded"] else ",".join(pattern)


def _released_config(path: Path) -> ModelConfig:
    shapes = read_json(path)
    try:
        (n_ctx, d_model), (vocab_size, _) = shapes[:2]
        n_layer, rest = divmod(len(shapes) - 2, 12)
        if not all(map(_is_size, (n_ctx, d_model, vocab_size))):
            raise ValueError(shapes)
    except (TypeError, ValueError):
        raise InputError(
            "not the shapes of GPT-1: positions, tokens and 12 tensors per layer are expected",
            where=path,
        ) from None
    if rest:
        raise InputError(
            f"{len(shapes)} shapes cannot be those of GPT-1: positions, tokens and 12 per layer",
            where=path,
        )
    return ModelConfig(
        n_layer=n_layer,
        n_head=d_model // 64,  # as in the only model released
        d_model=d_model,
        n_ctx=n_ctx,
        vocab_size=vocab_size,
        norm="post",
        dropout=0.1,
    )


def to_hf(
    names: Iterable[str], read: Read, config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors `names` of a model as those of GPT-2, or of GPT-1 if it is post-norm.

    Each is loaded by `read` only when it is converted, and yielded in fp32.
    """
    for name in names:
        if name == HEAD:
            if not config.tied:
                yield name, read(name).detach().float().contiguous()
            continue
        tensor = qkv_rows_to_hf(name, read(name).detach().float(), config)
        theirs = GPT1_NAMES.get(name, name) if config.norm == "post" else name
        yield (
            f"transformer.{theirs}",
            (tensor.T if name.endswith(CONV1D_WEIGHTS) else tensor).contiguous(),
        )


def from_hf(
    stored: Mapping[str, torch.Tensor], config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield stored tensors under the model's names and in its layout, the inverse of `to_hf`.

    Unknown tensors keep their names.
    """
    ours = {theirs: name for name, theirs in GPT1_NAMES.items()} if config.norm == "post" else {}
    for name, tensor in stored.items():
        name = name.removeprefix("transformer.")
        name = ours.get(name, name)
        if not name.endswith(BUFFERS):
            yield (
                name,
                qkv_rows_from_hf(
                    name,
                    tensor.T if name.endswith(CONV1D_WEIGHTS) and tensor.ndim == 2 else tensor,
                    config,
                ),
            )


def read_release(folder: Path, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of GPT-1 from OpenAI's release.

    params_0.npy to params_9.npy contain all numbers end to end; params_shapes.json contains the
    shapes. Raises InputError if the files are missing or do not match.
    """
    import numpy as np
    import torch

    shapes = read_json(folder / RELEASED_SHAPES)
    parts = []
    for number in range(RELEASED_PARTS):
        path = folder / f"params_{number}.npy"
        try:
            # maps at most the size of the file, and unpickles nothing
            with np.errstate(over="raise"):
                parts.append(np.lib.format.open_memmap(path, mode="r").ravel())
        except FileNotFoundError:
            raise InputError(
                f"{path.name} is missing",
                where=folder,
                hint="the release consists of params_shapes.json and params_0.npy to params_9.npy",
            ) from None
        except (
            ValueError,
            ArithmeticError,
            SyntaxError,
            TokenError,
        ) as error:  # numpy parses the header as Python
            raise InputError(f"not a readable array: {error}", where=path) from None
    if any(part.dtype.kind != "f" for part in parts):
        raise InputError("the arrays do not contain floating-point numbers", where=folder)
    try:
        numbers, sizes = np.concatenate(parts), [math.prod(shape) for shape in shapes]
        if len(numbers) != sum(sizes):
            raise InputError(
                f"the files contain {len(numbers):,} numbers; the shapes require {sum(sizes):,}",
                where=folder,
            )
        arrays = [
            part.reshape(shape)
            for part, shape in zip(np.split(numbers, np.cumsum(sizes)[:-1]), shapes, strict=True)
        ]
    except (TypeError, ValueError, OverflowError):
        raise InputError("not the shapes of tensors", where=folder / RELEASED_SHAPES) from None
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [f"h.{layer}.{name}" for layer in range(config.n_layer) for name in RELEASED_BLOCK]
    # a matrix is stored as a convolution kernel of width 1: [1, in, out]
    stored = {
        name: torch.from_numpy(array[0] if array.ndim == 3 else array)
        for name, array in zip(names, arrays, strict=True)
    }
    return from_hf(stored, config)


def qkv_rows_to_hf(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return c_attn with its rows reordered from (H, 3, D) to (3, H, D), or any other tensor."""
    if ".c_attn." not in name:
        return tensor
    return tensor.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def qkv_rows_from_hf(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return c_attn with its rows reordered from (3, H, D) to (H, 3, D), or any other tensor.

    A tensor whose shape does not fit the model is returned unchanged.
    """
    if ".c_attn." not in name or len(tensor) != 3 * config.d_model:
        return tensor
    return tensor.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)
