"""Training on one CUDA GPU: right against fp32 on the CPU, and as fast as it is, beside nanoGPT in
the same run.

    NANOGPT=path/to/nanoGPT python -m tests.benchmarks cuda --out cuda.json
    python -m tests.benchmarks cuda --device cpu --sizes tiny       the command itself, tried without a GPU

Random tokens, dense attention in both, whole programs: `gpt train` compiled, in bf16, with the
micro-batch it picks, and nanoGPT's train.py compiled, in bf16, with the largest micro-batch up to
ours that fits. Tokens a second are the median of the steps after the first SETTLING; MFU is
computed from them by one definition for both: 6N + 12·L·C·T a token over the GPU's dense peak, and
with causal attention.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import Precision, identify_gpu
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.attention import blocks, causal_mask, flex, varlen
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer.config import Run, TrainConfig
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.recipe import paper_recipe
from tests.benchmarks.training import give_nanogpt, write_shards

SETTLING = 4  # steps that are not counted: compilation, allocation
VOCABULARY = 50257
TARGETS = {"124M": 475_000, "1558M": 46_800}  # tokens a second on an H100 or H200: llm.c's
MFU_TARGET, RATIO_TARGET = 0.50, 1.2  # at 350M to 1.3B; against nanoGPT
TOO_MUCH = ("out of memory", "OutOfMemory")  # in what a program says that needs less
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
COLUMNS = {"size": 6, "micro": 5, "tokens/s": 10, "TFLOP/s": 8, "MFU": 6, "causal": 6, "peak GB": 8}


@dataclass(frozen=True)
class Size:
    paper: str
    """Name for `gpt train --size`."""
    batch: int
    """Tokens of a step."""
    changes: dict[str, int]
    """Changed fields of the architecture."""

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.from_paper(
            find_size(self.paper), vocab_size=VOCABULARY, attention="dense", **self.changes
        )


SIZES = {
    "124M": Size("gpt2", 2**19, {}),
    "350M": Size("350M", 2**18, {}),
    "760M": Size("760M", 2**18, {}),
    "1.3B": Size("1.3B", 2**17, {}),
    "1558M": Size("gpt2-xl", 2**17, {}),
    "tiny": Size("gpt2", 512, {"n_layer": 2, "n_head": 2, "d_model": 32, "n_ctx": 64}),
}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks cuda", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--sizes",
        default=",".join(name for name in SIZES if name != "tiny"),
        help=f"of {', '.join(SIZES)}",
    )
    parser.add_argument(
        "--steps", type=int, default=16, help=f"of each size; the first {SETTLING} are not counted"
    )
    parser.add_argument(
        "--compile", choices=("on", "off"), help="by default on for cuda, off for cpu"
    )
    parser.add_argument("--out", type=Path, default=Path("cuda.json"))
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.sizes.split(",") if name not in SIZES]:
        parser.error(f"no size {unknown[0]!r}: of {', '.join(SIZES)}")
    if asked.steps <= SETTLING:
        parser.error(f"--steps must be above {SETTLING}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no CUDA GPU here")
        return
    compiled = asked.compile or ("on" if asked.device == "cuda" else "off")
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    gpu = identify_gpu(name) if asked.device == "cuda" else None
    peak = None if gpu is None else gpu.peak_flops
    report: dict[str, Any] = {
        "device": name,
        "peak_flops": peak,
        "torch": torch.__version__,
        "compile": compiled,
    }
    report["correctness"] = correctness(asked.device, compiled == "on", tiny=asked.sizes == "tiny")
    report["banded"] = banded_forms(asked.device, tiny=asked.sizes == "tiny")
    report["sizes"] = []
    heads = (f"{head:>{width}}" for head, width in COLUMNS.items())
    print(f"\n{' '.join(heads)}   nanoGPT: micro, tokens/s, peak GB, ratio")
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        train, val = (
            rng.integers(0, VOCABULARY - 1, 4_000_000),
            rng.integers(0, VOCABULARY - 1, 20_000),
        )
        write_shards(Path(folder) / "shards", train, val)
        if "NANOGPT" in os.environ:
            give_nanogpt("bench_random", train, val, 50304)
        else:
            print("nanoGPT: not measured; set NANOGPT to a clone of karpathy/nanoGPT")
        for size in asked.sizes.split(","):
            row = measure(size, Path(folder), asked.device, compiled, asked.steps, peak)
            report["sizes"].append(row)
            print(told(row), flush=True)
            # what is measured so far stays if a later size fails
            asked.out.write_text(json.dumps(report, indent=2) + "\n")
    for line in verdicts(report):
        print(line)
    print(f"written: {asked.out}")


def correctness(device: str, compiled: bool, *, tiny: bool) -> list[dict[str, Any]]:
    """Loss and gradient of one batch on `device` against fp32 on the CPU, same weights, dense and
    banded.
    """
    rows = []
    # enough layers for both kinds of attention
    shape: dict[str, Any] = SIZES["tiny"].changes if tiny else {"n_layer": 4}
    for attention in ("dense", "banded"):
        model = ModelConfig.from_paper(
            find_size("gpt2"), vocab_size=VOCABULARY, attention=attention, **shape
        )
        batch = torch.from_numpy(
            np.random.default_rng(1).integers(0, VOCABULARY, (2, model.n_ctx + 1))
        )
        expected_loss, expected = gradient(
            model, batch, torch.device("cpu"), "fp32", compiled=False
        )
        bounds: list[tuple[Precision, float, float]] = [
            ("fp32", 1e-5, 0.9999),
            ("bf16", 3e-3, 0.99),
        ]
        for precision, most, least in bounds:
            loss, got = gradient(model, batch, torch.device(device), precision, compiled=compiled)
            cosine = (torch.dot(got, expected) / (got.norm() * expected.norm())).item()
            away = abs(loss / expected_loss - 1)
            right = (
                away < most
                and cosine > least
                and abs((got.norm() / expected.norm()).item() - 1) < 0.02
            )
            rows.append(
                {
                    "attention": attention,
                    "precision": precision,
                    "loss_away": away,
                    "gradient_cosine": cosine,
                    "right": right,
                }
            )
            text = f"loss {away:.1e} from fp32 on the CPU, gradient's cosine {cosine:.6f}: {'right' if right else 'WRONG'}"
            print(f"{attention:>6} {precision} on {device}: {text}", flush=True)
    return rows


def banded_forms(device: str, *, tiny: bool) -> list[dict[str, Any]]:
    """Every form of banded attention that runs on `device` against the mask in fp32, forward and
    backward, and what it takes.
    """
    B, H, T, D, band = (2, 2, 300, 16, 64) if tiny else (8, 16, 2048, 64, 256)
    seed, by_flex = (
        torch.zeros((), dtype=torch.int64),
        torch.compile(flex, dynamic=False),
    )
    forms: dict[str, Attention] = {
        "mask": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, causal_mask(T, T, band, q.device)
        ),
        "blocks": lambda q, k, v: blocks(q, k, v, seed, band, 0.0),
    }
    if device == "cuda":
        forms |= {
            "varlen": lambda q, k, v: varlen(q, k, v, band),
            "flex": lambda q, k, v: by_flex(q, k, v, band),
        }
    exact = [
        torch.randn(B, H, T, D, device=device, generator=torch.Generator(device).manual_seed(n))
        for n in range(4)
    ]
    expected = attention_and_gradients(forms["mask"], *exact)
    rows = []
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        given = [x.to(dtype) for x in exact]
        for name, form in forms.items():
            if (name, dtype) == ("varlen", torch.float32):
                continue
            got = attention_and_gradients(form, *given)
            away = max(
                ((a.float() - b).norm() / b.norm()).item()
                for a, b in zip(got, expected, strict=True)
            )
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                attention_and_gradients(form, *given)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            row = {
                "form": name,
                "dtype": str(dtype),
                "away": away,
                "seconds": min(times),
                "right": away < most,
            }
            rows.append(row)
            print(
                f"banded {name} {dtype}: {away:.1e} from the mask, {1e3 * min(times):.2f} ms: {'right' if row['right'] else 'WRONG'}",
                flush=True,
            )
    return rows


def attention_and_gradients(form: Attention, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the output of `form` for q, k and v, and their gradients for the last of the four
    tensors as the output's.
    """
    *qkv, dy = tensors
    leaves = [x.detach().requires_grad_() for x in qkv]
    y = form(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def gradient(
    model: ModelConfig,
    batch: torch.Tensor,
    device: torch.device,
    precision: Precision,
    *,
    compiled: bool,
) -> tuple[float, torch.Tensor]:
    """Mean loss, and the whole gradient as one fp32 vector on the CPU."""
    recipe = paper_recipe(find_size("gpt2"))
    train = TrainConfig(
        **recipe, seed=0, micro_batch=len(batch), layout="dp=1", precision=precision, compile=compiled, checkpoint_every=1, eval_every=1,
        eval_tokens=1, keep=1,
    )  # fmt: skip
    nowhere = Path()
    run = Run(
        name="benchmark", out=nowhere, data=nowhere, model=model, train=train, data_sha256="", tokenizer_sha256="", eot_id=VOCABULARY - 1,
        must_compile=compiled,
    )  # fmt: skip
    train_step = build_train_step(run, RankContext(device), SILENT)
    x, y = batch[:, :-1].to(device), batch[:, 1:].to(device)
    loss = (
        train_step.forward_backward([(x.contiguous(), y.contiguous())], y.numel(), 1).item()
        / y.numel()
    )
    parts = [
        p.grad.float().flatten().cpu() for p in train_step.model.parameters() if p.grad is not None
    ]
    torch._dynamo.reset()  # the next model has other layers
    return loss, torch.cat(parts)


def measure(
    name: str, folder: Path, device: str, compiled: str, steps: int, peak: float | None
) -> dict[str, Any]:
    """One size, ours and nanoGPT's; what failed says so in `error`."""
    size, model = SIZES[name], SIZES[name].model
    row: dict[str, Any] = {
        "size": name,
        "parameters": model.parameters,
        "n_ctx": model.n_ctx,
        "batch_tokens": size.batch,
    }
    try:
        ours = train_ours(size, folder / name, folder / "shards", device, compiled, steps)
        row["gpt"] = {**ours, **rates(model, ours["tokens_per_second"], peak)}
        if "NANOGPT" in os.environ:
            theirs = train_theirs(model, size.batch, ours["micro_batch"], device, compiled, steps)
            row["nanogpt"] = {**theirs, **rates(model, theirs["tokens_per_second"], peak)}
            row["ratio"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
    except subprocess.CalledProcessError as failed:
        row["error"] = (failed.stderr or failed.stdout or "").strip()[-800:]
    return row


def rates(model: ModelConfig, speed: float, peak: float | None) -> dict[str, float | None]:
    palm, causal = (flops_per_token(model, kind) * speed for kind in ("palm", "causal"))
    return {
        "tflops": palm / 1e12,
        "mfu": None if peak is None else palm / peak,
        "mfu_causal": None if peak is None else causal / peak,
    }


def train_ours(
    size: Size, out: Path, shards: Path, device: str, compiled: str, steps: int
) -> dict[str, Any]:
    """`gpt train`, its run folder removed again: a checkpoint of the largest size is 19 GB."""
    never = 10**6
    options = {
        "size": size.paper, **size.changes, "attention": "dense", "layout": "dp=1", "precision": "bf16", "compile": compiled,
        "data": shards, "out": out, "batch_tokens": size.batch, "tokens": size.batch * steps, "samples": 0,
        "checkpoint_every": never, "eval_every": never, "eval_tokens": size.model.n_ctx,
    }  # fmt: skip
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    env = os.environ if device == "cuda" else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "gptcli", "train", *words],
        check=True,
        capture_output=True,
        text=True,
        env=env,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    micro = re.search(r"^micro_batch = (\d+)", (out / "run.toml").read_text(), re.MULTILINE)
    assert micro is not None
    shutil.rmtree(out)
    return {
        "micro_batch": int(micro[1]),
        "tokens_per_second": statistics.median(
            line["tokens_per_second"] for line in lines[SETTLING:]
        ),
        "peak_memory": lines[-1]["peak_memory"],
        "losses": [lines[0]["loss"], lines[-1]["loss"]],
    }


PEAK = "peak bytes "
WRAPPED = f"""
import runpy, sys
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
import torch
print("{PEAK}", torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
"""


def train_theirs(
    model: ModelConfig, batch: int, most: int, device: str, compiled: str, steps: int
) -> dict[str, Any]:
    """nanoGPT's train.py with the largest micro-batch up to `most` that fits. Raises
    CalledProcessError where none does.
    """
    sequences, micro = batch // model.n_ctx, most
    while True:
        words = {
            "dataset": "bench_random", "device": device, "dtype": "bfloat16", "compile": compiled == "on", "eval_iters": 1,
            "eval_interval": 10**6, "log_interval": 1, "block_size": model.n_ctx, "batch_size": micro,
            "gradient_accumulation_steps": sequences // micro, "max_iters": steps, "bias": True, "dropout": 0.0, "n_layer": model.n_layer,
            "n_head": model.n_head, "n_embd": model.d_model, "out_dir": "out-bench",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", WRAPPED, *(f"--{name}={value}" for name, value in words.items())],
            cwd=os.environ["NANOGPT"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            break
        if micro == 1 or not any(sign in done.stderr for sign in TOO_MUCH):
            raise subprocess.CalledProcessError(
                done.returncode, "nanoGPT", done.stdout, done.stderr
            )
        micro = next(number for number in range(micro // 2, 0, -1) if sequences % number == 0)
    times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", done.stdout)]
    peak = re.search(rf"{PEAK} (\d+)", done.stdout)
    speed = 1e3 * micro * (sequences // micro) * model.n_ctx / statistics.median(times[SETTLING:])
    return {
        "micro_batch": micro,
        "tokens_per_second": speed,
        "peak_memory": int(peak[1]) if peak else None,
    }


def told(row: dict[str, Any]) -> str:
    """A line of the table."""
    text = f"{row['size']:>6}"
    if "gpt" in row:
        ours = row["gpt"]
        text += f" {ours['micro_batch']:>5} {ours['tokens_per_second']:>10,.0f} {ours['tflops']:>8.4g} {share(ours['mfu'])}"
        text += f" {share(ours['mfu_causal'])} {ours['peak_memory'] / 1e9:>8.2f}"
    if "nanogpt" in row:
        theirs = row["nanogpt"]
        memory = f"{(theirs['peak_memory'] or 0) / 1e9:.2f}"
        text += f"   {theirs['micro_batch']}, {theirs['tokens_per_second']:,.0f}, {memory}, {row['ratio']:.2f}x"
    if "error" in row:
        text += f"   failed: {row['error'].splitlines()[-1] if row['error'] else 'without a word'}"
    return text


def share(value: float | None) -> str:
    return f"{'n/a':>6}" if value is None else f"{value:>6.1%}"


def verdicts(report: dict[str, Any]) -> list[str]:
    """Each target that was measured, and whether it is met."""
    lines = []
    hopper = any(name in report["device"] for name in ("H100", "H200"))
    for row in report["sizes"]:
        name, ours = row["size"], row.get("gpt")
        if ours is None:
            continue
        if hopper and name in TARGETS:
            speed, target = ours["tokens_per_second"], TARGETS[name]
            lines.append(verdict(f"{name}: {speed:,.0f} tokens/s", speed >= target, f"{target:,}"))
        if ours["mfu"] is not None and name in ("350M", "760M", "1.3B"):
            lines.append(
                verdict(
                    f"{name}: MFU {ours['mfu']:.1%}", ours["mfu"] >= MFU_TARGET, f"{MFU_TARGET:.0%}"
                )
            )
        if "ratio" in row:
            lines.append(
                verdict(
                    f"{name}: {row['ratio']:.2f}x nanoGPT",
                    row["ratio"] >= RATIO_TARGET,
                    f"{RATIO_TARGET}x",
                )
            )
    return lines


def verdict(what: str, met: bool, target: str) -> str:
    return f"{what}: target {target} {'met' if met else 'MISSED'}"
