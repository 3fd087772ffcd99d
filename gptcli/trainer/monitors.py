"""Callbacks that measure steps: throughput, memory, noise scale, time left, profiler trace."""

from __future__ import annotations

import gc
import os
import re
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import Precision, identify_gpu, peak_flops
from gptcli.devices import gpu_memory_in_use
from gptcli.errors import UsageError
from gptcli.model.source import TRACE
from gptcli.numbers import WEEK, amount, rough_duration, significant
from gptcli.runs.metrics import Line
from gptcli.runs.record import read_provenance
from gptcli.shards.order import Mixture
from gptcli.toml_json import finite
from gptcli.trainer.callbacks import Callback, RunProgress, SavedCheckpoint
from gptcli.trainer.step import StepResult
from gptcli.trainer.step_statistics import NoiseScale, rerun_every, small_batch_sequences

COLLECT_EVERY_STEPS = 1000  # a garbage collection takes up to a second
PROFILE_SKIPPED_STEPS, PROFILE_STEPS = 2, 3  # the first steps still allocate and tune
KINETO_SILENT = "6"  # above all its levels
PROFILE_ROWS = 15  # operators in the table
PROFILE_NAME = 52  # characters of a name in it
GATHER_EVERY_STEPS = 20  # steps between comparisons of the processes
SLOW = 1.5  # a process is slow whose own time in a step is this many times the median's
MIN_LATE_SECONDS = 0.005  # a smaller difference costs nothing that one could mend
PROBE_WIDTH = {"cpu": 384, "cuda": 2048}  # of a square product: some milliseconds of one core
PROBES = 3  # of which the fastest counts: a moment's disturbance is no slow device


class GarbageCollection(Callback):
    """Callback that collects garbage on all ranks at the same step.

    Python's own collections, at other moments on every rank, would each stop all of them.
    """

    main_only = False

    def on_start(self) -> None:
        """Exempt everything that exists by now, and turn off automatic collections."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Collect at every COLLECT_EVERY_STEPS-th step."""
        if self.progress.position.step % COLLECT_EVERY_STEPS == 0:
            gc.collect()

    def close(self) -> None:
        """Turn automatic collections on again."""
        gc.enable()
        gc.unfreeze()


class Throughput(Callback):
    """Callback that adds a step's throughput to its line.

    tokens_per_second: tokens of all ranks per second
    tflops: the model's FLOPs per second and rank, in TFLOP/s, at 6N + 12·L·C·T per token (PaLM)
    mfu: the same as a share of the GPU's peak in this precision; None on a CPU and on a GPU
        without a row in hardware.toml
    mfu_causal: the same for the attention that is computed: keys up to the query, or in its band
    """

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        run, context = progress.run, progress.context
        self.ranks = context.world_size
        self.flops = flops_per_token(run.model, "palm")
        self.causal_flops = flops_per_token(run.model, "causal")
        self.peak = _peak_flops(context.device, run.train.precision)

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Add the four metrics."""
        tokens_per_second = line["batch_tokens"] / result.seconds
        per_rank, peak = tokens_per_second / self.ranks, self.peak
        line["tokens_per_second"] = significant(tokens_per_second)
        line["tflops"] = significant(self.flops * per_rank / 1e12)
        line["mfu"] = None if peak is None else significant(self.flops * per_rank / peak)
        line["mfu_causal"] = (
            None if peak is None else significant(self.causal_flops * per_rank / peak)
        )


def _peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Return the peak FLOP/s of this GPU; None if unknown, never a guess."""
    if device.type != "cuda" or (gpu := identify_gpu(torch.cuda.get_device_name(device))) is None:
        return None
    try:
        return peak_flops(gpu, precision)
    except UsageError:  # the vendor publishes none in this precision
        return None


