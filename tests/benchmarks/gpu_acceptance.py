"""A GPU's first eight minutes: one script, a process a stage, every finding a line on disk at once.

    NANOGPT=path/to/nanoGPT python -m tests.benchmarks.gpu_acceptance --out acceptance
    python -m tests.benchmarks.gpu_acceptance --stages train-124M,decode
    python -m tests.benchmarks.gpu_acceptance --device cpu --tiny      rehearsed without a GPU

The most telling stages come first. Each has its own limit; all together take at most TOTAL_S. A
stage that fails or takes too long says so, and the next one begins. Nothing is downloaded, and no
checkpoint or export is written but in the stage about them. What was predicted without a GPU stands
in the first line; `python -m tests.benchmarks.gpu_acceptance --compare acceptance` prints it beside
what was seen. Runs under torch 2.11 and later. Not run on a GPU by us so far.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptcli.model.config import ModelConfig, find_size
from tests.benchmarks import cuda
from tests.benchmarks.training import give_nanogpt

TOTAL_S = 470
SEED = 1
PREDICTED: dict[str, dict[str, float]] = {
    # by stage: name of the fact, and its value on an H200 (tests/benchmarks/LOG.md)
    "train-124M": {"tokens_per_second": 520_000, "mfu": 0.45},
    "train-1.3B": {"tokens_per_second": 62_000, "mfu": 0.53},
    "decode": {"tokens_per_second": 5_000},
}
"""Predictions from counted bytes and FLOPs, made before any run."""


@dataclass(frozen=True)
class Setting:
    """Device and folder of a stage."""

    device: str
    tiny: bool
    out: Path

    def say(self, stage: str, **facts: Any) -> None:
        """Print a line, and write it to disk at once."""
        line = json.dumps({"stage": stage, **facts}, default=str)
        print(line, flush=True)
        with open(self.out / "acceptance.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def rows(self, size: int) -> int:
        """A size of a tensor, or a small one where the script is only tried."""
        return max(8, size // 128) if self.tiny else size


def seconds(setting: Setting, function: Callable[[], object], repeats: int = 20) -> float:
    """Median seconds of a call, by the device's own clock."""
    for _ in range(3):
        function()
    times = []
    for _ in range(3 if setting.tiny else repeats):
        if setting.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def environment(setting: Setting) -> None:
    """Versions, the GPU and its row in hardware.toml, and its ceilings: copy and product."""
    from gptcli.cost.hardware import identify_gpu

    versions = {}
    for name in ("torch", "triton", "numpy", "safetensors", "tokenizers"):
        try:
            versions[name] = getattr(importlib.import_module(name), "__version__", "?")
        except ModuleNotFoundError:
            versions[name] = None
    facts: dict[str, Any] = {"versions": versions, "python": sys.version.split()[0]}
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        row = identify_gpu(properties.name)
        q = torch.empty(2, 12, 1024, 64, device="cuda", dtype=torch.bfloat16)
        facts |= {
            "gpu": properties.name, "row": row and row.name, "memory": properties.total_memory,
            "free": torch.cuda.mem_get_info()[0], "cudnn": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda,
            # 1 FlashAttention, 2 memory-efficient, 3 cuDNN
            "sdpa": int(torch._fused_sdp_choice(q, q, q, None, 0.0, True)),
        }  # fmt: skip
    size = setting.rows(1 << 30)
    x, y = (torch.empty(size, device=setting.device, dtype=torch.uint8) for _ in range(2))
    facts["copy_bytes_per_second"] = 2 * size / seconds(setting, lambda: y.copy_(x))
    n = setting.rows(8192)
    a, b = (torch.randn(n, n, device=setting.device, dtype=setting.dtype()) for _ in range(2))
    facts["product_flops"] = 2 * n**3 / seconds(setting, lambda: a @ b)
    setting.say("environment", **facts)


