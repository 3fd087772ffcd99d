"""A model with its tokenizer, on the device and in the precision asked for: what `gpt sample` and
`gpt eval` start from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptcli.errors import InputError, UsageError, nearest
from gptcli.events import SILENT, Events
from gptcli.model.first_use import keep_freed_memory, settle_math
from gptcli.model.hf_config import is_padded
from gptcli.model.not_a_model import explain
from gptcli.model.safetensors_io import open_model
from gptcli.model.source import RUN_TOML, ModelSource, find_model
from gptcli.model.transformer import GPT
from gptcli.sampling.quantize import read_in_place
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

# of a fine-tuned folder, whose model knows some tokens more than its tokenizer, which no text holds
FINETUNED = "finetune.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Loaded:
    model: GPT
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    source: ModelSource


def load(
    folder: Path,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    quantize: str = "none",
    events: Events = SILENT,
) -> Loaded:
    """The model of a run folder or a transformers GPT-2 folder, and its tokenizer; of a fine-tuned
    run the language model.

    Of a run that is not finished it is the newest checkpoint's model, and of any run that of the
    step `checkpoint`: `events` hear which. Device "auto" is the first CUDA GPU where there is one,
    else the CPU; precision "auto" is bf16 on a GPU that computes in it, else fp32. A padded
    vocabulary loses its padding, which no token of the tokenizer stands for. `quantize` as in
    `read_in_place`. Raises UsageError for a device or precision that does not exist here,
    InputError where the folder is not a whole model.
    """
    where = _device(device)
    if where.type == "cpu":
        settle_math()
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
        raise explain(folder)
    model, source = open_model(
        folder, step=checkpoint, device=where, dtype=PRECISIONS[precision], events=events
    )
    folder, tokenizer = source.folder, load_tokenizer(source.folder)
    if source.step is not None:
        events.info(f"reading {source}")
    if where.type == "cpu":
        keep_freed_memory()  # from here on: what loading frees is not needed again
    # A fine-tuning, finished or a checkpoint of one, knows some tokens more; it has no run.toml.
    finetuned = (folder / FINETUNED).is_file() or (
        source.checkpoint is not None and not (folder / RUN_TOML).is_file()
    )
    if finetuned or is_padded(model.config.vocab_size, tokenizer.vocab_size):
        _cut_vocabulary(model, tokenizer.vocab_size)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} entries and the model {model.config.vocab_size:,}: they do not belong together",
            where=folder,
            hint="put the tokenizer.json that the model was trained with beside it",
        )
    return Loaded(read_in_place(model, quantize), tokenizer, where, precision, source)


def _cut_vocabulary(model: GPT, size: int) -> None:
    """Leave the model the first `size` entries of its vocabulary."""
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
            f"there is no {name} here: {torch.cuda.device_count()} CUDA GPUs are visible",
            hint="{option:device} cpu",
        )
    return torch.device(name)
