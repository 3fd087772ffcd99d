from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.distributed.activation_checkpoint import checkpoint_forward
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.kernels import attention_kernel
from gptcli.kernels.attention_kernel import packed_attend
from gptcli.model.attention import banded_attention, flex, varlen
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.parallelize import build_train_step

CONTEXT = RankContext(torch.device("cpu"))
BATCH = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))


def step(run):
    """Return the gradients of a step; tests/cost/test_rank_memory.py measures its memory."""
    train_step = build_train_step(run, CONTEXT, SILENT)
    train_step.forward_backward([BATCH], 32, 1)
    return {name: parameter.grad for name, parameter in train_step.model.named_parameters()}


@pytest.mark.parametrize("attention", [{}, {"attention": "banded", "band": 5}])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_gradients_are_bitwise_equal_with_and_without_recomputation(
    make_run, how, dropout, attention
):
    plain = step(make_run(dropout=dropout, **attention))
    again = step(make_run(dropout=dropout, recompute=how, **attention))
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.skipif(not has_compiler(), reason="no compiler here")
@pytest.mark.parametrize("how", ["selective", "full"])
def test_compiled_layers_recompute_to_equal_gradients(make_run, how):
    torch._dynamo.reset()
    plain = step(make_run())
    again = step(make_run(recompute=how, compile=True, must_compile=True, micro_batch=2))
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], atol=1e-6), name


class Calls(TorchDispatchMode):
    """Counts calls of each operator."""

    def __init__(self):
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.of[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def from_packed(q, k, v, band):
    return packed_attend(torch.stack((q, k, v), 3).transpose(1, 2).bfloat16(), band)[0]


# times that a step computes a layer's attention
TIMES = {"none": 1, "selective": 1, "full": 2}


@pytest.mark.parametrize("how", TIMES)
@pytest.mark.parametrize(
    ("form", "operator"),
    [
        (banded_attention, "gptcli.banded_blocks.default"),
        (from_packed, "gptcli.packed_attend.default"),
        (varlen, "torch_attn._varlen_attn.default"),
    ],
)
def test_selective_recomputation_saves_attention(form, operator, how):
    """Use fake tensors, because the varlen kernel needs CUDA."""
    with FakeTensorMode(), Calls() as calls:
        qkv = [torch.randn(1, 2, 100, 16, requires_grad=True) for _ in range(3)]
        checkpoint_forward(lambda q, k, v: form(2 * q, k, v, 33), how, preserve_rng=False)(
            *qkv
        ).sum().backward()
    assert calls.of[operator] == TIMES[how]


@pytest.mark.parametrize("how", TIMES)
@pytest.mark.parametrize(
    ("form", "operator"),
    [
        (banded_attention, "gptcli.banded_blocks.default"),
        pytest.param(
            from_packed,
            "gptcli.packed_attend.default",
            marks=pytest.mark.skipif(attention_kernel._kernel() is None, reason="no kernels here"),
        ),
        (flex, "flex_attention"),
    ],
)
def test_compiled_selective_recomputation_saves_attention(form, operator, how, monkeypatch):
    # has no backward pass on a CPU
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    calls: Counter[Any] = Counter()

    def count(graph, inputs):
        calls.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    qkv = [torch.randn(1, 2, 100, 16, requires_grad=True) for _ in range(3)]
    layer = checkpoint_forward(
        lambda q, k, v: form(2 * q, k, v, 33).square(), how, preserve_rng=False
    )
    compiler = aot_autograd(fw_compiler=count, partition_fn=min_cut_rematerialization_partition)
    torch.compile(layer, dynamic=False, backend=compiler)(*qkv).sum().backward()
    assert calls[operator] == TIMES[how]
