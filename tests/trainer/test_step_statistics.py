"""The noise scale against problems whose covariance is known, and against gradients taken one by
one.
"""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gptcli.cost.layout import Layout
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT, Events
from gptcli.runs.metrics import read_metrics
from gptcli.shards.order import ShuffledWindows, open_split
from gptcli.trainer.loop import train
from gptcli.trainer.optimizer import AdamW
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.step import TrainStep
from gptcli.trainer.step_statistics import (
    MIN_SPIKE_NATS,
    NOISE_RERUN_EVERY,
    WINDOW_STEPS,
    NoiseScale,
    SpikeGuard,
    small_batch_sequences,
)
from tests.distributed.run_ranks import run_ranks

CPU = RankContext(torch.device("cpu"))


class StopAt(Events):
    """SIGTERM in the first step after `step`."""

    def __init__(self, step: int) -> None:
        self.left = step

    def progress(self, *args, **facts):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class Noisy(nn.Module):
    """Each token's loss has a gradient drawn from N(G, diag(variance)), whatever the weights
    are.
    """

    def __init__(self, truth: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        self.truth, self.variance = truth, variance
        self.weight = nn.Parameter(torch.zeros_like(truth))
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x_BT, y_BT):
        draws = self.truth + self.variance.sqrt() * torch.randn(
            x_BT.numel(), len(self.truth), generator=self.generator
        )
        return (draws @ self.weight).sum()


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_the_estimate_is_within_a_tenth_of_the_known_noise_scale(micro_batches):
    truth, variance = torch.linspace(-1, 1, 200), torch.linspace(0, 8, 200)
    known = variance.sum().item() / truth.square().sum().item()
    model = Noisy(truth, variance)
    train_step = TrainStep(
        model,
        torch.optim.SGD(model.parameters()),
        CPU,
        clip=math.inf,
        compute_dtype=None,
        dropout_seed=None,
    )
    noise, B, T = NoiseScale(), 4, 2
    batch = torch.zeros((B, T), dtype=torch.long)
    tokens = micro_batches * B * T
    for step in range(300):
        train_step.forward_backward([(batch, batch)] * micro_batches, tokens, step)
        norm = train_step.clip_gradients().item()
        noise.add(
            train_step.small_batch_norm.norm2.item() * micro_batches**2, norm**2, B * T, tokens
        )
        train_step.optimizer.zero_grad()
    assert noise.tokens == pytest.approx(known, rel=0.1)


def test_both_estimates_are_unbiased():
    """E|g_b|² = |G|² + tr(S)/b exactly gives |G|² and tr(S) back."""
    noise = NoiseScale()
    noise.add(3 + 40 / 8, 3 + 40 / 64, 8, 64)
    signal, trace = (value / 0.01 for value in noise.state)
    assert (signal, trace) == pytest.approx((3, 40))
    assert noise.tokens == pytest.approx(40 / 3)


def test_the_noise_scale_is_none_before_a_finite_measurement():
    noise = NoiseScale()
    noise.add(math.nan, 1.0, 1, 2)
    noise.add(math.inf, 1.0, 1, 2)
    assert noise.tokens is None
    noise.add(1.0, 2.0, 1, 2)  # the smaller batch has the smaller norm: chance, not noise
    assert noise.tokens is None


def test_the_small_batch_depends_on_layout_and_micro_batch():
    two = RankContext(CPU.device, 0, 2)
    assert [small_batch_sequences(n, 3, CPU, 1) for n in (1, 3, 4, 9)] == [None, None, 3, 3]
    assert [small_batch_sequences(n, 3, two, 1) for n in (1, 2, 7, 8)] == [None, 1, None, 4]
    sliced, staged = (
        RankContext(CPU.device, 0, 4, Layout(dp=2, tp=2)),
        RankContext(CPU.device, 0, 2, Layout(pp=2)),
    )
    assert [small_batch_sequences(n, 3, sliced, NOISE_RERUN_EVERY) for n in (6, 9, 12, 14)] == [
        None,
        None,
        6,
        None,
    ]
    assert [small_batch_sequences(n, 3, staged, NOISE_RERUN_EVERY) for n in (6, 9, 10)] == [
        None,
        6,
        None,
    ]
    assert small_batch_sequences(12, 3, sliced, NOISE_RERUN_EVERY + 1) is None
    sharded = RankContext(CPU.device, 0, 2, Layout(shard=2))
    for context, expected in (
        (sharded, [None, 3, None]),  # of each micro-batch
        (replace(sharded, reduce_once=True), [None, 6, 5]),  # of all of a process
    ):
        assert [small_batch_sequences(n, 3, context, 1) for n in (1, 12, 10)] == expected


