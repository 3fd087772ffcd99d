from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.loss import IGNORE
from gptcli.shards.order import ShuffledWindows, TokenStream, open_split
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.step import dropout_seed, micro_batches

PLACE = RankContext(torch.device("cpu"))


def gradients(run, micro_batch, count=7, step=1):
    """Gradient and loss of `count` sequences, `micro_batch` at a time."""
    train_step = build_train_step(run, PLACE, SILENT)
    order = ShuffledWindows(open_split(run.data, "train"), run.model.n_ctx, 0)
    loss = train_step.forward_backward(
        micro_batches(order, 0, count, micro_batch, PLACE), count * run.model.n_ctx, step
    )
    return {name: p.grad for name, p in train_step.model.named_parameters()}, loss


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 7, 9])
def test_accumulated_gradients_equal_those_of_the_mean_loss(make_run, micro_batch):
    run = make_run(d_model=32, attention="banded", band=3)
    grads, loss = gradients(run, micro_batch)
    model = build_train_step(run, PLACE, SILENT).model
    x, y = (
        torch.from_numpy(part)
        for part in ShuffledWindows(open_split(run.data, "train"), 16, 0).batch(0, 7)
    )
    mean = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    mean.backward()
    assert loss.item() / (7 * 16) == pytest.approx(mean.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(grads[name], parameter.grad, atol=1e-7, rtol=1e-4), name


def test_dropout_depends_on_seed_step_rank_and_micro_batch_alone(make_run):
    run = make_run(dropout=0.3)
    torch.manual_seed(5)
    first, _ = gradients(run, 2)
    torch.manual_seed(6)
    again, _ = gradients(run, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    later, _ = gradients(run, 2, step=2)
    assert not torch.equal(first["wte.weight"], later["wte.weight"])
    other, _ = gradients(replace(run, train=replace(run.train, seed=2)), 2)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])
    assert (
        len(
            {
                dropout_seed(seed, step, rank, micro)
                for seed in (0, 1)
                for step in (0, 1)
                for rank in (0, 1)
                for micro in (0, 1)
            }
        )
        == 16
    )


ORDER = ShuffledWindows(TokenStream([np.arange(4 * 50 + 1)]), 4, seed=3)
CPU = torch.device("cpu")


@given(
    first=st.integers(0, 200),
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    world=st.integers(1, 6),
)
def test_ranks_and_micro_batches_partition_the_data_order(first, count, size, world):
    parts = [
        micro_batches(ORDER, first, count, size, RankContext(CPU, rank, world))
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {tuple(x.shape) for part in parts for x, _ in part} == {(size, 4)}
    rows = [
        (x, y)
        for part in parts
        for xs, ys in part
        for x, y in zip(xs, ys, strict=True)
        if (y != IGNORE).all()
    ]
    x, y = ORDER.batch(first, count)
    assert torch.equal(torch.stack([row for row, _ in rows]), torch.from_numpy(x))
    assert torch.equal(torch.stack([row for _, row in rows]), torch.from_numpy(y))
    filler = sum(int((ys[:, 0] == IGNORE).sum()) for part in parts for _, ys in part)
    assert filler + count == sum(len(part) for part in parts) * size
