"""Break the links, the hosts and the clocks of training runs across several hosts. Each run ends in
bounded time, with one message a host, and a resume gives the bytes of the undisturbed run.

    python -m tests.faults.hosts                       100 faults: two and four hosts, all layouts
    python -m tests.faults.hosts --faults 20 dp=2 tp=4      20 faults, in these layouts
    python -m tests.faults.hosts --seed 1              other faults

The hosts are network namespaces with a switch between them, so this needs root on Linux, `ip` and
`tc`; for the clocks a C compiler. Exits 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import split

from gptcli.cost.layout import parse_layout
from tests.faults.commands import call, run
from tests.faults.harness import Result, forked, preload
from tests.waiting import HANG_S

LAYOUTS = ("dp=2", "shard=2", "tp=2", "pp=2", "dp=4", "shard=4", "tp=4", "pp=4", "dp=2,tp=2")
KINDS = ("cut", "short cut", "kill", "power off", "slow link", "clock")
STEPS, EVERY = 24, 6
ENDING = ("cut", "kill", "power off")
"""Kinds that must end the run within its timeout; the others must not, within the usual one."""
TIMEOUT_S = 10  # of a run that must end; a machine with other work makes hosts wait for each other
BOUND_S = 60.0  # for all hosts to end after a fault; torch alone takes 948 s
TRAIN = split(
    "train --data in/shards --out run --n-head 4 --d-model 16 --n-ctx 16 "
    f"--batch-tokens 64 --tokens {64 * STEPS} --lr 3e-3 --checkpoint-every {EVERY} "
    f"--eval-every 12 --samples 0 --compile off --precision fp32"
)
CLONE_NEWNET = 0x40000000  # of setns(2)
SLOW = ("rate", "3mbit", "burst", "16kb", "latency", "2s")  # of tc-tbf(8)
DAY = 86_400


@dataclass(slots=True)
class Network:
    """Namespaces as hosts, each with one link to a switch."""

    hosts: int
    names: list[str] = field(init=False)
    switch: str = field(init=False)

    def __post_init__(self) -> None:
        self.names = [f"gpt-{os.getpid()}-{number}" for number in range(self.hosts)]
        self.switch = f"gpt-{os.getpid()}-switch"

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        for name in (self.switch, *self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            port = f"port{number}"
            ip("-n", self.switch, "link", "add", port, "type", "veth",
               "peer", "name", "eth0", "netns", name)  # fmt: skip
            ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.98.76.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def __exit__(self, *exception: object) -> None:
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def plug(self, number: int, *, into: bool) -> None:
        """Pull the cable of a host out of the switch, or put it in again."""
        ip("-n", self.switch, "link", "set", f"port{number}", "up" if into else "down")

    def slow(self, number: int, *, on: bool) -> None:
        """Limit what a host sends, and what it gets, to SLOW; or undo it."""
        for where, device in ((self.names[number], "eth0"), (self.switch, f"port{number}")):
            words = ("add", "dev", device, "root", "tbf", *SLOW) if on else (
                "del", "dev", device, "root")  # fmt: skip
            subprocess.run(["tc", "-n", where, "qdisc", *words], check=on, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def join_namespace(name: str) -> None:
    """Give this process the network of a namespace."""
    with open(f"/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


class Hosts:
    """The processes of one run, one on each host."""

    def __init__(self, network: Network, folder: Path, port: int, line: list[str]) -> None:
        self.network, self.folder, self.port, self.line = network, folder, port, line
        self.running: dict[int, int] = {}
        """Process of each host."""
        self.status: dict[int, int] = {}
        """Exit status of each host that has ended; of a signal, its number below zero."""

    def start(self, clock: int | None = None) -> None:
        """Start all; that of the host `clock` with a clock that the file "clock" moves (clock.c)."""
        for number in range(self.network.hosts):
            if (child := os.fork()) == 0:
                self._work(number, has_clock=number == clock)
            self.running[number] = child

    def _work(self, number: int, *, has_clock: bool) -> None:
        code = 70
        with contextlib.suppress(BaseException):
            join_namespace(self.network.names[number])
            os.environ.update(
                RANK=str(number), WORLD_SIZE=str(self.network.hosts), LOCAL_RANK="0",
                LOCAL_WORLD_SIZE="1", MASTER_ADDR="10.98.76.1", MASTER_PORT=str(self.port),
                GLOO_SOCKET_IFNAME="eth0", OMP_NUM_THREADS="1",
            )  # fmt: skip
            if has_clock:
                self._exec_with_clock(number)
            import torch

            torch.set_num_threads(1)
            code = call(self.line, self.folder, self.log(number).name)
        os._exit(code)

    def _exec_with_clock(self, number: int) -> None:
        os.environ.update(
            LD_PRELOAD=str(self.folder.parent / "clock.so"),
            GPT_TEST_CLOCK=str(self.folder / "clock"),
            PYTHONPATH=str(Path(__file__).parents[2]),
        )  # fmt: skip
        log = os.open(self.log(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.folder)
        os.execv(sys.executable, [sys.executable, "-m", "gptcli", *self.line])

    def log(self, number: int) -> Path:
        return self.folder / f"log-{number}"

    def words(self, number: int) -> str:
        log = self.log(number)
        return log.read_text(errors="replace") if log.exists() else ""

    def poll(self) -> bool:
        """Note which processes have ended; True if all have."""
        for number, child in list(self.running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self.status[number] = os.waitstatus_to_exitcode(status)
                del self.running[number]
        return not self.running

    def wait(self, seconds: float, condition: Callable[[], object] = lambda: False) -> bool:
        """Wait for the end of all processes, or for a condition; False if neither came in time."""
        end = time.monotonic() + seconds
        while not (self.poll() or condition()):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def kill(self, number: int) -> None:
        if number in self.running:
            os.kill(self.running[number], signal.SIGKILL)

    def kill_all(self) -> None:
        for number in list(self.running):
            self.kill(number)
        self.wait(HANG_S)


class Harness:
    """Inputs and undisturbed runs, made once, and a fresh folder for every fault."""

    def __init__(self, work: Path) -> None:
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as `gptcli.__main__` does
        preload()
        self.work, self.port = work, 29500
        self.wanted: dict[str, dict[str, str]] = {}
        """Fingerprints of an undisturbed run, by layout."""
        self.longest: dict[str, float] = {}
        """Longest time from a fault until all hosts had ended, by kind."""
        assert forked(lambda: make_inputs(work / "in")) == 0

    def hosts(self, network: Network, layout: str, *more: str) -> Hosts:
        self.port += 1
        laid_out = parse_layout(layout)
        # as few operations between hosts as there can be: one micro-batch for each stage
        own = {"n-layer": laid_out.pp, "micro-batch": 4 // laid_out.replicas // laid_out.pp}
        sizes = [word for name, size in own.items() for word in (f"--{name}", str(size))]
        line = [*TRAIN, *sizes, "--layout", layout, *more]
        return Hosts(network, self.work / "run", self.port, line)

    def fresh(self) -> Path:
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "in").symlink_to(self.work / "in")
        (folder / "clock").write_bytes(struct.pack("q", 0))
        return folder

    def undisturbed(self, network: Network, layout: str) -> dict[str, str]:
        if layout not in self.wanted:
            folder, whole = self.fresh(), self.hosts(network, layout)
            whole.start()
            assert whole.wait(HANG_S), "the undisturbed run hangs"
            assert set(whole.status.values()) == {0}, whole.words(0) + whole.words(1)
            self.wanted[layout] = run(folder)
        return self.wanted[layout]

    def inject(self, layout: str, kind: str, seed: str) -> Result:
        """Run a layout on its hosts, let a fault of a kind happen, and judge."""
        draw = random.Random(seed)
        with Network(parse_layout(layout).processes) as network:
            wanted, folder = self.undisturbed(network, layout), self.fresh()
            at, host = draw.randint(0, STEPS - 2), draw.randrange(network.hosts)
            result = Result(layout, f"{kind}, host {host} of {network.hosts}", at)
            bound = ("--timeout", str(TIMEOUT_S)) if kind in ENDING else ()
            hosts = self.hosts(network, layout, *bound)
            hosts.start(host if kind == "clock" else None)
            try:
                assert hosts.wait(HANG_S, lambda: steps(folder) >= at), "the run does not begin"
                if not hosts.running and set(hosts.status.values()) != {0}:
                    result.broken = "it ended before the fault: is this machine too busy?"
                    result.words = hosts.words(host)[-700:]
                    return result
                begin = time.monotonic()
                self.strike(hosts, kind, host, draw)
                hung = not hosts.wait(BOUND_S)
                seconds = time.monotonic() - begin
                self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)
            finally:
                hosts.kill_all()
                network.plug(host, into=True)
                network.slow(host, on=False)
            self.judge(hosts, host, kind, result, hung=hung, seconds=seconds)
            if not result.broken:
                self.resume(network, layout, folder, wanted, result)
        return result

    def strike(self, hosts: Hosts, kind: str, host: int, draw: random.Random) -> None:
        network = hosts.network
        if kind in ("cut", "power off", "short cut"):
            network.plug(host, into=False)
        if kind == "short cut":
            hosts.wait(draw.uniform(0.1, 1.5))
            network.plug(host, into=True)
        if kind in ("kill", "power off"):
            hosts.kill(host)
        if kind == "slow link":
            network.slow(host, on=True)
        if kind == "clock":
            with open(hosts.folder / "clock", "r+b") as clock:  # it is mapped
                clock.write(struct.pack("q", DAY * draw.choice([-400, -1, 1, 400])))

    def judge(
        self, hosts: Hosts, host: int, kind: str, result: Result, *, hung: bool, seconds: float
    ) -> None:
        """Judge how the processes ended."""
        words = {number: hosts.words(number) for number in hosts.status}
        result.words = "\n".join(f"[{number}] {text[-700:]}" for number, text in words.items())
        survivors = {
            number: status
            for number, status in hosts.status.items()
            if not (number == host and kind in ("kill", "power off"))
        }
        result.done = int(set(survivors.values()) == {0})
        result.refused = int(not result.done)
        if hung:
            result.broken = f"not ended {BOUND_S:.0f} s after the fault"
        elif any("Traceback" in text or "this is a bug" in text for text in words.values()):
            result.broken = f"no clear message, after {seconds:.1f} s"
        elif strange := {n: status for n, status in survivors.items() if status not in (0, 1)}:
            result.broken = f"exit {strange}"
        elif mute := [
            n for n, status in survivors.items() if status and hosts_messages(words[n]) != 1
        ]:
            result.broken = f"hosts {mute} do not have one message each"
        elif kind not in ENDING and not result.done:
            result.broken = "a fault that should not matter ended the run"

    def resume(
        self, network: Network, layout: str, folder: Path, wanted: dict[str, str], result: Result
    ) -> None:
        """Judge what the run left, and what a resume makes of it."""
        try:
            left = run(folder)
        except (AssertionError, ValueError, OSError) as error:
            result.half, result.broken = 1, f"half-written: {error}"
            return
        if wrong := [name for name, digest in left.items() if wanted.get(name, digest) != digest]:
            result.half, result.broken = 1, f"not the undisturbed run's: {wrong}"
            return
        again = self.hosts(network, layout, "--resume")
        again.start()
        came = again.wait(HANG_S)
        again.kill_all()
        if not came or set(again.status.values()) != {0}:
            result.lost, result.broken = 1, f"it does not go on: {again.status}"
            result.words += "\n--\n" + "\n".join(again.words(n)[-700:] for n in again.status)
        elif (after := run(folder)) != wanted:
            names = after.keys() | wanted.keys()
            different = sorted(name for name in names if after.get(name) != wanted.get(name))
            result.inexact, result.broken = 1, f"resumed, and not the undisturbed run: {different}"


def build_clock(library: Path) -> bool:
    """Build what moves a process's clock; False without a compiler."""
    source = Path(__file__).with_name("clock.c")
    line = ["-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lpthread"]
    compiler = shutil.which("cc") or shutil.which("gcc")
    return compiler is not None and subprocess.run([compiler, *line]).returncode == 0


