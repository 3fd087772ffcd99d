"""The chunked loss equals torch's cross-entropy over all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.model import loss as module
from gptcli.model.config import ModelConfig
from gptcli.model.loss import IGNORE, chunk_rows, next_token_loss
from gptcli.model.transformer import GPT


@pytest.mark.parametrize("form", ["pieces", "whole vocabulary"])
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_loss_and_gradients_equal_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows: int, form: str
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 31 * rows)
    monkeypatch.setattr(module, "PIECES", {"cpu": 10})
    if form == "whole vocabulary":  # as on a GPU, with smaller tiles
        monkeypatch.setattr(module, "WHOLE_VOCABULARY", {"cpu"})
        monkeypatch.setattr(module, "ALIGNMENT", 4)
    torch.manual_seed(0)
    x, weight = torch.randn(20, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    target = torch.randint(0, 31, (20,))
    target[[0, 5, 19]] = IGNORE
    expected = F.cross_entropy(x @ weight.T, target, ignore_index=IGNORE, reduction="sum")
    expected_grads = torch.autograd.grad(expected / 17, (x, weight))
    loss = next_token_loss(x, weight, target)
    grads = torch.autograd.grad(loss / 17, (x, weight))
    torch.testing.assert_close(loss, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-6, rtol=1e-5)


def test_no_gradients_are_computed_without_training() -> None:
    x, weight = torch.randn(6, 4), torch.randn(9, 4)
    with torch.no_grad():
        loss = next_token_loss(x, weight, torch.arange(6))
    torch.testing.assert_close(
        loss, F.cross_entropy(x @ weight.T, torch.arange(6), reduction="sum")
    )


def test_loss_of_no_positions_has_zero_gradients() -> None:
    x, weight = torch.randn(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = next_token_loss(x, weight, torch.zeros(0, dtype=torch.long))
    assert loss == 0
    assert not torch.autograd.grad(loss, weight)[0].any()


def test_bf16_loss_is_summed_in_fp32() -> None:
    torch.manual_seed(0)
    x, weight, target = (
        torch.randn(512, 16, requires_grad=True),
        torch.randn(64, 16, requires_grad=True),
        torch.randint(0, 64, (512,)),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(x, weight, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = F.cross_entropy(
        (x.bfloat16().float() @ weight.bfloat16().float().T), target, reduction="sum"
    )
    assert abs(loss.item() / exact.item() - 1) < 2e-3


def test_the_gradient_of_fp32_weights_is_not_rounded_to_bf16() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 16), torch.randn(96, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(x, weight, torch.randint(0, 96, (64,)))
    (loss / 3).backward()  # as the mean over a batch is
    assert weight.grad is not None
    assert not weight.grad.equal(weight.grad.bfloat16().float())


@pytest.mark.parametrize("max_rows", [50, 128, 5042, 5336, 10_672])
@pytest.mark.parametrize("positions", [1, 77, 1024, 4096, 5000, 65_536, 66_000])
def test_chunks_cover_all_positions_and_are_aligned(positions: int, max_rows: int) -> None:
    for alignment in (1, 128):
        rows = chunk_rows(positions, max_rows, alignment)
        assert 1 <= rows <= max_rows
        assert rows % alignment == 0 or max_rows < alignment
        if alignment == 1 or positions >= 4096:
            fewest = -(-positions // max_rows)
            assert -(-positions // rows) <= 2 * fewest


def test_chunks_of_whole_batches_are_equal() -> None:
    assert chunk_rows(65_536, 5336, 128) == 4096
    assert 65_536 % chunk_rows(65_536, 10_672, 128) == 0


def test_the_gradient_of_a_tied_embedding_is_added_in_place() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=50))
    model.init_weights(0)
    tokens = torch.arange(8)[None]
    loss = model(tokens, tokens + 1)
    assert loss.grad_fn is not None
    place = loss.grad_fn.saved_tensors[1].data_ptr()
    loss.backward()
    assert model.wte.weight.grad is not None
    assert model.wte.weight.grad.data_ptr() == place, "a second gradient of the whole table"


@pytest.mark.parametrize("train", [True, False])
def test_pieces_share_one_block_of_memory(monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    """The exponentials of all pieces are computed in one block, without a tensor as large as a piece
    beside it: the memory that the cost model counts.
    """
    monkeypatch.setattr(module, "PIECES", {"cpu": 10})
    x, weight = torch.randn(200, 4), torch.randn(64, 4)
    large: dict[int, int] = {}

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, torch.Tensor) and tensor.numel() >= 200 * 4:
                    storage = tensor.untyped_storage()
                    if storage.nbytes() >= 4 * 200 * 10:
                        large[storage.data_ptr()] = storage.nbytes()
            return made

    with torch.set_grad_enabled(train), Sizes():
        next_token_loss(x, weight, torch.randint(0, 64, (200,)))
    assert list(large.values()) == [4 * 200 * (64 if train else 10)]
