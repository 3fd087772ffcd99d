"""The plain model made ready for this machine: weights, compilation, layout, precision and optimizer, applied from outside.

What a checkpoint may rely on, under every layout:

- `stepper.model` is one module that holds this process's part of the model under the plain GPT's own names ("h.3.attn.c_attn.weight"),
  no wrapper's prefix among them: all of them without `pp`, those of its own stages with it. A tied head is there under both names.
- `stepper.optimizer` is one optimizer over exactly those parameters. So `get_model_state_dict(stepper.model)` and
  `get_optimizer_state_dict(stepper.model, stepper.optimizer)`, and their setters, speak in plain names on every process.
- A parameter that `shard` or `tp` divides is a DTensor of the plain shape, its rows in the plain order; otherwise a plain tensor. No
  shape depends on the layout, so that what one layout wrote any other reads.
- With `pp` and a tied head the last stage holds a `wte` of its own, equal to the first stage's to the bit, and so are its moments: both
  stages name `wte.weight`, and either may be written.
"""

from __future__ import annotations

import torch

from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.model.loss import IGNORE, next_token_loss
from gptcli.model.transformer import GPT
from gptcli.trainer.config import Run
from gptcli.trainer.layout import Place, lay_out, parse_layout
from gptcli.trainer.machine import keep_freed_memory
from gptcli.trainer.optimizer import make_optimizer
from gptcli.trainer.step import Stepper


def build(run: Run, place: Place, events: Events) -> Stepper:
    """The stepper of a run, freshly initialised. All processes call it together. Raises RunError where it insists on a failing compiler."""
    config = run.train
    if place.device.type == "cpu":
        keep_freed_memory()
    with torch.device("meta"):
        model = GPT(run.model)
    model.to_empty(device="cpu")
    if run.model.tied:  # which to_empty undoes
        model.lm_head.weight = model.wte.weight
    model.init_weights(config.seed)
    model.to(place.device)
    if config.compile:
        # Block by block, and the head with its loss: one compilation serves every layer and every layout. Names and hooks do not change.
        for block in model.h:
            block.forward = torch.compile(block.forward, dynamic=False)
        model.head_loss = torch.compile(next_token_loss, dynamic=False)
    bf16, layout = config.precision == "bf16", parse_layout(config.layout)
    laid_out = lay_out(model, layout, place, bf16=bf16)
    stepper = Stepper(
        laid_out,
        make_optimizer(laid_out, config),
        place,
        clip=config.clip,
        autocast=bf16 and layout.shard == 1,  # FSDP2 casts by itself
        dropout_seed=config.seed if run.model.dropout else None,
    )
    if config.compile:
        shape = (config.micro_batch, run.model.n_ctx)
        _warm_up(model, stepper, shape, events, must_compile=run.must_compile)
    return stepper


def _warm_up(model: GPT, stepper: Stepper, shape: tuple[int, int], events: Events, *, must_compile: bool) -> None:
    """Compile before the first step, on a batch that counts for nothing; where that fails, go on without."""
    events.info("compiling the model")
    inputs = torch.zeros(shape, dtype=torch.long, device=stepper.place.device)
    try:
        stepper.gradients([(inputs, torch.full_like(inputs, IGNORE))], tokens=1, step=0)
    except RuntimeError as error:  # what dynamo, inductor and the compilers below them raise
        reason = str(error).strip().splitlines()[0]
        if must_compile:
            raise RunError(f"torch.compile failed: {reason}", hint="--compile off trains without") from None
        events.warn(f"torch.compile failed, training without it: {reason}")
        for block in model.h:
            del block.forward  # the class's own is behind it
        del model.head_loss
    stepper.optimizer.zero_grad()
