"""Keys and values of the positions already read, so that decoding reads each token once."""

from __future__ import annotations

import torch

from gptcli.model.config import ModelConfig


class KVCache:
    """Room for `n_ctx` positions: keys and values are (n_layer, B, H, n_ctx, D), the first `length` filled."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.n_head, config.n_ctx, config.d_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions of one layer; returns all keys and values so far, (B, H, length + T, D)."""
        end = self.length + k_BHTD.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BHTD
        self.values[layer, :, :, self.length : end] = v_BHTD
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
