"""AdamW with the papers' constants (GPT-3, appendix B), Muon, the average of the weights, the clip
of the gradient's norm, and the precision of matrix products with fp16's loss scale.

Weights, gradient sums, the optimizer and the residual stream are fp32 in every precision: each
layer of a deep model adds little to a long sum, which the 8 bits of bf16's mantissa would lose.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from gptcli import optional_kernels
from gptcli.devices import device_type
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import reshard
from gptcli.errors import UsageError, install_hint
from gptcli.model.transformer import mup_groups
from gptcli.runtime import has_fast_bf16
from gptcli.trainer.config import TrainConfig, import_object
from gptcli.trainer.schedule import Rates

AUTOCAST_DTYPES = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # the linear layers cast further
}
"""Dtype of matrix products under autocast, in which FSDP also gathers the weights of blocks; None
leaves them as stored.
"""
MIN_FP8_CAPABILITY = (8, 9)  # compute capability of Ada, the first GPUs with fp8


def product_dtype(precision: str) -> torch.dtype:
    """Return the dtype for products of whole matrices by PyTorch itself in a precision, here.

    On a CPU that does not multiply bf16 faster, bf16 is what the kernels store, which multiply in
    fp32; PyTorch's own products of it take several times as long.
    """
    if device_type() == "cpu" and not has_fast_bf16():
        return torch.float32
    return AUTOCAST_DTYPES[precision] or torch.float32


def make_optimizer(
    model: nn.Module, config: TrainConfig, width_mult: float = 1.0
) -> torch.optim.Optimizer:
    """Return one optimizer over all parameters: fused AdamW, Muon, or the user's own.

    The `lr_scale` of each parameter group multiplies the learning rate: see
    `gptcli.model.transformer.mup_groups`, of which `width_mult` is the m. A user's own optimizer is
    the return value of the function that `config.optimizer` names, called with `model` and
    `config`; its groups may have an `lr_scale`.
    """
    if ":" in config.optimizer:
        return own_optimizer(import_object(config.optimizer, "optimizer")(model, config), config)
    groups = mup_groups(model, width_mult, config.weight_decay)
    adamw = partial(
        AdamW,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    if config.optimizer == "adamw":
        return adamw(groups)
    matrices = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.startswith("h.") and parameter.dim() == 2
    }
    parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        for is_matrix, found in parts.items():
            chosen = [p for p in group["params"] if (id(p) in matrices) == is_matrix]
            if chosen:
                found.append({**group, "params": chosen})
    dtype = product_dtype(config.precision)
    if dtype == torch.float16:  # its range is too small
        dtype = torch.bfloat16
    return Muon(parts[True], adamw(parts[False]), config.lr, dtype)


def own_optimizer(made: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """Return a user's optimizer with an `lr_scale` in each group.

    Raises UsageError if it is not an optimizer of torch.
    """
    if not isinstance(made, torch.optim.Optimizer):
        raise UsageError(
            f"{config.optimizer} returned {type(made).__name__}, not a torch.optim.Optimizer",
            field="optimizer",
            code="not_an_optimizer",
            hint="a function (model, config) that returns one optimizer of the model's parameters",
        )
    changing = {
        "weight_decay": config.weight_decay_schedule,
        "betas": config.beta2_schedule,
    }
    for key, course in changing.items():
        if course != "constant" and not any(key in group for group in made.param_groups):
            raise UsageError(
                f"{config.optimizer} has no {key} that could follow a schedule",
                field="weight_decay_schedule" if key == "weight_decay" else "beta2_schedule",
                code="nothing_to_schedule",
                hint="leave the schedule out",
            )
    for group in made.param_groups:
        group.setdefault("lr_scale", 1.0)
        group.setdefault("decays", group.get("weight_decay", 0) > 0)
    return made


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give the parameter groups the constants of one update, those that change.

    Adam corrects its second moment by the newest beta2, as torch does.
    """
    for group in optimizer.param_groups:
        group["lr"] = rates.lr * group["lr_scale"]
        if rates.weight_decay is not None and group["decays"]:
            group["weight_decay"] = rates.weight_decay / group["lr_scale"]
        if rates.beta2 is not None and "betas" in group:
            group["betas"] = (group["betas"][0], rates.beta2)


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW; on a CPU, a kernel updates all parameters together."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient."""
        conditional = any(hasattr(self, name) for name in ("found_inf", "grad_scale"))
        if closure is None and not conditional and self._update_by_kernel():
            return None
        return super().step(closure)

    def _update_by_kernel(self) -> bool:
        """Update the parameters if the kernel can, and return whether it did."""
        updated = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        weights = [_local(parameter) for parameter, _ in updated]
        grads = [_local(parameter.grad) for parameter, _ in updated]
        kernel = optional_kernels.adamw_kernel([*weights, *grads])
        if kernel is None:
            return False
        for parameter, _ in updated:
            if not self.state[parameter]:  # as torch makes it
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        moments, squares, steps = (
            [_local(self.state[parameter][name]) for parameter, _ in updated]
            for name in ("exp_avg", "exp_avg_sq", "step")
        )
        if not kernel.supports([*moments, *squares, *steps]):
            return False
        rates = [
            kernel.AdamWRates(g["lr"], *g["betas"], g["eps"], g["weight_decay"]) for _, g in updated
        ]
        kernel.adamw_(weights, grads, moments, squares, steps, rates)
        return True


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, and AdamW for embeddings, head, biases and gains.

    Muon (Jordan et al. 2024) moves a matrix by its momentum's nearest semi-orthogonal matrix, as
    `torch.optim.Muon` does. The update is scaled by 0.2 sqrt(max(A, B)) for an (A, B) matrix (Liu
    et al. 2025, arXiv 2502.16982, section 2.2), so that its root mean square is that of AdamW and
    one learning rate and weight decay serve both.

    The momentum has the layout of its matrix. Each process gathers the whole update, one matrix at
    a time, and applies its own part, so that every layout does the arithmetic of one process.
    """

    MOMENTUM = 0.95
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, tuned by Jordan et al.
    ITERATIONS, EPS = 5, 1e-7
    RMS = 0.2  # of AdamW's usual update

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rest: torch.optim.Optimizer,
        lr: float,
        dtype: torch.dtype,
    ) -> None:
        """Optimize `groups` of matrices, with products in `dtype`; `rest` optimizes the others."""
        super().__init__(groups, {"lr": lr})
        self.matrices, self.rest, self.dtype = list(self.param_groups), rest, dtype
        # One optimizer for everyone else: the same groups and states by parameter.
        self.param_groups += rest.param_groups
        rest.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.matrices:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group["lr"], group["weight_decay"])
        self.rest.step()

    def _update(self, matrix: torch.Tensor, lr: float, weight_decay: float) -> None:
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.MOMENTUM)
        update = gradient.lerp(momentum, self.MOMENTUM)  # Nesterov's
        if isinstance(update, DTensor):
            update = update.full_tensor()
        matrix.mul_(1 - lr * weight_decay)
        scale = self.RMS * math.sqrt(max(update.shape))
        with implicit_replication():  # each process adds its part
            matrix.add_(self._orthogonalize(update), alpha=-lr * scale)

    def _orthogonalize(self, update: torch.Tensor) -> torch.Tensor:
        """Return about U V^T of `update` = U S V^T, by the Newton-Schulz iteration."""
        a, b, c = self.COEFFICIENTS
        is_tall = update.shape[0] > update.shape[1]
        x = update.to(self.dtype, copy=True)
        x = x.T if is_tall else x
        x.div_(x.norm().clamp(min=self.EPS))  # a spectral norm of at most 1
        for _ in range(self.ITERATIONS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.T if is_tall else x).to(update.dtype)


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """Add the weights after step number `step` to their exponential moving average.

    The average of each parameter is `ema` in its optimizer state, in the layout of the parameter.
    `decay` is reached after about 10 / (1 - decay) steps, and is smaller before, so that the first
    weights do not weigh for long.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if "ema" in state:
                state["ema"].lerp_(parameter, 1 - decay)
            else:
                state["ema"] = parameter.detach().clone()


