"""Batched inference of a model: prefill of prompts, then one token per row and pass.

How it is fast (measurements: tests/benchmarks/sampling.py):

- The output head is computed at the last position of each row only.
- On a CPU, one token per row goes through the model in one call of a kernel, if there is one (see
  `gptcli.kernels.decode_kernel`). Otherwise, and for several tokens per row, the model runs in
  eager mode over the filled part of the cache.
- On a CUDA GPU the pass is recorded as a CUDA graph, one for each multiple of GRAPH_SLOTS slots of
  the cache, and replayed; for long jobs (`worth_compiling`) it is compiled before.

Shapes: B rows, T tokens, C d_model, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gptcli.devices import fp64_device, free_gpu_memory
from gptcli.errors import RunError
from gptcli.model.kv_cache import KVCache, cache_bytes
from gptcli.model.transformer import GPT
from gptcli.numbers import counted, in_bytes
from gptcli.optional_kernels import before_compilation, decode_step

PREFILL_TOKENS = 8192
"""Prompt tokens, including padding, in one prefill pass."""
GRAPH_SLOTS = 256
"""Slots of the cache by which one CUDA graph reads further than the one before."""
WARMUP_PASSES = 3
"""Passes before a CUDA graph is captured."""
COMPILE_PAYBACK_PASSES = 50_000
"""Decoding passes that repay compilation: about 20 s, against half a millisecond a pass."""
MAX_COMPILATIONS = 256
"""Compilations of the decoding pass that dynamo allows before it falls back to eager mode."""


class Engine:
    """Inference engine for `rows` sequences at once, each up to `max_len` tokens (default n_ctx).

    `lengths` contains the number of positions in each row; a lower value discards the positions
    after it. `compiled` compiles the pass of `decode`, for the shapes it has. Raises RunError if
    the cache does not fit into memory.
    """

    def __init__(
        self, model: GPT, rows: int, *, max_len: int | None = None, compiled: bool | None = None
    ) -> None:
        """Allocate the cache."""
        weight = model.wte.weight
        self.model, self.device = model, weight.device
        self.max_len = min(max_len or model.config.n_ctx, model.config.n_ctx)
        size = cache_bytes(model.config, rows, self.max_len, weight.dtype)
        require_memory(size, rows, self.max_len, self.device)
        self.cache = KVCache(model.config, rows, self.device, weight.dtype, self.max_len)
        self.lengths = [0] * rows
        # `compiled` False, in contrast to None, is for rows that come and go
        is_fixed = bool(compiled) or (compiled is None and self.device.type == "cuda")
        self._fixed = _FixedPass(model, self.cache, compiled=bool(compiled)) if is_fixed else None
        self._step = None if is_fixed else decode_step(model)

    @property
    def fixed(self) -> bool:
        """True if the number of rows cannot change, because the pass is recorded for it."""
        return self._fixed is not None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @torch.inference_mode()
    def prefill(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        on_hidden: Callable[[int, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Process one prompt in each of `rows`, from position 0; return the logits after each.

        Prompts have 1 to `max_len` tokens. The result is (len(rows), V). `on_hidden` is called with
        each row and the hidden states of its prompt, (T, C), which the output head reads.
        """
        # sorted by length, so that a pass has little padding
        order = sorted(range(len(rows)), key=lambda i: len(prompts[i]), reverse=True)
        logits: list[torch.Tensor] = []
        while (first := len(logits)) < len(order):
            count = max(1, PREFILL_TOKENS // len(prompts[order[first]]))
            chosen = order[first : first + count]
            pass_rows, pass_prompts = [rows[i] for i in chosen], [prompts[i] for i in chosen]
            x_BTC = self._prefill(pass_rows, pass_prompts)
            last_B = torch.tensor([len(prompt) - 1 for prompt in pass_prompts], device=self.device)
            row_B = torch.arange(len(chosen), device=self.device)
            logits.extend(self._logits(x_BTC[row_B, last_B]))
            if on_hidden is not None:
                for row, prompt, x_TC in zip(pass_rows, pass_prompts, x_BTC, strict=True):
                    on_hidden(row, x_TC[: len(prompt)])
        logits_BV = torch.stack(logits)
        return logits_BV[torch.tensor(order).argsort().to(logits_BV.device)]

    def _prefill(self, rows: list[int], prompts: list[Sequence[int]]) -> torch.Tensor:
        """Process the prompts in one pass, padded on the right; return the hidden states (B, T, C)."""
        idx_BT = torch.zeros(len(rows), max(map(len, prompts)), dtype=torch.int64)
        for padded_T, prompt in zip(idx_BT, prompts, strict=True):
            padded_T[: len(prompt)] = torch.tensor(prompt)
        x_BTC = self.model.hidden(idx_BT.to(self.device), self.cache.prefill_view(rows))
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row] = len(prompt)
        return x_BTC

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to every row; return the logits after it, (B, V).

        The result may be overwritten by the next call.
        """
        if self._fixed is not None:
            logits_BV = self._fixed(tokens, self.lengths, self.max_len)
        elif self._step is not None:
            logits_BV = self._step(tokens, self.cache, self.lengths)
        else:
            return self.append([[token] for token in tokens], last=1)[:, 0]
        self.lengths = [length + 1 for length in self.lengths]
        return logits_BV

    @torch.inference_mode()
    def append(self, tokens: Sequence[Sequence[int]], *, last: int) -> torch.Tensor:
        """Append T tokens to every row; return the logits after the `last` ones, (B, last, V)."""
        T = len(tokens[0])
        self.cache.set_positions(self.lengths, T)
        x_BTC = self.model.hidden(torch.tensor(tokens, device=self.device), self.cache)
        self.lengths = [length + T for length in self.lengths]
        return self._logits(x_BTC[:, -last:])

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits where tokens can be drawn from them, which takes fp64."""
        logits: torch.Tensor = self.model.lm_head(x)
        return logits.to(fp64_device(self.device))

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`; unless `fixed`, the number of rows may change."""
        if list(rows) != list(range(self.rows)):
            self.cache.reorder(rows)
            self.lengths = [self.lengths[row] for row in rows]

    def resize(self, rows: int) -> None:
        """Use the first `rows` of the rows that are allocated, unless `fixed`; new ones are empty."""
        if rows != self.rows:
            self.cache.resize(rows)
            self.lengths = [*self.lengths, *[0] * rows][:rows]

    def copy_row(self, source: int, target: int) -> None:
        """Make row `target` a copy of row `source`."""
        self.cache.copy_row(source, target, self.lengths[source])
        self.lengths[target] = self.lengths[source]


class _FixedPass:
    """Decoding pass of fixed shapes: on a GPU a CUDA graph for each visible length.

    A graph starts all kernels of a pass at once, which is most of what compilation gains, and it is
    recorded in the time of a few passes. `compiled` fuses kernels too, and takes many seconds.
    """

    def __init__(self, model: GPT, cache: KVCache, *, compiled: bool) -> None:
        self.cache = cache
        self.idx_B1 = torch.zeros(cache.rows, 1, dtype=torch.int64, device=cache.length_B.device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

        def forward(idx_B1: torch.Tensor) -> torch.Tensor:
            return model.lm_head(model.hidden(idx_B1, cache)[:, -1])

        def eager(idx_B1: torch.Tensor) -> torch.Tensor:
            with cache.one_pass():
                return forward(idx_B1)

        self.forward = eager
        if compiled:
            before_compilation()
            # Each engine and each visible length compiles this function again. A torch that lacks
            # the option (below 2.13) compiles the first eight, and runs the others uncompiled.
            limit: dict[str, Any] = {"recompile_limit": MAX_COMPILATIONS}
            known = inspect.signature(torch.compile).parameters
            self.forward = torch.compile(
                forward, dynamic=False, **(limit if limit.keys() <= known.keys() else {})
            )

    def __call__(self, tokens: Sequence[int], lengths: Sequence[int], max_len: int) -> torch.Tensor:
        """Append one token to every row; return the logits after it, (B, V)."""
        visible_len = min(max_len, -(-(max(lengths) + 1) // GRAPH_SLOTS) * GRAPH_SLOTS)
        self.cache.set_positions(lengths, 1, visible_len)
        self.idx_B1.copy_(torch.tensor(tokens)[:, None])
        if self.idx_B1.device.type != "cuda":
            return self.forward(self.idx_B1)
        if visible_len not in self.graphs:
            self.graphs[visible_len] = self._capture()
        graph, logits_BV = self.graphs[visible_len]
        graph.replay()
        return logits_BV

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Warm up on a side stream, as capturing requires, then capture the pass.

        Every pass writes the same values into the same slots.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_PASSES):
                self.forward(self.idx_B1)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_BV = self.forward(self.idx_B1)
        return graph, logits_BV


def worth_compiling(device: torch.device, passes: int) -> bool:
    """Return whether a job of this many decoding passes repays the compilation of the pass."""
    return device.type == "cuda" and passes >= COMPILE_PAYBACK_PASSES


def require_memory(size: int, rows: int, max_len: int, device: torch.device) -> None:
    """Raise RunError if a cache of `size` bytes does not fit into the free memory of `device`."""
    free = free_memory(device)
    if free is not None and size > free:
        raise RunError(
            f"the cache of {counted(rows, 'sequence')} of {counted(max_len, 'token')} needs "
            f"{in_bytes(size)}, and "
            f"{in_bytes(free)} are free",
            hint="lower {option:batch_size} or {option:max_tokens}, or use {option:precision} bf16",
        )


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of `device` in bytes, or None if unknown."""
    if (free := free_gpu_memory(device)) is not None:
        return free
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(
                (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")),
                None,
            )
    except OSError:
        return None
