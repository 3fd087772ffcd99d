"""Processes: the place of this one in a launch (torchrun, Slurm, Open MPI), which is read from the
environment as a whole or not at all, its identity on the machine, and its threads and memory.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gptcli.errors import UsageError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")  # where the processes of a launch meet
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
COOPER_LAKE = "85"  # model number of Intel's one processor with bf16 and without AMX
GONE = "gone"  # in place of a start time: the process has ended, and its parent has yet to notice


class Variables(NamedTuple):
    """Names of the environment variables by which a launcher describes each process."""

    launcher: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str
    """Optional; "" if the launcher sets none."""


TORCH = Variables("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# A step's own count of tasks: SLURM_NTASKS and SLURM_PROCID are also set in the shell of a job,
# which is one process.
SLURM = Variables("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
OPEN_MPI = Variables(
    "Open MPI",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """Place of this process among all processes of one command."""

    rank: int
    world_size: int
    local_rank: int
    """Rank on its node."""
    local_world_size: int
    """Number of processes on its node; all of them if the launcher does not say."""
    restarts: int = 0
    """Number of times torchrun has restarted the job after losing a process."""


def launch_environment(environ: Mapping[str, str] | None = None) -> Launch | None:
    """Return this process's place in a launch, or None if nobody started several processes.

    torchrun's variables count if all are set. Those of Slurm and Open MPI, which also start
    unrelated tasks, count if MASTER_ADDR and MASTER_PORT say where the tasks meet. RANK alone,
    which other programs use, says nothing. An empty variable is not set.

    Raises UsageError if a set is half there, or if a value in it is impossible.
    """
    values = _set_variables(environ)
    if (launch := _torch_launch(values)) is not None:
        return launch
    launches = (_task_launch(names, values) for names in (SLURM, OPEN_MPI))
    tasks = next((launch for launch in launches if launch is not None), None)
    # Scripts for Slurm often set WORLD_SIZE and leave the rank to srun.
    if _torch_claims(values) and (
        tasks is None or values.get(TORCH.world_size) != str(tasks.world_size)
    ):
        raise _incomplete(values, TORCH)
    return tasks


def launched_processes() -> int | None:
    """Return how many processes a launcher started for this command; None if none did.

    Raises UsageError as `launch_environment` does.
    """
    launch = launch_environment()
    return None if launch is None else launch.world_size


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Return the name of the CPU and its features, such as "avx512_bf16", as Linux lists them.

    Elsewhere the name is Python's, and no feature is known.
    """
    facts = _cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((facts.get("flags") or facts.get("Features", "")).split())


def has_fast_bf16() -> bool:
    """Return whether the CPU multiplies bf16 faster than fp32.

    Known from its model, not measured: the arithmetic of a run is not left to a stopwatch. Intel's
    processors that have AMX multiply bf16 outside it at half the rate of fp32 (Emerald Rapids: 84
    and 169 GFLOP/s a core), and virtual machines may hide AMX. One that GPT_KERNELS limits is taken
    for the slower one.
    """
    features, limit = processor()[1], os.environ.get("GPT_KERNELS") or "off"
    if limit not in ("off", "amx", "avx512-bf16"):
        return False
    if "amx_tile" in features and limit != "avx512-bf16":
        return True
    facts = _cpu_facts()
    hides_amx = facts.get("vendor_id") == "GenuineIntel" and facts.get("model") != COOPER_LAKE
    return "avx512_bf16" in features and not hides_amx


