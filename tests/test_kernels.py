"""Kernels are installed at the seam of the model, and removed again."""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from gptcli import kernels
from gptcli.kernels import (
    attention_kernel,
    build,
    head_kernel,
    installation,
    layer_kernel,
    linear_kernel,
    norm_kernel,
)
from gptcli.kernels.block_triton import final_norm, hand_on, train_block
from gptcli.kernels.decode_kernel import small_batch_linear
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
        "block": layer_kernel.train_layer,
        "head": head_kernel,
        "linear": None,
    }
    assert places(model) == installed
    kernels.install(model)
    assert places(model) == {**installed, "block": block_forward}
    assert list(model.state_dict()) == names
    kernels.uninstall(model)
    assert places(model) == PYTORCH


def test_layers_on_a_gpu_leave_their_last_sum_to_the_next_layer(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a whole model, and only if asked to."""
    monkeypatch.setattr(installation, "_on_gpu", lambda _: True)
    block = model.h[0]
    assert isinstance(block, Block)
    plain = model.norm_fn
    for options, layer, last in (
        ({"fuse_blocks": True, "fuse_sums": True}, hand_on, final_norm),
        ({"fuse_blocks": True}, train_block, plain),
        ({"fuse_sums": True}, block_forward, plain),
    ):
        kernels.install(model, **options)
        assert (block.block_fn, model.norm_fn) == (layer, last)
    kernels.install(block, fuse_blocks=True, fuse_sums=True)
    assert block.block_fn is train_block
    kernels.install(model, fuse_blocks=True, fuse_sums=True)
    kernels.uninstall(model)
    assert (block.block_fn, model.norm_fn) == (block_forward, plain)


def test_exact_gelu_is_left_to_pytorch() -> None:
    exact = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=11, gelu="exact")
    ).eval()
    with torch.no_grad():
        for parameter in exact.parameters():
            torch.nn.init.normal_(parameter)
    idx = torch.arange(8)[None]
    with torch.no_grad():
        logits = exact(idx)
    kernels.install(exact, fuse_blocks=True)
    assert places(exact)["block"] is block_forward
    with torch.no_grad():
        prepared = prepare_for_inference(exact)(idx)
    assert torch.allclose(prepared, logits, rtol=1e-5, atol=1e-4)
    assert kernels.decode_step(exact) is None


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


KERNELS = {
    "attention": attention_kernel,
    "head": head_kernel,
    "linear": linear_kernel,
    "norm": norm_kernel,
}


@pytest.fixture(params=list(build.INSTRUCTION_SETS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Build and use the kernels for an instruction set; skip it where the processor has not got it."""
    name: str = request.param
    monkeypatch.delenv(build.LIMIT, raising=False)
    if name not in build.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    if build._compiler() is None:
        pytest.skip("no compiler here")
    monkeypatch.setenv(build.LIMIT, name)
    caches = [
        build.library,
        build.instruction_set,
        *(kernel._kernel for kernel in KERNELS.values()),
    ]
    for cache in caches:
        cache.cache_clear()
    yield name
    for cache in caches:
        cache.cache_clear()


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


def test_every_instruction_set_computes_what_torch_does(instructions: str) -> None:
    assert build.instruction_set() == instructions
    assert all(kernel.available() for kernel in KERNELS.values())
    torch.manual_seed(0)
    x, w, b, dy = torch.randn(70, 45), torch.randn(101, 45), torch.randn(101), torch.randn(70, 101)
    x, dy = x.bfloat16(), dy.bfloat16()
    close(linear_kernel.linear(x, w, b), x.double() @ w.double().T + b, 6e-3)
    dx, dw, db = linear_kernel.linear_backward(dy, x, w)
    close(dx, dy.double() @ w.double(), 6e-3)
    close(dw, dy.double().T @ x.double(), 1e-5)
    close(db, dy.double().sum(0), 1e-5)
    precisions = ((torch.bfloat16, 6e-3, 1e-2), (torch.float32, 3e-6, 5e-6))
    for (T, band), (dtype, most, most_gradient) in itertools.product(
        ((1, None), (33, None), (150, 40)), precisions
    ):
        qkv = torch.randn(2, T, 2, 3, 24).to(dtype)
        exact, ours = qkv.double().requires_grad_(), qkv.clone().requires_grad_()
        wanted, got = (
            attention_packed(exact, band=band),
            attention_kernel.attention_packed(ours, band=band),
        )
        dy_BTHD = torch.randn(wanted.shape).to(dtype)
        assert got.grad_fn is not None
        assert "packed_attend" in got.grad_fn.name(), "the kernel"
        close(got, wanted, most)
        [gradient] = torch.autograd.grad(got, ours, dy_BTHD)
        close(gradient, torch.autograd.grad(wanted, exact, dy_BTHD.double())[0], most_gradient)
    target = torch.randint(300, (70,))
    weight = torch.randn(300, 45)
    chunk = head_kernel.chunk(x, weight, target, True)
    logits = x.double() @ weight.bfloat16().double().T
    close(chunk.log_sum_n1, logits.logsumexp(1, keepdim=True), 1e-4)
    close(chunk.target_logit_n1, logits.gather(1, target[:, None]), 1e-4)
    gain, bias, stream = torch.rand(45) + 0.5, torch.randn(45), torch.randn(70, 45)
    wanted = torch.nn.functional.layer_norm(stream.double(), (45,), gain.double(), bias.double())
    close(norm_kernel.norm(stream, gain, bias, 1e-5)[0], wanted, 6e-3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86 compilers")
def test_the_sources_compile_for_processors_that_this_one_is_not() -> None:
    if (compiler := build._compiler()) is None:
        pytest.skip("no compiler here")
    for name, needs in build.INSTRUCTION_SETS.items():
        if "asimd" in needs:
            continue
        for source in ("adamw", "attention", "attention_fp32", "decode", "head", "linear", "norm"):
            path = build.HERE / f"{source}.c"
            options = [*build.FLAGS[:-1], *build._flags(name), "-fsyntax-only", "-Werror"]
            words = [compiler, *options, str(path)]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, (name, source, done.stderr)


EMULATED = {  # compiler and emulator of two instruction sets
    "neon": (["aarch64-linux-gnu-gcc"], ["qemu-aarch64"]),
    "sse2": (["gcc"], []),
}


@pytest.mark.parametrize(
    "source", ["adamw", "linear", "attention", "attention_fp32", "head", "norm"]
)
def test_an_emulated_arm_computes_the_same(source: str, tmp_path: Path) -> None:
    """Compare NEON under an emulator with vectors of four numbers on this processor."""
    printed = {}
    for name, (compiler, emulator) in EMULATED.items():
        if missing := [word for word in (*compiler, *emulator) if shutil.which(word) is None]:
            pytest.skip(f"no {' and no '.join(missing)} here")
        program = tmp_path / name
        words = [
            *(
                *compiler,
                "-O2",
                "-std=gnu11",
                "-fno-math-errno",
                "-fopenmp",
                "-static",
                "-Wno-psabi",
            ),
            *(f'-DSOURCE="{build.HERE / source}.c"', f"-D{source.upper()}", "-o", str(program)),
            *(str(Path(__file__).parent / "kernels" / "emulated.c"), "-lm"),
        ]
        subprocess.run([*map(str, words)], check=True, capture_output=True)
        done = subprocess.run(
            [*emulator, program],
            check=True,
            capture_output=True,
            text=True,
            env={"OMP_NUM_THREADS": "1"},
        )
        printed[name] = [line.split() for line in done.stdout.splitlines()]
    for got, wanted in zip(*printed.values(), strict=True):
        assert got[0] == wanted[0]
        close(
            torch.tensor([float(x) for x in got[1:]]),
            torch.tensor([float(x) for x in wanted[1:]]),
            4e-3,
        )
