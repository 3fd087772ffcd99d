"""A model sharded over two processes has the plain model's loss and gradients.

`tests/system/test_layouts.py` trains with tensor parallelism in every combination.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptcli.distributed.tensor_parallel import autocast, tp_plan
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from tests.distributed.run_ranks import run_ranks

PROGRAM = """
from functools import partial
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from gptcli.distributed.tensor_parallel import apply_tp, reduce_partial_grads
from gptcli.distributed.tensor_parallel import vocab_parallel_loss
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


PROGRAM = """
import math
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from gptcli.distributed.tensor_parallel import (
    VocabShards,
    shard_rows,
    vocab_parallel_loss,
    vocab_start,
)
from gptcli.model.loss import IGNORE

mesh = init_device_mesh("cpu", (2,))
B, T, C, V = 3, 4, 5, 7  # shards of 4 and of 3 rows
generator = torch.Generator().manual_seed(0)
x = torch.randn(B, T, C, generator=generator)
weight = torch.randn(V, C, generator=generator)
target = torch.tensor([[0, 3, 4, 6], [IGNORE, 5, 2, 1], [6, 6, IGNORE, 0]])

plain_x, plain_weight = (tensor.clone().requires_grad_() for tensor in (x, weight))
logits = plain_x.flatten(0, 1).double() @ plain_weight.double().T
expected = torch.nn.functional.cross_entropy(
    logits, target.flatten(), ignore_index=IGNORE, reduction="sum"
)
expected.backward()

sharded = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
assert (shard_rows(V, mesh), vocab_start(sharded, mesh)) == (4, 4 * rank)
assert sharded.to_local().shape == (4 - rank, C)
own = x[:, 2 * rank : 2 * rank + 2].flatten(0, 1).clone().requires_grad_()  # half of each sequence
loss = vocab_parallel_loss(own, sharded, target.flatten(), mesh=mesh, n_ctx=T)
torch.testing.assert_close(loss.item(), expected.item(), rtol=1e-5, atol=1e-5)
loss.backward()
torch.testing.assert_close(sharded.grad.full_tensor(), plain_weight.grad, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(
    own.grad.view(B, 2, C), plain_x.grad[:, 2 * rank : 2 * rank + 2], rtol=1e-4, atol=1e-5
)

# log(exp(1000) + exp(1000 + ln 3)) = 1000 + ln 4, although exp(1000) overflows
shards = VocabShards(mesh, V)
log_sum, logit = shards.combine(
    torch.tensor([[1000 + rank * math.log(3)]]), torch.tensor([[12.5 * rank]])
)
assert (log_sum.item(), logit.item()) == (torch.tensor(1000 + math.log(4)).item(), 12.5)
assert shards.max_entries(sharded.to_local()) == 4
"""


def test_loss_and_gradients_of_two_uneven_shards_equal_cross_entropy(tmp_path: Path) -> None:
    run_ranks(PROGRAM, tmp_path)


def test_autocast_casts_only_where_it_is_enabled() -> None:
    x = torch.ones(2)
    assert autocast(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast(x).dtype == torch.bfloat16
