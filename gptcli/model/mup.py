"""Maximal-update parameterisation (Yang et al. 2022, "Tensor Programs V", Table 8): widths that
share their best learning rate.

With m = d_model / base, against the same model at width `base` (m = 1 is the standard
parameterisation):

    matrices in the blocks     start smaller by sqrt(m); Adam moves them by lr/m
    embeddings, biases, gains  as they are
    logits                     over m, by way of the last LayerNorm: its gain starts at 1/m, and Adam moves gain and bias by lr/m

The last line does by initialisation and learning rate what a factor in the forward pass would do,
so that a model trained this way is a plain GPT-2 in every other respect. Heads keep their width and
grow in number, so scores keep their 1/sqrt(D). Weight decay times learning rate is the same for
all.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def rescale(model: torch.nn.Module, m: float) -> None:
    """Turn a pre-norm GPT fresh from `init_weights`, or a part of one under the plain names, into
    muP's start.
    """
    for name, parameter in model.named_parameters():
        if _is_hidden(name, parameter):
            parameter.mul_(m**-0.5)
        elif name == "ln_f.weight":
            parameter.fill_(1 / m)


def groups(model: torch.nn.Module, m: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for Adam; each group's learning rate is the schedule's times its `lr_scale`.
    Weight decay is for tensors of two or more dimensions, the embeddings among them; none for
    biases and gains."""
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
    """Both of its dimensions grow with the width."""
    return name.startswith("h.") and parameter.dim() >= 2
