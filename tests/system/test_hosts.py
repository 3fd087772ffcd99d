"""Two network namespaces as two hosts: every layout trains as on one, and what can break between hosts
ends in bounded time, with one message and nothing lost.

It needs root, to make the namespaces: GPT_TEST_HOSTS=1 runs it. The hosts share this machine's file
system, unless a test hides the run folder from the second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import newest_state
from tests.waiting import HANG_S, wait_until

pytestmark = pytest.mark.skipif(
    os.environ.get("GPT_TEST_HOSTS") != "1" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="set GPT_TEST_HOSTS=1, as root: it makes network namespaces",
)
HOSTS = tuple(f"gpt-{os.getpid()}-{number}" for number in (0, 1))
TIMEOUT_S = 8
BOUND_S = 120  # for both hosts to end after a cut; torch alone takes 948 s
TOLERANCE = 1e-4
OPTIONS = (
    "--n-layer 2 --n-head 2 --d-model 16 --n-ctx 16 --batch-tokens 64 --micro-batch 1 --lr 3e-3 "
    f"--compile off --precision fp32 --samples 0 --eval-every 1000 --timeout {TIMEOUT_S}"
).split()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """Make two namespaces with a link between them."""
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
        ip("netns", "add", host)
    try:
        ip(
            "link",
            "add",
            "gpt0",
            "netns",
            HOSTS[0],
            "type",
            "veth",
            "peer",
            "gpt1",
            "netns",
            HOSTS[1],
        )
        for number, host in enumerate(HOSTS):
            ip("-n", host, "addr", "add", f"10.98.76.{number + 1}/24", "dev", f"gpt{number}")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", f"gpt{number}", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def hosts() -> Iterator[None]:
    """Run this module between two hosts."""
    with network():
        yield


def start(
    number: int, port: str, folder: Path, *options: str, before: str = ""
) -> subprocess.Popen[str]:
    """Start the process of a host, after the shell's words `before`."""
    env = {
        **os.environ, "RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.98.76.1", "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": f"gpt{number}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "gptcli", "train", *OPTIONS, *options]
    hidden = ["unshare", "-m", "sh", "-c", f'{before} exec "$@"', "sh"] if before else []
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[number], *hidden, *command],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def torchrun(number: int, port: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start torchrun on a host, which starts its process."""
    agent = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--max-restarts",
        "0",
    ]
    endpoint = ["--rdzv-endpoint", f"10.98.76.1:{port}", "--local-addr", f"10.98.76.{number + 1}"]
    module = [sys.executable, "-m", "torch.distributed.run", *agent, *endpoint, "-m", "gptcli"]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": f"gpt{number}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[number], *module, "train", *OPTIONS, *options],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def cut() -> Iterator[None]:
    """Take the link between the hosts down."""
    ip("-n", HOSTS[1], "link", "set", "gpt1", "down")
    try:
        yield
    finally:
        ip("-n", HOSTS[1], "link", "set", "gpt1", "up")


def both(port: str, folder: Path, *options: str) -> list[tuple[int, str]]:
    """Run both hosts to their ends; return the exit code and the words of each."""
    return [ended(process) for process in [start(n, port, folder, *options) for n in (0, 1)]]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, words = process.communicate(timeout=HANG_S)
    return process.returncode, words


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def test_every_layout_trains_on_two_hosts_as_on_one(
    shards: Path, tmp_path: Path, free_port
) -> None:
    options = ("--data", str(shards), "--tokens", "640")
    alone = [sys.executable, "-m", "gptcli", "train", *OPTIONS, *options, "-o", "one"]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    for layout in ("dp=2", "shard=2", "tp=2", "pp=2"):
        results = both(free_port(), tmp_path, *options, "--layout", layout, "-o", layout)
        assert [code for code, _ in results] == [0, 0], results
        assert losses(tmp_path / layout) == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)


def test_hosts_without_a_shared_folder_or_with_other_options_do_not_begin(
    shards: Path, tmp_path: Path, free_port
) -> None:
    options = ("--data", str(shards), "--tokens", "640", "--layout", "dp=2", "-o", "hidden/run")
    for folder in ("hidden", "empty"):
        (tmp_path / folder).mkdir()
    port = free_port()
    first = start(0, port, tmp_path, *options)
    second = start(1, port, tmp_path, *options, before="mount --bind empty hidden;")
    for code, words in (ended(first), ended(second)):
        assert code == 2
        assert words.count("gpt: ") == 1
        assert "is not seen by" in words
    assert not (tmp_path / "hidden/run").exists()
    port = free_port()
    other = [start(0, port, tmp_path, *options), start(1, port, tmp_path, *options, "--seed", "1")]
    for code, words in map(ended, other):
        assert code == 2
        assert "seed is 1 there and 0 on" in words
    assert not (tmp_path / "hidden/run").exists()


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_a_cut_link_ends_both_hosts_in_time_and_the_resumed_run_is_exact(
    shards: Path, tmp_path: Path, free_port, launcher: str
) -> None:
    data = ("--data", str(shards), "--tokens", "16k", "--layout", "shard=2")
    options = (*data, "--keep", "99", "--checkpoint-every", "20")
    whole = both(free_port(), tmp_path, *options, "-o", "whole")
    assert [code for code, _ in whole] == [0, 0], whole
    port = free_port()
    begin_on = torchrun if launcher else start
    pair = [begin_on(number, port, tmp_path, *options, "-o", "cut") for number in (0, 1)]
    wait_until(lambda: newest_state(tmp_path / "cut") is not None, pair[0])
    with cut():
        begin = time.monotonic()
        for code, words in map(ended, pair):
            assert code == 1
            assert words.count("gpt: ") == 1, words
            assert "another process of this run was lost" in words
            assert "--resume continues" in words
        assert time.monotonic() - begin < BOUND_S
    assert not (tmp_path / "cut/model.safetensors").exists()
    resumed = both(free_port(), tmp_path, *options, "-o", "cut", "--resume")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
