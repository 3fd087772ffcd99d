"""A run that is killed and resumed is the run that never was. Processes are forked from a server
that has imported torch, so that a start takes a fraction of a second."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptcli.cost.layout import parse_layout
from gptcli.model.safetensors_io import load_model
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import newest_state
from tests.extent import WHOLE

KILLS = int(os.environ.get("GPT_TEST_KILLS", "10"))
TOLERANCE = 1e-4  # of 20 steps in fp32
WORKER = """
import os, signal
import torch
from gptcli.events import Events
from gptcli.distributed.launch import launch
from gptcli.trainer.checkpoint import newest_step
from gptcli.trainer.loop import train

torch.set_num_threads(1)  # as all tests here; a process alone would take all cores, the others share them

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class DieAt(Events):
    def progress(self, task, done, *args, **facts):
        if done >= tokens:
            die()

def dying(call):
    def counted(*args, **options):
        calls[0] -= 1
        if calls[0] == 0:
            die()
        return call(*args, **options)
    return counted

for name in ("fsync", "rename", "replace", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
os.environ.update(env)
launch(run, DieAt(), train, newest_step)
"""


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["gptcli.distributed.launch", "gptcli.trainer.loop", "torch._dynamo"]
    )
    return context


@pytest.fixture
def start(server, free_port):
    """Start all processes of a run. The first one kills itself with -9 once so many `tokens` are
    done, or at the so manieth of the calls by which files become whole, most of which belong to a
    checkpoint."""

    def start_processes(run, *, tokens=float("inf"), calls=0):
        world = parse_layout(run.train.layout).processes
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
        processes = []
        for rank in range(world):
            env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            values = {"env": env, "run": run, "tokens": tokens, "calls": [0 if rank else calls]}
            processes.append(server.Process(target=exec, args=(WORKER, values)))
            processes[-1].start()
        return processes

    return start_processes


@pytest.fixture
def finish(start):
    def to_the_end(run):
        processes = start(run)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * len(processes)

    return to_the_end


def kill(processes):
    for process in processes:
        process.kill()
        process.join()


def losses(run):
    return [line["loss"] for line in read_metrics(run.out)]


def loss_at(out, step=None):
    """Return the loss of a run's checkpoint, written in any layout, on some sequences."""
    ids = torch.arange(68).view(4, 17) % 256
    with torch.no_grad():
        logits = load_model(out, step=step)(ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def same_model(one, other):
    return (one.out / "model.safetensors").read_bytes() == (
        other.out / "model.safetensors"
    ).read_bytes()


LAYOUTS_KILLED = ("dp=1", "shard=2", "tp=2", "pp=2")  # and dp=4: more than two are summed
PAPERS: dict[str, Any] = {}
MUON = {
    "optimizer": "muon", "lr_schedule": "wsd", "cooldown_tokens": 320, "ema": 0.9,
    "weight_decay_schedule": "linear", "end_weight_decay": 0.3, "beta2_schedule": "cosine",
    "end_beta2": 0.8,
}  # fmt: skip
OWN = {
    "optimizer": f"{__name__}:own_optimizer", "lr_schedule": f"{__name__}:own_schedule",
    "ema": 0.8, "weight_decay_schedule": "cosine", "end_weight_decay": 0.0,
}  # fmt: skip
LINEAR = {
    "lr_schedule": "linear", "ema": 0.5, "beta2_schedule": "linear", "end_beta2": 0.9,
    "weight_decay_schedule": f"{__name__}:own_decay",
}  # fmt: skip
CONSTANT = {
    "optimizer": "muon",
    "lr_schedule": "constant",
    "beta2_schedule": "cosine",
    "end_beta2": 0.9,
}
RECIPES = {"papers": PAPERS, "muon": MUON, "own": OWN, "linear": LINEAR, "constant": CONSTANT}
ALL_KILLED = list(itertools.product(LAYOUTS_KILLED, RECIPES))
KILLED = [
    *itertools.product(LAYOUTS_KILLED, ("papers", "muon")),
    ("dp=4", "papers"), ("shard=2", "own"), ("tp=2", "own"), ("pp=2", "linear"), ("dp=1", "constant"),
]  # fmt: skip


def own_optimizer(model, config):
    """Stochastic gradient descent with momentum, as a user's own."""
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)


def own_schedule(tokens, config):
    return config.lr / (1 + tokens / config.tokens)


def own_decay(tokens, config):
    return config.weight_decay * tokens / config.tokens


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_run, start, finish, recipe
):
    """GPT_TEST_WHOLE=1 takes each recipe under each layout."""
    options = {"checkpoint_every": 6, "micro_batch": 1, "dropout": 0.1, **RECIPES[recipe]}
    for layout in [layout for layout, name in (ALL_KILLED if WHOLE else KILLED) if name == recipe]:
        whole, killed = (
            make_run(f"{layout} {name}", layout=layout, **options) for name in ("whole", "killed")
        )
        finish(whole)
        processes = start(killed, tokens=15 * 64)
        processes[0].join()
        kill(processes)
        assert processes[0].exitcode == -signal.SIGKILL
        state = newest_state(killed.out)
        assert state is not None
        assert state.position.step == 12
        finish(replace(killed, resume=True))
        assert same_model(whole, killed), layout
        assert losses(whole) == losses(killed), layout


