"""Every path of attention equals a softmax written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gptcli.cost.memory import Recompute
from gptcli.model import attention as module
from gptcli.model.attention import attention, attention_packed, banded_attention, causal_mask
from gptcli.trainer.auto import has_compiler


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, band: int | None) -> torch.Tensor:
    T, S = q.shape[2], k.shape[2]
    out = torch.empty_like(q)
    for t in range(T):
        at = S - T + t
        first = 0 if band is None else max(0, at - band + 1)
        scores = (k[:, :, first : at + 1] @ q[:, :, t, :, None])[..., 0] / math.sqrt(q.shape[-1])
        out[:, :, t] = (scores.softmax(-1)[..., None] * v[:, :, first : at + 1]).sum(2)
    return out


@pytest.mark.parametrize("band", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (5, 5), (8, 8), (9, 9), (4, 9)])
def test_attention_is_softmax_over_the_visible_keys(T: int, S: int, band: int | None) -> None:
    torch.manual_seed(T * 100 + S)
    q, k, v = torch.randn(2, 3, T, 4), torch.randn(2, 3, S, 4), torch.randn(2, 3, S, 4)
    torch.testing.assert_close(
        attention(q, k, v, band=band), by_hand(q, k, v, band), atol=1e-5, rtol=1e-5
    )


def test_band_includes_the_query_position() -> None:
    mask = causal_mask(4, 4, 2, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("band", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("T", [1, 8, 9])
def test_packed_attention_equals_attention_of_its_parts(T: int, band: int | None) -> None:
    torch.manual_seed(T)
    qkv_BTH3D = torch.randn(2, T, 3, 3, 4)
    y_BTHD = attention_packed(qkv_BTH3D, band=band)
    q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)
    torch.testing.assert_close(
        y_BTHD.transpose(1, 2),
        by_hand(q, k, v, band),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("band", [None, 3])
def test_mask_separates_documents(band: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 4) for _ in range(3))
    documents_BT = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2], [0] * 9])
    same_B1TT = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    y = attention(q, k, v, band=band, attn_mask=causal_mask(9, 9, band, q.device) & same_B1TT)
    alone = [
        by_hand(q[:1, :, start:stop], k[:1, :, start:stop], v[:1, :, start:stop], band)
        for start, stop in ((0, 4), (4, 6), (6, 9))
    ]
    torch.testing.assert_close(y[:1], torch.cat(alone, dim=2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1:], by_hand(q[1:], k[1:], v[1:], band), atol=1e-5, rtol=1e-5)


def leaves(
    B: int, H: int, T: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[torch.Tensor]:
    """Return q, k and v as the model has them: views of the output of one projection."""
    generator = torch.Generator().manual_seed(T * 1000 + D)
    x_BTC = torch.randn(B, T, 3 * H * D, generator=generator).to(device, dtype)
    return [
        y.view(B, T, H, D).transpose(1, 2).detach().requires_grad_() for y in x_BTC.chunk(3, dim=-1)
    ]


def by_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, band: int) -> torch.Tensor:
    mask = causal_mask(q.shape[2], k.shape[2], band, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def assert_same(form, qkv: list[torch.Tensor], band: int, tolerance: float = 1e-5) -> None:
    q, k, v = qkv
    y, wanted = form(q, k, v, band), by_mask(q, k, v, band)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    torch.testing.assert_close(y, wanted, atol=tolerance, rtol=tolerance)
    for grad, expected in zip(
        torch.autograd.grad(y, qkv, dy), torch.autograd.grad(wanted, qkv, dy), strict=True
    ):
        torch.testing.assert_close(grad, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 129, 200, 257])
@pytest.mark.parametrize("band", [1, 2, 63, 64, 65, 129, 200, 300])
def test_blocks_equal_attention_under_the_mask(T: int, band: int) -> None:
    assert_same(banded_attention, leaves(2, 3, T, 8), band)
    # T <= w takes the dense way
    assert_same(lambda q, k, v, w: attention(q, k, v, band=w), leaves(1, 2, T, 8), band)


@settings(max_examples=40, deadline=None)
@given(T=st.integers(1, 90), band=st.integers(1, 100), rows=st.integers(1, 40), D=st.integers(1, 9))
def test_blocks_of_any_size_equal_attention_under_the_mask(
    T: int, band: int, rows: int, D: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_QUERIES", rows)
        assert_same(banded_attention, leaves(1, 2, T, D), band)


def test_keys_outside_the_band_have_no_effect() -> None:
    q, k, v = leaves(1, 2, 150, 8)
    y = banded_attention(q, k, v, 20)
    (dk,) = torch.autograd.grad(y[:, :, 100].sum(), k)
    touched = dk.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (touched.min().item(), touched.max().item()) == (81, 100)


def test_bf16_error_is_no_larger_than_under_the_mask() -> None:
    half = leaves(2, 2, 200, 16, torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in half]
    dy = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()

    def errors(form) -> list[float]:
        q, k, v = exact
        y, wanted = form(*half, 33), by_mask(q, k, v, 33)
        pairs = [
            (y, wanted),
            *zip(
                torch.autograd.grad(y, half, dy),
                torch.autograd.grad(wanted, exact, dy.float()),
                strict=True,
            ),
        ]
        return [(a.float() - b).square().mean().sqrt().item() for a, b in pairs]

    for ours, masked in zip(errors(banded_attention), errors(by_mask), strict=True):
        assert ours < 1.5 * masked


def test_autocast_does_not_change_the_precision() -> None:
    q, k, v = leaves(1, 2, 100, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = banded_attention(q, k, v, 30)
    assert y.dtype == torch.float32
    assert torch.equal(y, banded_attention(q, k, v, 30))


def test_dropout_has_the_right_rate_scale_and_gradient() -> None:
    T, band, share = 300, 40, 0.25
    q, k, _ = (x.detach() for x in leaves(1, 1, T, 8))
    eye = torch.eye(T).expand(1, 1, T, T)  # as values: what comes back is the matrix of weights

    def weights(seed: int, dropout: float) -> torch.Tensor:
        torch.manual_seed(seed)
        return banded_attention(q, k, eye, band, dropout)[0, 0]

    whole, dropped = weights(3, 0.0), weights(3, share)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - share))
    assert kept.sum().item() / (whole != 0).sum().item() == pytest.approx(1 - share, abs=0.01)
    assert torch.equal(dropped, weights(3, share))
    assert not torch.equal(dropped, weights(4, share))

    q, k, v = leaf = [x.requires_grad_() for x in (q, k, torch.randn(1, 1, T, 8))]
    torch.manual_seed(3)
    y = banded_attention(q, k, v, band, share)
    by_hand = dropped_by_hand(q, k, v, band, dropped_weights=dropped)
    dy = torch.randn(y.shape)
    torch.testing.assert_close(y, by_hand, atol=1e-5, rtol=1e-5)
    for grad, wanted in zip(
        torch.autograd.grad(y, leaf, dy), torch.autograd.grad(by_hand, leaf, dy), strict=True
    ):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-5)


def dropped_by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, band: int, dropped_weights: torch.Tensor
) -> torch.Tensor:
    """Return attention under the mask with those weights dropped that are 0 in `dropped_weights`,
    which also contains the scale of the others.
    """
    T = q.shape[2]
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(
        ~causal_mask(T, T, band, q.device), -math.inf
    )
    weights = scores.softmax(-1)
    return (weights * (dropped_weights / weights.detach().clamp(min=1e-30))) @ v


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compilation_does_not_change_results(dropout: float) -> None:
    """A block of the model, compiled as the trainer does."""
    from gptcli.model.config import ModelConfig
    from gptcli.model.transformer import GPT

    model = GPT(
        ModelConfig(
            n_layer=2,
            n_head=2,
            d_model=16,
            n_ctx=80,
            vocab_size=11,
            attention="banded",
            band=9,
            dropout=dropout,
        )
    )
    model.init_weights(0)
    block = model.h[1]
    x = torch.randn(2, 80, 16, requires_grad=True)
    torch.manual_seed(0)
    y = block(x)
    (wanted,) = torch.autograd.grad(y.square().sum(), x)
    compiled = torch.compile(block.forward, dynamic=False, backend="aot_eager")
    torch.manual_seed(0)
    y_compiled = compiled(x)
    (grad,) = torch.autograd.grad(y_compiled.square().sum(), x)
    if dropout:
        assert y_compiled.shape == y.shape  # compilers draw in an order of their own
        assert grad.isfinite().all()
    else:
        torch.testing.assert_close(y_compiled, y)
        torch.testing.assert_close(grad, wanted)


def listed(mask: BlockMask, name: str) -> list[list[int]]:
    """Return the blocks of each row: of queries ("q") or of keys; "full" ones need no mask."""
    counts, tiles = (
        getattr(mask, f"{name}_num_blocks")[0, 0],
        getattr(mask, f"{name}_indices")[0, 0],
    )
    return [row[:count].tolist() for count, row in zip(counts, tiles, strict=True)]


@pytest.mark.parametrize(
    ("T", "band"),
    [
        (1, 1),
        (100, 7),
        (128, 128),
        (129, 127),
        (300, 64),
        (513, 256),
        (700, 383),
        (700, 384),
        (700, 900),
    ],
)
def test_block_mask_is_that_of_the_band(T: int, band: int) -> None:
    def seen(b, h, query, key):
        return (key <= query) & (query - key < band)

    ours, theirs = (
        module.block_mask(T, band, torch.device("cpu")),
        create_block_mask(seen, None, None, T, T, device="cpu"),
    )
    for name in ("kv", "full_kv", "q", "full_q"):
        assert listed(ours, name) == listed(theirs, name)


@pytest.mark.parametrize(("T", "band"), [(1, 1), (77, 9), (129, 128), (300, 64), (257, 300)])
def test_flex_equals_attention_under_the_mask(
    T: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention in eager mode, whose backward pass torch rejects on a CPU only by a check."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    compiled = torch.compile(module.flex, dynamic=False, backend="aot_eager")
    assert_same(compiled, leaves(2, 3, T, 16), band)


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_flex_runs_in_a_block_of_the_model(how: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block compiled as the trainer does on a GPU, with bf16 products and recomputation."""
    from gptcli.model.config import ModelConfig
    from gptcli.model.transformer import Block
    from gptcli.trainer.parallelize import checkpoint_forward

    torch.manual_seed(0)
    block = Block(
        ModelConfig(
            n_layer=1,
            n_head=2,
            d_model=32,
            n_ctx=150,
            vocab_size=11,
            attention="banded,dense",
            band=9,
        ),
        0,
    )
    x = torch.randn(2, 150, 32, requires_grad=True)

    def both(forward) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = forward(x)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    wanted = both(block)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    monkeypatch.setattr(module, "select_backend", lambda *place, **kind: "flex")
    torch._dynamo.reset()
    found = both(
        torch.compile(
            checkpoint_forward(block.forward, how, preserve_rng=False),
            dynamic=False,
            backend="aot_eager",
        )
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


@pytest.mark.skipif(not has_compiler(), reason="no compiler here")
def test_compiled_flex_equals_the_mask_and_uses_its_block_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel compiled for this CPU, forward only; it skips blocks missing from the mask."""
    q, k, v = (x.detach() for x in leaves(1, 2, 300, 16))
    with torch.no_grad():
        compiled = torch.compile(module.flex, dynamic=False)
        torch.testing.assert_close(
            compiled(q, k, v, 140), by_mask(q, k, v, 140), atol=1e-5, rtol=1e-5
        )
        monkeypatch.setattr(
            module,
            "block_mask",
            lambda T, band, device, tiles=module.block_mask: tiles(T, 1, device),
        )
        torch._dynamo.reset()
        assert not torch.allclose(
            torch.compile(module.flex, dynamic=False)(q, k, v, 140),
            by_mask(q, k, v, 140),
            atol=1e-2,
        )


def test_backend_for_each_device_and_precision() -> None:
    half, single = torch.bfloat16, torch.float32
    chosen = {
        ("cpu", half, 64, False, True): "blocks", ("cpu", single, 64, False, False): "blocks",
        ("cuda", half, 64, False, True): "flex", ("cuda", single, 64, False, True): "blocks", ("cuda", half, 8, False, True): "varlen",
        ("cuda", half, 64, False, False): "varlen", ("cuda", single, 64, False, False): "blocks", ("cuda", half, 64, True, True): "blocks",
    }  # fmt: skip
    for (device, dtype, d_head, drops, compiled), form in chosen.items():
        assert (
            module.select_backend(device, dtype, d_head, has_dropout=drops, compiled=compiled)
            == form
        )


def test_operators_pass_opcheck() -> None:
    q, k, v = leaves(2, 2, 70, 8)
    seed = torch.zeros((), dtype=torch.int64)
    torch.library.opcheck(module.blocks, (q, k, v, seed, 9, 0.0))
    torch.library.opcheck(
        module.blocks_backward, (*(x.detach() for x in (q, q, k, v, v)), seed, 9, 0.5)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("T", "band"), [(300, 64), (257, 256), (100, 200)])
def test_cuda_backends_equal_attention_under_the_mask(T: int, band: int) -> None:
    seed = torch.zeros((), dtype=torch.int64)
    assert_same(
        lambda q, k, v, w: module.blocks(q, k, v, seed, w, 0.0),
        leaves(2, 3, T, 64, device="cuda"),
        band,
        1e-4,
    )
    assert_same(module.varlen, leaves(2, 3, T, 64, torch.bfloat16, "cuda"), band, 3e-2)
    compiled = torch.compile(module.flex, dynamic=False)
    assert_same(compiled, leaves(2, 3, T, 64, torch.float32, "cuda"), band, 1e-4)
    assert_same(compiled, leaves(2, 3, T, 64, torch.bfloat16, "cuda"), band, 3e-2)
