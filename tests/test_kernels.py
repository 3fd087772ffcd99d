"""Kernels are installed at the seam of the model, and removed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from gptcli import kernels
from gptcli.kernels import attention_kernel, head_kernel
from gptcli.kernels.decode_kernel import small_batch_linear
from gptcli.kernels.norm_kernel import fused_block
from gptcli.model.attention import attention_packed
from gptcli.model.config import ModelConfig
from gptcli.model.loss import EAGER, next_token_loss
from gptcli.model.transformer import GPT, Block, block_forward
from gptcli.sampling.load import prepare_for_inference


def places(model: GPT) -> dict[str, Callable[..., torch.Tensor] | None]:
    block = model.h[0]
    assert isinstance(block, Block)
    return {
        "attention": block.attn.attention_fn,
        "block": block.block_fn,
        "head": getattr(model.head_loss, "keywords", {}).get("kernel"),
        "linear": getattr(model.lm_head, "linear_fn", None),
    }


@pytest.fixture
def model() -> GPT:
    made = GPT(ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=8, vocab_size=11))
    made.init_weights(0)
    return made


PYTORCH = {"attention": attention_packed, "block": block_forward, "head": None, "linear": None}


def test_install_fills_the_places_and_uninstall_empties_them(model: GPT) -> None:
    names = list(model.state_dict())
    assert places(model) == PYTORCH
    kernels.install(model, fuse_blocks=True)
    installed = {
        "attention": attention_kernel.attention_packed,
        "block": fused_block,
        "head": head_kernel,
        "linear": None,
    }
    assert places(model) == installed
    kernels.install(model)
    assert places(model) == {**installed, "block": block_forward}
    assert list(model.state_dict()) == names
    kernels.uninstall(model)
    assert places(model) == PYTORCH


def test_inference_layers_get_their_kernel(model: GPT) -> None:
    prepare_for_inference(model)
    assert places(model)["linear"] is small_batch_linear
    kernels.uninstall(model)
    assert places(model) == PYTORCH


def test_install_keeps_the_other_settings_of_the_loss(model: GPT) -> None:
    model.head_loss = partial(next_token_loss, elementwise=EAGER)
    kernels.install(model)
    assert model.head_loss.keywords == {"elementwise": EAGER, "kernel": head_kernel}
    kernels.uninstall(model)
    assert model.head_loss.keywords == {"elementwise": EAGER}


def test_results_in_fp32_do_not_change(model: GPT) -> None:
    idx = torch.arange(8)[None] % 11
    target = (idx + 1) % 11
    loss = model(idx, target)
    kernels.install(model, fuse_blocks=True)
    assert torch.equal(model(idx, target), loss)
