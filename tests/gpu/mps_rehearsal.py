"""Train and decode on an Apple GPU that is not there: `python -m tests.gpu.mps_rehearsal`.

Fake tensors on "mps" have shapes and no numbers. They refuse operands on two devices, and `NoFp64`
refuses what an Apple GPU cannot hold. What is never seen: numbers, time, and Metal's kernels.
Prints one JSON object: the device types of results, by case.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from typing import Any

from tests.gpu.fake_gpu import build_device

ctypes.CDLL(str(build_device("MPS")), ctypes.RTLD_GLOBAL)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from gptcli.distributed.context import RankContext  # noqa: E402
from gptcli.model.config import ModelConfig  # noqa: E402
from gptcli.model.transformer import GPT  # noqa: E402
from gptcli.sampling.engine import Engine  # noqa: E402
from gptcli.sampling.load import prepare_for_inference  # noqa: E402
from gptcli.sampling.params import SamplingParams, filter_logits  # noqa: E402
from gptcli.trainer.config import TrainConfig  # noqa: E402
from gptcli.trainer.optimizer import AUTOCAST_DTYPES, make_optimizer  # noqa: E402
from gptcli.trainer.parallelize import apply_ac_and_compile, install_kernels  # noqa: E402
from gptcli.trainer.schedule import Rates  # noqa: E402
from gptcli.trainer.step import TrainStep, micro_batches  # noqa: E402

DENSE = ModelConfig(vocab_size=300, n_ctx=16, n_layer=2, n_head=2, d_model=32)
CONFIG = TrainConfig(tokens=1 << 20, batch_tokens=64, lr=1e-3)
MPS = RankContext(torch.device("mps"))


class NoFp64(TorchDispatchMode):
    """Mode in which a result in fp64 on "mps" is an error, as it is on a Mac."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Call the operator, and look at what it returns."""
        result: object = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "mps":
                assert leaf.dtype is not torch.float64, f"{func} makes fp64 on mps"
        return result


class Windows:
    """Order of which every window is the same."""

    n_ctx = DENSE.n_ctx

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, (count, n_ctx) int64."""
        ones = np.ones((count, self.n_ctx), np.int64)
        return ones, ones


def attention(q: Any, k: Any, v: Any, attn_mask: Any = None, **_: Any) -> torch.Tensor:
    """Attend as `scaled_dot_product_attention` does: its dispatch knows no "mps" in this build."""
    scores = q @ k.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e9)
    result: torch.Tensor = scores.softmax(-1) @ v
    return result


def model_on_mps(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GPT:
    """Return a model without numbers on "mps"."""
    with torch.device("meta"):
        model = GPT(config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=dtype, device="mps")
                module._parameters[name] = torch.nn.Parameter(empty)
    model.lm_head.weight = model.wte.weight
    return model


def train(config: ModelConfig, train_config: TrainConfig) -> list[str]:
    """Train for a step of two micro-batches; return where loss, norm and evaluation are."""
    model = model_on_mps(config)
    if train_config.document_mask:
        model.eot_id = config.vocab_size - 1
    apply_ac_and_compile(model, train_config, None)
    install_kernels(model, train_config, None)
    step = TrainStep(
        model,
        make_optimizer(model, train_config),
        MPS,
        clip=1.0,
        compute_dtype=AUTOCAST_DTYPES[train_config.precision],
        dropout_seed=None,
    )
    batches = micro_batches(Windows(), 0, 4, 2, MPS)
    loss, norm = step.forward_backward(batches, 64, 1), step.clip_gradients()
    step.update(Rates(1e-3))
    return [tensor.device.type for tensor in (loss, norm, step.eval_loss(batches))]


@torch.inference_mode()
def decode(config: ModelConfig, dtype: torch.dtype) -> list[str]:
    """Prefill and decode; return where the logits are."""
    engine = Engine(prepare_for_inference(model_on_mps(config, dtype).eval()), 3)
    logits = [engine.prefill([0, 1, 2], [[1, 2], [3], [4, 5, 6]]), engine.decode([1, 2, 3])]
    engine.reorder([0, 0, 1])
    logits += [engine.append([[1, 2]] * 3, last=2)[:, 0], engine.decode([1, 2, 3])]
    drawn = filter_logits(logits[0], SamplingParams(top_p=0.9))
    return [tensor.device.type for tensor in (*logits, drawn)]


def main() -> None:
    """Rehearse all cases."""
    banded = replace(DENSE, attention="banded", band=3)
    functional: Any = torch.nn.functional
    functional.scaled_dot_product_attention = attention
    torch.mps.recommended_max_memory = lambda: 1 << 33
    torch.mps.driver_allocated_memory = lambda: 0
    report = {}
    with FakeTensorMode(allow_non_fake_inputs=True), NoFp64():
        for name, config, changes in (
            ("fp32", DENSE, {}),
            ("banded", banded, {"precision": "bf16"}),
            ("documents", DENSE, {"document_mask": True, "precision": "fp16"}),
            ("muon", DENSE, {"optimizer": "muon", "precision": "bf16"}),
            ("recompute", DENSE, {"recompute": "full"}),
        ):
            report[name] = train(config, replace(CONFIG, **changes))
        for config in (DENSE, banded):
            for dtype in (torch.float32, torch.bfloat16):
                report[f"decode {config.attention} {dtype}"] = decode(config, dtype)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
