"""Sharded and replicated models have the plain model's gradients, reduced when they are asked to.

`tests/system/test_layouts.py` trains with both in every combination.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from gptcli.cost.layout import parse_layout
from gptcli.distributed.fsdp import apply_ddp, set_gradient_sync
from tests.distributed.run_ranks import run_ranks

PROGRAM = """
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from gptcli.cost.layout import parse_layout
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import apply_ddp, apply_fsdp, reshard, set_gradient_sync
from gptcli.model.config import ModelConfig
from gptcli.model import transformer
from gptcli.model.transformer import GPT
from gptcli.trainer.parallelize import materialize_

transformer.DRAWN_WHOLE, transformer.DRAWN_TOGETHER = 0, 30  # a process draws its own rows, of each group that has some
layout, reduce_once = parse_layout("LAYOUT"), ONCE
config = ModelConfig(n_layer=2, n_head=2, d_model=10, n_ctx=6, vocab_size=11)  # 11 rows: 6 and 5
idx = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
batches = [(part, part.roll(-1, 1)) for part in idx.split(1)]  # two micro-batches of each process
plain, model = GPT(config), GPT(config)
plain.init_weights(0)
for x, y in batches:
    (plain(x, y) / 2).backward()  # the mean over processes of their sums

if layout.shard > 1:
    apply_fsdp(model, RankContext(torch.device("cpu"), rank, 2, layout).build_mesh(), None)
materialize_(model, torch.device("cpu"), 0, 1.0)
if layout.shard > 1:
    local = {name: parameter.to_local() for name, parameter in model.named_parameters()}
    assert local["wte.weight"].shape == (6 - rank, 10)
    assert local["h.0.ln_1.weight"].shape == (5,)
engine = apply_ddp(model, layout)
assert isinstance(engine, DistributedDataParallel) == (layout.dp == 2)
for number, (x, y) in enumerate(batches[2 * rank : 2 * rank + 2]):
    set_gradient_sync(engine, layout, number == 1, reduce_once=reduce_once)
    engine(x, y).backward()
    if layout.shard == 2 and number == 0:
        # stays gathered, and sums its own gradient, until the last pass
        assert isinstance(model.wte.weight, DTensor) != reduce_once
    if layout.dp == 2 and number == 0:  # accumulates its own gradient until the last pass
        alone = GPT(config)
        alone.init_weights(0)
        alone(x, y).backward()
        torch.testing.assert_close(model.wte.weight.grad, alone.wte.weight.grad)
for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
    found = parameter.grad
    if isinstance(found, DTensor):
        assert found.dtype == torch.float32
        found = found.full_tensor()
    torch.testing.assert_close(found, expected.grad, rtol=1e-4, atol=1e-6, msg=name)

if layout.shard > 1:
    with torch.no_grad():  # as an evaluation, after which a checkpoint may be loaded
        model(*batches[0])
    assert not isinstance(model.wte.weight, DTensor)
    reshard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
"""


@pytest.mark.parametrize(
    ("layout", "reduce_once"), [("dp=2", False), ("shard=2", False), ("shard=2", True)]
)
def test_gradients_of_two_processes_are_the_mean_of_theirs(
    tmp_path: Path, layout: str, reduce_once: bool
) -> None:
    run_ranks(PROGRAM.replace("LAYOUT", layout).replace("ONCE", str(reduce_once)), tmp_path)


@pytest.mark.parametrize("layout", ["dp=1", "shard=2", "tp=2", "pp=2", "dp=2,shard=2", "dp=2,pp=2"])
def test_only_plain_replicas_are_wrapped(layout: str) -> None:
    model = nn.Linear(1, 1)
    assert apply_ddp(model, parse_layout(layout)) is model
    set_gradient_sync(model, parse_layout(layout), last=False)  # nothing to synchronize
