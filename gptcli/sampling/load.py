"""Load a model and its tokenizer for inference: device, precision, and fast linear layers.

Decoding multiplies few rows by large weights. Such products go to a kernel if one is installed
(`linear_fn`, see `gptcli.kernels`), together with a GELU that follows; everything else goes to
PyTorch. Int8 quantization is weight-only: the weights of each output are rounded to 255 steps of
the largest of them.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli import optional_kernels
from gptcli.devices import check_apple_gpu, find_device, has_bf16
from gptcli.errors import InputError, UsageError, nearest
from gptcli.events import SILENT, Events
from gptcli.model.hf import is_padded
from gptcli.model.hub import fetch_model
from gptcli.model.safetensors_io import open_model
from gptcli.model.source import (
    FINETUNE_REPORT,
    PICKLES,
    RUN_TOML,
    ModelSource,
    find_model,
    is_model_file,
    not_a_model_error,
)
from gptcli.model.transformer import GPT, MLP, Block
from gptcli.numbers import counted
from gptcli.openmp import watch_spinning
from gptcli.runtime import (
    disable_malloc_trim,
    has_fast_bf16,
    set_cuda_arithmetic,
    warm_up_vector_math,
)
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer

InferencePrecision = Literal["fp32", "bf16"]
PrecisionChoice = Literal["auto", InferencePrecision]
PRECISIONS: dict[InferencePrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
Quantize = Literal["none", "int8"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
FEW_ROWS = 16
"""Rows up to which compiled int8 products are sums over weights that are read once."""
WIDENED_ROWS = 128
"""Rows from which a weight in bf16 is converted where the processor multiplies fp32 faster."""
INT8_MAX = 127
"""Largest magnitude of a quantized weight."""

LinearFn = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, bool],
    torch.Tensor | None,
]
"""Type of a kernel: (x, weight_NK, scale_N, bias_N, gelu) -> output, or None for PyTorch's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Model with its tokenizer and the settings it was loaded with."""

    model: GPT
    """Model, ready for inference."""
    tokenizer: Tokenizer
    """Tokenizer of the model."""
    device: torch.device
    """Device of the weights."""
    precision: InferencePrecision
    """Data type of the weights, "fp32" or "bf16"."""
    source: ModelSource
    """Folder, and checkpoint if any, that the weights were read from."""


def load(
    folder: Path,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "auto",
    quantize: Quantize = "none",
    events: Events = SILENT,
) -> Loaded:
    """Load the model and tokenizer of a run, a transformers folder, a file of nanoGPT or llm.c, or
    a name on the Hub, which is downloaded if it is not in the Hub's cache.

    A fine-tuned run gives its language model. An unfinished run gives its newest checkpoint, any
    run the one of step `checkpoint` if that is set; `events` reports which. Device "auto" is the
    first CUDA GPU, or else an Apple GPU, or else the CPU; precision "auto" is bf16 on a CUDA GPU
    that supports it, or else fp32. Padding of the vocabulary is removed. `quantize` is "none" or
    "int8", for the weights. Raises UsageError if the device or precision is not available,
    InputError if the folder is not a complete model.
    """
    where = find_device(device)
    if where.type == "cpu":
        warm_up_vector_math()
        watch_spinning()
    elif where.type == "cuda":
        set_cuda_arithmetic(training=False)
    if precision == "auto":
        precision = "bf16" if where.type == "cuda" and has_bf16("cuda") else "fp32"
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}", hint=nearest(precision, ["auto", *PRECISIONS])
        )
    if where.type == "mps":
        check_apple_gpu(precision=precision, quantize=quantize)
    fetch_model(folder, events)
    found = find_model(folder, checkpoint).folder
    if not found.is_dir() and not is_model_file(found):
        raise not_a_model_error(folder)
    if found.suffix in PICKLES and found.suffix != ".bin":
        events.info(
            f"{found}: only the tensors and numbers of this pickle are read, no code is run"
        )
    model, source = open_model(
        folder, step=checkpoint, device=where, dtype=PRECISIONS[precision], events=events
    )
    folder, tokenizer = source.folder, load_tokenizer(source.folder)
    if source.step is not None:
        events.info(f"reading {source}")
    if where.type == "cpu":
        disable_malloc_trim()  # only now: the memory that loading frees is not needed again
    # A fine-tuned model, or a checkpoint of one, has special tokens; its folder has no run.toml.
    finetuned = (folder / FINETUNE_REPORT).is_file() or (
        source.checkpoint is not None and not (folder / RUN_TOML).is_file()
    )
    if finetuned or is_padded(model.config.vocab_size, tokenizer.vocab_size):
        _cut_vocabulary(model, tokenizer.vocab_size)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {counted(tokenizer.vocab_size, 'token')}, but the model's "
            "vocabulary has "
            f"{model.config.vocab_size:,}",
            where=folder,
            hint="put the tokenizer.json that the model was trained with into this folder",
        )
    return Loaded(prepare_for_inference(model, quantize), tokenizer, where, precision, source)


