from __future__ import annotations

import tempfile
from collections import Counter
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli import optional_kernels
from gptcli.distributed.context import RankContext
from gptcli.errors import RunError
from gptcli.events import SILENT, Events
from gptcli.kernels import attention_kernel
from gptcli.kernels.attention_kernel import packed_attend
from gptcli.model.attention import banded_attention, flex, varlen
from gptcli.model.transformer import GPT
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.parallelize import build_train_step, checkpoint_forward, compiler_problem

CONTEXT = RankContext(torch.device("cpu"))
BATCH = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))


class Warnings(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def test_initial_weights_are_those_of_the_plain_model(make_run):
    run = make_run(seed=3)
    model = GPT(run.model)
    model.init_weights(3)
    for (name, expected), (_, got) in zip(
        model.named_parameters(),
        build_train_step(run, CONTEXT, SILENT).model.named_parameters(),
        strict=True,
    ):
        assert torch.equal(expected, got), name


def test_a_failing_compiler_is_a_warning_or_if_required_an_error(make_run, monkeypatch):
    def broken(function, **kwargs):
        def call(*args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException(
                "backend='inductor' raised:\nno compiler\nlong story"
            )

        return call

    monkeypatch.setattr(torch, "compile", broken)
    events = Warnings()
    train_step = build_train_step(make_run(compile=True), CONTEXT, events)
    assert events.texts == ["torch.compile failed, training without it: no compiler"]
    assert train_step.forward_backward([BATCH], 32, 1).isfinite()
    with pytest.raises(RunError, match="compile off"):
        build_train_step(make_run(compile=True, must_compile=True), CONTEXT, SILENT)


def test_a_full_folder_for_the_compilers_files_is_named(make_run, monkeypatch):
    def broken(function, **kwargs):
        def call(*args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException(
                "backend='inductor' raised:\nCppCompileError: C++ compile error\n"
                "fatal error: error writing to /t/a.s: No space left on device"
            )

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RunError, match=f"{tempfile.gettempdir()}, is full; TMPDIR"):
        build_train_step(make_run(compile=True, must_compile=True), CONTEXT, SILENT)


def test_a_missing_compiler_is_a_warning_where_kernels_would_run(make_run, monkeypatch):
    monkeypatch.setattr(optional_kernels, "lack_compiler", lambda: True)
    for precision, expected in (("fp32", []), ("bf16", ["there is no C compiler"])):
        events = Warnings()
        build_train_step(make_run(precision=precision), CONTEXT, events)
        assert [text.partition(":")[0] for text in events.texts] == expected


def test_a_compiler_that_fails_is_a_warning_where_kernels_would_run(make_run, monkeypatch):
    monkeypatch.setattr(optional_kernels, "lack_compiler", lambda: False)
    monkeypatch.setattr(optional_kernels, "compiler_failure", lambda: "/bin/cc: no memory")
    for precision, expected in (("fp32", []), ("bf16", ["builds no kernels (/bin/cc: no memory)"])):
        events = Warnings()
        build_train_step(make_run(precision=precision), CONTEXT, events)
        assert len(events.texts) == len(expected)
        assert all(words in text for words, text in zip(expected, events.texts, strict=True))


@pytest.mark.skipif(not has_compiler(), reason="no compiler here")
def test_compiled_and_eager_gradients_agree(make_run):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        build_train_step(
            make_run(compile=on, n_layer=3, must_compile=on, micro_batch=2), CONTEXT, SILENT
        )
        for on in (False, True)
    )
    losses = [
        train_step.forward_backward([BATCH], 32, 1).item() for train_step in (plain, compiled)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for expected, got in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        assert expected.grad is not None
        assert got.grad is not None
        assert torch.allclose(expected.grad, got.grad, atol=1e-6)
    compiled.eval_loss([BATCH])  # compiled before the first step, too
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4, (
        "one graph serves every layer, and one its evaluation; the head has two loops in fp32"
    )


def test_bf16_loss_is_close_to_fp32(make_run):
    losses = [
        build_train_step(make_run(precision=kind), CONTEXT, SILENT)
        .forward_backward([BATCH], 32, 1)
        .item()
        for kind in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_document_mask_changes_the_loss_of_a_window_with_two_documents(make_run):
    apart, together = (
        build_train_step(make_run(document_mask=on, compile=False), CONTEXT, SILENT)
        for on in (True, False)
    )
    x_BT, y_BT = BATCH[0].clone(), BATCH[1]
    x_BT[:, 8] = make_run().eot_id
    losses = [
        train_step.forward_backward([(x_BT, y_BT)], 32, 1).item()
        for train_step in (apart, together)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_compiler_that_fails_somewhere_is_known_everywhere(monkeypatch):
    """Each process learns of a failure in another one before the first collective of the model."""

    def failing(function, **kwargs):
        def compiled(x):
            raise RuntimeError("no C compiler found")

        return compiled

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert compiler_problem(CONTEXT) is None
    # another process of two has failed
    monkeypatch.setattr(RankContext, "all_reduce_sum", lambda self, values: values + 1)
    assert compiler_problem(CONTEXT) == "it does not work for another process"
    monkeypatch.setattr(torch, "compile", failing)
    assert compiler_problem(CONTEXT) == "no C compiler found"


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
            marks=pytest.mark.skipif(not attention_kernel.available(), reason="no kernels here"),
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
