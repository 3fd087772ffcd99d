"""Load a model and its tokenizer for inference, on a device and in a precision."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gptcli.errors import InputError, UsageError, nearest
from gptcli.events import SILENT, Events
from gptcli.model.hf import is_padded
from gptcli.model.safetensors_io import open_model
from gptcli.model.source import (
    FINETUNE_REPORT,
    RUN_TOML,
    ModelSource,
    find_model,
    not_a_model_error,
)
from gptcli.model.transformer import GPT
from gptcli.runtime import disable_malloc_trim, warm_up_vector_math
from gptcli.sampling.quantize import Quantize, prepare_for_inference
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

InferencePrecision = Literal["fp32", "bf16"]
PrecisionChoice = Literal["auto", InferencePrecision]
PRECISIONS: dict[InferencePrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    """Load the model and tokenizer of a run folder or of a transformers GPT-2 folder.

    A fine-tuned run gives its language model. An unfinished run gives its newest checkpoint, any
    run the one of step `checkpoint` if that is set; `events` reports which. Device "auto" is the
    first CUDA GPU, or else the CPU; precision "auto" is bf16 on a GPU that supports it, or else
    fp32. Padding of the vocabulary is removed. `quantize` is "none" or "int8", for the weights.
    Raises UsageError if the device or precision is not available, InputError if the folder is not a
    complete model.
    """
    where = _device(device)
    if where.type == "cpu":
        warm_up_vector_math()
    if precision == "auto":
        precision = (
            "bf16"
            if where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "fp32"
        )
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}", hint=nearest(precision, ["auto", *PRECISIONS])
        )
    if not find_model(folder, checkpoint).folder.is_dir():
        raise not_a_model_error(folder)
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
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's vocabulary has "
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"unknown device {name!r}", hint="one of: auto, cpu, cuda, cuda:1")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"the device {name} does not exist: {torch.cuda.device_count()} CUDA GPUs are visible",
            hint="use {option:device} cpu",
        )
    return torch.device(name)
