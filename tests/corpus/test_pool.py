"""Worker pools return results and errors, report a lost worker and leave no orphans. A Ray cluster
makes the bytes of local workers.

Tasks are functions of the standard library, which a spawned process can import.
"""

from __future__ import annotations

import json
import multiprocessing
import operator
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptcli.corpus import config
from gptcli.corpus import pool as pool_module
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.pool import LocalPool, RayPool, open_pool, startable
from gptcli.corpus.recipe import DedupConfig, SourceConfig
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import Events
from gptcli.files import read_json, sha256
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.waiting import HANG_S, wait_until


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_gets_the_state(count: int) -> None:
    with LocalPool(count, abs) as pool:
        assert sorted(pool.map(operator.call, range(-20, 0))) == list(range(1, 21))
        assert list(pool.map(operator.call, [])) == []


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied"), OSError(28, "No space left"), ImportError("x")],
)
def test_without_semaphores_a_build_has_one_worker_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Telling(Events):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def warn(self, text: str) -> None:
            self.texts.append(text)

    def refused(self: Any) -> None:
        raise error

    events = Telling()
    assert startable(2, events) == 2
    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", refused)
    assert startable(1, events) == 1
    assert not events.texts
    assert startable(2, events) == 1
    (text,) = events.texts
    assert text.startswith("one worker instead of 2: no semaphore could be made (")
    assert "/dev/shm" in text


def test_tasks_are_consumed_no_faster_than_they_are_finished() -> None:
    made = 0

    def tasks() -> Iterator[int]:
        nonlocal made
        for made in range(1, 101):
            yield -made

    with LocalPool(2, abs) as pool:
        results = pool.map(operator.call, tasks())
        next(results)
        assert made <= 4
        assert len(list(results)) == 99


@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_of_a_task_is_raised_in_the_parent(count: int, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="no such file") as caught,
        LocalPool(count, read_json) as pool,
    ):
        list(pool.map(operator.call, [tmp_path / "none.json"]))
    assert caught.value.where == str(tmp_path / "none.json")


def test_a_killed_worker_is_an_error() -> None:
    with (
        pytest.raises(RunError, match="a worker process died"),
        LocalPool(2, signal.raise_signal) as pool,
    ):
        list(pool.map(operator.call, [signal.SIGKILL, signal.SIGCONT]))


class Dies:
    """Object that ends the process in which it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_workers_that_die_at_their_start_are_an_error() -> None:
    """Neither they nor a state that a pipe does not hold make the parent wait."""
    with (
        pytest.raises(RunError, match="a worker process died"),
        LocalPool(2, [Dies(), bytes(1 << 20)]) as pool,
    ):
        list(pool.map(operator.call, [1, 2, 3]))


def test_an_error_does_not_wait_for_running_tasks() -> None:
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), LocalPool(2, time.sleep) as pool:
        for _ in pool.map(operator.call, [0.0, 2 * HANG_S]):
            raise ZeroDivisionError
    assert time.monotonic() - start < HANG_S, "the pool waited for the sleeping task"


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, operator, time\n"
        "from gptcli.corpus.pool import LocalPool\n"
        "if __name__ == '__main__':\n"
        "    with LocalPool(2, time.sleep) as pool:\n"
        "        for _ in pool.map(operator.call, [0.0, 3600.0, 3600.0]):\n"
        "            print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        assert all(alive(pid) for pid in children)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in children))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a Ray cluster of two cores."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",  # whatever cluster was started on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_ray_pool_returns_results_and_errors_like_local_workers(tmp_path: Path) -> None:
    with RayPool(abs) as pool:
        assert pool.count == 2
        assert sorted(pool.map(operator.call, range(-20, 0))) == list(range(1, 21))
        assert list(pool.map(operator.call, [])) == []
    with (
        RayPool(read_json) as pool,
        pytest.raises(InputError, match="no such file") as caught,
    ):
        list(pool.map(operator.call, [tmp_path / "none.json"]))
    assert caught.value.where == str(tmp_path / "none.json")
    with (
        RayPool(signal.raise_signal) as pool,
        pytest.raises(RunError, match="worker on the cluster died"),
    ):
        list(pool.map(operator.call, [signal.SIGKILL]))


@pytest.mark.usefixtures("cluster")
def test_the_task_of_a_lost_ray_worker_is_given_to_another(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    script = f"[ -e {mark} ] || {{ touch {mark}; kill -9 $PPID; }}"
    tasks = [["bash", "-c", script], *[["true"]] * 6]
    with RayPool(subprocess.run) as pool:
        results = list(pool.map(operator.call, tasks))
    assert mark.exists()
    assert [result.returncode for result in results] == [0] * 7


@pytest.mark.usefixtures("cluster")
def test_a_ray_pool_takes_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(pool_module, "RAY_GRACE_S", 5)
    kind: Any = ray.remote(num_cpus=1)(SimpleNamespace)
    busy = kind.remote()
    ray.get(busy.__ray_ready__.remote())
    try:
        with RayPool(abs) as pool:
            assert pool.count == 1
            assert sorted(pool.map(operator.call, range(-5, 0))) == [1, 2, 3, 4, 5]
    finally:
        ray.kill(busy)


@pytest.mark.usefixtures("cluster")
def test_a_ray_pool_makes_the_bytes_of_local_workers(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (2000, 2000))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(1)
    lines = [
        " ".join(str(chance.random()) for _ in range(1 + chance.randrange(30))) for _ in range(100)
    ]
    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*lines, *lines[:30]])
    )
    build = BuildConfig(
        sources=[SourceConfig(inputs=["a.jsonl"], dedup=DedupConfig())],
        tokenizer=byte_tokenizer,
        val_fraction=0.2,
        shard_tokens=5000,
    )
    for runner in ("local", "ray"):
        begin_build(build, Path(runner), resume=False, force=False)
        assert finish_build(build, Path(runner), runner=runner).sources[0].dropped == {
            "duplicate": 30
        }
    local, ray = (
        {path.name: sha256(path) for path in Path(runner).iterdir()} for runner in ("local", "ray")
    )
    assert len(local) > 10
    assert ray == local


def test_an_unknown_runner_and_a_missing_ray_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"runner: unknown runner 'rai'\n.*ray"):
        open_pool("rai", 1, None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"runner: ray is not installed\n.*pip install.* ray"):
        open_pool("ray", 1, None)


def test_a_cluster_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse)
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"runner: no Ray cluster is running\n.*ray start"):
        open_pool("ray", 1, None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(
        UsageError, match=r"runner: no Ray cluster answers at head:6379\n.*RAY_AUTH_MODE=token"
    ):
        open_pool("ray", 1, None)


def test_no_output_folder_is_claimed_for_a_missing_runner(
    gpt: Any, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    byte_tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "ray.py").write_text(
        "raise ImportError"
    )  # imported instead of the installed package
    refused = gpt(
        "build-shards", "a.txt", "-t", "tokenizer.json", "--runner", "ray", "-o", "out", code=2
    ).stderr
    assert "--runner: ray is not installed" in refused
    assert not (tmp_path / "out").exists()
