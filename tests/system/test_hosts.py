"""Network namespaces as hosts: every layout trains as on one, and what can break between hosts
ends in bounded time, with one message and nothing lost.

It needs root, to make the namespaces: GPT_TEST_HOSTS=1 runs it. The hosts share this machine's file
system, unless a test hides the run folder from the second. `python -m tests.faults.hosts` draws many
more faults.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import split

import pytest

from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import newest_state
from tests.faults.hosts import Network
from tests.waiting import HANG_S, wait_until

pytestmark = pytest.mark.skipif(
    os.environ.get("GPT_TEST_HOSTS") != "1" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="set GPT_TEST_HOSTS=1, as root: it makes network namespaces",
)
TIMEOUT = ("--timeout", "15")  # of a run that is cut; until then a busy host must have answered
BOUND_S = 120  # for both hosts to end after a cut; torch alone takes 948 s
TOLERANCE = 1e-4
FIRST = "10.98.76.1"
OPTIONS = split(
    "--n-layer 4 --n-head 4 --d-model 16 --n-ctx 16 --batch-tokens 64 --micro-batch 1 --lr 3e-3 "
    "--compile off --precision fp32 --samples 0 --eval-every 1000"
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Four hosts, of which a test may use two."""
    with Network(4) as four:
        yield four


class Launcher:
    """Starts the command of this module's options on hosts."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder

    def start(
        self, number: int, port: str, *options: str, of: int = 2, before: str = ""
    ) -> subprocess.Popen[str]:
        """Start the process of a host, after the shell's words `before`."""
        env = {
            "RANK": str(number), "WORLD_SIZE": str(of), "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": FIRST, "MASTER_PORT": port,
        }  # fmt: skip
        command = [sys.executable, "-m", "gptcli", "train", *OPTIONS, *options]
        hidden = ["unshare", "-m", "sh", "-c", f'{before} exec "$@"', "sh"] if before else []
        return self._open(number, [*hidden, *command], **env)

    def torchrun(
        self, number: int, port: str, *options: str, hosts: str = "2", restarts: int = 0
    ) -> subprocess.Popen[str]:
        """Start torchrun on a host, which starts its process. The first one has the store."""
        agent = [
            "--nnodes", hosts, "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--max-restarts", str(restarts), "--rdzv-endpoint", f"{FIRST}:{port}",
            "--rdzv-conf", f"is_host={int(number == 0)},read_timeout=5,last_call_timeout=3",
            "--local-addr", f"10.98.76.{number + 1}",
        ]  # fmt: skip
        module = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "gptcli"]
        return self._open(number, [*module, "train", *OPTIONS, *options])

    def _open(self, number: int, command: list[str], **env: str) -> subprocess.Popen[str]:
        both = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.network.names[number], *command],
            cwd=self.folder, env={**os.environ, **both, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def all(self, port: str, *options: str, of: int = 2) -> list[tuple[int, str]]:
        """Run hosts to their ends; return the exit code and the words of each."""
        processes = [self.start(number, port, *options, of=of) for number in range(of)]
        return [ended(process) for process in processes]


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> Launcher:
    return Launcher(network, tmp_path)


def last_words(agent: subprocess.Popen[str]) -> str:
    """Return what torchrun's process says until it gives up, and do with its agent as it says."""
    words = ""
    assert agent.stderr is not None
    for line in agent.stderr:
        words += line
        if "--resume continues" in line:
            break
    agent.kill()  # the one without the store would wait minutes
    agent.communicate()
    return words


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, words = process.communicate(timeout=HANG_S)
    return process.returncode, words


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.parametrize("of", [2, 4])
def test_every_layout_trains_on_hosts_as_on_one(
    hosts: Launcher, shards: Path, tmp_path: Path, free_port, of: int
) -> None:
    options = ("--data", str(shards), "--tokens", "640")
    alone = [sys.executable, "-m", "gptcli", "train", *OPTIONS, *options, "-o", "one"]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    for layout in (f"dp={of}", f"shard={of}", f"tp={of}", f"pp={of}"):
        results = hosts.all(free_port(), *options, "--layout", layout, "-o", layout, of=of)
        assert {code for code, _ in results} == {0}, results
        assert losses(tmp_path / layout) == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)


