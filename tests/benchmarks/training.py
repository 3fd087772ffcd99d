"""Training against nanoGPT: its Shakespeare recipe for CPUs, whole processes; and GPT-2 124M,
tokens a second.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Split, write_manifest
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

VALIDATION = 0.1  # nanoGPT's split: the last tenth of the text


@dataclass(frozen=True, slots=True)
class Done:
    """A finished process: what it printed, its wall seconds, and the most memory it held, in
    bytes.
    """

    printed: str
    seconds: float
    peak_memory: int


def finish(words: Sequence[object], cwd: Path) -> Done:
    """Run a command to its end; raises CalledProcessError when it fails."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, list(map(str, words)))
    return Done(printed, time.perf_counter() - begin, usage.ru_maxrss * 1024)


def gpt(*words: object, cwd: Path) -> Done:
    return finish(["-m", "gptcli", *words], cwd)


def nanogpt(*words: str, tuned: str = "") -> Done | None:
    """nanoGPT's train.py, or None without a clone; `tuned` by hand for a CPU: compiled, in "float32"
    or with the autocast to "bfloat16" that it keeps for GPUs.
    """
    clone = os.environ.get("NANOGPT")
    if not clone:
        print("nanoGPT: not measured; set NANOGPT to a clone of karpathy/nanoGPT")
        return None
    script = Path(clone, "train.py")
    if tuned != "bfloat16":
        return finish([script, *words, "--dtype=float32", f"--compile={bool(tuned)}"], Path(clone))
    source = script.read_text(encoding="utf-8")
    autocast = source.replace("nullcontext() if device_type == 'cpu' else ", "")
    if autocast == source:
        raise SystemExit(
            "train.py of this nanoGPT chooses its autocast in another way; the tuned form is not measured"
        )
    changed = Path(clone, "train_tuned.py")
    changed.write_text(autocast, encoding="utf-8")
    return finish([changed, *words, "--dtype=bfloat16", "--compile=True"], Path(clone))


def give_nanogpt(name: str, train: np.ndarray, val: np.ndarray, vocab_size: int) -> None:
    """Lay token files where nanoGPT looks for a data set called `name`."""
    folder = Path(os.environ["NANOGPT"]) / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    train.astype(np.uint16).tofile(folder / "train.bin")
    val.astype(np.uint16).tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))


def shakespeare() -> None:
    data = os.environ.get("GPT_TEST_DATA")
    if not data:
        print("skipped: set GPT_TEST_DATA to a folder with tinyshakespeare/input.txt")
        return
    text = Path(data, "tinyshakespeare", "input.txt").read_text(encoding="utf-8")
    cut = round(len(text) * (1 - VALIDATION))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
        (folder / "val.txt").write_text(text[cut:], encoding="utf-8")
        # 256 bytes and end-of-text: for this text, a character vocabulary
        gpt(
            "tokenize",
            "train",
            "train.txt",
            "--vocab-size",
            257,
            "-o",
            "tokenizer.json",
            cwd=folder,
        )
        gpt(
            "build-shards",
            "train.txt",
            "--tokenizer",
            "tokenizer.json",
            "--val-fraction",
            0,
            "-o",
            "shards",
            cwd=folder,
        )
        ours = gpt(
            "train", "--size", "gpt2", "--n-layer", 4, "--n-head", 4, "--d-model", 128, "--n-ctx", 64, "--batch-tokens", 12 * 64,
            "--tokens", 2000 * 12 * 64, "--lr", 1e-3, "--warmup-tokens", 100 * 12 * 64, "--out", "run", cwd=folder,
        )  # fmt: skip
        loss = json.loads(gpt("eval", "run", "--text", "val.txt", "--json", cwd=folder).printed)[
            "losses"
        ][0]["loss"]
        print(f"gpt train: {ours.seconds:.1f} s, validation loss {loss:.4f}")
    if "NANOGPT" in os.environ:
        characters = sorted(set(text))
        ids = np.array([characters.index(character) for character in text])
        give_nanogpt("bench_characters", ids[:cut], ids[cut:], len(characters))
    theirs = nanogpt(
        "config/train_shakespeare_char.py", "--dataset=bench_characters", "--device=cpu",
        "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128",
        "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
    )  # fmt: skip
    if theirs:
        losses = re.findall(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)", theirs.printed)
        print(
            f"nanoGPT:   {theirs.seconds:.1f} s, validation loss {losses[-1][1]} (its own estimate at step {losses[-1][0]})"
        )
        print(f"wall time: ours / nanoGPT = {ours.seconds / theirs.seconds:.2f}")


