"""Model files of other programs, read as they are.

    ckpt.pt             nanoGPT: a pickle with the weights, `model_args` and the optimizer's state
    gpt2_124M.bin       llm.c: a header of 256 int32, then all tensors end to end
    pytorch_model.bin   transformers' older weights, next to a config.json

Pickles can contain code. PyTorch's restricted reader (`weights_only`) loads tensors, numbers and
texts from them, and refuses everything else without running it.

nanoGPT's linear layers are stored as [out, in] and need no transposition; the rows of c_attn are
(3, H, D) as in GPT-2. Its GELU is the exact one, and layers without biases are read as layers whose
biases are 0. llm.c's header contains: magic 20240326; version 3 (fp32) or 5 (bf16); n_ctx;
vocabulary; layers; heads; width; rows of the token embedding, which are padded to a multiple of
128.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import InputError, UsageError, message_of
from gptcli.files import find_nanogpt_meta
from gptcli.model.config import ModelConfig
from gptcli.model.hf import BUFFERS, HEAD, Tensors, qkv_rows_from_hf
from gptcli.model.hub import TOKENIZER
from gptcli.model.source import LLMC_MODEL
from gptcli.numbers import counted

if TYPE_CHECKING:
    import torch

COMPILED = "_orig_mod."
"""Prefix of the names in a model that went through torch.compile."""
NANOGPT_NAMES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "n_ctx": "block_size",
    "vocab_size": "vocab_size",
}
BYTES = 256
"""Entries that every byte-level vocabulary has."""
LLMC_HEADER = 256
"""Number of int32 in the header of llm.c's files."""
LLMC_DTYPES = {3: "float32", 5: "bfloat16"}
"""Type of the numbers by the version in the header."""
LLMC_ORDER = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
    *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
"""Tensors of a layer in llm.c's order; each is stored for all layers before the next."""


def read_file_config(path: Path) -> ModelConfig:
    """Return the architecture in a checkpoint of nanoGPT (.pt) or llm.c (.bin).

    Raises InputError if the file is neither, or its model cannot be represented.
    """
    if path.suffix == ".bin":
        return _llmc_header(path)[0]
    return _nanogpt(path)[0]