def separate_compiler_cache(capability: str) -> None:
    """Give torch.compile a cache for CPUs of this capability, such as "AVX2", unless the environment
    names one. Call this before the first compilation.

    Its key lacks what the CPU's code was made for: code for vectors of 16 numbers, compiled again
    where they have 8, writes past its arrays. A machine that was moved, or ATEN_CPU_CAPABILITY, is
    enough (seen with torch 2.13).
    """
    import getpass
    import tempfile

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        user = str(os.getuid())
    name = re.sub(r"\W", "_", f"torchinductor_{user}_{capability}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), name)))


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says about the last of the CPU's cores; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    wanted = "vendor_id|model|model name|flags|Features"
    return dict(re.findall(rf"^({wanted})[ \t]*:[ \t]*(.+)$", text, re.MULTILINE))


def is_main() -> bool:
    """Return whether this process writes and reports: it is alone, or rank 0.

    Raises UsageError as `launch_environment` does.
    """
    launch = launch_environment()
    return launch is None or launch.rank == 0


def is_main_on_node() -> bool:
    """Return whether this process is the first on its node.

    Raises UsageError as `launch_environment` does.
    """
    launch = launch_environment()
    return launch is None or launch.local_rank == 0


def restarted() -> bool:
    """Return whether torchrun restarts this job after losing a process.

    Raises UsageError as `launch_environment` does.
    """
    launch = launch_environment()
    return launch is not None and launch.restarts > 0


def unused_launch(environ: Mapping[str, str] | None = None) -> str | None:
    """Return a note about variables that name a rank but start no launch, or None."""
    values = _set_variables(environ)
    if launch_environment(values) is not None:
        return None
    for names in (SLURM, OPEN_MPI):
        if values.get(names.world_size, "1") != "1":
            tasks = values[names.world_size]
            meet = " and ".join(ADDRESS)
            return (
                f"{names.launcher} started {tasks} processes, each alone: set {meet} to join them"
            )
    if TORCH.rank in values:
        return f"{TORCH.rank} is set without {TORCH.world_size}: this process works alone"
    return None


def _set_variables(environ: Mapping[str, str] | None) -> dict[str, str]:
    """Return the variables that have a value: `RANK=` before a command unsets one."""
    source = os.environ if environ is None else environ
    return {name: value.strip() for name, value in source.items() if value.strip()}


def _torch_claims(values: Mapping[str, str]) -> bool:
    """Return whether RANK or WORLD_SIZE describes several processes."""
    if TORCH.rank in values:
        return any(name in values for name in (TORCH.world_size, TORCH.local_rank, *ADDRESS))
    return values.get(TORCH.world_size, "1") != "1"


def _torch_launch(values: Mapping[str, str]) -> Launch | None:
    """Return the launch that torchrun's variables describe; None if one of them is missing."""
    if TORCH.rank not in values or TORCH.world_size not in values:
        return None
    if values[TORCH.world_size] != "1" and any(
        name not in values for name in (TORCH.local_rank, *ADDRESS)
    ):
        return None
    launch = _read(TORCH, {TORCH.local_rank: "0", **values})
    restarts = _number(values, RESTARTS) if RESTARTS in values else 0
    return Launch(
        launch.rank, launch.world_size, launch.local_rank, launch.local_world_size, restarts
    )


def _task_launch(names: Variables, values: Mapping[str, str]) -> Launch | None:
    """Return the launch of tasks that meet at an address; None for a single task, or without an
    address.
    """
    if values.get(names.world_size, "1") == "1" or not any(name in values for name in ADDRESS):
        return None
    if any(name not in values for name in (names.rank, names.local_rank, *ADDRESS)):
        raise _incomplete(values, names)
    return _read(names, values)


def _read(names: Variables, values: Mapping[str, str]) -> Launch:
    world = _number(values, names.world_size, least=1)
    rank = _number(values, names.rank)
    local_rank = _number(values, names.local_rank)
    here = names.local_world_size if names.local_world_size in values else names.world_size
    local_world = _number(values, here, least=1)
    for name, value, of, count in (
        (names.rank, rank, names.world_size, world),
        (names.local_rank, local_rank, here, local_world),
    ):
        if value >= count:
            raise UsageError(
                f"{name} is {value}, but {of} is {count}: the last number is {count - 1}",
                hint="start with torchrun, which sets both, or unset them to run one process",
            )
    if ADDRESS[1] in values and not 0 < _number(values, ADDRESS[1]) < 1 << 16:
        raise UsageError(
            f"{ADDRESS[1]} is {values[ADDRESS[1]]}", hint="a port is a number from 1 to 65535"
        )
    return Launch(rank, world, local_rank, local_world)


def _number(values: Mapping[str, str], name: str, least: int = 0) -> int:
    text = values[name]
    if re.fullmatch(r"[0-9]{1,9}", text) is None or int(text) < least:
        raise UsageError(
            f"{name} is {text!r}",
            hint=f"it must be a whole number, {least} or more; unset it to run one process",
        )
    return int(text)


def _incomplete(values: Mapping[str, str], names: Variables) -> UsageError:
    needed = (names.rank, names.world_size, names.local_rank, *ADDRESS)
    found = ", ".join(f"{name}={values[name]}" for name in needed if name in values)
    missing = [name for name in needed if name not in values]
    return UsageError(
        f"the environment describes one of several processes ({found}), but "
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
        hint="start it with torchrun, which sets all of them, or unset them to run one process",
    )


def process_gone(pid: int, place: str, started: str) -> bool | None:
    """Return whether a process has ended; None if that cannot be seen from here.

    `place` and `started` are what `process_place` and `process_start` were for it.
    """
    if not place or not started or place != process_place():
        return None
    if now := process_start(pid):
        return now != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return None  # a process has the number, and its start is hidden from us


@cache
def process_place() -> str:
    """Return the boot and the PID namespace of this process; "" if the system does not tell.

    Containers with equal host names differ in it, and so does a machine from itself before a
    restart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        if os.name == "posix" and sys.platform != "linux":  # macOS and the BSDs: no PID namespaces
            return f"{socket.gethostname()} {uuid.getnode():x}"
        return ""


def process_start(pid: int) -> str:
    """Return the start time of a local process in the system's own format; GONE if it has ended, ""
    if unknown.
    """
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        )
        # fields 20 and 22 of proc_pid_stat(5); the state is field 3
        threads, began = int(rest[16]), rest[18]
        # while a thread is left, so are its writes
        return GONE if state in ("Z", "X") and threads <= 1 else began
    except (OSError, ValueError, IndexError):
        if os.name != "posix" or sys.platform == "linux":
            return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        listed = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=10,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        )
        state, _, began = listed.stdout.strip().partition(" ")
        return GONE if state.startswith("Z") else began.strip()
    return ""


WARM_UP_ELEMENTS = 1 << 17
"""Elements of a warm-up call: enough for every thread to get a share."""
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt, from glibc's malloc.h."""


def warm_up_vector_math() -> None:
    """Call the CPU's vector math functions once, from one thread and then from all of them.

    If two threads make the first call in a process at the same time, exp occasionally returns other
    last bits (seen in 14 of 500 processes, a relative 1e-5, with MKL; in none of 330 after this). A
    resumed run would then differ from an uninterrupted one.
    """
    import torch

    for function in (torch.exp, torch.log, torch.tanh, torch.erf, torch.sqrt, torch.sin, torch.cos):
        for dtype in (torch.float32, torch.float64):
            function(torch.ones(1, dtype=dtype))
            function(torch.ones(WARM_UP_ELEMENTS, dtype=dtype))


def disable_malloc_trim() -> None:
    """Make glibc keep large freed blocks for reuse.

    glibc returns such blocks to the system by default, and a CPU then spends a tenth of its time or
    more on zeroed pages for the next tensors.
    """
    _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def share_malloc_arena() -> None:
    """Make threads that start from now on allocate from heaps that exist; only glibc's differ.

    By default each thread has a heap of its own. What the threads of a connection have freed is
    then lost for the tensors of a step: a sharded run grew by a third in 40 steps, and by a
    quarter in one heap (tests/benchmarks/LOG.md).
    """
    _set_malloc({M_ARENA_MAX: 1})


def _set_malloc(values: dict[int, int]) -> None:
    """Set parameters of glibc's malloc; does nothing with another C library."""
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        for name, value in values.items():
            libc.mallopt(name, value)


def set_cuda_arithmetic(*, training: bool) -> None:
    """Make CUDA sum products exactly to fp32: no TF32, and no sums in bf16 or fp16.

    Outside of training, shapes vary: cuDNN's attention, which plans half a second for each new one,
    is left out.
    """
    import warnings

    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(training)
    # inductor recommends TF32 for every fp32 product, on every rank
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