def test_hosts_without_a_shared_folder_or_with_other_options_do_not_begin(
    hosts: Launcher, shards: Path, tmp_path: Path, free_port
) -> None:
    options = ("--data", str(shards), "--tokens", "640", "--layout", "dp=2", "-o", "hidden/run")
    for folder in ("hidden", "empty"):
        (tmp_path / folder).mkdir()
    port = free_port()
    first = hosts.start(0, port, *options)
    second = hosts.start(1, port, *options, before="mount --bind empty hidden;")
    for code, words in (ended(first), ended(second)):
        assert code == 2
        assert words.count("gpt: ") == 1
        assert "is not seen by" in words
    assert not (tmp_path / "hidden/run").exists()
    port = free_port()
    other = [hosts.start(0, port, *options), hosts.start(1, port, *options, "--seed", "1")]
    for code, words in map(ended, other):
        assert code == 2
        assert "seed is 1 there and 0 on" in words
    assert not (tmp_path / "hidden/run").exists()


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_a_cut_link_ends_both_hosts_in_time_and_the_resumed_run_is_exact(
    hosts: Launcher, shards: Path, tmp_path: Path, free_port, launcher: str
) -> None:
    data = ("--data", str(shards), "--tokens", "16k", "--layout", "shard=2")
    options = (*data, "--keep", "99", "--checkpoint-every", "20")
    whole = hosts.all(free_port(), *options, "-o", "whole")
    assert [code for code, _ in whole] == [0, 0], whole
    port = free_port()
    begin_on = hosts.torchrun if launcher else hosts.start
    pair = [begin_on(number, port, *options, *TIMEOUT, "-o", "cut") for number in (0, 1)]
    wait_until(lambda: newest_state(tmp_path / "cut") is not None, pair[0])
    hosts.network.plug(1, into=False)
    try:
        begin = time.monotonic()
        for process in pair:
            words = last_words(process) if launcher else ended(process)[1]
            assert launcher or process.returncode == 1
            assert words.count("gpt: ") == 1, words
            assert "another process of this run was lost" in words
            assert ("end it here by Ctrl-C" in words) == bool(launcher)
            assert "--resume continues" in words
        assert time.monotonic() - begin < BOUND_S
    finally:
        hosts.network.plug(1, into=True)
    assert not (tmp_path / "cut/model.safetensors").exists()
    resumed = hosts.all(free_port(), *options, "-o", "cut", "--resume")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("layout", ["dp=2", "auto", "tp=2"])
def test_torchrun_goes_on_with_the_hosts_that_are_left(
    hosts: Launcher, shards: Path, tmp_path: Path, free_port, layout: str
) -> None:
    """The same data in the same order; where the layout cannot follow, one message says so."""
    options = ("--data", str(shards), "--tokens", "6k", "--checkpoint-every", "10")
    alone = [sys.executable, "-m", "gptcli", "train", *OPTIONS, *options, "-o", "one"]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    port, run = free_port(), tmp_path / "run"
    elastic = (*options, *TIMEOUT, "--layout", layout, "-o", "run")
    pair = [hosts.torchrun(n, port, *elastic, hosts="1:2", restarts=1) for n in (0, 1)]
    wait_until(lambda: newest_state(run) is not None, pair[0])
    hosts.network.plug(1, into=False)
    try:
        begin = time.monotonic()
        code, words = ended(pair[0])
        assert time.monotonic() - begin < BOUND_S
    finally:
        pair[1].kill()
        pair[1].communicate()
        hosts.network.plug(1, into=True)
    assert "torchrun now waits for the hosts to join again" in words
    if layout == "tp=2":
        assert code == 1
        assert "tp=2 is 2 processes, but 1 were started" in words
        assert "only dp can follow the hosts that are left" in words
        return
    assert code == 0, words
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)
