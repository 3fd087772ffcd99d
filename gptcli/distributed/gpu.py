"""The CUDA GPU of a process: its number, its arithmetic, and checks that it works.

Not run on a GPU by us: `tests/gpu` rehearses the rest of the CUDA code without one, and
`python -m tests.benchmarks.gpu_acceptance` tells on a real one.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from gptcli.devices import is_out_of_memory
from gptcli.distributed.context import RankContext
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.numbers import in_bytes
from gptcli.runtime import set_cuda_arithmetic

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # now, and before torch 2.10
FLIGHT_RECORDER = "flight-recorder-rank-"
"""Beginning of the names of NCCL's dumps in a run folder: its last collectives by rank."""
RECORDED_COLLECTIVES = 2000
CHECK_SIZE = 512
"""Rows and columns of the product that a GPU is checked with."""
MEMORY_MODEL_ERROR = 0.1
"""Share by which the memory model may be wrong: less than that is left to the run itself."""
SMALLER_HINT = "use a smaller {option:micro_batch} or {option:recompute} full"
SHORTAGE_HINT = (
    f"{SMALLER_HINT}, or more GPUs in {{option:layout}}; "
    "nvidia-smi shows other programs that occupy the GPU"
)


def own_gpu(local_rank: int) -> torch.device:
    """Return the GPU of the process with this rank on its machine.

    Some launchers show each process all GPUs of the machine, others only its own.
    """
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def configure_cuda(out: Path) -> None:
    """Set how CUDA computes and allocates, for the rest of the process; before its first tensor.

    Products of fp32 operands are exact (no TF32), and products of bf16 are summed in fp32. Freed
    memory can be joined, so that less of it is lost in gaps. If NCCL waits in vain, each process
    writes its last collectives into the run folder `out`.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[1]] = "expandable_segments:True"
    for name, value in {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(RECORDED_COLLECTIVES),
        "TORCH_FR_BUFFER_SIZE": str(RECORDED_COLLECTIVES),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(out.absolute() / FLIGHT_RECORDER),
        "TORCH_FR_DUMP_TEMP_FILE": str(out.absolute() / FLIGHT_RECORDER),
    }.items():
        os.environ.setdefault(name, value)
    set_cuda_arithmetic(training=True)


def use_deterministic_kernels(device: torch.device, events: Events) -> None:
    """Allow only kernels that return the same bits every time; before the first product.

    A CPU's are so anyway. On a GPU, sums of attention's backward pass and of embeddings otherwise
    take whatever order their blocks finish in.
    """
    # cuBLAS reads it when it starts: with one workspace, sums are split in one way
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it has no such backward pass
        events.info(
            "deterministic kernels: expect attention's backward pass to take up to twice its time"
        )


@contextlib.contextmanager
def out_of_memory_as_run_error(device: torch.device) -> Iterator[None]:
    """Raise RunError, with the memory of `device` and what to do, if a GPU runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(device) from error


def out_of_memory(device: torch.device) -> RunError:
    """Return the error of a run for which the memory of `device` was not enough."""
    if device.type != "cuda":
        return RunError(f"out of memory on {device.type}", code="out_of_memory", hint=SMALLER_HINT)
    free, installed = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    others = max(0, installed - free - own)
    return RunError(
        f"the GPU is out of memory: of {in_bytes(installed)}, this process has {in_bytes(own)}, "
        f"others have {in_bytes(others)}, and {in_bytes(free)} are free",
        where=str(device),
        code="out_of_memory",
        hint=SHORTAGE_HINT,
    )


def no_gpu_reason() -> str | None:
    """Return why this machine's GPU cannot be used, such as its driver; None if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    return next(
        (
            str(warning.message).split("(Triggered")[0].strip()
            for warning in caught
            if "driver" in str(warning.message) or "CUDA initialization" in str(warning.message)
        ),
        None,
    )


def check_gpus(context: RankContext, needed_bytes: int, events: Events) -> None:
    """Check the GPU of every process before a run: a product, its free memory, a collective.

    All processes call it together. Raises RunError on every one of them if a GPU computes a wrong
    product, has less than `needed_bytes` free, or is a MIG slice that others cannot reach; warns
    if the GPUs differ.
    """
    if context.device.type != "cuda":
        return
    properties = torch.cuda.get_device_properties(context.device)
    free, installed = torch.cuda.mem_get_info(context.device)
    facts = [
        float(product_is_right(context.device)),
        float(free + torch.cuda.memory_reserved(context.device)),
        float(installed),
        float(properties.major * 10 + properties.minor),
        float("MIG" in properties.name),
    ]
    local = torch.tensor(facts, dtype=torch.float64, device=context.device)
    every = [local]
    if context.world_size > 1:
        if facts[4]:
            raise RunError(
                "the GPUs are MIG slices, which NCCL does not connect",
                where=str(context.device),
                hint="use one process per slice, or whole GPUs",
            )
        every = [torch.empty_like(local) for _ in range(context.world_size)]
        dist.all_gather(every, local)
    judge_gpus([rank.tolist() for rank in every], needed_bytes, events)


def judge_gpus(facts: list[list[float]], needed_bytes: int, events: Events) -> None:
    """Raise RunError, or warn, about the facts of `check_gpus`, one row for each rank."""
    if wrong := [rank for rank, row in enumerate(facts) if not row[0]]:
        raise RunError(
            f"the GPU of process {wrong[0]} computes wrong products",
            code="broken_gpu",
            hint="exclude this GPU with CUDA_VISIBLE_DEVICES, and have it tested",
        )
    least = min(range(len(facts)), key=lambda rank: facts[rank][1])
    if facts[least][1] < (1 - MEMORY_MODEL_ERROR) * needed_bytes:
        raise RunError(
            f"the GPU of process {least} has {in_bytes(int(facts[least][1]))} free of "
            f"{in_bytes(int(facts[least][2]))}, and the run needs {in_bytes(needed_bytes)}",
            code="gpu_is_full",
            hint=SHORTAGE_HINT,
        )
    if len({(row[2], row[3]) for row in facts}) > 1:
        events.warn("the GPUs of this run differ: each step takes as long as the slowest")


def product_is_right(device: torch.device) -> bool:
    """Return whether `device` multiplies two matrices of small integers exactly."""
    value = torch.arange(CHECK_SIZE * CHECK_SIZE, dtype=torch.int64).view(CHECK_SIZE, -1)
    a, b = value * 7 % 5 - 2, value * 11 % 3 - 1
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    product = a.to(device, dtype) @ b.to(device, dtype)
    return bool((product.cpu().to(torch.int64) == a @ b).all())