class NoiseScaleMonitor(Callback):
    """Callback that estimates the gradient noise scale; the batch size may follow it."""

    main_only = False
    state_key = "noise"

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.noise = NoiseScale()

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Add the step to the estimate unless it was skipped, and the estimate to the line."""
        if result.skip_reason is None:
            self._add(result, line["batch_tokens"])
        line["noise_scale"] = self.noise.tokens

    def _add(self, result: StepResult, batch_tokens: int) -> None:
        run, context = self.progress.run, self.progress.context
        n_ctx = run.model.n_ctx
        batch, step = batch_tokens // n_ctx, self.progress.position.step
        small = small_batch_sequences(
            batch, run.train.micro_batch, context, step, rerun_every(run.train)
        )
        if small is None:
            return
        # The gradients were of the mean over the whole batch. Rescale to the mean over the small
        # one; without tp and pp every rank has a small batch of its own.
        scale = batch / (small * (1 if context.is_model_parallel else context.world_size))
        small_norm2 = result.small_batch_norm2 * scale**2
        self.noise.add(small_norm2, result.grad_norm**2, small * n_ctx, batch_tokens)

    def state_dict(self) -> list[float]:
        """Return the running means of the estimate."""
        return self.noise.state

    def load_state_dict(self, state: list[float]) -> None:
        """Continue the running means of a checkpoint."""
        self.noise = NoiseScale(state)


class SourceMonitor(Callback):
    """Callback that adds the sources of a mixture to a step's line.

    loss_NAME: mean training loss of the step's tokens of a source; absent if it had none
    tokens_NAME: tokens of the source that the run has read
    passes_NAME: the same as passes over its training data
    """

    def __init__(self, progress: RunProgress, order: Mixture) -> None:
        super().__init__(progress)
        self.order = order
        self.read = order.counts(progress.position.sequences)

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Add the metrics."""
        order = self.order
        before, self.read = self.read, order.counts(self.progress.position.sequences)
        for name, source, old, new, loss in zip(
            order.names, order.sources, before, self.read, result.loss_by_source, strict=True
        ):
            if new > old:
                line[f"loss_{name}"] = finite(loss / ((new - old) * order.n_ctx))
            line[f"tokens_{name}"] = new * order.n_ctx
            line[f"passes_{name}"] = round(new / source.windows, 4)


class MemoryAndDataTime(Callback):
    """Callback that adds the memory and the reading time of the main rank to a step's line.

    peak_memory: highest use of memory so far, in bytes
    data_seconds: seconds in which the next step's data was read
    """

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Add the metrics."""
        line["peak_memory"] = peak_memory(self.progress.context.device)
        line["data_seconds"] = round(result.data_seconds, 6)


class RankMonitor(Callback):
    """Callback that compares the processes every GATHER_EVERY_STEPS steps, and names a slow one.

    rank_own_seconds: mean time of a step that is each process's own (`OwnTime`); under `dp` alone
    rank_probe_seconds: under the other layouts, where processes wait for each other within every
        layer, time of one product of matrices on each process's device (`probe_seconds`)
    rank_data_seconds: mean time in which each process read the next step's data
    rank_memory: peak memory of each process in bytes
    """

    main_only = False

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        # gathered beside the GPUs, which would wait for it
        on_gpu = progress.context.device.type == "cuda"
        self.group = dist.new_group(backend="gloo") if on_gpu else None
        self.own: list[float] = []
        self.data: list[float] = []
        self.late: dict[int, int] = {}
        """Number of gatherings in a row in which a process was slow."""

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Add the metrics if they are due, and warn of processes that have become slow."""
        self.data.append(result.data_seconds)
        if result.own_seconds is not None:
            self.own.append(result.own_seconds)
        if self.progress.position.step % GATHER_EVERY_STEPS:
            return
        context = self.progress.context
        name, what, least = "rank_own_seconds", "a step", MIN_LATE_SECONDS
        if not self.own:
            name, what, least = "rank_probe_seconds", "a product of matrices", 0.0
            self.own = [probe_seconds(context.device)]
        means = [statistics.fmean(times) for times in (self.own, self.data)]
        mine = (socket.gethostname(), *means, peak_memory(context.device))
        self.own, self.data = [], []
        hosts, own, data, memory = zip(*context.all_gather(mine, self.group), strict=True)
        if not context.is_main:
            return
        line["rank_data_seconds"] = [round(seconds, 6) for seconds in data]
        line["rank_memory"] = list(memory)
        line[name] = [round(seconds, 6) for seconds in own]
        self._warn(list(hosts), list(own), what, least)

    def _warn(self, hosts: list[str], own: list[float], what: str, least: float) -> None:
        """Warn of the processes that were slow in two gatherings in a row, once for each time.

        `own` are their times of `what`; one is slow that is late by more than `least` seconds.
        """
        usual = statistics.median_low(own)
        for rank, seconds in enumerate(own):
            slow = seconds > SLOW * usual and seconds > usual + least
            self.late[rank] = self.late.get(rank, 0) + 1 if slow else 0
            if self.late[rank] == 2:
                self.progress.events.warn(
                    f"process {rank} on {hosts[rank]} is slow: {what} takes it {seconds:.3g} s, more "
                    f"than {SLOW:g} times the {usual:.3g} s of the median, and all wait for it"
                )


