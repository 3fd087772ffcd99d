"""Products of a weight with the few rows that decoding has, at the speed the memory gives the weight; and weights in int8.

What a plain `F.linear` costs on a CPU: oneDNN lays the weight out anew on each call, which for one row takes as long as the product. In
bf16 the weight is laid out once, and kept so: the weights of GPT-2 124M take 11 ms, for 1 row and for 8, instead of 17, and many rows take
no longer than before. In fp32 a weight on the left is read where it lies. What follows a product, GELU or a residual sum, goes with it
where oneDNN can, and `FusedBlock` has a model's blocks ask for it.

Int8 is weight-only: each output channel is rounded to 255 steps of its largest weight, and activations keep 15 bits. On a CPU they go
through oneDNN's int8 product as the sum of two int8 rows, coarse and fine, which reads the weight once; on a GPU, compilation fuses the
conversion of the weight into the product.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli.errors import UsageError, nearest
from gptcli.model.cache import FreshRows, KVCache
from gptcli.model.transformer import GPT, Block

WHOLE = 64  # outputs of the head that oneDNN writes at once: a last piece that is smaller costs 8 rows a sixth of their time
FEW = 256  # rows; beyond it F.linear is as fast
QUANTIZE = ("none", "int8")
STEPS = 127  # of int8, either way
FINE = 254  # fine steps of an activation in a coarse one


class FusedBlock(Block):
    """A block that is only run: GELU and the residual sums go with the products, and what it calls is looked up once. For one row, Python
    and the calls around the products took a tenth of a token's time."""

    def __init__(self, block: nn.Module) -> None:
        self.__dict__ = block.__dict__  # the same modules under the same names
        self.norms = [(norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in (self.ln_1, self.ln_2)]
        self.calls: tuple[Callable[..., torch.Tensor], ...] = (
            self.attn.heads,
            self.attn.c_proj.forward,
            self.mlp.c_fc.forward,
            self.mlp.c_proj.forward,
        )

    def forward(
        self, x_BTC: torch.Tensor, cache: KVCache | FreshRows | None = None, documents_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        heads, project, widen, narrow = self.calls
        norm_1, norm_2 = self.norms
        if self.post_norm:
            x_BTC = torch.layer_norm(project(heads(x_BTC, cache, documents_BT), onto=x_BTC), *norm_1)
            return torch.layer_norm(narrow(widen(x_BTC, gelu=True), onto=x_BTC), *norm_2)
        x_BTC = project(heads(torch.layer_norm(x_BTC, *norm_1), cache, documents_BT), onto=x_BTC)
        return narrow(widen(torch.layer_norm(x_BTC, *norm_2), gelu=True), onto=x_BTC)


class Packed(nn.Module):
    """A bf16 linear layer on a CPU, (.., K) -> (.., N), with its weight laid out as oneDNN multiplies it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.extra = -linear.out_features % WHOLE if self.bias is None else 0
        self.packed = torch.ops.mkldnn._reorder_linear_weight(F.pad(linear.weight.detach(), (0, 0, 0, self.extra)), None)

    def forward(self, x: torch.Tensor, *, gelu: bool = False, onto: torch.Tensor | None = None) -> torch.Tensor:
        if onto is not None and not self.extra:
            return torch.ops.mkldnn._linear_pointwise.binary(x, onto, self.packed, self.bias, "add")
        kind, form = ("gelu", "tanh") if gelu else ("none", "")
        y = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, kind, [], form)
        return y if not self.extra else _then(y[..., : -self.extra], False, onto)


class FewRows(nn.Linear):
    """A linear layer, (.., K) -> (.., N), that multiplies few rows from the left."""

    def forward(self, x: torch.Tensor, *, gelu: bool = False, onto: torch.Tensor | None = None) -> torch.Tensor:
        R = x.shape[:-1].numel()
        if R > FEW or x.device.type != "cpu":
            return _then(F.linear(x, self.weight, self.bias), gelu, onto)
        if R == 1:
            x_K = x.reshape(-1)
            y = self.weight.mv(x_K) if self.bias is None else torch.addmv(self.bias, self.weight, x_K)
        else:
            x_KR = x.reshape(R, -1).T
            y = self.weight @ x_KR if self.bias is None else torch.addmm(self.bias[:, None], self.weight, x_KR)
            y = y.T.contiguous()  # attention over strided heads would fall back to its slow form
        return _then(y.view(*x.shape[:-1], -1), gelu, onto)


def _then(y: torch.Tensor, gelu: bool, onto: torch.Tensor | None) -> torch.Tensor:
    """What follows a product in `FusedBlock`."""
    if gelu:
        return F.gelu(y, approximate="tanh")
    return y if onto is None else y.add_(onto)


class Int8(nn.Module):
    """A linear layer, (.., K) -> (.., N), with its weight in int8 and a scale for each output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        scale_N = weight_NK.abs().amax(dim=1).clamp(min=1e-12) / STEPS
        weight_NK = (weight_NK / scale_N[:, None]).round().to(torch.int8)
        self.onednn = weight_NK.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.scale_N: torch.Tensor
        self.register_buffer("scale_N", scale_N)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        if self.onednn:
            self.packed = torch.ops.onednn.qlinear_prepack(weight_NK, None)
            self.zero_N = torch.zeros(len(scale_N), dtype=torch.int32)
            self.digits_211 = torch.tensor([STEPS, STEPS * FINE]).view(2, 1, 1)
        else:
            self.weight_NK = weight_NK

    def forward(self, x: torch.Tensor, *, gelu: bool = False, onto: torch.Tensor | None = None) -> torch.Tensor:
        if self.onednn:
            return _then(self._onednn(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1), gelu, onto).to(x.dtype)
        y = F.linear(x, self.weight_NK.to(x.dtype)) * self.scale_N.to(x.dtype)
        return _then(y if self.bias is None else y + self.bias.to(x.dtype), gelu, onto)

    def _onednn(self, x_RK: torch.Tensor) -> torch.Tensor:
        """The product in fp32. Few calls: each takes as long as 50 kB of weights."""
        R, K = x_RK.shape
        most_R1 = x_RK.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-12)
        both_2RK = (x_RK * (self.digits_211 / most_R1)).round_()
        both_2RK[1].sub_(both_2RK[0], alpha=FINE)
        y_QN = torch.ops.onednn.qlinear_pointwise.default(
            both_2RK.view(2 * R, K).to(torch.int8),
            1.0,
            0,
            self.packed,
            self.scale_N,
            self.zero_N,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        y_RN = y_QN[:R].add_(y_QN[R:], alpha=1 / FINE)
        step_R1 = most_R1.div_(STEPS)
        return y_RN.mul_(step_R1) if self.bias is None else torch.addcmul(self.bias, y_RN, step_R1)


def read_in_place(model: GPT, quantize: str = "none") -> GPT:
    """Give every linear layer of `model` the products above, in place; returns the model. Raises UsageError for an unknown form.

    Quantised, or in bf16 on a CPU, the model can only be run: its linear layers have no `weight` any more.
    """
    if quantize not in QUANTIZE:
        raise UsageError(f"unknown quantisation {quantize!r}", hint=nearest(quantize, QUANTIZE))
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear:
            continue
        fast: nn.Module
        if quantize == "int8":
            fast = Int8(module)
        elif bf16 and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu":
            fast = Packed(module)
        else:
            fast = FewRows.__new__(FewRows)
            fast.__dict__ = module.__dict__  # the same parameters: a tied head stays tied
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, fast)
    if model.wte.weight.device.type == "cpu":  # on a GPU compilation does as much
        for layer, block in enumerate(model.h):
            model.h[layer] = FusedBlock(block)
    return model
