"""A CUDA GPU that is not there, on a PyTorch for CPUs: everything up to machine code is real.

Fake tensors on "cuda" have shapes and no numbers. Through them, in seconds, dynamo traces the
program's own code, AOTAutograd derives its backward pass, inductor generates its kernels, and
Triton compiles those for a GPU's architecture. What is never seen: numbers, time, and the libraries
of CUDA (cuBLAS, cuDNN, NCCL, the allocator).

`prepare` must run before torch is imported, so this is for processes of their own:
`tests.gpu.rehearsal` runs in one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

SOURCE = Path(__file__).with_name("fake_device.cpp")
Kind = Literal["CUDA", "MPS"]
GIB = 1 << 30


@dataclass(frozen=True)
class Architecture:
    """A GPU as CUDA describes it, of which inductor and Triton ask some properties."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    shared_memory: int
    """Bytes of shared memory that one block of threads can use."""


ARCHITECTURES = {
    80: Architecture("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80 * GIB, 166912),
    89: Architecture("NVIDIA L40S", (8, 9), 142, 45 * GIB, 101376),
    90: Architecture("NVIDIA H200", (9, 0), 132, 140 * GIB, 232448),
    100: Architecture("NVIDIA B200", (10, 0), 148, 178 * GIB, 232448),
}
VIEWS = {
    "alias", "as_strided", "detach", "device", "dropout", "empty", "empty_like", "empty_strided", "expand",
    "is_same_size", "lift_fresh", "_local_scalar_dense", "new_empty", "new_empty_strided",
    "permute", "record_stream", "reshape", "resize_", "select", "set_", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip
"""Operators that start no kernel."""
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"}
INDEXED = {"gather", "index", "index_put", "index_put_", "embedding", "scatter_"}
"""Operators that touch as much of a large tensor as their smallest operand selects."""


def build_device(kind: Kind = "CUDA") -> Path:
    """Compile the device against the installed torch, once for each of both."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).resolve().parent
    built = device_path(kind, torch_folder)
    built.parent.mkdir(mode=0o700, exist_ok=True)
    if not built.exists():
        partial = built.with_suffix(f".{os.getpid()}")
        include = torch_folder / "include"
        subprocess.run(
            ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-DFAKE_{kind}", str(SOURCE), "-o", str(partial),
             f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{torch_folder / 'lib'}",
             "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        partial.replace(built)
    return built


def device_path(kind: Kind, torch_folder: Path) -> Path:
    """Return where the device is built.

    It loads the libraries of the torch that it was built against, whose environment may be gone
    when the next one runs these tests: the folder is part of the name.
    """
    import hashlib
    from importlib.metadata import version

    made_from = (kind.encode(), SOURCE.read_bytes(), version("torch").encode(), bytes(torch_folder))
    key = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"gpt-rehearsal-{os.getuid()}", f"{kind}-{key}.so")


def prepare(architecture: int = 90, *, gpus: int = 1) -> None:
    """Make torch see `gpus` GPUs of one architecture.

    The first call comes before torch is imported. A later one, before anything is compiled, changes
    the GPUs.
    """
    ctypes.CDLL(str(build_device()), ctypes.RTLD_GLOBAL)
    _patch_cuda(ARCHITECTURES[architecture], gpus)
    if not _KEPT:
        _patch_attention()
        _patch_inductor()
    _patch_triton(architecture)


class Stream:
    """Stream or event of CUDA: everything has always happened already."""

    cuda_stream = stream_id = device_index = priority = 0
    device_type = 1

    def __init__(self, *_: Any, **__: Any) -> None:
        import torch

        self.device = torch.device("cuda", 0)

    def query(self) -> bool:
        return True

    def record_event(self, *_: Any) -> Stream:
        return Stream()

    def elapsed_time(self, _: Any) -> float:
        return 1.0

    def __getattr__(self, name: str) -> Any:
        if name in ("record", "wait", "synchronize", "wait_stream", "wait_event"):
            return lambda *_: None
        raise AttributeError(name)


def _patch_cuda(gpu: Architecture, gpus: int) -> None:
    import torch
    import torch.cuda as cuda
    from torch._dynamo.device_interface import CudaInterface
    from torch._subclasses import fake_tensor

    properties = SimpleNamespace(
        name=gpu.name, major=gpu.capability[0], minor=gpu.capability[1], uuid="0", gcnArchName="",
        multi_processor_count=gpu.multiprocessors, total_memory=gpu.memory, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, is_integrated=0,
        max_threads_per_block=1024, shared_memory_per_block=49152, L2_cache_size=50 << 20,
        shared_memory_per_block_optin=gpu.shared_memory, is_multi_gpu_board=0, clock_rate=1_980_000,
        shared_memory_per_multiprocessor=gpu.shared_memory + 1024, memory_clock_rate=3_201_000,
        memory_bus_width=6144,
    )  # fmt: skip
    stream = Stream()
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "_lazy_init": None, "device_count": gpus,
        "current_device": 0, "set_device": None, "synchronize": None, "get_device_name": gpu.name,
        "get_device_properties": properties, "get_device_capability": gpu.capability,
        "is_bf16_supported": True, "max_memory_allocated": 0, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "current_stream": stream, "default_stream": stream,
        "mem_get_info": (gpu.memory - GIB, gpu.memory), "get_rng_state": torch.zeros(16).byte(),
        "set_rng_state": None, "empty_cache": None, "reset_peak_memory_stats": None,
    }  # fmt: skip
    for name, value in answers.items():
        setattr(cuda, name, _answer(value))
    cuda.stream = lambda *_: contextlib.nullcontext()  # type: ignore[assignment]
    cuda.Stream = cuda.Event = Stream  # type: ignore[assignment,misc]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]
    torch.version.cuda = "13.0"
    torch.backends.cuda.is_built = lambda: True

    for name in (
        "is_available", "current_device", "set_device", "device_count", "get_device_properties",
        "synchronize", "current_stream", "is_bf16_supported",
    ):  # fmt: skip
        setattr(CudaInterface, name, staticmethod(getattr(cuda, name)))
    for name, value in {
        "exchange_device": 0, "maybe_exchange_device": 0, "get_raw_stream": 0,
        "raise_if_triton_unavailable": None,
    }.items():  # fmt: skip
        setattr(CudaInterface, name, staticmethod(_answer(value)))
    worker: Any = CudaInterface.Worker
    worker.get_device_properties = staticmethod(_answer(properties))
    worker.current_device = staticmethod(_answer(0))
    fake_tensor.init_gpu_context = lambda device: None  # type: ignore[assignment]
    fake_tensor.FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment,method-assign]
    torch._C._cuda_getCurrentRawStream = _answer(0)


def _answer(value: Any) -> Any:
    return lambda *_, **__: value


def _patch_attention() -> None:
    """Give SDPA the kernel that a GPU takes; a build for CPUs would compute it in plain products."""
    import torch

    library = torch.library.Library("aten", "IMPL")
    aten = torch.ops.aten

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16):
            return aten._scaled_dot_product_flash_attention(
                q, k, v, dropout_p, is_causal, False, scale=scale
            )[0]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(
                    ~attn_mask, float("-inf")
                )
            attn_mask = attn_mask.expand(*q.shape[:3], k.shape[2])
        return aten._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, q.requires_grad, dropout_p, is_causal, scale=scale
        )[0]

    for key in ("CUDA", "AutogradCUDA"):
        library.impl("scaled_dot_product_attention", attend, key)
    _KEPT.append(library)


_KEPT: list[Any] = []
"""Objects that must live as long as the process."""


def _patch_triton(architecture: int) -> None:
    """Give Triton a driver: it compiles for the architecture, and nothing is launched."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    gpu = ARCHITECTURES[architecture]

    class Driver:
        utils = SimpleNamespace(
            get_device_properties=lambda _: {
                "max_shared_mem": gpu.shared_memory, "multiprocessor_count": gpu.multiprocessors,
                "max_num_regs": 65536, "warpSize": 32, "sm_clock_rate": 1_980_000,
                "mem_clock_rate": 3_201_000, "mem_bus_width": 6144,
            },
            load_binary=lambda *_: (0, 0, 0, 0, 1024),
        )  # fmt: skip
        is_active = staticmethod(_answer(True))
        get_current_target = staticmethod(_answer(GPUTarget("cuda", architecture, 32)))
        get_current_device = staticmethod(_answer(0))
        get_current_stream = staticmethod(_answer(0))
        set_current_device = staticmethod(_answer(None))
        get_active_torch_device = staticmethod(_answer(torch.device("cuda", 0)))
        get_device_interface = staticmethod(_answer(torch.cuda))
        launcher_cls = staticmethod(lambda *_: _answer(None))

        @staticmethod
        def get_benchmarker() -> Any:
            return lambda *_, **__: [0.0]

        @staticmethod
        def map_python_to_cpp_type(kind: str) -> str:
            return kind

    def activate() -> None:
        triton.runtime.driver.set_active(Driver())

    activate()
    from torch._inductor.runtime import triton_helpers

    triton_helpers.set_driver_to_gpu = activate


def _patch_inductor() -> None:
    """Let the generated code run on fake tensors, with kernels that only count their calls."""
    import torch
    from torch._functorch import config as functorch_config
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    config.compile_threads = 1
    config.fx_graph_cache = False
    config.joint_graph_constant_folding = False
    config.shape_padding = False  # it measures
    config.profile_bandwidth = True  # writes the bytes of each kernel beside it
    functorch_config.enable_autograd_cache = False
    guards: Any = torch._C._dynamo.guards
    guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda"
    )
    guards._reinterpret_tensor = lambda tensor, size, stride, offset=0: torch.as_strided(
        tensor, size, stride, tensor.storage_offset() + offset
    )

    from torch._inductor.select_algorithm import extern_kernels

    library: Any = extern_kernels  # with `out`, a product of fp8 has no fake form
    library._scaled_mm = lambda *args, out, **words: torch._scaled_mm(*args, **words)

    def triton_kernel(self: AsyncCompile, name: str, source: str, device_str: str = "cuda") -> Any:
        kernel = Kernel(name, source)
        RECORD.kernels.append(kernel)
        return kernel

    AsyncCompile.triton = triton_kernel  # type: ignore[method-assign,assignment]


class Kernel:
    """A kernel that inductor generated."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        known = re.search(r"'kernel_num_gb': ([\d.e-]+)", source)
        self.size = round(float(known[1]) * 1e9) if known else None

    def run(self, *args: Any, **_: Any) -> None:
        """Count a launch, with its bytes: by inductor's count, or those of its tensors."""
        import torch

        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        RECORD.launch(self.name, unique_bytes(tensors) if self.size is None else self.size)


@dataclass(frozen=True)
class Operand:
    """Layout of an operand or of the result of a matrix product."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int

    @property
    def is_aligned(self) -> bool:
        """True if every row begins at a multiple of 16 bytes, as tensor cores need."""
        return all(
            stride * self.item_bytes % 16 == 0
            for stride, size in zip(self.strides, self.shape, strict=True)
            if stride != 1 and size > 1
        )


@dataclass(frozen=True)
class Product:
    """A matrix product: both operands and the result."""

    name: str
    operands: tuple[Operand, ...]


def describe(tensor: Any) -> Operand:
    return Operand(tuple(tensor.shape), tensor.stride(), tensor.element_size())


@dataclass
class Record:
    """Return the kernels compiled and launched since `clear`."""

    kernels: list[Kernel] = field(default_factory=list)
    """Every kernel that was generated."""
    launches: Counter[str] = field(default_factory=Counter)
    """Kernels and operators by name."""
    moved: Counter[str] = field(default_factory=Counter)
    """Bytes of their operands and results."""
    flops: Counter[str] = field(default_factory=Counter)
    """FLOPs of products and attention."""
    products: list[Product] = field(default_factory=list)
    """Matrix products."""

    def launch(self, name: str, size: int) -> None:
        self.launches[name] += 1
        self.moved[name] += size

    def clear(self) -> None:
        for counter in (self.launches, self.moved, self.flops, self.products):
            counter.clear()


RECORD = Record()


def unique_bytes(tensors: list[Any]) -> int:
    """Return the bytes of tensors on the GPU, each counted once."""
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in {id(tensor): tensor for tensor in tensors}.values()
        if tensor.device.type == "cuda"
    )


@contextlib.contextmanager
def counting() -> Iterator[Record]:
    """Count every operator that runs on the GPU, inside compiled graphs and outside them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Count(TorchDispatchMode):
        @classmethod
        def ignore_compile_internals(cls) -> bool:
            return True  # otherwise dynamo runs eagerly and says nothing

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            tensors = [
                leaf
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda"
            ]
            if name in VIEWS or not tensors:
                return result
            moved = tensors
            if name in INDEXED:  # a few rows of a large tensor, in and out
                moved = [min(tensors, key=lambda t: t.numel())]
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            written = [
                x
                for x, slot in zip(args, func._schema.arguments, strict=False)
                if isinstance(x, torch.Tensor) and slot.alias_info and slot.alias_info.is_write
            ]
            size = unique_bytes(moved) + (0 if name in INDEXED else unique_bytes(written))
            RECORD.launch(name, size)
            if name in PRODUCTS:
                a, b = [x for x in inputs if x.dim() >= 2][
                    -2 if "out" not in (kwargs or {}) else -3 :
                ][:2]
                RECORD.flops[name] += 2 * a.numel() * b.shape[-1]
                RECORD.products.append(Product(name, tuple(describe(x) for x in (a, b, result))))
            elif func.overloadpacket in flop_registry:
                RECORD.flops[name] += flop_registry[func.overloadpacket](
                    *args, **(kwargs or {}), out_val=result
                )
            return result

    RECORD.clear()
    with Count():
        yield RECORD


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Make new tensors fake: they have shapes, strides and types, and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def used_resources(compiled: Any) -> dict[str, Any]:
    """Return registers, spilled bytes and shared memory of a compiled Triton kernel."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        words = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert usage is not None, text
    registers, stack, _, local = map(int, usage.groups())
    return {
        "registers": registers,
        "spilled": max(stack, local),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
    }
