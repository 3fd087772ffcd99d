"""Our tensors under the names and in the order of rows that GPT-2's and GPT-1's files have.

On disk: released names under `transformer.`, the four block matrices stored [in, out] (the
release's Conv1D), all queries before all keys before all values, where our rows go head after head;
a tied head is stored once.
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
BUFFERS = (".attn.bias", ".attn.masked_bias", "position_ids")  # that old files carry
GPT1_NAMES = {"wte.weight": "tokens_embed.weight", "wpe.weight": "positions_embed.weight"}
RELEASED_BLOCK = (  # GPT-1's tensors of a layer, in the order of its file
    "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias", "ln_1.weight", "ln_1.bias",
    "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias",
)  # fmt: skip
RELEASED_PARTS = 10


def to_hf(
    names: Iterable[str], read: Read, config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors of these names as GPT-2's file has them, or GPT-1's where the model is post-norm;
    fp32. Each is `read` in its turn.
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
    """The other way, each in its turn. Tensors that have no place in the model keep their names."""
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
    """GPT-1 as OpenAI released it: all numbers end to end in params_0.npy to params_9.npy, cut by
    the shapes of params_shapes.json.
    """
    shapes = read_json(folder / RELEASED_SHAPES)
    parts = []
    for number in range(RELEASED_PARTS):
        path = folder / f"params_{number}.npy"
        try:
            # maps no more than the file holds, and unpickles nothing
            with np.errstate(over="raise"):
                parts.append(np.lib.format.open_memmap(path, mode="r").ravel())
        except FileNotFoundError:
            raise InputError(
                f"no {path.name} here",
                where=folder,
                hint="the release is params_shapes.json and params_0 to 9.npy",
            ) from None
        except (
            ValueError,
            ArithmeticError,
            SyntaxError,
            TokenError,
        ) as error:  # numpy reads its header as Python's words
            raise InputError(f"not a readable array: {error}", where=path) from None
    if any(part.dtype.kind != "f" for part in parts):
        raise InputError("its arrays are not of floating-point numbers", where=folder)
    try:
        numbers, sizes = np.concatenate(parts), [math.prod(shape) for shape in shapes]
        if len(numbers) != sum(sizes):
            raise InputError(
                f"holds {len(numbers):,} numbers, the shapes say {sum(sizes):,}", where=folder
            )
        arrays = [
            part.reshape(shape)
            for part, shape in zip(np.split(numbers, np.cumsum(sizes)[:-1]), shapes, strict=True)
        ]
    except (TypeError, ValueError, OverflowError):
        raise InputError("not the shapes of tensors", where=folder / RELEASED_SHAPES) from None
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [f"h.{layer}.{name}" for layer in range(config.n_layer) for name in RELEASED_BLOCK]
    # a matrix is a convolution's kernel of width 1: [1, in, out]
    stored = {
        name: torch.from_numpy(array[0] if array.ndim == 3 else array)
        for name, array in zip(names, arrays, strict=True)
    }
    return from_hf(stored, config)


def qkv_rows_to_hf(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The rows of c_attn as GPT-2 has them, (3, H, D), from ours, (H, 3, D); any other tensor as it
    is.
    """
    if ".c_attn." not in name:
        return tensor
    return tensor.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def qkv_rows_from_hf(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The other way; a tensor of another shape, which does not fit the model, as it is."""
    if ".c_attn." not in name or len(tensor) != 3 * config.d_model:
        return tensor
    return tensor.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)
