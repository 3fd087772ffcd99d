"""A decoding step of the kernel equals the model, for every kind of weight and layer."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gptcli.kernels import build, decode_kernel
from gptcli.kernels.build import library
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.sampling.engine import Engine
from gptcli.sampling.load import Int8Linear, Quantize, prepare_for_inference

pytestmark = pytest.mark.skipif(library("decode") is None, reason="the kernel cannot be built here")
N_CTX = 24
LENGTHS = [1, 7, 22, 23, 3]  # of prompts: the first token, the last that has a place, and between
NEXT = [3, 5, 7, 9, 11]

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"tied": True},
    "untied": {"tied": False},
    "gpt3": {"attention": "banded", "band": 5, "tied": False},
    "gpt1": {"norm": "post"},
}
# d_model, n_head, V
SIZES = {
    "tiles": (128, 4, 64),
    "odd": (96, 4, 57),
    "narrow head": (48, 2, 57),
    "no whole word": (15, 3, 11),
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def small(kind: str, size: str, dtype: torch.dtype) -> GPT:
    d_model, n_head, vocab_size = SIZES[size]
    model = GPT(
        ModelConfig(
            n_layer=3,
            n_head=n_head,
            d_model=d_model,
            n_ctx=N_CTX,
            vocab_size=vocab_size,
            **KINDS[kind],
        )
    ).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator)
    return model.to(dtype)


def exact(model: GPT) -> GPT:
    """Return the same (rounded) weights in plain PyTorch and fp64."""
    plain = GPT(model.config).double().eval()
    state = {
        name: tensor.double()
        for name, tensor in model.state_dict().items()
        if not name.endswith(("weight_NK", "scale_N"))
    }
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            state[f"{name}.weight"] = module.weight_NK.double() * module.scale_N.double()[:, None]
            if module.bias is not None:
                state[f"{name}.bias"] = module.bias.double()
    # in int8 its numbers are not the embedding's
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    plain.load_state_dict(state)
    return plain


def filled(model: GPT, prompts: list[list[int]]) -> Engine:
    """Return an engine after prefill, with NaN in every slot that no row may read."""
    engine = Engine(model, len(prompts))
    engine.prefill(range(len(prompts)), prompts)
    for store in engine.cache.keys + engine.cache.values:
        for row, prompt in enumerate(prompts):
            store[row, :, len(prompt) :] = math.nan
    return engine


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_step_equals_the_model_and_rows_are_independent(
    kind: str, size: str, dtype: torch.dtype, quantize: Quantize
) -> None:
    model = prepare_for_inference(small(kind, size, dtype), quantize)
    plain, V = exact(model), model.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(V, (length,), generator=generator).tolist() for length in LENGTHS]
    engine = filled(model, prompts)
    assert engine._step is not None
    before = copy.deepcopy(engine.cache)
    logits_BV = engine.decode([token % V for token in NEXT])
    # in bf16 it is the cache that is rounded
    limit = 3e-2 if dtype == torch.bfloat16 else 5e-6 if quantize == "none" else 5e-4
    for row, prompt in enumerate(prompts):
        expected = plain(torch.tensor([[*prompt, NEXT[row] % V]]))[0, -1]
        assert float((logits_BV[row] - expected).abs().max()) < limit * float(expected.abs().max())
        alone = Engine(model, 1)
        alone.cache.keys, alone.cache.values = (
            [store[row : row + 1].clone() for store in stores]
            for stores in (before.keys, before.values)
        )
        alone.lengths = [len(prompt)]
        assert torch.equal(alone.decode([NEXT[row] % V])[0], logits_BV[row])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for x86-64")
@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cpu", ["nehalem", "haswell"])
def test_builds_for_older_cpus_equal_the_model(
    cpu: str, dtype: torch.dtype, quantize: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds without 256-bit vectors, and without 512-bit vectors and tiles."""
    if cpu == "haswell" and not {"avx2", "fma", "bmi2"} <= build._features():
        pytest.skip("this CPU is older")
    newer = library("decode")
    monkeypatch.setattr(build, "INSTRUCTION_SETS", {cpu: {"fpu": f"-march={cpu}"}})
    monkeypatch.setattr(build, "_features", lambda: {"fpu"})
    monkeypatch.delenv(build.LIMIT, raising=False)
    older = library.__wrapped__("decode")
    assert older is not None
    assert newer is not None
    assert older._name != newer._name
    monkeypatch.setattr(decode_kernel, "library", lambda _: older)
    for size in SIZES:
        test_step_equals_the_model_and_rows_are_independent("gpt3", size, dtype, quantize)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_blocks_that_are_computed_twice_change_no_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads on fewer cores, none of which waits for a block that another has begun."""
    [name, flags] = next(
        (name, dict(flags))
        for name, flags in build.INSTRUCTION_SETS.items()
        if name == build.instruction_set()
    )
    model = prepare_for_inference(small(kind, "odd", torch.float32), "none")
    prompts = [[number, 7] for number in range(3)]
    engine = filled(model, prompts)
    assert engine._step is not None
    tokens = [[step, 2 * step, 3 * step] for step in range(1, 12)]
    wanted = [engine.decode(three) for three in tokens]

    impatient = {name: {**flags, "impatient": "-DPATIENCE=0"}}
    monkeypatch.setattr(build, "INSTRUCTION_SETS", impatient)
    monkeypatch.setattr(build, "_features", lambda: {*flags, "impatient"})
    other = library.__wrapped__("decode")
    assert other is not None
    monkeypatch.setattr(decode_kernel, "library", lambda _: other)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        engine = filled(model, prompts)
        for three, logits in zip(tokens, wanted, strict=True):
            assert torch.equal(engine.decode(three), logits)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@torch.inference_mode()
def test_rows_beyond_the_tiles_are_independent(quantize: Quantize) -> None:
    """More rows than the tiles take at once are still independent of each other."""
    model = prepare_for_inference(small("gpt2", "tiles", torch.bfloat16), quantize)
    prompts = [[i % 64, 7 * i % 64] for i in range(75)]
    many, few = filled(model, prompts), filled(model, prompts[:9])
    for stores in ("keys", "values"):  # prompts read together are rounded otherwise
        setattr(few.cache, stores, [store[:9].clone() for store in getattr(many.cache, stores)])
    assert torch.equal(many.decode([5] * 75)[:9], few.decode([5] * 9))


@torch.inference_mode()
def test_full_row_is_rejected() -> None:
    engine = Engine(prepare_for_inference(small("gpt2", "odd", torch.float32)), 2, max_len=4)
    engine.lengths = [1, 4]
    with pytest.raises(IndexError, match="4 tokens"):
        engine.decode([1, 1])


@torch.inference_mode()
def test_token_outside_the_vocabulary_is_rejected() -> None:
    engine = Engine(prepare_for_inference(small("gpt2", "odd", torch.float32)), 2)
    for token in (57, -1):
        with pytest.raises(IndexError, match="vocabulary of 57"):
            engine.decode([1, token])