@contextlib.contextmanager
def averaged_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Give the model its average weights within the block, if there are any yet."""
    pairs = [
        (parameter, optimizer.state[parameter]["ema"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "ema" in optimizer.state[parameter]
    ]
    _swap(pairs)
    try:
        yield
    finally:
        reshard(model)
        _swap(pairs)


@torch.no_grad()
def _swap(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for one, other in pairs:
        kept = one.detach().clone()
        one.copy_(other)
        other.copy_(kept)


@torch.no_grad()
def gradient_norm(model: Any, context: RankContext) -> torch.Tensor:
    """Return the norm of the whole gradient over all ranks, a scalar on the device.

    A gradient that several ranks have is counted once. Every rank returns the same norm.
    """
    # The last stage has a copy of a tied embedding, which the first stage counts.
    wte = getattr(model, "wte", None)
    tied_copy = None if context.pp_rank == 0 or wte is None else wte.weight
    counted = [
        _local(p.grad)
        for p in model.parameters()
        if p.grad is not None and p is not tied_copy and _is_counted_here(p.grad)
    ]
    norm = total_norm(counted).to(context.device)
    # Under dp alone every rank has the whole gradient already.
    if context.layout.processes != context.layout.dp:
        norm = context.all_reduce_sum(norm.square()).sqrt()
    return norm


@torch.no_grad()
def clip_gradients(
    model: Any, max_norm: float, context: RankContext, loss_scale: float = 1.0
) -> torch.Tensor:
    """Divide the gradient by `loss_scale` and clip its global norm to `max_norm`, in place.

    Return the norm between the two operations, a scalar on the device.
    """
    norm = gradient_norm(model, context) / loss_scale
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0) / loss_scale  # as clip_grad_norm_ does
    if context.device.type != "cpu" or factor != 1:  # comparing on a GPU would wait for it
        grads = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        kernel = optional_kernels.adamw_kernel(grads)
        if kernel is not None:
            kernel.scale_(grads, factor.item())
        else:
            for grad in grads:
                grad.mul_(factor)
    return norm


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all elements of some tensors together, a scalar on their device."""
    kernel = optional_kernels.adamw_kernel(tensors)
    if kernel is None:
        return torch.nn.utils.get_total_norm(tensors)
    return torch.tensor(kernel.total_norm(tensors))


