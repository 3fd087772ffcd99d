"""AdamW with the papers' constants (GPT-3, Appendix B), fused."""

from __future__ import annotations

import torch
from torch import nn

from gptcli.trainer.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay on every tensor of two or more dimensions, the embeddings among them; none on biases and gains."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def clip_gradients(model: nn.Module, most: float) -> torch.Tensor:
    """Cut the gradient's global norm to `most`; returns the norm it had, over all shards, a scalar still on the device."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