def test_any_layout_resumes_a_checkpoint_of_another(make_run, start, finish):
    options = {"checkpoint_every": 6, "micro_batch": 1, "n_layer": 4, "keep": 9}
    plain, half = make_run("plain", **options), make_run("half", layout="shard=2", **options)
    finish(plain)
    processes = start(half, tokens=15 * 64)
    processes[0].join()
    kill(processes)
    assert loss_at(half.out) == pytest.approx(loss_at(plain.out, 12), abs=TOLERANCE), (
        "the newest checkpoint of a killed run is a model"
    )
    for layout in ("dp=1", "tp=2", "pp=2", "dp=2,shard=2", "tp=2,pp=2"):
        moved = make_run(layout, layout=layout, **options)
        shutil.copytree(half.out, moved.out)
        finish(replace(moved, resume=True))
        assert losses(moved) == pytest.approx(losses(plain), abs=TOLERANCE), layout
        one, other = (load_file(run.out / "model.safetensors") for run in (plain, moved))
        assert one.keys() == other.keys()
        assert loss_at(moved.out, 18) == pytest.approx(loss_at(plain.out, 18), abs=TOLERANCE), (
            layout
        )


@pytest.mark.parametrize(("layout", "kills"), [("dp=1", KILLS), ("shard=2", -(-KILLS // 5))])
def test_a_run_killed_at_random_moments_resumes_from_its_last_checkpoint(
    make_run, start, finish, layout, kills
):
    """Every resume succeeds, none loses more than one checkpoint interval, and the end is the run
    that was never killed.
    """
    every, apart = 9, 30  # steps between checkpoints, and on average between kills
    options = {
        "tokens": 64 * apart * kills,
        "checkpoint_every": every,
        "dropout": 0.1,
        "layout": layout,
    }
    whole, killed = (make_run(name, **options) for name in ("whole", "killed"))
    start_time = time.monotonic()
    finish(whole)
    slowly = 2 * (time.monotonic() - start_time) / kills
    chance = random.Random(os.getpid())
    log = killed.out / "metrics.jsonl"
    inside = lost = 0
    for number in range(kills):
        before = log.stat().st_mtime_ns if log.exists() else 0
        processes = start(
            replace(killed, resume=True), calls=chance.randrange(1, 70) if number % 2 else 0
        )
        if number % 2:
            processes[0].join()
        else:
            while processes[0].is_alive() and (
                not log.exists() or log.stat().st_mtime_ns == before
            ):
                time.sleep(0.01)
            processes[0].join(chance.uniform(0, slowly))
        kill(chance.sample(processes, len(processes)))
        inside += bool(list((killed.out / "checkpoints").glob(".step-*")))
        state, lines = newest_state(killed.out), read_metrics(killed.out)
        at = state.position.step if state else 0  # a kill may come before the first checkpoint
        lost = max(lost, (lines[-1]["step"] if lines else 0) - at)
        assert lost <= every
    finish(replace(killed, resume=True))
    assert same_model(whole, killed)
    assert losses(whole) == losses(killed)
    print(
        f"{layout}: {kills} kills up to step {at} of {apart * kills}, {inside} inside a checkpoint, at most {lost} steps lost"
    )