def gpt2_124m(steps: int = 12) -> None:
    """Median tokens a second over the steps after the first two, and peak memory, beside nanoGPT as
    it ships and as tuned by hand.
    """
    rng = np.random.default_rng(0)
    train, val = rng.integers(0, 50257, 200_000), rng.integers(0, 50257, 20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", train, val)
        done = gpt(
            "train", "--size", "gpt2", "--n-ctx", 1024, "--batch-tokens", 4096, "--micro-batch", 4, "--tokens", 4096 * steps,
            # so few steps: a checkpoint would be beside most
            "--compile", "on", "--checkpoint-every", 1000, "--out", "run", cwd=folder,
        )  # fmt: skip
        lines = [
            json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        resolved = tomllib.loads((folder / "run" / "run.toml").read_text(encoding="utf-8"))
        ours = statistics.median(line["tokens_per_second"] for line in lines[2:])
        print(
            f"gpt train: {ours:.0f} tokens/s, {done.peak_memory / 1e9:.1f} GB (compiled, {resolved['precision']})",
            flush=True,
        )
    if "NANOGPT" in os.environ:
        give_nanogpt("bench_random", train, val, 50304)
    for name, tuned, iterations in (
        ("as it ships for CPU: fp32, not compiled", "", 3),
        ("tuned: fp32, compiled", "float32", 6),
        ("tuned: bf16 autocast, compiled", "bfloat16", 6),
    ):
        theirs = nanogpt(
            "--dataset=bench_random", "--device=cpu", "--eval_iters=1", "--log_interval=1", "--block_size=1024", "--batch_size=4",
            "--gradient_accumulation_steps=1", f"--max_iters={iterations}", "--bias=True", "--out_dir=out-bench", tuned=tuned,
        )  # fmt: skip
        if theirs is None:
            return
        times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", theirs.printed)]
        peer = 4096e3 / statistics.median(times[1:])
        print(
            f"nanoGPT:   {peer:.0f} tokens/s, {theirs.peak_memory / 1e9:.1f} GB ({name}); ours / theirs {ours / peer:.2f}",
            flush=True,
        )


def write_shards(folder: Path, train: np.ndarray, val: np.ndarray) -> None:
    """Tokens of GPT-2's vocabulary as a shard folder, one document a split, with a tokenizer nobody
    will ask for text.
    """
    tokens = [*byte_alphabet(), *(f"{a}{b}" for a in byte_alphabet() for b in byte_alphabet())][
        : 50257 - 1
    ]
    tokenizer = Tokenizer([*tokens, END_OF_TEXT], [])
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer.json")
    shards = []
    splits: tuple[tuple[Split, np.ndarray], ...] = (("train", train), ("val", val))
    for split, ids in splits:
        file = f"{split}-000000.bin"
        digest = write_shard(folder / file, np.array([len(ids)]), [ids], token_dtype(50257))
        shards.append(Shard(file=file, split=split, tokens=len(ids), documents=1, sha256=digest))
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256, vocab_size=50257, eot_id=50256, seed=0, val_fraction=0.1, split_rule="given",
        shards=shards, sources=[],
    )  # fmt: skip
    write_manifest(folder, manifest)
