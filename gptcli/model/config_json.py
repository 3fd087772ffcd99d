"""config.json: a model's shape in the words of transformers. Imports no torch, so that `gpt cost RUN` stays quick.

A banded model has no GPT-2 equivalent: its file names a model type of its own, so that nothing loads it as dense by mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.config import NORM_EPS, ModelConfig

CONFIG = "config.json"
BANDED = "gpt3-banded"


def to_transformers(config: ModelConfig, eot_id: int) -> dict[str, Any]:
    """`config` in the words of transformers' GPT2Config."""
    dense = config.attention == "dense"
    return {
        "architectures": ["GPT2LMHeadModel" if dense else "GPT"],
        "model_type": "gpt2" if dense else BANDED,
        **({} if dense else {"attention": config.attention, "band": config.band}),
        "vocab_size": config.vocab_size,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tied,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": "float32",
    }


def read_model_config(folder: Path) -> ModelConfig:
    """The architecture of a run folder or a transformers GPT-2 folder. Raises InputError where it is another model."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError("no config.json here", where=folder, hint="name a finished run folder or a transformers GPT-2 folder")
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError("not a model configuration: expected a JSON object", where=path)
    kind = table.get("model_type", "gpt2")
    if kind not in ("gpt2", BANDED):
        raise InputError(f"a {kind!r} model is not of this family", where=path, hint="GPT-2 and GPT-3 models can be read")
    names = {"n_layer": "n_layer", "n_head": "n_head", "d_model": "n_embd", "n_ctx": "n_positions", "vocab_size": "vocab_size"}
    missing = [theirs for theirs in names.values() if not isinstance(table.get(theirs), int)]
    if missing:
        raise InputError(f"no whole number under {missing[0]!r}", where=path)
    for key, ours in {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (NORM_EPS,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": (None, 4 * table["n_embd"]),
    }.items():
        if key in table and table[key] not in ours:
            raise InputError(f"{key} is {table[key]!r}: GPT-2's is {ours[-1]!r}, and no other is built", where=path)
    return ModelConfig(
        **{ours: table[theirs] for ours, theirs in names.items()},
        attention="banded" if kind == BANDED else "dense",
        band=table.get("band", 256),
        tied=table.get("tie_word_embeddings", True),
        dropout=float(table.get("resid_pdrop", 0.0)),
    )