def test_the_loop_logs_the_noise_scale(make_run, train_here):
    # weights that stay, so that every step can be measured again
    run = make_run(micro_batch=1, lr=1e-12)
    lines = _lines(run, train_here)
    train_step, order, by_hand = (
        build_train_step(run, CPU, SILENT),
        ShuffledWindows(open_split(run.data, "train"), 16, run.train.seed),
        NoiseScale(),
    )

    def norm2(first: int, count: int) -> float:
        train_step.optimizer.zero_grad()
        x, y = (torch.from_numpy(part) for part in order.batch(first, count))
        (train_step.model(x, y) / (16 * count)).backward()
        grads = [p.grad for p in train_step.model.parameters()]
        return sum(float(grad.square().sum()) for grad in grads if grad is not None)

    for step, line in enumerate(lines):
        by_hand.add(norm2(4 * step, 1), norm2(4 * step, 4), 16, 64)
        if by_hand.tokens is None:
            assert line["noise_scale"] is None
        else:
            assert line["noise_scale"] == pytest.approx(by_hand.tokens, rel=1e-3)
    assert lines[-1]["noise_scale"] is not None
    assert all(line["noise_scale"] is None for line in _lines(make_run("one part"), train_here))


def _lines(run, train_here):
    train_here(run)
    return read_metrics(run.out)


def test_a_batch_that_follows_the_noise_scale_grows_and_is_exact_on_resume(
    make_run, train_here, monkeypatch
):
    monkeypatch.setattr("gptcli.trainer.schedule.GROW_EVERY_STEPS", 4)
    changes = {
        "follow_noise": True,
        "ramp_from": 32,
        "batch_tokens": 256,
        "micro_batch": 1,
        "tokens": 4096,
        "checkpoint_every": 6,
    }
    whole, parts = make_run("whole", **changes), make_run("parts", **changes)
    lines = _lines(whole, train_here)
    batches = [line["batch_tokens"] for line in lines]
    assert sum(batches) == 4096
    assert batches[:4] == [32] * 4
    assert max(batches) > 32
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        due = (
            line["step"] % 4 == 0
            and line["noise_scale"] is not None
            and line["noise_scale"] >= 2 * line["batch_tokens"]
        )
        if after is not lines[-1]:
            assert after["batch_tokens"] == (
                min(256, 2 * line["batch_tokens"]) if due else line["batch_tokens"]
            ), before

    train(parts, CPU, StopAt(12))
    train_here(replace(parts, resume=True))
    assert (whole.out / "model.safetensors").read_bytes() == (
        parts.out / "model.safetensors"
    ).read_bytes()
    assert [line["noise_scale"] for line in read_metrics(parts.out)] == [
        line["noise_scale"] for line in lines
    ]


WORKER = """
from gptcli.events import SILENT
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.cost.layout import parse_layout
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import apply_ddp, apply_fsdp
from gptcli.trainer import step_statistics
from gptcli.trainer.step import TrainStep

clock = [0.0]
step_statistics.time.perf_counter = lambda: clock[-1]
x = torch.arange(4 * 16).view(4, 16) * 7 % 60
halves = [(part, part.roll(-1, 1)) for part in x.split(2)]

def model():
    made = GPT(ModelConfig(n_layer=3, n_head=2, d_model=15 * 2, n_ctx=16, vocab_size=61))  # nothing here divides evenly
    made.init_weights(0)
    return made

def expected(size):
    "The sum over processes of the mean over parts of `size` sequences."
    total, plain = 0.0, model()
    for half in halves:
        for part in zip(*(rows.split(size) for rows in half)):
            plain.zero_grad()
            (plain(*part) / 32).backward()
            total += sum(p.grad.square().sum().item() for p in plain.parameters()) * size / 2
    return total

for layout in ("dp=2", "shard=2"):
    context = RankContext(torch.device("cpu"), rank, 2, parse_layout(layout))
    for size in (1, 2):  # two micro-batches of the process's own, or one
        laid_out = model()
        if layout == "shard=2":
            apply_fsdp(laid_out, context.build_mesh(), None)
        optimizer = torch.optim.SGD(laid_out.parameters())
        engine = apply_ddp(laid_out, context.layout)
        train_step = TrainStep(laid_out, optimizer, context, engine=engine, clip=1e9, compute_dtype=None, dropout_seed=None)
        own = list(zip(*(rows.split(size) for rows in halves[rank])))
        laid_out.register_forward_hook(lambda *_: clock.append(clock[-1] + rank + 1.0))
        for step in (1, 2):  # the second starts anew
            train_step.small_batch_norm.own_time.start()
            train_step.forward_backward(own, 64, step)
            train_step.optimizer.zero_grad()
            clock.append(clock[-1] + 100)  # as if it waited for the other one
        told = train_step.small_batch_norm.own_time.seconds()
        assert told == (None if layout == "shard=2" else (rank + 1.0) * len(own)), told
        total = context.all_reduce_sum(train_step.small_batch_norm.norm2.clone()).item()
        part = size if layout == "shard=2" else 2  # shards exchange the gradients of every micro-batch
        assert abs(total / expected(part) - 1) < 1e-5, (layout, size, total)
dist.barrier()
"""