def head_products(setting: Setting) -> None:
    """The head's products as they were, with rows of 5,042 and 1,105, and aligned."""
    from gptcli.model.loss import add_product_

    C = 64 if setting.tiny else 768
    for rows, entries in ((5042, 1105), (5042, 16384), (5120, 16384), (4096, 50304)):
        n, v = setting.rows(rows), setting.rows(entries)
        x, w, d = (
            torch.randn(*shape, device=setting.device, dtype=setting.dtype())
            for shape in ((n, C), (v, C), (n, v))
        )
        total, flops = torch.zeros(v, C, device=setting.device), 2 * n * v * C
        times = {
            "logits": seconds(setting, partial(torch.matmul, x, w.T)),
            "dx": seconds(setting, partial(torch.matmul, d, w)),
        }
        if setting.on_gpu:
            times["dweight"] = seconds(setting, partial(add_product_, total, d.T, x))
        setting.say(
            "head-products", rows=n, entries=v, tflops={k: flops / t / 1e12 for k, t in times.items()}
        )  # fmt: skip


def correctness(setting: Setting) -> None:
    """Loss and gradient against fp32 on the CPU: eager and compiled, dense and banded, documents."""
    for attention in ("dense", "banded"):
        shape: dict[str, Any] = cuda.SIZES["tiny"].changes if setting.tiny else {"n_layer": 2}
        model = ModelConfig.from_paper(
            find_size("gpt2"), vocab_size=cuda.VOCABULARY, attention=attention, **shape
        )
        generator = torch.Generator().manual_seed(SEED)
        batch = torch.randint(0, cuda.VOCABULARY, (2, model.n_ctx + 1), generator=generator)
        exact_loss, exact = cuda.gradient(model, batch, torch.device("cpu"), "fp32", compiled=False)
        forms: list[tuple[Any, bool]] = [("fp32", False), ("bf16", False), ("bf16", True)]
        for precision, compiled in forms[: 2 if setting.tiny else 3]:
            start = time.perf_counter()
            loss, gradient = cuda.gradient(
                model, batch, torch.device(setting.device), precision, compiled=compiled
            )
            setting.say(
                "correctness", attention=attention, precision=precision, compiled=compiled,
                loss_away=abs(loss / exact_loss - 1), seconds=time.perf_counter() - start,
                cosine=float(torch.dot(gradient, exact) / gradient.norm() / exact.norm()),
                norm_ratio=float(gradient.norm() / exact.norm()),
            )  # fmt: skip


def layer(setting: Setting) -> None:
    """One layer in training: PyTorch's compiled kernels and ours, against fp32, and their time."""
    from gptcli import optional_kernels
    from gptcli.model.transformer import Block

    shape: dict[str, Any] = cuda.SIZES["tiny"].changes if setting.tiny else {}
    config = ModelConfig.from_paper(find_size("gpt2"), vocab_size=cuda.VOCABULARY, **shape)
    torch.manual_seed(SEED)
    block = Block(config, 0).to(setting.device)
    x, dy = torch.randn(
        2, setting.rows(128) // 8, config.n_ctx, config.d_model, device=setting.device
    )
    optional_kernels.before_compilation()

    def gradients(forward: Callable[[torch.Tensor], torch.Tensor], bf16: bool) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        block.zero_grad()
        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            y = forward(leaf)
        y.backward(dy)
        found = [y.detach(), leaf.grad, *(parameter.grad for parameter in block.parameters())]
        return torch.cat([part.flatten().float() for part in found if part is not None])

    exact = gradients(block.forward, bf16=False)
    for kernels in (False, True):
        optional_kernels.install(block, fuse_blocks=kernels)
        forward = block.forward if setting.tiny else torch.compile(block.forward, dynamic=False)
        found = gradients(forward, bf16=True)
        setting.say(
            "layer", kernels=kernels, seconds=seconds(setting, partial(gradients, forward, True)),
            cosine=float(torch.dot(found, exact) / found.norm() / exact.norm()),
            norm_ratio=float(found.norm() / exact.norm()),
        )  # fmt: skip