def make_inputs(folder: Path) -> int:
    """Make the shards, in a process of its own."""
    from tests.small_runs import make_shards

    folder.mkdir()
    make_shards(folder / "shards")
    return 0


def hosts_messages(words: str) -> int:
    """Return the number of error messages in what a host says."""
    return sum(line.startswith("gpt: ") for line in words.splitlines())


def steps(folder: Path) -> int:
    """Return the number of steps that a run has recorded; -1 before it has begun."""
    log = folder / "run/metrics.jsonl"
    if log.exists():
        return log.read_bytes().count(b"\n")
    return 0 if (folder / "run/run.toml").exists() else -1


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as name:
        yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hosts")
    parser.add_argument("layouts", nargs="*")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        parser.error("needs root, ip and tc: it makes network namespaces")
    layouts = options.layouts or LAYOUTS
    counts: Counter[str] = Counter()
    with scratch() as work:
        has_clock = build_clock(work / "clock.so")
        kinds = [kind for kind in KINDS if kind != "clock" or has_clock]
        harness = Harness(work)
        for number in range(options.faults):
            # every layout meets every kind
            layout = layouts[number % len(layouts)]
            kind = kinds[(number % len(layouts) + number // len(layouts)) % len(kinds)]
            result = harness.inject(layout, kind, f"{options.seed} {number}")
            counts[kind] += 1
            counts["broken"] += bool(result.broken)
            outcome = "went on" if result.done else "ended"
            print(f"{number} {layout}, {result.kind}, step {result.at}: {outcome}", flush=True)
            if result.broken:
                print(f"  {result.broken}\n  " + "\n  ".join(result.words.splitlines()), flush=True)
    if not has_clock:
        print("clocks that jump: not tried, as there is no C compiler")
    for kind in kinds:
        bound = f"at most {harness.longest.get(kind, 0):.1f} s until all hosts had ended"
        print(f"{kind}: {counts[kind]} faults, {bound}")
    print(f"{options.faults} faults, {counts['broken']} broken promises")
    return int(counts["broken"] > 0)


if __name__ == "__main__":
    sys.exit(main())