def read_file_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights in a checkpoint of nanoGPT or llm.c, by the model's names and layouts.

    The file is mapped into memory, not read as a whole. Raises InputError as `read_file_config`
    does, or if the file is cut short.
    """
    if path.suffix == ".bin":
        config, stored = _read_llmc(path)
    else:
        config, stored = _nanogpt(path)
    for name, tensor in stored.items():
        yield name, qkv_rows_from_hf(name, tensor, config)


def read_pickle(path: Path) -> Any:
    """Return the tensors, numbers and texts in a file of `torch.save`, mapped into memory.

    Raises InputError if the file is broken, or contains anything else, which is not run.
    """
    import torch

    with open(path, "rb") as file:
        in_zip = file.read(2) == b"PK"
    try:
        # older files have another form, which cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except OSError:
        raise
    except Exception as error:
        reason = message_of(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "weights_only" in reason:
            what = (
                "contains more than tensors, numbers and texts: it could run code, and is refused"
            )
            hint = "if you trust it, load it with the program that wrote it, and save its tensors alone"
        else:
            what = f"not a readable file of torch.save: {next(iter(reason.splitlines()), '')}"
            hint = "copy or download it again"
        raise InputError(what, where=path, hint=hint) from None


def _nanogpt(path: Path) -> tuple[ModelConfig, Tensors]:
    """Return architecture and tensors of a checkpoint of nanoGPT, by the model's names."""
    import torch

    table = read_pickle(path)
    args = table.get("model_args") if isinstance(table, dict) else None
    stored = table.get("model") if isinstance(table, dict) else None
    if not isinstance(args, dict) or not isinstance(stored, dict):
        raise InputError(
            "not a checkpoint of nanoGPT: it has no model_args and model",
            where=path,
            hint="load it with the program that wrote it, copy its weights into transformers' "
            "GPT2LMHeadModel, and call its save_pretrained(FOLDER)",
        )
    if unknown := sorted(args.keys() - {*NANOGPT_NAMES.values(), "bias", "dropout"}):
        raise InputError(
            f"model_args has {unknown[0]!r}: a changed nanoGPT, whose architecture is not GPT-2's",
            where=path,
        )
    tensors = {
        str(name).removeprefix(COMPILED).removeprefix("transformer."): tensor
        for name, tensor in stored.items()
        if isinstance(tensor, torch.Tensor)
    }
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    try:
        sizes = {ours: args[theirs] for ours, theirs in NANOGPT_NAMES.items()}
        if any(type(size) is not int for size in sizes.values()):
            raise ValueError(sizes)
        config = ModelConfig(
            **sizes,
            dropout=float(args.get("dropout", 0.0)),
            gelu="exact",
            tied=not {HEAD, "wte.weight"} <= tensors.keys()
            or torch.equal(tensors[HEAD], tensors["wte.weight"]),
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        reason = error.what if isinstance(error, UsageError) else repr(error)
        raise InputError(f"model_args does not describe a model: {reason}", where=path) from None
    if not has_characters(path):
        _check_vocabulary(config, path)
    if config.tied:
        tensors.pop(HEAD, None)
    if not args.get("bias", True):
        tensors |= {
            name.removesuffix("weight") + "bias": tensor.new_zeros(len(tensor))
            for name, tensor in tensors.items()
            if name.startswith(("h.", "ln_f."))
        }
    return config, tensors


def has_characters(path: Path) -> bool:
    """Return whether a checkpoint of nanoGPT has a vocabulary of its own next to it."""
    return (path.parent / TOKENIZER).is_file() or find_nanogpt_meta(path) is not None


def _check_vocabulary(config: ModelConfig, path: Path) -> None:
    """Raise InputError for a vocabulary that no byte-level BPE can have, and whose characters are
    not known.
    """
    if config.vocab_size < BYTES:
        raise InputError(
            f"has a vocabulary of {counted(config.vocab_size, 'character')}, and there is no "
            "meta.pkl that "
            "names them",
            where=path,
            hint="copy it next to the checkpoint, from the data that nanoGPT was trained on:\n"
            f"  cp data/shakespeare_char/meta.pkl {path.parent}",
        )


def _llmc_header(path: Path) -> tuple[ModelConfig, int, str]:
    """Return architecture, rows of the token embedding and type of a checkpoint of llm.c."""
    with open(path, "rb") as file:
        head = file.read(4 * LLMC_HEADER)
    numbers = [
        int.from_bytes(head[at : at + 4], "little", signed=True) for at in range(0, len(head), 4)
    ]
    if len(numbers) < LLMC_HEADER or numbers[0] != LLMC_MODEL:
        raise InputError("not a checkpoint of llm.c", where=path)
    _, version, n_ctx, vocab_size, n_layer, n_head, d_model, rows = numbers[:8]
    if version not in LLMC_DTYPES:
        raise InputError(
            f"is version {version} of llm.c's format; versions 3 (fp32) and 5 (bf16) are supported",
            where=path,
            hint="write it again with a newer train_gpt2.py of llm.c",
        )
    config = None
    with contextlib.suppress(UsageError):
        config = ModelConfig(
            n_layer=n_layer, n_head=n_head, d_model=d_model, n_ctx=n_ctx, vocab_size=vocab_size
        )
    if config is None or rows < vocab_size:
        raise InputError("the header does not describe a model", where=path)
    _check_vocabulary(config, path)
    return config, rows, LLMC_DTYPES[version]


def _read_llmc(path: Path) -> tuple[ModelConfig, Tensors]:
    """Return architecture and tensors of a checkpoint of llm.c, mapped into memory."""
    import torch

    config, rows, type_name = _llmc_header(path)
    dtype = getattr(torch, type_name)
    L, C, F = config.n_layer, config.d_model, config.d_ff
    of_layer: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"), (C,)),
        "attn.c_attn.weight": (3 * C, C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "mlp.c_fc.weight": (F, C),
        "mlp.c_fc.bias": (F,),
        "mlp.c_proj.weight": (C, F),
        "mlp.c_proj.bias": (C,),
    }
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("wte.weight", (rows, C)),
        ("wpe.weight", (config.n_ctx, C)),
        *((f"h.{layer}.{name}", of_layer[name]) for name in LLMC_ORDER for layer in range(L)),
        *(("ln_f.weight", (C,)), ("ln_f.bias", (C,))),
    ]
    needed = 4 * LLMC_HEADER + dtype.itemsize * sum(math.prod(shape) for _, shape in shapes)
    if (size := path.stat().st_size) != needed:
        state = "is cut short" if size < needed else "is too long"
        raise InputError(
            f"the file {state}: it has {size:,} bytes, and its header requires {needed:,}",
            where=path,
            hint="copy or download it again",
        )
    at = 4 * LLMC_HEADER // dtype.itemsize
    numbers = torch.from_file(str(path), shared=False, size=needed // dtype.itemsize, dtype=dtype)
    tensors = {}
    for name, shape in shapes:
        count = math.prod(shape)
        tensors[name] = numbers[at : at + count].view(shape)
        at += count
    tensors["wte.weight"] = tensors["wte.weight"][: config.vocab_size]
    return config, tensors
