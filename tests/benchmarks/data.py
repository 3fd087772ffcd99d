"""Documents to shards, BPE training and MinHash on one core, beside what people use, in one run;
and the memory of a build.

Text: the standard library's source, over and over with each repetition's words marked.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BYTES = int(os.environ.get("GPT_BENCH_BYTES", 60_000_000))


def texts(size: int = BYTES) -> Iterator[str]:
    """Documents of source code, of `size` bytes together."""
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    done = number = 0
    while done < size:
        for path in library:
            if "site-packages" in path.parts:
                continue
            with contextlib.suppress(UnicodeDecodeError):
                text = path.read_text(encoding="utf-8")[:50_000]
                text = text.replace("self", f"self{number}") if number else text
                done += len(text.encode())
                yield text
                if done >= size:
                    return
        number += 1


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep the block, and the threads it starts, on a single core, so that no library is measured
    on more of them than another.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def timed(name: str, work: Callable[[], object], amount: float, unit: str) -> float:
    start = time.perf_counter()
    work()
    rate = amount / (time.perf_counter() - start)
    print(f"{name:<52} {rate:10,.1f} {unit}/s", flush=True)
    return rate


@one_core()
def build_shards() -> None:
    """jsonl.zst to shards, whole pipeline, against a tiktoken loop that writes uint16 as nanoGPT's
    prepare.py does.
    """
    import tiktoken
    import zstandard

    from gptcli.corpus.build import begin_build, finish_build
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.recipe import SourceConfig
    from gptcli.tokenizer.encoders import open_encoder
    from gptcli.tokenizer.load import load_tokenizer
    from gptcli.tokenizer.tokenizer import PATTERN, byte_alphabet

    tokenizer = load_tokenizer(Path(os.environ["GPT_TEST_DATA"]) / "gpt2-vocab")
    alphabet = byte_alphabet()
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    ranks = {
        bytes(alphabet[c] for c in token): number
        for token, number in vocab.items()
        if number != tokenizer.eot_id
    }
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.jsonl.zst"
        with zstandard.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts())

        def nanogpt() -> None:
            with (
                zstandard.open(path, "rt", encoding="utf-8") as lines,
                open(Path(scratch) / "train.bin", "wb") as out,
            ):
                for line in lines:
                    ids = encoding.encode_ordinary(json.loads(line)["text"])
                    out.write(np.array([*ids, 50256], np.uint16).tobytes())

        rates = {}
        for name in ("gigatoken", "tiktoken"):
            build = BuildConfig(
                sources=[SourceConfig(inputs=[str(path)])], tokenizer=tokenizer, encoder=name
            )
            # imported and checked beforehand: a long build does not notice
            open_encoder(tokenizer, name)
            out = Path(scratch) / name

            def shards(build: BuildConfig = build, out: Path = out) -> None:
                begin_build(build, out, resume=False, force=False)
                finish_build(build, out, workers=1)

            rates[name] = timed(f"gpt build-shards, 1 worker, {name}", shards, BYTES / 1e6, "MB")
        rates["nanogpt"] = timed(
            "tiktoken pipeline of the nanoGPT kind", nanogpt, BYTES / 1e6, "MB"
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"  {rates['gigatoken'] / rates['nanogpt']:.1f} x; peak memory {peak:,.0f} MB")


def build_memory() -> None:
    """Peak memory of the largest process of a build by two workers, with deduplication, on a corpus
    and on one ten times larger.
    """
    tokenizer = Path(os.environ["GPT_TEST_DATA"]) / "gpt2-vocab"
    for size in (BYTES, 10 * BYTES):
        with tempfile.TemporaryDirectory() as scratch:
            with open(Path(scratch) / "a.jsonl", "w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts(size)
                )
            recipe = Path(scratch) / "recipe.toml"
            recipe.write_text(
                f'tokenizer = "{tokenizer}"\n[sources.code]\ninputs = ["a.jsonl"]\ndedup = {{ method = "lsh" }}\n'
            )
            command = [
                sys.executable,
                "-m",
                "gptcli",
                "build-shards",
                "--config",
                str(recipe),
                "--workers",
                "2",
            ]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            rate = f"{size / 1e6 / seconds:.1f} MB/s" if status == 0 else "FAILED"
            print(
                f"{size / 1e6:,.0f} MB of text, 2 workers: peak {usage.ru_maxrss / 1e3:,.0f} MB a process, {rate}",
                flush=True,
            )


ENCODER_ALONE = """
import gigatoken, numpy
tokenizer = gigatoken.Tokenizer.from_json(open("merges.json", encoding="utf-8").read())
text = open("a.txt", encoding="utf-8").read()
numpy.asarray(tokenizer.encode(text)).astype(numpy.uint16).tofile("ids.bin")
"""


def tokenize_encode() -> None:
    """`gpt tokenize encode` of one text beside a process that reads it, encodes it with gigatoken and
    writes the ids as uint16: processor time of each, from its start on, least of three rounds in which
    they take turns.
    """
    from gptcli.tokenizer.load import load_tokenizer

    folder = Path(os.environ["GPT_TEST_DATA"]) / "gpt2-vocab"
    ours = ["-m", "gptcli", "tokenize", "encode", "a.txt", "-t", str(folder)]
    commands = {
        "the encoder alone": ["-c", ENCODER_ALONE],
        "token file": [*ours, "-o", "a.bin", "--force", "--encoder", "gigatoken"],
        "ids in decimal": [*ours, "--encoder", "gigatoken"],
    }
    least = dict.fromkeys(commands, float("inf"))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "a.txt").write_text("\n\n".join(texts()), encoding="utf-8")
        merges = load_tokenizer(folder).merges_json()
        (Path(scratch) / "merges.json").write_text(merges, encoding="utf-8")
        for _ in range(3):
            for name, words in commands.items():
                process = subprocess.Popen(
                    [sys.executable, *words],
                    cwd=scratch,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                _, status, usage = os.wait4(process.pid, 0)
                assert status == 0, name
                least[name] = min(least[name], usage.ru_utime + usage.ru_stime)
    for name, seconds in least.items():
        print(
            f"{name:<20} {seconds:6.2f} s of processor time, "
            f"{least['the encoder alone'] / seconds:.2f} of the encoder's speed",
            flush=True,
        )


@one_core()
def bpe_training() -> None:
    """50,257 entries, merges compared; the faster of two rounds, in which the two take turns."""
    from gptcli.tokenizer import training

    size = int(os.environ.get("GPT_BENCH_BYTES", 80_000_000))
    corpus = list(texts(size))
    rates: dict[str, float] = {"gpt tokenize train": 0.0, "tokenizers": 0.0}
    learnt: set[str] = set()
    names = vars(training)
    learn = names["learn_merges"]
    for name in (*rates, *rates):
        by_reference = name == "tokenizers"
        names["learn_merges"] = (
            (lambda pieces, _, reference, *__: reference(pieces)) if by_reference else learn
        )
        rate = timed(
            name,
            lambda: learnt.add(training.train_tokenizer(corpus, 50257).sha256),
            size / 1e6,
            "MB",
        )
        rates[name] = max(rates[name], rate)
    names["learn_merges"] = learn
    fast, slow = rates.values()
    print(f"  {fast / slow:.1f} x, merges {'identical' if len(learnt) == 1 else 'DIFFERENT'}")


@one_core()
def minhash() -> None:
    """112 hashes in 14 bands of word 5-grams, normalisation and hashing of words included; beside
    the usual loop over shingles.
    """
    import hashlib

    from gptcli.corpus.dedup import BANDINGS, band_keys, shingles
    from gptcli.text.ngrams import normalized_words

    words = " ".join(texts(8_000_000)).split()
    documents = [" ".join(words[start : start + 120]) for start in range(0, len(words) - 120, 120)]
    ours = timed(
        "MinHash, ours",
        lambda: band_keys(*shingles(documents), BANDINGS["lsh"]),
        len(documents),
        "documents",
    )

    factors = np.random.default_rng(0).integers(1, (1 << 61) - 1, (2, 112), np.uint64)

    def datatrove_style() -> None:
        for document in documents[:1500]:
            tokens = [word for word, _, _ in normalized_words(document)]
            found = {" ".join(tokens[at : at + 5]) for at in range(max(1, len(tokens) - 4))}
            hashes = np.array(
                [
                    int.from_bytes(hashlib.sha1(shingle.encode()).digest()[:4], "little")
                    for shingle in found
                ],
                np.uint64,
            )
            ((hashes[:, None] * factors[0] + factors[1]) % np.uint64((1 << 61) - 1)).min(0)

    theirs = timed(
        "MinHash, a shingle at a time (datatrove's way)", datatrove_style, 1500, "documents"
    )
    print(f"  {ours / theirs:.1f} x, on {len(documents):,} documents of 120 words")
