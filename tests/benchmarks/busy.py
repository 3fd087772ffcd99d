"""Training and sampling beside busy processes, as a share of what they make alone, ours and the
peer's in alternation.

`k` other processes of one thread each, beside our two on two cores, leave a process of as many
threads as cores `cores / (cores + k)` of the machine; a figure of 100 % reaches just that.
NANOGPT names a clone; PHASE (12) is the seconds of a measurement, ROUNDS (3) their number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gptcli.model.config import ModelConfig, find_size
from gptcli.runtime import has_fast_bf16
from tests.benchmarks.sampling import COMMAND_ENVIRONMENT, ours_of, theirs_of
from tests.benchmarks.steps import our_clip, our_optimizer, training_step

T, BATCH, VOCABULARY = 256, 8, 4096
# a small model: its steps wait often
SHAPE = ModelConfig(n_layer=4, n_head=4, d_model=256, n_ctx=T, vocab_size=VOCABULARY)
BUSY = (1, 2)
WORK = ("gpt train", "nanoGPT", "gpt sample", "transformers")


def run() -> None:
    names = [name for name in WORK if name != "nanoGPT" or "NANOGPT" in os.environ]
    seconds, rounds = float(os.environ.get("PHASE", "12")), int(os.environ.get("ROUNDS", "3"))
    cores = len(os.sched_getaffinity(0))
    for name in names:
        own = COMMAND_ENVIRONMENT if name.startswith("gpt") else {}
        code = "import sys; from tests.benchmarks.busy import answer; answer(sys.argv[1])"
        child = subprocess.Popen(
            [sys.executable, "-c", code, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**own, **os.environ},
        )
        try:
            ask(child, 4)  # compiled, and all memory is there
            shares: dict[int, list[float]] = {count: [] for count in BUSY}
            alone_rates = []
            for _ in range(rounds):
                alone = ask(child, seconds)
                alone_rates.append(alone)
                for count in BUSY:
                    with others(count):
                        time.sleep(1)  # long enough for a watcher to see them
                        fair = alone * cores / (cores + count)
                        shares[count].append(ask(child, seconds) / fair)
        finally:
            child.communicate()
        said = "; ".join(
            f"beside {count}: {statistics.median(of):.0%} of its share ({min(of):.0%} to {max(of):.0%})"
            for count, of in shares.items()
        )
        print(
            f"{name}: {statistics.median(alone_rates):.1f} calls a second alone; {said}", flush=True
        )


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """Keep `count` processes of one thread busy."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()


def ask(child: subprocess.Popen[str], seconds: float) -> float:
    """Let a process work for so long, and return its calls a second."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{seconds}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def answer(name: str) -> None:
    """Work for as long as each line of standard input says, and print calls a second."""
    with contextlib.redirect_stdout(sys.stderr):  # nanoGPT says what it builds
        call = {
            "gpt train": our_step,
            "nanoGPT": their_step,
            "gpt sample": our_tokens,
            "transformers": their_tokens,
        }[name]()
    for line in sys.stdin:
        begin, calls = time.perf_counter(), 0
        while (now := time.perf_counter()) - begin < float(line):
            call()
            calls += 1
        print(calls / (now - begin), flush=True)


def our_step() -> Callable[[], Any]:
    from gptcli.model.transformer import GPT
    from gptcli.openmp import watch_spinning
    from gptcli.runtime import disable_malloc_trim
    from gptcli.trainer.parallelize import apply_ac_and_compile, install_kernels

    disable_malloc_trim()
    watch_spinning()
    model = GPT(SHAPE)
    model.init_weights(0)
    bf16 = has_fast_bf16()
    settings: Any = SimpleNamespace(
        compile=True, recompute="none", precision="bf16" if bf16 else "fp32"
    )
    apply_ac_and_compile(model, settings, None)
    install_kernels(model, settings, None)
    return training_step(
        model,
        our_optimizer(model),
        BATCH,
        bf16,
        lambda *of: model(*of) / (BATCH * T),
        T,
        VOCABULARY,
        our_clip,
    )


def their_step() -> Callable[[], Any]:
    sys.path.insert(0, str(Path(os.environ["NANOGPT"]).resolve()))
    from model import GPT, GPTConfig

    made = GPTConfig(
        n_layer=SHAPE.n_layer,
        n_head=SHAPE.n_head,
        n_embd=SHAPE.d_model,
        vocab_size=VOCABULARY,
        block_size=T,
        dropout=0.0,
        bias=True,
    )
    model = GPT(made)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    called = torch.compile(model)
    return training_step(model, optimizer, BATCH, False, lambda *of: called(*of)[1], T, VOCABULARY)


def our_tokens() -> Callable[[], Any]:
    from gptcli.openmp import watch_spinning

    watch_spinning()
    return tokens_of(ours_of)


def their_tokens() -> Callable[[], Any]:
    return tokens_of(theirs_of)


def tokens_of(make: Any) -> Callable[[], Any]:
    """Return a call that decodes 8 tokens of GPT-2 124M after a prompt, in fp32."""
    paper = find_size("gpt2")
    config = ModelConfig(
        n_layer=paper.n_layer, n_head=paper.n_head, d_model=paper.d_model, n_ctx=1024
    )
    extra = ("none",) if make is ours_of else ()
    work = make(config, torch.device("cpu"), torch.float32, *extra)
    return lambda: work(1, 8)