def _local(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _is_counted_here(gradient: torch.Tensor) -> bool:
    """Return True on the first of the ranks that have the same part of the gradient."""
    if not isinstance(gradient, DTensor):
        return True
    coordinate: Sequence[int] = gradient.device_mesh.get_coordinate() or ()
    return all(
        at == 0
        for at, placement in zip(coordinate, gradient.placements, strict=True)
        if placement.is_replicate()
    )


def check_precision(precision: str, tp: int, *, here: bool = True) -> None:
    """Raise UsageError if fp8 is requested and not available.

    It needs torchao, a GPU from Ada or Hopper on, which are checked if the run is to be `here`, and
    a layout without `tp`.
    """
    if precision != "fp8":
        return
    problem = None
    if here and (
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < MIN_FP8_CAPABILITY
    ):
        problem = "this machine has no GPU with fp8"
    elif here and importlib.util.find_spec("torchao") is None:
        problem = f"fp8 needs torchao, which is not installed: {install_hint('torchao')}"
    elif tp > 1:
        problem = "fp8 does not work with tp"
    if problem:
        raise UsageError(
            problem, where="{option:precision} fp8", hint="{option:precision} bf16 runs anywhere"
        )


def convert_to_fp8(block: nn.Module, *, sharded: bool) -> None:
    """Make the linear layers of a block compute in fp8 with one scale per tensor, in place.

    If the weights are `sharded`, FSDP gathers them in fp8 too.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(
        block, config=Float8LinearConfig(enable_fsdp_float8_all_gather=sharded)
    )


class LossScale:
    """Dynamic loss scale, which keeps fp16 gradients from underflow (Micikevicius et al. 2018).

    The loss is multiplied by a power of two and the gradients are divided by it before clipping.
    The scale halves when gradients overflow, and doubles after `GROWTH_STEPS` steps without
    overflow. `state` is all that a checkpoint has to save.
    """

    INITIAL, GROWTH_STEPS = 2.0**16, 2000

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = state or {"scale": self.INITIAL, "steps": 0}

    @property
    def value(self) -> float:
        """Current scale."""
        return self.state["scale"]

    def update(self, grad_norm: float) -> None:
        """Adjust the scale after a step, by the gradient norm, which is equal on all processes."""
        finite = math.isfinite(grad_norm)
        self.state["steps"] = self.state["steps"] + 1 if finite else 0
        if not finite:
            self.state["scale"] /= 2
        elif self.state["steps"] == self.GROWTH_STEPS:
            self.state.update(scale=2 * self.value, steps=0)
