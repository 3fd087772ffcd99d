"""Tokens a second of `gpt sample --serve` with 16 clients at once beside `gpt sample --prompts` with
the same 64 prompts in batches of 16, in turns, in one process; the clients are in another.

Weights are random, which changes no speed. The quickstart's model is the hard case: its passes are
so short that HTTP counts. SIZES=quickstart leaves out GPT-2 124M.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from gptcli.model.config import ModelConfig
from gptcli.model.source import ModelSource
from gptcli.model.transformer import GPT
from gptcli.sampling.batch import BatchJob, generate_file
from gptcli.sampling.load import Loaded, prepare_for_inference
from gptcli.sampling.params import SamplingParams
from gptcli.serving.requests import serve_names
from gptcli.serving.scheduler import Scheduler
from gptcli.serving.server import application, listen
from gptcli.tokenizer.training import train_tokenizer
from tests.benchmarks.sampling import COMMAND_ENVIRONMENT

CLIENTS, PROMPTS, NEW, ROUNDS = 16, 64, 64, 5
SIZES = {
    "quickstart": {"n_layer": 4, "n_head": 4, "d_model": 256, "n_ctx": 256, "vocab_size": 4096},
    "124M": {"n_layer": 12, "n_head": 12, "d_model": 768, "n_ctx": 1024, "vocab_size": 50257},
}
PROMPT = "the quick brown fox jumps over the lazy dog"
CLIENT = f"""
import http.client, json, sys, threading
port, numbers = int(sys.argv[1]), iter(range({PROMPTS}))
lock, total = threading.Lock(), []
def ask():
    line = http.client.HTTPConnection("127.0.0.1", port)
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        body = json.dumps({{"prompt": {PROMPT!r}, "max_tokens": {NEW}, "logprobs": 0, "seed": number}})
        line.request("POST", "/v1/completions", body, {{"Content-Type": "application/json"}})
        total.append(json.load(line.getresponse())["usage"]["completion_tokens"])
for line in sys.stdin:
    numbers, total = iter(range({PROMPTS})), []
    clients = [threading.Thread(target=ask) for _ in range({CLIENTS})]
    [one.start() for one in clients]
    [one.join() for one in clients]
    print(sum(total), flush=True)
"""


def run() -> None:
    code = "from tests.benchmarks.serving import compare; compare()"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**COMMAND_ENVIRONMENT, **os.environ}
    )


def compare() -> None:
    for size in os.environ.get("SIZES", ",".join(SIZES)).split(","):
        measure(size)


def measure(size: str) -> None:
    import uvicorn

    config = ModelConfig(**SIZES[size])  # type: ignore[arg-type]
    tokenizer = train_tokenizer([PROMPT * 20], 280)
    model = GPT(config).eval()
    model.init_weights(0)
    # tokens that the tokenizer lacks cannot be decoded, and an end-of-text would end a sample
    model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=True)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    model.lm_head.bias.data[256:] = -1e4
    loaded = Loaded(
        prepare_for_inference(model),
        tokenizer,
        torch.device("cpu"),
        "fp32",
        ModelSource(Path(size)),
    )
    named = serve_names([(Path(size), loaded)])
    scheduler = Scheduler([loaded], batch_size=CLIENTS)
    scheduler.start()
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(application(named, scheduler), log_config=None, lifespan="off")
    )
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    job = BatchJob(params=SamplingParams(), max_tokens=NEW, batch_size=CLIENTS)
    with (
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(listening.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as clients,
        tempfile.TemporaryDirectory() as folder,
    ):
        assert clients.stdin is not None
        assert clients.stdout is not None
        ratios = []
        for number in range(ROUNDS + 1):
            begin = time.perf_counter()
            out = Path(folder) / f"{number}.jsonl"
            generate_file(model, tokenizer, [PROMPT] * PROMPTS, job, out, fingerprint={})
            of_file = time.perf_counter() - begin
            begin = time.perf_counter()
            clients.stdin.write("\n")
            clients.stdin.flush()
            assert int(clients.stdout.readline()) == PROMPTS * NEW
            of_server = time.perf_counter() - begin
            if number:  # the first round warms up
                ratios.append(of_file / of_server)
        clients.stdin.close()
    print(
        f"{size}: --serve with {CLIENTS} clients is {statistics.median(ratios):.2f} of --prompts "
        f"(rounds {', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})"
    )
    server.should_exit = True
    scheduler.close()