def int8(setting: Setting) -> None:
    """Decoding's products: int8 and bf16, by our kernel, by PyTorch and compiled, and their bytes."""
    from gptcli import optional_kernels
    from gptcli.sampling.load import Int8Linear, SmallBatchLinear

    K, N = (64, 96) if setting.tiny else (768, 3072)
    plain = torch.nn.Linear(K, N, device=setting.device, dtype=setting.dtype())
    small = SmallBatchLinear(K, N, device=setting.device, dtype=setting.dtype())
    small.load_state_dict(plain.state_dict())
    for name, layer in (("int8", Int8Linear(plain).to(setting.device)), ("bf16", small)):
        x = torch.randn(1, 1, K, device=setting.device, dtype=setting.dtype())
        with torch.inference_mode():
            exact = layer(x).float()
            optional_kernels.install(layer)
            away = float((layer(x).float() - exact).abs().max() / exact.abs().max())
            took = seconds(setting, partial(layer, x))
            optional_kernels.uninstall(layer)
            compiled = None
            if not setting.tiny:
                compiled = float((torch.compile(layer)(x).float() - exact).abs().max())
        setting.say("int8", weights=name, kernel_away=away, compiled_away=compiled,
                    bytes_per_second=K * N * (1 if name == "int8" else 2) / took)  # fmt: skip


def train(setting: Setting, name: str, stage: str, steps: int) -> None:
    """Steps of a size: tokens a second, MFU, memory beside the model's, and the longest kernels."""
    from gptcli.cost.hardware import identify_gpu
    from gptcli.cost.layout import Layout
    from gptcli.cost.rank_memory import rank_memory
    from gptcli.trainer.auto import auto_micro_batch
    from gptcli.trainer.memory import work_of
    from gptcli.trainer.schedule import Rates

    size = cuda.SIZES["tiny" if setting.tiny else name]
    model, sequences = size.model, size.batch // size.model.n_ctx
    micro, recompute, _ = auto_micro_batch(model, Layout(), sequences, "bf16", "auto")
    train_step, run, compile_seconds = build(setting, model, micro, recompute, size.batch)
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, cuda.VOCABULARY, (sequences, model.n_ctx + 1), generator=generator)
    tokens = tokens.to(setting.device)
    batches = [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens.split(micro)]

    def step(number: int) -> Any:
        return train_step(batches, step=number, batch_tokens=size.batch, rates=Rates(1e-4))

    results, times = [], []
    for number in range(1, (3 if setting.tiny else steps) + 1):
        start = time.perf_counter()
        results.append(step(number))
        if setting.on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    speed = size.batch / statistics.median(times[1:])
    gpu = identify_gpu(torch.cuda.get_device_name()) if setting.on_gpu else None
    facts = {
        "size": name, "micro_batch": micro, "recompute": recompute, "tokens_per_second": speed,
        "compile_seconds": compile_seconds, "losses": [results[0].loss, results[-1].loss],
        "predicted_memory": rank_memory(model, Layout(), work_of(Layout(), run.train, sequences)).total,
        **cuda.rates(model, speed, None if gpu is None else gpu.peak_flops),
    }  # fmt: skip
    if setting.on_gpu:
        facts |= {"memory": torch.cuda.max_memory_allocated(),
                  "reserved": torch.cuda.max_memory_reserved()}  # fmt: skip
    setting.say(stage, **facts)
    profile(setting, stage, lambda: step(1000))


def profile(setting: Setting, stage: str, function: Callable[[], object]) -> None:
    """Trace one call: where its time goes, and the gzipped trace beside."""
    from torch.profiler import ProfilerActivity

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as trace:
        function()
        if setting.on_gpu:
            torch.cuda.synchronize()
    by = "self_device_time_total" if setting.on_gpu else "self_cpu_time_total"
    rows = sorted(trace.key_averages(), key=lambda row: -getattr(row, by))[:20]
    setting.say(
        stage, kernels={r.key[:100]: [r.count, round(getattr(r, by) / 1e3, 3)] for r in rows}
    )
    path = setting.out / f"{stage}.trace.json"
    trace.export_chrome_trace(str(path))
    with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


