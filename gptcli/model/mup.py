"""Maximal-update parameterization (muP), under which widths share their best learning rate.

Yang et al. 2022, "Tensor Programs V", Table 8. With m = d_model / base, relative to the same model
of width `base` (m = 1 is the standard parameterization):

    matrices in the blocks     initialized smaller by sqrt(m); learning rate lr/m
    embeddings, biases, gains  unchanged
    logits                     divided by m, through the last LayerNorm: its gain is initialized at
                               1/m, and gain and bias have the learning rate lr/m

The last row replaces a factor in the forward pass by initialization and learning rate: a model
trained this way is a plain GPT-2 in every other respect. The number of heads grows with the width,
not their size, so scores keep their factor 1/sqrt(D). The product of weight decay and learning rate
is the same for all parameters.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def rescale(model: torch.nn.Module, m: float) -> None:
    """Rescale freshly initialized weights of a pre-norm GPT, or a part of one, to those of muP.

    `m` is the width multiplier.
    """
    for name, parameter in model.named_parameters():
        if _is_hidden(name, parameter):
            parameter.mul_(m**-0.5)
        elif name == "ln_f.weight":
            parameter.fill_(1 / m)


def groups(model: torch.nn.Module, m: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups for Adam, with `lr_scale` and `weight_decay` of each.

    The learning rate of a group is that of the schedule times its `lr_scale`. Weight decay applies
    to matrices, including the embeddings, and not to biases and gains.
    """
    made: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr_scale = 1 / m if _is_hidden(name, parameter) or name.startswith("ln_f.") else 1.0
        decay = weight_decay / lr_scale if parameter.dim() >= 2 else 0.0
        made.setdefault((lr_scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": lr_scale, "weight_decay": decay}
        for (lr_scale, decay), parameters in made.items()
    ]


def _is_hidden(name: str, parameter: torch.Tensor) -> bool:
    """Return whether both dimensions of a parameter grow with the width."""
    return name.startswith("h.") and parameter.dim() >= 2
