"""Activation checkpointing of one layer (Chen et al. 2016; Korthikanti et al. 2022).

"full" saves the input of a layer and runs the layer again in the backward pass. "selective" saves
the outputs of the expensive operators, matrix products and attention, and recomputes norms, GELU,
residual sums and dropout. The attention scores, which the second paper recomputes, are never
materialized by the kernels used here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from gptcli.cost.memory import Recompute

SAVE_OPS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
"""Matrix products, whose outputs selective checkpointing saves."""
ATTENTION = re.compile(r"attention|attn|attend|banded_blocks")
"""Part of the name of every operator that computes attention: torch's by backend, and ours."""


def saved(ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return the policy of selective checkpointing for an operator: save products and attention."""
    is_saved = op in SAVE_OPS or ATTENTION.search(op.name())
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_forward(
    forward: Callable[..., torch.Tensor], recompute: Recompute, *, preserve_rng: bool
) -> Callable[..., torch.Tensor]:
    """Return a layer's `forward` with activation checkpointing: "none", "selective" or "full".

    With `preserve_rng` the recomputation draws the same dropout masks.
    """
    if recompute == "none":
        return forward
    options: dict[str, Any] = {}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, saved)
    return partial(
        checkpoint, forward, use_reentrant=False, preserve_rng_state=preserve_rng, **options
    )