def probe_seconds(device: torch.device) -> float:
    """Return the time of one fixed product of matrices on a device, the fastest of PROBES.

    It needs no other process, so that it tells a slow device from one that waits.
    """
    square = torch.ones(2 * (PROBE_WIDTH[device.type],), device=device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = []
    for _ in range(PROBES):
        synchronize()
        begin = time.perf_counter()
        torch.mm(square, square)
        synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_memory(device: torch.device) -> int:
    """Return this process's peak memory so far in bytes: of tensors on a GPU, of all on a CPU."""
    if (used := gpu_memory_in_use(device)) is not None:
        return used
    # not ru_maxrss on Linux: a process begins with that of the one that started it
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
        return int(found[1]) * 1024
    import resource  # absent on Windows, where training needs a GPU

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes elsewhere


class ProgressReporter(Callback):
    """Callback that reports every step as a progress event, and the time left once."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        n_ctx = progress.run.model.n_ctx
        self.total_tokens = progress.schedule.total_sequences * n_ctx
        self.full_batch_tokens = progress.schedule.full_batch * n_ctx
        self.time_left = TimeLeft(self.total_tokens)
        known = read_provenance(progress.run.resolved)
        train = progress.run.train
        self.facts = {
            # batches that follow the noise are not known before
            "total_steps": None if train.follow_noise else progress.schedule.steps(),
            "total_passes": float(known["passes"]) if "passes" in known else None,
            "device": known.get("device", str(progress.context.device)),
            "precision": train.precision,
        }
        """Facts that do not change during the run."""
        self.saved: tuple[int, float] | None = None
        """Step of the newest checkpoint, and the time at which it was on disk."""

    def after_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """Keep the step and the time of the newest checkpoint."""
        self.saved = checkpoint.step, time.monotonic()

    def on_record(self, line: Line) -> None:
        """Report the step; warn if the run will take more than a week."""
        progress, tokens = self.progress, line["tokens"]
        ramping = 2 * line["batch_tokens"] < self.full_batch_tokens
        estimate = self.time_left.step(tokens, time.perf_counter(), ramping=ramping)
        if estimate is not None:
            seconds, tokens_per_second = estimate
            say = progress.events.warn if seconds > WEEK else progress.events.info
            say(
                f"about {rough_duration(seconds)} left, "
                f"by the first steps: {amount(tokens_per_second)} tokens/s"
            )
        facts = {
            **line,
            "val_loss": progress.val_loss,
            "smoothed_loss": progress.smoothed_loss,
            **self.facts,
        }
        if self.saved is not None:
            step, at = self.saved
            facts |= {"checkpoint_step": step, "checkpoint_age": time.monotonic() - at}
        progress.events.progress("train", tokens, self.total_tokens, "tokens", **facts)


class TimeLeft:
    """Estimate of the time left, made once from the first steps of a run or of a resumed run.

    The very first steps compile and fill caches, and steps of a short ramp have small batches that
    take longer per token: both are left out. Evaluations and checkpoints between the measured
    steps count.
    """

    WARMUP_STEPS = 3
    MIN_STEPS, MIN_SECONDS = 5, 3.0  # both are measured at least
    MAX_SECONDS = 60.0  # afterwards two steps are enough, and a ramp is no reason to wait

    def __init__(self, total_tokens: int) -> None:
        self.total_tokens = total_tokens
        self._steps = 0
        self._first: float | None = None
        self._begin: tuple[float, int] | None = None
        self._is_done = False

    def step(self, tokens: int, now: float, *, ramping: bool = False) -> tuple[float, float] | None:
        """Add a step that ended at time `now` in seconds, after `tokens` of the run.

        `ramping` is True if its batch was far from full. Return the seconds left and the tokens
        per second as soon as they are known, and None at all other steps.
        """
        self._first = now if self._first is None else self._first
        if ramping and now - self._first < self.MAX_SECONDS:
            return None
        self._steps += 1
        if self._is_done or self._steps < self.WARMUP_STEPS:
            return None
        if self._begin is None:
            self._begin = now, tokens
            return None
        seconds, steps = now - self._begin[0], self._steps - self.WARMUP_STEPS
        is_enough = steps >= self.MIN_STEPS and seconds >= self.MIN_SECONDS
        if not is_enough and not (steps >= 2 and seconds >= self.MAX_SECONDS):
            return None
        self._is_done = True
        tokens_per_second = (tokens - self._begin[1]) / seconds
        return (self.total_tokens - tokens) / tokens_per_second, tokens_per_second


class Profiler(Callback):
    """Callback that traces a few early steps of the main rank.

    It writes trace.json, for Perfetto or chrome://tracing, and reports the slowest operators.
    """

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.path = Path(progress.run.out) / TRACE
        self.on_cuda = progress.context.device.type == "cuda"
        cuda = [ProfilerActivity.CUDA] if self.on_cuda else []
        if not self.on_cuda:  # where the tracing library has only a start and a stop to tell of
            os.environ.setdefault("KINETO_LOG_LEVEL", KINETO_SILENT)
        self.profile = torch.profiler.profile(
            activities=[ProfilerActivity.CPU, *cuda],
            schedule=torch.profiler.schedule(
                wait=PROFILE_SKIPPED_STEPS - 1, warmup=1, active=PROFILE_STEPS, repeat=1
            ),
            on_trace_ready=self._write,
        )
        self.is_written = False

    def on_start(self) -> None:
        """Start the schedule of traced steps."""
        self.profile.start()

    def on_step_end(self, result: StepResult, line: Line) -> None:
        """Advance the schedule; its last step writes the trace."""
        if not self.is_written:
            self.profile.step()

    def on_end(self, *, interrupted: bool) -> None:
        """Write what was traced of a short run, or warn if it was nothing."""
        if not self.is_written:
            self.profile.stop()
        if not self.is_written:
            self.progress.events.warn(
                f"{{option:profile}}: no trace: the run ended before step {PROFILE_SKIPPED_STEPS + 1}"
            )

    def _write(self, profile: Any) -> None:
        self.is_written = True
        profile.export_chrome_trace(str(self.path))
        kind = "self_device_time_total" if self.on_cuda else "self_cpu_time_total"
        rows = profile.key_averages()
        if self.on_cuda:  # of operators on the CPU the time on the GPU is that of their kernels
            rows = [
                row for row in rows if row.device_type.name != "CPU" and not row.is_user_annotation
            ]
        times = sorted(((getattr(row, kind), row.count, row.key) for row in rows), reverse=True)
        total = sum(taken for taken, *_ in times) or 1
        events = self.progress.events
        events.info(f"{'time':>9}  {'share':>5}  {'calls':>7}  operator, without what it calls")
        for taken, calls, name in times[:PROFILE_ROWS]:
            short = name if len(name) <= PROFILE_NAME else name[: PROFILE_NAME - 1] + "…"
            if name.startswith("ProfilerStep"):  # torch's name of a step itself
                short = "outside operators: in Python, or C that it calls"
            events.info(f"{taken / 1000:>6.1f} ms  {taken / total:>5.0%}  {calls:>7,}  {short}")
        events.info(
            f"{self.path} traces {PROFILE_STEPS:,} steps: open it at https://ui.perfetto.dev"
        )
