"""What a few steps spend their time on: a trace for chrome://tracing or Perfetto, and the operators
that take the most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from gptcli.events import Events

TRACE = "trace.json"
SKIPPED, STEPS = 2, 3  # the first steps still allocate and tune
ROWS = 15


class Profiler:
    """Watches this process's steps; call `step` after each, and `close` at the end."""

    def __init__(self, out: Path, device: torch.device, events: Events) -> None:
        self.path, self.events, self.cuda = Path(out) / TRACE, events, device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        order = torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=STEPS, repeat=1)
        self.profile = torch.profiler.profile(
            activities=activities, schedule=order, on_trace_ready=self._ready
        )
        self.written = False
        self.profile.start()

    def step(self) -> None:
        if not self.written:
            self.profile.step()

    def close(self) -> None:
        if not self.written:
            self.profile.stop()
        if not self.written:
            self.events.warn(
                f"{{option:profile}}: the run ended before step {SKIPPED + 1}, and left no trace"
            )

    def _ready(self, profile: Any) -> None:
        self.written = True
        profile.export_chrome_trace(str(self.path))
        order = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        self.events.info(
            profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=48)
        )
        self.events.info(f"{STEPS} steps are in {self.path}: open it at https://ui.perfetto.dev")
