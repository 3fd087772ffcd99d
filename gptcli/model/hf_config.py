"""config.json: model configurations of transformers.

    gpt2          pre-norm, dense: GPT-2
    openai-gpt    post-norm, dense: GPT-1
    gpt_neo       pre-norm, with banded layers: GPT-3 (see `gptcli.model.gpt_neo`)

OpenAI's release of GPT-1 has no config.json; its params_shapes.json contains the same information.
Imports no torch, so that `gpt cost RUN` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.not_a_model import not_a_model_error
from gptcli.model.source import CONFIG

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


def model_type(config: ModelConfig) -> str:
    """Return the model type of transformers that computes the same function."""
    if config.norm == "post":
        return GPT1
    return GPT2 if config.attention == "dense" else NEO


def to_transformers(config: ModelConfig, eot_id: int) -> dict[str, Any]:
    """Return the config.json of a model; `eot_id` starts and ends its texts."""
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
        # GPT-1's name for the tanh form is "gelu"
        ACTIVATION[kind]: "gelu" if kind == GPT1 else "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        **dict.fromkeys(DROPOUTS[kind], config.dropout),
        "tie_word_embeddings": config.tied,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }


def read_model_config(folder: Path) -> ModelConfig:
    """Return the architecture of a run folder, a transformers folder, or OpenAI's GPT-1 release.

    Raises InputError if the folder contains no model, or a model of another family.
    """
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
            f"tie_word_embeddings is {tied!r} and {DROPOUTS[kind][0]} is {dropout!r}; they must be "
            "true or false, and a number",
            where=path,
        )
    shape = {ours: table[theirs] for ours, theirs in NAMES[kind].items()}
    for key, known in {
        ACTIVATION[kind]: ("gelu", "gelu_new")
        if kind == GPT1
        else ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (NORM_EPS,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": (None, 4 * shape["d_model"]),
        "intermediate_size": (None, 4 * shape["d_model"]),
    }.items():
        if key in table and table[key] not in known:
            raise InputError(
                f"{key} is {table[key]!r}; only GPT's value {known[-1]!r} is supported",
                where=path,
            )
    return ModelConfig(
        **shape,
        attention=_pattern(table, shape["n_layer"], path) if kind == NEO else "dense",
        norm="post" if kind == GPT1 else "pre",
        tied=tied,
        dropout=float(dropout),
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
            f"models of type {kind!r} are not supported",
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
                f"attention_types does not describe {n_layer} layers, the value of num_layers",
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