def build(
    setting: Setting, model: Any, micro: int, recompute: str, batch_tokens: int
) -> tuple[Any, Any, float]:
    """The trainer's own step of a model, the run, and the seconds of compilation."""
    from gptcli.distributed.context import RankContext
    from gptcli.distributed.gpu import configure_cuda
    from gptcli.events import SILENT
    from gptcli.trainer.config import Run, TrainConfig, from_values
    from gptcli.trainer.parallelize import build_train_step
    from gptcli.trainer.recipe import paper_recipe

    compiled = not setting.tiny
    values = {**paper_recipe(find_size("gpt2")), "precision": "bf16", "compile": compiled,
              "micro_batch": micro, "recompute": recompute, "batch_tokens": batch_tokens,
              "ramp_tokens": 0, "ramp_from": 0}  # fmt: skip
    run = Run(
        name="acceptance", out=setting.out, data=Path(), model=model, data_sha256="",
        train=from_values(TrainConfig, values), tokenizer_sha256="", eot_id=cuda.VOCABULARY - 1,
        must_compile=compiled,
    )  # fmt: skip
    if setting.on_gpu:
        configure_cuda(setting.out)
    start = time.perf_counter()
    train_step = build_train_step(run, RankContext(torch.device(setting.device)), SILENT)
    return train_step, run, time.perf_counter() - start


def nanogpt(setting: Setting) -> None:
    """NanoGPT's own 124M steps, compiled, in the same session."""
    if "NANOGPT" not in os.environ:
        setting.say("nanoGPT", skipped="set NANOGPT to a clone of karpathy/nanoGPT")
        return
    import numpy as np

    rng = np.random.default_rng(SEED)
    train_ids, val_ids = (rng.integers(0, cuda.VOCABULARY - 1, n) for n in (4_000_000, 20_000))
    give_nanogpt("bench_random", train_ids, val_ids, 50304)
    size = cuda.SIZES["tiny" if setting.tiny else "124M"]
    compiled = "off" if setting.tiny else "on"
    row = cuda.train_theirs(size.model, size.batch, 64, setting.device, compiled, 10)
    setting.say("nanoGPT", **row)


def same_bits(setting: Setting) -> None:
    """Bits of two equal runs, as they are and with deterministic kernels."""
    from gptcli.trainer.schedule import Rates

    size = cuda.SIZES["tiny"]
    model = size.model if setting.tiny else ModelConfig.from_paper(
        find_size("gpt2"), vocab_size=cuda.VOCABULARY, n_layer=2
    )  # fmt: skip
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, cuda.VOCABULARY, (4, model.n_ctx + 1), generator=generator)
    tokens = tokens.to(setting.device)
    batches = [(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())]
    for deterministic in (False, True):
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        ends, times = [], []
        for _ in range(2):
            train_step, _, _ = build(setting, model, 4, "none", 4 * model.n_ctx)
            for step in range(1, 5):
                start = time.perf_counter()
                train_step(batches, step=step, batch_tokens=4 * model.n_ctx, rates=Rates(1e-3))
                times.append(time.perf_counter() - start)
            ends.append([p.detach().clone() for p in train_step.model.parameters()])
        equal = all(a.equal(b) for a, b in zip(*ends, strict=True))
        setting.say("same-bits", deterministic=deterministic, equal=equal,
                    step_seconds=statistics.median(times))  # fmt: skip
    torch.use_deterministic_algorithms(False)


