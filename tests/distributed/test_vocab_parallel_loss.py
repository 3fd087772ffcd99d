"""The loss over a sharded vocabulary is that over the whole one, with its gradients."""

from __future__ import annotations

from pathlib import Path

import torch

from gptcli.distributed.vocab_parallel_loss import autocast
from tests.distributed.run_ranks import run_ranks

PROGRAM = """
import math
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from gptcli.distributed.vocab_parallel_loss import (
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