def test_ranks_measure_their_gradients_before_the_reduction(tmp_path):
    assert "Warning" not in run_ranks(WORKER, tmp_path)


def calm(guard: SpikeGuard, count: int, seed: int = 0) -> list[str | None]:
    """Losses that fall from 10 to 3 with noise of 0.05."""
    rng = np.random.default_rng(seed)
    return [
        guard.skip_reason(3 + 7 * math.exp(-step / 100) + 0.05 * rng.standard_normal(), 1.0)
        for step in range(count)
    ]


def test_no_update_of_a_calm_run_is_skipped():
    assert not any(calm(SpikeGuard(6.0), 5000))


def test_a_spike_is_skipped_and_does_not_change_the_mean():
    guard = SpikeGuard(6.0)
    calm(guard, 1000)
    mean = guard.state["mean"]
    assert guard.state["mean"] == pytest.approx(3, abs=0.05)
    assert math.sqrt(guard.state["variance"]) == pytest.approx(0.05, rel=0.5)
    for times in (1, 2, 3):
        assert "spike" in (guard.skip_reason(4.0, 1.0) or "")
        assert (guard.state["skipped"], guard.state["in_a_row"], guard.state["mean"]) == (
            times,
            times,
            mean,
        )
    assert guard.skip_reason(3.0, 1.0) is None
    assert (guard.state["skipped"], guard.state["in_a_row"]) == (3, 0)


@pytest.mark.parametrize(
    ("loss", "norm", "said"), [(math.nan, 1.0, "loss is nan"), (3.0, math.inf, "norm is inf")]
)
def test_numbers_that_are_not_finite_are_skipped_from_the_first_step_on(loss, norm, said):
    assert said in (SpikeGuard(0.0).skip_reason(loss, norm) or "")


def test_early_and_small_rises_are_no_spikes_and_0_turns_the_guard_off():
    early, flat, off = SpikeGuard(6.0), SpikeGuard(6.0), SpikeGuard(0.0)
    assert not any(early.skip_reason(loss, 1.0) for loss in [3.0] * (WINDOW_STEPS - 1) + [30.0])
    assert not any(
        flat.skip_reason(loss, 1.0) for loss in [3.0] * 200 + [3.0 + 0.9 * MIN_SPIKE_NATS]
    )
    assert not any(off.skip_reason(loss, 1.0) for loss in [3.0] * 200 + [30.0])


def test_the_state_is_all_that_a_resume_needs():
    whole, first = SpikeGuard(6.0), SpikeGuard(6.0)
    calm(whole, 300)
    calm(first, 200)
    second = SpikeGuard(6.0, dict(first.state))
    rng = np.random.default_rng(0)
    noise = [0.05 * rng.standard_normal() for _ in range(300)]
    for step in range(200, 300):
        second.skip_reason(3 + 7 * math.exp(-step / 100) + noise[step], 1.0)
    assert second.state == whole.state


def test_the_device_decides_like_the_host() -> None:
    """`is_bad` of tensors is `skip_reason` of numbers, before and after spikes can be told."""
    generator = torch.Generator().manual_seed(0)
    guard = SpikeGuard(6.0)
    decisions = set()
    for step in range(400):
        loss = 3 + 0.05 * float(torch.randn((), generator=generator, dtype=torch.float64))
        loss += 40.0 if step % 37 == 36 else 0.0
        loss = math.nan if step % 91 == 90 else loss
        norm = math.inf if step % 53 == 52 else 1.0
        values = torch.tensor([loss, norm], dtype=torch.float64)
        bad = bool(guard.is_bad(values[0], values[1]))
        assert bad == (guard.skip_reason(loss, norm) is not None)
        decisions.add((bad, math.isfinite(loss) and math.isfinite(norm)))
    assert decisions == {(False, True), (True, True), (True, False)}


def test_fused_adamw_leaves_everything_as_it_is_if_told_so() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer: Any = AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.randn(8, 8)
    optimizer.step()
    before = [weight.detach().clone(), *(v.clone() for v in optimizer.state[weight].values())]
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = [weight.detach(), *optimizer.state[weight].values()]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