def decode(setting: Setting) -> None:
    """Tokens a second of a recorded and of a compiled pass, and seconds to the first token."""
    from gptcli.model.transformer import GPT
    from gptcli.sampling.engine import Engine
    from gptcli.sampling.load import Quantize, prepare_for_inference

    def next_tokens(engine: Engine) -> list[int]:
        return engine.decode([1] * engine.rows).argmax(-1).tolist()

    size = cuda.SIZES["tiny" if setting.tiny else "124M"]
    kinds: tuple[Quantize, ...] = ("none",) if setting.tiny else ("none", "int8")
    for quantize in kinds:
        model = GPT(size.model).to(setting.device, setting.dtype()).eval()
        model = prepare_for_inference(model, quantize)
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        for rows in (1, 8):
            for compiled in (None, True) if not setting.tiny else (None,):
                start = time.perf_counter()
                engine = Engine(model, rows, compiled=compiled)
                logits = engine.prefill(range(rows), [[5, 6, 7]] * rows)
                engine.decode(logits.argmax(-1).tolist())
                first = time.perf_counter() - start
                took = seconds(setting, partial(next_tokens, engine))
                setting.say("decode", weights="int8" if quantize == "int8" else "bf16", rows=rows,
                            compiled=bool(compiled), first_token_seconds=first,
                            tokens_per_second=rows / took, bytes_per_second=weights / took)  # fmt: skip


def banded(setting: Setting) -> None:
    """Every form of banded attention against the mask, and its time."""
    for row in cuda.banded_forms(setting.device, tiny=setting.tiny):
        setting.say("banded", **row)