def _cut_vocabulary(model: GPT, size: int) -> None:
    """Keep only the first `size` entries of the model's vocabulary."""
    model.config = replace(model.config, vocab_size=size)
    model.wte.weight = torch.nn.Parameter(model.wte.weight.detach()[:size])
    model.lm_head.weight = (
        model.wte.weight
        if model.config.tied
        else torch.nn.Parameter(model.lm_head.weight.detach()[:size])
    )


class SmallBatchLinear(nn.Linear):
    """Linear layer, (.., K) -> (.., N), with a faster path for few rows."""

    linear_fn: LinearFn | None = None

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Return x·Wᵀ + b, then GELU if `gelu`: (.., K) -> (.., N)."""
        if self.linear_fn is not None:
            y = self.linear_fn(x, self.weight, None, self.bias, gelu)
            if y is not None:
                return y
        kind, fuses = x.dtype, gelu and _fuses_gelu(x)
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if _is_widened(x):
            x, weight = x.float(), weight.float()
            bias = None if bias is None else bias.float()
        if fuses:
            y = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "gelu", [], "tanh")
        else:
            y = _activate(F.linear(x, weight, bias), gelu)
        return y.to(kind)


def _is_widened(x: torch.Tensor) -> bool:
    """Return whether a product in bf16 is faster in fp32, the conversion of the weight included."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[:-1].numel() > WIDENED_ROWS
        and not torch.is_grad_enabled()
        and _has_slow_bf16()
    )


@functools.cache
def _has_slow_bf16() -> bool:
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return is_x86 and not has_fast_bf16()


def _fuses_gelu(x: torch.Tensor) -> bool:
    """Return whether oneDNN computes a linear layer and GELU together for this input."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _activate(y: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(y, approximate="tanh") if gelu else y


class Int8Linear(nn.Module):
    """Linear layer, (.., K) -> (.., N), with an int8 weight and one scale per output."""

    linear_fn: LinearFn | None = None

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize the weight of `linear`."""
        super().__init__()
        weight_NK = linear.weight.detach().float()
        self.weight_NK: torch.Tensor
        self.scale_N: torch.Tensor
        scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-12) / INT8_MAX
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("weight_NK", (weight_NK / scale_N[:, None]).round().to(torch.int8))
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Return x·Wᵀ·scale + b, then GELU if `gelu`: (.., K) -> (.., N)."""
        if self.linear_fn is not None:
            y = self.linear_fn(x, self.weight_NK, self.scale_N, self.bias, gelu)
            if y is not None:
                return y
        weight_NK = self.weight_NK.to(x.dtype)
        if torch.compiler.is_compiling() and x.shape[:-1].numel() <= FEW_ROWS:
            # written out, it is one kernel that reads int8; of a product, inductor makes a pattern
            # that fails for this scale
            y = (weight_NK.float() * x[..., None, :].float()).sum(-1)
            y = (y * self.scale_N).to(x.dtype)
        else:
            y = F.linear(x, weight_NK) * self.scale_N.to(x.dtype)
        return _activate(y if self.bias is None else y + self.bias.to(x.dtype), gelu)


class FusedMLP(MLP):
    """MLP whose GELU is computed together with the product before it."""

    def __init__(self, mlp: MLP) -> None:
        """Take over the linear layers of `mlp` under the same names."""
        self.__dict__ = mlp.__dict__

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Return the sub-block's output, (B, T, C)."""
        if self.gelu == "exact":  # the kernels have the tanh form only
            return self.c_proj(F.gelu(self.c_fc(x_BTC)))
        return self.c_proj(self.c_fc(x_BTC, gelu=True))


def prepare_for_inference(model: GPT, quantize: Quantize = "none") -> GPT:
    """Replace every linear layer of `model` by one of this module, in place; return the model.

    GELU is fused with the product before it; kernels are installed if they are there. With
    `quantize` "int8", the linear layers have no `weight` any more, and the model cannot be trained
    or saved. Raises UsageError for another value.
    """
    if quantize not in QUANTIZE:
        raise UsageError(
            f"unknown quantization {quantize!r}", field="quantize", hint=nearest(quantize, QUANTIZE)
        )
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        fast: nn.Module
        if quantize == "int8":
            fast = Int8Linear(module)
        else:
            fast = SmallBatchLinear.__new__(SmallBatchLinear)
            fast.__dict__ = module.__dict__  # the same parameters: a tied head stays tied
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fast)
    for block in cast(list[Block], model.h):
        block.mlp = FusedMLP(block.mlp)
    optional_kernels.install(model)
    return model
