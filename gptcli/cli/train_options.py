"""Options of `gpt train` that are keys of its configuration files too, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.cli.command import read_config
from gptcli.cli.options import (
    Option,
    model_text,
    read_option,
    readers,
)
from gptcli.cost.hardware import PRECISIONS
from gptcli.cost.memory import RECOMPUTE, SCHEDULES
from gptcli.model.config import find_size
from gptcli.settings import (
    NUMBERS,
    AutoOr,
    OneOf,
    Resolved,
    boolean,
    name_list,
    nonempty_text,
    text,
)
from gptcli.trainer.resolve import complete_given

MODEL, RECIPE, OUTPUT, WATCH, MACHINE = (
    "Model",
    "Recipe",
    "Data and output",
    "Checkpoints and evaluation",
    "Machine",
)


def _read_size(value: Any) -> str:
    find_size(nonempty_text(value))
    return str(value)


def _sizes(incomplete: str) -> list[str]:
    from gptcli.model.config import size_names

    return [name for name in size_names() if name.lower().startswith(incomplete.lower())]


# fmt: off
OPTIONS = {  # of a run, in the order of --help; also the keys of --config and of run.toml
    "size": Option(
        MODEL, help="Model size from the GPT papers, such as 350M or gpt2; it sets architecture "
                    "and training recipe.",
        metavar="NAME", reader=_read_size, complete=_sizes),
    "n_layer": Option(MODEL, "the size's"),
    "n_head": Option(MODEL, "the size's"),
    "d_model": Option(MODEL, "the size's"),
    "n_ctx": Option(MODEL, "the size's"),
    "attention": Option(
        MODEL, "the size's",
        "Attention of the layers: dense, banded (every second layer), or a pattern such as "
        "dense,dense,banded.", "KIND"),
    "band": Option(MODEL, "256", "Most recent tokens that a banded layer attends to."),
    "dropout": Option(
        MODEL, "0", "Dropout probability of embeddings, attention and residual branches.", "P"),
    "init_from": Option(
        MODEL, "random weights",
        "Start from the weights of this model, which sets the architecture: a run, a transformers "
        "folder, a file of nanoGPT or llm.c, or a name on the Hub such as gpt2.",
        "MODEL", model_text),
    "checkpoint": Option(
        MODEL, "the finished model, or the newest checkpoint",
        "With --init-from: start from its checkpoint at this step."),
    "continues": Option(
        MODEL,
        help="With --init-from: continue training from its checkpoint in a new run folder, with the "
             "optimizer state, data order and settings of that run; only --tokens and "
             "--cooldown-tokens may differ.",
        reader=boolean),
    "tokens": Option(
        RECIPE, "the paper's, or 20 per parameter",
        "Length of the run, in tokens; batch size and schedules scale with it."),
    "batch_tokens": Option(
        RECIPE, "the paper's, smaller in a shorter run",
        "Batch size, in tokens per step; auto follows the gradient noise scale.",
        reader=AutoOr(NUMBERS["batch_tokens"])),
    "lr": Option(
        RECIPE, "the paper's, higher below 125M parameters",
        "Peak learning rate, reached at the end of the warm-up.", "X"),
    "scale_lr": Option(
        RECIPE,
        help="Interpolate --lr by parameter count in GPT-3's Table 2.1.", reader=boolean),
    "mup": Option(
        RECIPE, "off",
        "Use the maximal-update parameterisation (muP); WIDTH is the --d-model at which --lr was "
        "tuned.", "WIDTH"),
    "min_lr_ratio": Option(
        RECIPE, "the paper's", "Learning rate at the end of the decay, as a share of --lr.", "X"),
    "warmup_tokens": Option(
        RECIPE, "the paper's, a larger share of a shorter run",
        "Length of the learning rate's linear warm-up, in tokens."),
    "decay_tokens": Option(
        RECIPE, "the paper's",
        "Tokens from the start of the run to the end of the cosine decay."),
    "lr_schedule": Option(
        RECIPE, "cosine",
        "Learning-rate schedule after the warm-up: cosine, wsd (constant, then a cooldown), "
        "linear or constant; or your own function, MODULE:NAME.", "NAME"),
    "cooldown_tokens": Option(
        RECIPE, "a fifth of --tokens",
        "With --lr-schedule wsd: tokens at the end over which the learning rate falls to 0."),
    "optimizer": Option(
        RECIPE, "adamw",
        "Optimizer: adamw, or muon for the matrices of the layers with AdamW for the rest; or your "
        "own function, MODULE:NAME.", "NAME"),
    "ema": Option(
        RECIPE, "0, off",
        "Decay per step of a moving average of the weights, which is evaluated and exported.", "X"),
    "ramp_tokens": Option(
        RECIPE, "the paper's",
        "Length of the batch-size ramp, in tokens; 0 starts with the full batch."),
    "weight_decay": Option(RECIPE, "the paper's", "Weight decay of matrices and embeddings.", "X"),
    "weight_decay_schedule": Option(
        RECIPE, "constant",
        "Weight-decay schedule: constant, or linear or cosine to --end-weight-decay at the end of "
        "the run; or your own function, MODULE:NAME.", "NAME"),
    "end_weight_decay": Option(
        RECIPE, "none", "With --weight-decay-schedule: weight decay at the end of the run.", "X"),
    "beta2_schedule": Option(
        RECIPE, "constant",
        "Schedule of Adam's beta2: constant, or linear or cosine to --end-beta2 at the end of the "
        "run; or your own function, MODULE:NAME.", "NAME"),
    "end_beta2": Option(
        RECIPE, "none", "With --beta2-schedule: beta2 at the end of the run.", "X"),
    "spike": Option(
        RECIPE, "6",
        "Skip an update whose loss is this many standard deviations above the recent mean; 0 "
        "skips none.",
        "SIGMAS"),
    "max_skipped": Option(RECIPE, "10", "Stop the run after this many skipped updates in a row."),
    "document_mask": Option(RECIPE, help=
        "Restrict attention to tokens of the same document.", reader=boolean),
    "mixture": Option(
        RECIPE, "the shards'",
        'Sampling weights of the sources of the shards, in stages: in "web=3,books=1; 500M: '
        'web=1,books=2" the second begins at 500M tokens; weight 0 leaves a source out.',
        "STAGES", text),
    "seed": Option(RECIPE, "0", "Random seed for initialization, data order and dropout."),
    "data": Option(
        OUTPUT, "shards",
        "Shards from gpt build-shards, or token files of llm.c, Megatron or nanoGPT.", "FOLDER"),
    "out": Option(
        OUTPUT, "runs/SIZE", "Run folder to write; model.safetensors is written last.", "FOLDER"),
    "checkpoint_every": Option(
        WATCH, "10 per run, at least every 1,000", "Steps between checkpoints."),
    "checkpoint_minutes": Option(
        WATCH, "0, none", "Also write a checkpoint when the last one is older than this many "
                          "minutes.", "X"),
    "checkpoint_to": Option(
        WATCH, "none",
        "Also copy every checkpoint, and the model, to this folder of a remote store, such as "
        "s3://bucket/run; with --resume, fetch one from there if the run folder has none.", "URL"),
    "keep": Option(WATCH, "2", "Number of newest checkpoints to keep."),
    "keep_every": Option(
        WATCH, "0, none", "Also keep every checkpoint whose step is a multiple of N."),
    "keep_best": Option(
        WATCH, "none",
        "Also keep the checkpoint with the best value of this metric, val_loss or that of a task.",
        "METRIC"),
    "stop_early": Option(
        WATCH, "0, never",
        "End the run after this many measurements without a new lowest validation loss."),
    "val": Option(
        WATCH, "none",
        "Additional validation sets, NAME=FOLDER of shards, or the word sources for one per source "
        "of a mixture; separate several with commas.",
        "NAME=FOLDER", name_list, repeats=True),
    "eval_every": Option(
        WATCH, "20 per run, at least every 500",
        "Steps between measurements of the validation loss."),
    "eval_tokens": Option(
        WATCH, "a 200th of --tokens, or 4,096 if that is at most a 20th; at most 1M",
        "Validation tokens read at each measurement."),
    "eval_task": Option(
        WATCH, "none", "Task of gpt eval to score at every checkpoint; separate several with commas.",
        "NAME", name_list, repeats=True),
    "eval_data": Option(WATCH, "none", "Folder with the data of each --eval-task.", "FOLDER"),
    "eval_items": Option(WATCH, "1,000", "Items of each --eval-task to score."),
    "samples": Option(WATCH, "3, or none in a short run", "Texts to generate at every checkpoint."),
    "track": Option(
        WATCH, "none",
        "Also log metrics to these trackers: tensorboard, csv, wandb, mlflow, trackio, or your own "
        "callback, MODULE:CLASS; separate several with commas.", "NAME", name_list, repeats=True),
    "layout": Option(MACHINE, "the fastest that fits"),
    "timeout": Option(
        MACHINE, "120", "Seconds that a process waits for another before the run is aborted."),
    "pipeline_schedule": Option(
        MACHINE, "1f1b",
        "Order of micro-batches in a pipeline: 1f1b, gpipe, interleaved1f1b or loopedbfs.", "NAME",
        OneOf(tuple(SCHEDULES))),
    "recompute": Option(MACHINE, "what fits", reader=OneOf(("auto", *RECOMPUTE))),
    "micro_batch": Option(MACHINE, "what fits"),
    "precision": Option(
        MACHINE, "auto", "Precision of matrix products: bf16, fp32, fp16, fp8 or auto.", "KIND",
        OneOf(("auto", *PRECISIONS))),
    "compile": Option(
        MACHINE, "auto", "Use torch.compile: on, off, or auto (if it saves time in this run).", "WHEN",
        OneOf(("auto", "on", "off"))),
    "deterministic": Option(
        MACHINE, help="Use only deterministic kernels, which give the same bits every time; slower on a GPU.",
        reader=boolean),
}
# fmt: on
CONSTANTS = {  # keys without an option, with their descriptions
    "beta1": "Decay rate of Adam's mean of gradients.",
    "beta2": "Decay rate of Adam's mean of squared gradients.",
    "eps": "Adam's epsilon, added to the denominator of an update.",
    "clip": "Largest global norm of the gradient; a larger one is scaled down to it.",
    "ramp_from": "Tokens in the first step's batch.",
    "follow_noise": "Let the batch follow the gradient noise scale.",
}
READERS = readers(OPTIONS) | {name: NUMBERS.get(name, boolean) for name in CONSTANTS}
"""Reader of every key of a configuration file."""


def given_values(options: Mapping[str, Any], config: Path | None, *, resume: bool) -> Resolved:
    """Return the values given by option and file, over the run.toml of the run to resume.

    `options` are as typed, None if not given. The result always contains `out`. Raises UsageError
    or InputError for values that cannot be read or contradict each other.
    """
    given = Resolved()
    if config is not None:
        given.put(read_config(config, READERS, "gpt train"), str(config))
    for name, typed in options.items():
        value = None if typed is None else read_option(name, typed, READERS[name])
        given.put({name: value}, "option")
    return complete_given(
        given, lambda path: read_config(path, READERS, "gpt train"), resume=resume
    )