def engines(setting: Setting) -> None:
    """One process of NCCL (or gloo): FSDP's units; a checkpoint, resumed and sampled."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from gptcli.distributed.context import MESH_AXES
    from gptcli.distributed.fsdp import apply_fsdp
    from gptcli.model.transformer import GPT

    backend = "nccl" if setting.on_gpu else "gloo"
    device = torch.device(setting.device, 0) if setting.on_gpu else torch.device("cpu")
    dist.init_process_group(
        backend, store=dist.HashStore(), rank=0, world_size=1,  # type: ignore[attr-defined]
        device_id=device if setting.on_gpu else None,
    )  # fmt: skip
    mesh = init_device_mesh(setting.device, (1, 1, 1, 1), mesh_dim_names=MESH_AXES)
    size = cuda.SIZES["tiny"]
    model = GPT(size.model).to(device)
    tokens = torch.randint(0, cuda.VOCABULARY, (2, size.model.n_ctx), device=device)
    expected = float(model(tokens, tokens).detach())
    apply_fsdp(model, mesh, None)
    loss = model(tokens, tokens)
    loss.backward()
    setting.say("engines", backend=backend, fsdp_away=abs(float(loss.detach()) / expected - 1))
    dist.destroy_process_group()
    resume(setting, device, tokens)


def resume(setting: Setting, device: torch.device, tokens: torch.Tensor) -> None:
    """Save a checkpoint after a step, load it into another trainer, and compare what both do next:
    the loss of the second step, and tokens drawn from the weights after it.
    """
    from gptcli.distributed.context import RankContext
    from gptcli.events import SILENT
    from gptcli.model.transformer import GPT
    from gptcli.sampling.engine import Engine
    from gptcli.trainer.checkpoint import Checkpoints, CheckpointState
    from gptcli.trainer.schedule import Position, Rates

    config, count = cuda.SIZES["tiny"].model, tokens.numel()

    def step(trainer: Any, number: int) -> float:
        result = trainer([(tokens, tokens)], step=number, batch_tokens=count, rates=Rates(1e-3))
        return float(result.loss)

    first, second = (build(setting, config, len(tokens), "none", count)[0] for _ in range(2))
    checkpoints = Checkpoints(setting.out / "engines", RankContext(device), keep=1)
    step(first, 1)
    start = time.perf_counter()
    state = CheckpointState(Position(1, count), {}, {})
    checkpoints.save(state, dict(first.model.named_parameters()), first.optimizer)
    checkpoints.wait()
    took = time.perf_counter() - start
    newest = checkpoints.newest(SILENT)
    assert newest is not None
    checkpoints.load(newest, dict(second.model.named_parameters()), second.optimizer)
    expected, loss = (step(trainer, 2) for trainer in (first, second))
    drawn = []
    for trainer in (first, second):
        model = GPT(config).to(device)
        model.load_state_dict(trainer.model.state_dict())
        engine = Engine(model.eval(), 1)
        found = [int(engine.prefill([0], [[5, 6, 7]]).argmax())]
        for _ in range(8):
            found.append(int(engine.decode(found[-1:]).argmax()))
        drawn.append(found)
    setting.say("engines", resumed_away=abs(loss / expected - 1), save_seconds=took,
                same_tokens=drawn[0] == drawn[1])  # fmt: skip


STAGES: dict[str, tuple[int, Callable[[Setting], None]]] = {
    "environment": (25, environment),
    "head-products": (20, head_products),
    "correctness": (60, correctness),
    "layer": (25, layer),
    "int8": (20, int8),
    "train-124M": (85, lambda setting: train(setting, "124M", "train-124M", 10)),
    "nanoGPT": (60, nanogpt),
    "train-1.3B": (60, lambda setting: train(setting, "1.3B", "train-1.3B", 5)),
    "same-bits": (30, same_bits),
    "decode": (50, decode),
    "banded": (25, banded),
    "engines": (40, engines),
}
"""Seconds that each stage may take, and its function, the most telling first."""


def drive(setting: Setting, stages: list[str], total: float = TOTAL_S) -> None:
    """Run each stage in a process of its own, within its limit and what is left of the total."""
    end = time.monotonic() + total
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((setting.out / "inductor").absolute()))
    setting.say("predictions", made="before any run on a GPU", **PREDICTED)
    for stage in stages:
        limit = min(STAGES[stage][0], end - time.monotonic())
        if limit < 5:
            setting.say(stage, skipped="no time is left")
            continue
        start = time.monotonic()
        words = [sys.executable, "-m", "tests.benchmarks.gpu_acceptance", "--only", stage,
                 "--out", str(setting.out), "--device", setting.device]  # fmt: skip
        log = setting.out / f"{stage}.log"
        with open(log, "w", encoding="utf-8") as file:
            child = subprocess.Popen(
                words + ["--tiny"] * setting.tiny, stderr=file, start_new_session=True
            )
            try:
                code: int | str = child.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                code = f"took more than {limit:.0f} s"
        if code:
            setting.say(stage, failed=code, last=log.read_text(errors="replace")[-800:])
        setting.say(stage, seconds=round(time.monotonic() - start, 1))


def compare(folder: Path) -> None:
    """Print what was predicted beside what was seen."""
    lines = [json.loads(line) for line in (folder / "acceptance.jsonl").read_text().splitlines()]
    for stage, facts in PREDICTED.items():
        for name, predicted in facts.items():
            seen = next((ln[name] for ln in lines if ln["stage"] == stage and name in ln), None)
            ratio = "not seen" if not seen else f"{seen:,.4g}, {seen / predicted:.2f} of it"
            print(f"{stage}: {name} predicted {predicted:,}, {ratio}")


def main(words: list[str] | None = None) -> None:
    """Run the stages, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("acceptance"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script itself")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of the default, in order")
    parser.add_argument("--only", choices=STAGES, help="one stage, in this process, with no limit")
    parser.add_argument("--compare", type=Path, help="print a finished run's figures")
    asked = parser.parse_args(words)
    if asked.compare:
        compare(asked.compare)
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --device cpu --tiny tries the script")
    asked.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(asked.device, asked.tiny, asked.out)
    if asked.only:
        STAGES[asked.only][1](setting)
        return
    stages = asked.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {sorted(unknown)[0]!r}: of {', '.join(STAGES)}")
    drive(setting, stages)


if __name__ == "__main__":
    main()
