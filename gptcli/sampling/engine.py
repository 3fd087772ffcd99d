"""A model at work on a batch of sequences: prompts read in one pass, then a token a row and pass,
over one key-value cache.

How it is fast, and where each way pays (measured; see tests/benchmarks/sampling.py):
- The head is computed at the last position of each row only.
- On a CPU a token a row goes through the model in one call (`step.py`), which reads the weights
  where they lie. Where its kernel cannot
  be built the pass runs as it is, over a cache that is looked at only as far as it is filled; so do
  passes of several tokens a row.
- On a CUDA GPU the pass is compiled and recorded as a CUDA graph, one for each REACH slots of the
  cache, and played back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptcli.errors import RunError
from gptcli.model.kv_cache import KVCache, cache_bytes
from gptcli.model.transformer import GPT
from gptcli.numbers import in_bytes
from gptcli.sampling.step import step_of

READ_TOKENS = 8192  # of prompts, padding counted, read in one pass
REACH = 256  # slots by which a recorded pass looks further than the one before


class Engine:
    """`rows` sequences in work at once, each at most `room` tokens long (n_ctx where not given).
    `compiled`: on a GPU where not given.

    `lengths` says how far each row is read; setting an entry lower forgets what lies beyond. Raises
    RunError where the cache cannot fit into memory.
    """

    def __init__(
        self, model: GPT, rows: int, *, room: int | None = None, compiled: bool | None = None
    ) -> None:
        weight = model.wte.weight
        self.model, self.device = model, weight.device
        self.room = min(room or model.config.n_ctx, model.config.n_ctx)
        require_memory(
            cache_bytes(model.config, rows, self.room, weight.dtype), rows, self.room, self.device
        )
        self.cache = KVCache(model.config, rows, self.device, weight.dtype, self.room)
        self.lengths = [0] * rows
        if compiled is None:
            compiled = self.device.type == "cuda"
        self._compiled = _Compiled(model, self.cache) if compiled else None
        self._step = None if compiled else step_of(model)

    @property
    def fixed(self) -> bool:
        """The number of rows cannot change: the pass is compiled for it."""
        return self._compiled is not None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def read(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read a prompt of 1 to `room` tokens into each of `rows`, from position 0; returns the
        logits after each, (len(rows), V).
        """
        # like lengths together: little padding
        order = sorted(range(len(rows)), key=lambda i: len(prompts[i]), reverse=True)
        parts: list[torch.Tensor] = []
        while (first := len(parts)) < len(order):
            some = order[first : first + max(1, READ_TOKENS // len(prompts[order[first]]))]
            parts.extend(self._read([rows[i] for i in some], [prompts[i] for i in some]))
        logits = torch.stack(parts)
        return logits[torch.tensor(order).argsort().to(self.device)]

    def _read(self, rows: list[int], prompts: list[Sequence[int]]) -> torch.Tensor:
        idx_BT = torch.zeros(len(rows), max(map(len, prompts)), dtype=torch.int64)
        for padded_T, prompt in zip(idx_BT, prompts, strict=True):
            padded_T[: len(prompt)] = torch.tensor(prompt)
        last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        x_BTC = self.model.hidden(idx_BT.to(self.device), self.cache.fresh(rows))
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row] = len(prompt)
        return self.model.lm_head(x_BTC[torch.arange(len(rows), device=self.device), last_B])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one token into every row; returns the logits after it, (B, V), good until the next
        step.
        """
        if self._compiled is not None:
            logits_BV = self._compiled.step(tokens, self.lengths, self.room)
        elif self._step is not None:
            logits_BV = self._step(tokens, self.cache, self.lengths)
        else:
            return self.extend([[token] for token in tokens], last=1)[:, 0]
        self.lengths = [length + 1 for length in self.lengths]
        return logits_BV

    @torch.inference_mode()
    def extend(self, tokens: Sequence[Sequence[int]], *, last: int) -> torch.Tensor:
        """Read T tokens into every row after what it holds; returns the logits after each of the
        `last` ones, (B, last, V).
        """
        T = len(tokens[0])
        self.cache.place(self.lengths, T)
        x_BTC = self.model.hidden(torch.tensor(tokens, device=self.device), self.cache)
        self.lengths = [length + T for length in self.lengths]
        return self.model.lm_head(x_BTC[:, -last:])

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of what row rows[i] was; where the engine is not `fixed` there may
        be fewer rows or more than before.
        """
        if list(rows) != list(range(self.rows)):
            self.cache.keep(rows)
            self.lengths = [self.lengths[row] for row in rows]


class _Compiled:
    """One decoding pass, compiled; on a GPU also recorded as CUDA graphs, one for each reach, and
    played back.
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.cache = cache
        self.idx_B1 = torch.zeros(cache.rows, 1, dtype=torch.int64, device=cache.length_B.device)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

        def forward(idx_B1: torch.Tensor) -> torch.Tensor:
            return model.lm_head(model.hidden(idx_B1, cache)[:, -1])

        # Each engine and each reach is a compilation of its own of this one function; beyond the
        # limit it would silently run as it is.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
        self.forward = torch.compile(forward, dynamic=False)

    def step(self, tokens: Sequence[int], lengths: Sequence[int], room: int) -> torch.Tensor:
        reach = min(room, -(-(max(lengths) + 1) // REACH) * REACH)
        self.cache.place(lengths, 1, reach)
        self.idx_B1.copy_(torch.tensor(tokens)[:, None])
        if self.idx_B1.device.type != "cuda":
            return self.forward(self.idx_B1)
        if reach not in self.graphs:
            self.graphs[reach] = self._record()
        graph, logits_BV = self.graphs[reach]
        graph.replay()
        return logits_BV

    def _record(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Warm up on a stream of its own, as recording asks for, then record. Every pass writes the
        same slots with the same values.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.forward(self.idx_B1)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits_BV = self.forward(self.idx_B1)
        return graph, logits_BV


def require_memory(size: int, rows: int, room: int, device: torch.device) -> None:
    """Raise RunError where `size` bytes of cache are more than what is free on `device`."""
    free = free_memory(device)
    if free is not None and size > free:
        raise RunError(
            f"the cache of {rows:,} sequences of {room:,} tokens takes {in_bytes(size)}, and {in_bytes(free)} are free",
            hint="fewer at once ({option:batch_size}), shorter ({option:max_tokens}), "
            "or {option:precision} bf16",
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`; None where the machine does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(
                (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")),
                None,
            )
    except OSError:
        return None
