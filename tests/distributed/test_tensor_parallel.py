"""A model sharded over two processes has the plain model's loss and gradients.

`tests/system/test_layouts.py` trains with tensor parallelism in every combination.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptcli.distributed.tensor_parallel import tp_plan
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from tests.distributed.run_ranks import run_ranks

PROGRAM = """
from functools import partial
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from gptcli.distributed.tensor_parallel import apply_tp, reduce_partial_grads
from gptcli.distributed.vocab_parallel_loss import vocab_parallel_loss
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

mesh = init_device_mesh("cpu", (2,))
config = ModelConfig(n_layer=2, n_head=2, d_model=8, n_ctx=6, vocab_size=11, tied=TIED)
idx = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
target = idx.roll(-1, 1)

def make():
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # biases and gains of their own
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model

plain = make()
expected = plain(idx, target)
expected.backward()

model = make()
apply_tp(model, mesh)
assert (model.lm_head.weight is model.wte.weight) == TIED
# heads, MLP and vocabulary are divided, 11 rows into 6 and 5; norms are not
local = {name: parameter.to_local() for name, parameter in model.named_parameters()}
assert local["wte.weight"].shape == (6 - rank, 8)
assert local["h.0.attn.c_attn.weight"].shape == (12, 8)
assert local["h.0.mlp.c_fc.weight"].shape == (16, 8)
assert local["h.1.mlp.c_proj.weight"].shape == (8, 16)
assert local["h.1.ln_1.weight"].shape == (8,)
for name, parameter in plain.named_parameters():
    assert torch.equal(dict(model.named_parameters())[name].full_tensor(), parameter), name

model.head_loss = partial(vocab_parallel_loss, mesh=mesh, n_ctx=6)
loss = model(idx, target)
torch.testing.assert_close(loss.item(), expected.item(), rtol=1e-5, atol=0)
loss.backward()
reduce_partial_grads(model)
sharded = dict(model.named_parameters())
for name, parameter in plain.named_parameters():
    found = sharded[name].grad
    assert not any(placement.is_partial() for placement in found.placements), name
    torch.testing.assert_close(found.full_tensor(), parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
"""


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_of_two_processes_equal_the_plain_models(
    tmp_path: Path, tied: bool
) -> None:
    run_ranks(PROGRAM.replace("TIED", str(tied)), tmp_path)


def test_every_parameter_of_the_model_belongs_to_a_style() -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=8, n_ctx=6, vocab_size=11, tied=False))
    styled = set(tp_plan())
    for name, _ in model.named_parameters():
        assert name.rpartition(".")[0].replace("h.0.", "h.*.") in styled, name
