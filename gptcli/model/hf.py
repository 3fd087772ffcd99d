"""Conversion of weights to and from the files of GPT-2 and GPT-1 (transformers, OpenAI's release).

The files use the released names under `transformer.`. They store the four matrices of a block as
[in, out] (the release's Conv1D) and the rows of c_attn as (3, H, D): all queries, then all keys,
then all values. The model has them as [out, in] and (H, 3, D). A tied head is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch

from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.model.config import ModelConfig
from gptcli.model.hf_config import RELEASED_SHAPES

Tensors = dict[str, torch.Tensor]
Read = Callable[[str], torch.Tensor]
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
