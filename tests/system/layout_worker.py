"""Four processes that run every layout of 1, 2 and 4 processes, for test_layouts.py. They are forks
of one that has imported everything.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor

from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import SCHEDULES, PipelineSchedule
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.transformer import GPT
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.checkpoint import load_weights_, plain_named_parameters
from gptcli.trainer.config import Run, TrainConfig
from gptcli.trainer.optimizer import averaged_weights, update_average
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.schedule import Schedule
from gptcli.trainer.step import micro_batch_sources, micro_batches
from gptcli.trainer.step_statistics import NOISE_RERUN_EVERY, small_batch_sequences
from tests.extent import WHOLE
from tests.fork_server import FORKS

PROCESSES = 4
STEPS, SEQUENCES, N_CTX, EOT = 20 if WHOLE else 10, 4, 8, 0
# no layout divides either evenly: GPT-2's vocabulary, and a smaller one
VOCAB_SIZE = {"dense": 50257, "banded": 1009}
COMPILE = torch.compile
# layouts under which the part of the noise scale takes a pass of its own
SLICED = {2: ["tp=2", "pp=2"], 4: ["shard=2,tp=2", "tp=2,pp=2", "dp=2,pp=2"]}
# fields that identify a curve, with defaults; muP at its own width changes nothing
MODEL = {
    "attention": "banded",
    "n_layer": 2,
    "tied": True,
    "precision": "fp32",
    "mup": 16,
    "document_mask": False,
    "optimizer": "adamw",
    "ema": 0.0,
    "weight_decay_schedule": "constant",
    "end_weight_decay": None,
    "beta2_schedule": "constant",
    "end_beta2": None,
}


class Tokens:
    """Learnable data: 16 windows over a whole vocabulary, repeated.

    Every second window contains an end-of-text.
    """

    n_ctx = N_CTX

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        windows = np.random.default_rng(0).integers(0, self.vocab_size, size=(16, self.n_ctx + 1))[
            np.arange(first, first + count) % 16
        ]
        windows[(np.arange(first, first + count) % 2 == 0), 3] = EOT
        return windows[:, :-1], windows[:, 1:]

    def owners(self, first: int, count: int) -> np.ndarray:
        return np.arange(first, first + count) % 3 // 2  # as if every third came from a source


def make_run(
    layout: str, *, attention: str = "banded", tied: bool = True, n_layer: int = 2, **changes: Any
) -> Run:
    n_tokens, laid_out = SEQUENCES * N_CTX, parse_layout(layout)
    # at least two micro-batches, so that gradients accumulate; DTensor is slow
    at_least = max(1 if laid_out.tp > 1 and laid_out.processes > 2 else 2, laid_out.pp)
    micro_batch = max(1, SEQUENCES // laid_out.replicas // at_least)
    config: dict[str, Any] = {
        "tokens": STEPS * n_tokens, "batch_tokens": n_tokens, "micro_batch": micro_batch,
        "lr": 3e-2, "min_lr_ratio": 0.1, "warmup_tokens": 0, "decay_tokens": 1,
        "ramp_tokens": 0, "ramp_from": 0, "seed": 1,
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip": 1.0,
        "layout": layout, "precision": "fp32", "compile": False,
        "checkpoint_every": 7, "eval_every": 5, "eval_tokens": 128, "keep": 2,
    }  # fmt: skip
    train = TrainConfig(**{**config, **changes})
    model = ModelConfig(
        n_layer=n_layer,
        n_head=4,
        d_model=16,
        n_ctx=N_CTX,
        vocab_size=VOCAB_SIZE[attention],
        attention=attention,
        band=3,
        tied=tied,
    )
    fingerprints: dict[str, Any] = {"data_sha256": "", "tokenizer_sha256": "", "eot_id": EOT}
    return Run(
        name="",
        out=Path(),
        data=Path(),
        model=model,
        train=train,
        must_compile=train.compile,
        **fingerprints,
    )


def curve(run: Run, rank: int, world: int, steps: int) -> dict[str, object]:
    """Return losses and gradient norms of a run's steps, and the final loss on unseen windows."""
    context = RankContext(torch.device("cpu"), rank, world, parse_layout(run.train.layout))
    train_step, order = build_train_step(run, context, SILENT), Tokens(run.model.vocab_size)
    train_step.observe_sources(2)
    assert train_step.source_losses is not None
    losses, norms, by_source = [], [], []
    for step in range(steps):
        batches = micro_batches(order, step * SEQUENCES, SEQUENCES, run.train.micro_batch, context)
        places = (step * SEQUENCES, SEQUENCES, run.train.micro_batch, context)
        train_step.source_losses.begin(micro_batch_sources(order, *places))
        loss = train_step.forward_backward(batches, run.train.batch_tokens, step)
        by_source.append(context.all_reduce_sum(train_step.source_losses.end()).tolist())
        norms.append(train_step.clip_gradients().item())
        rates = Schedule(run.train, N_CTX).rates(run.train.batch_tokens * (step + 1))
        train_step.update(replace(rates, lr=run.train.lr))
        if run.train.ema:
            update_average(train_step.optimizer, run.train.ema, step + 1)
        train_step.optimizer.zero_grad()
        losses.append(context.all_reduce_sum(loss).item() / run.train.batch_tokens)
    with averaged_weights(train_step.model, train_step.optimizer):
        unseen = train_step.eval_loss(
            micro_batches(order, 10, SEQUENCES, run.train.micro_batch, context)
        )
    return {
        "losses": losses,
        "by_source": by_source,
        "norms": norms,
        "unseen": context.all_reduce_sum(unseen).item() / run.train.batch_tokens,
    }


def cases(world: int) -> list[dict[str, Any]]:
    """Return every product of the axes, with every schedule if it has stages, for banded models,
    which alternate dense and banded layers.

    Two processes also run dense models, some with an untied head, document masks and, for a few
    steps, recomputation, precisions, muP and compilation.
    """
    beside_the_papers = {
        "attention": "banded",
        "optimizer": "muon",
        "ema": 0.8,
        "weight_decay_schedule": "linear",
        "end_weight_decay": 0.3,
        "beta2_schedule": "cosine",
        "end_beta2": 0.8,
        "n_layer": 2,
        "mup": None,
    }
    found: list[dict[str, Any]] = []
    divisors = [n for n in (1, 2, 4) if world % n == 0]
    for dp, shard, tp, pp in itertools.product(divisors, repeat=4):
        if dp * shard * tp * pp != world:
            continue
        case: dict[str, Any] = {"layout": str(Layout(dp, shard, tp, pp))}
        if world == 2:
            found.append(
                {**case, "attention": "dense", "n_layer": 5 if pp > 1 else 2, "tied": dp == 1}
            )
        schedules: list[PipelineSchedule] = list(SCHEDULES) if pp > 1 else ["1f1b"]
        for schedule in schedules:
            layers = 2 if pp == 1 else 9 if SCHEDULES[schedule] * pp > 5 else 5
            found.append(
                {**case, "attention": "banded", "pipeline_schedule": schedule, "n_layer": layers}
            )
    if world == 4:
        found.append({**beside_the_papers, "layout": "shard=2,tp=2"})
    if world == 2:
        found += [
            {**beside_the_papers, "layout": layout}
            for layout in ("dp=2", "shard=2", "tp=2", "pp=2")
        ]
        banded: dict[str, Any] = {"attention": "banded", "n_layer": 2, "steps": 6}
        found += [
            {**banded, "layout": layout, "recompute": how}
            for layout in ("tp=2", "shard=2", "pp=2")
            for how in ("selective", "full")
        ]
        found += [
            {**banded, "layout": layout, "precision": kind}
            for layout in ("dp=2", "tp=2", "shard=2", "pp=2")
            for kind in ("bf16", "fp16")
        ]
        found += [
            {**banded, "layout": layout, "mup": 4} for layout in ("dp=2", "shard=2", "tp=2", "pp=2")
        ]
        found += [
            {"attention": "banded", "n_layer": 5, "document_mask": True, **case}
            for case in [
                *({"layout": layout} for layout in ("dp=2", "shard=2", "tp=2")),
                *({"layout": "pp=2", "pipeline_schedule": name} for name in SCHEDULES),
            ]
        ]
        found += [
            {**banded, "layout": layout, "compile": "aot_eager"}
            for layout in ("dp=2", "shard=2", "tp=2", "pp=2")
        ]
        if has_compiler():  # aot_eager above needs none
            found += [
                {
                    **banded,
                    "attention": "dense",
                    "layout": "tp=2",
                    "compile": "inductor",
                    "precision": "bf16",
                }
            ]
    return found


def alone() -> list[dict[str, Any]]:
    """Return the same models on one process."""
    models = {model_of(case) for world in (2, 4) for case in cases(world)}
    return [
        {"layout": "dp=1", **dict(zip(MODEL, values, strict=True))}
        for values in sorted(models, key=str)
    ]


def model_of(case: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two cases must share to have the same curve."""
    return tuple(case.get(name, default) for name, default in MODEL.items())


def taken(layout: str, rank: int, folder: Path) -> dict[str, Any]:
    """Load a process's part of the model in `folder`; return the parameters that differ."""
    run = make_run(layout, n_layer=5)
    parameters = plain_named_parameters(
        build_train_step(
            run, RankContext(torch.device("cpu"), rank, 2, parse_layout(layout)), SILENT
        ).model
    )
    load_weights_(folder, parameters)
    there = load_model(folder).state_dict()
    whole = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in parameters.items()
    }
    return {
        "layout": layout,
        "wrong": [name for name, value in whole.items() if not torch.equal(value, there[name])],
    }


def part_norm(layout: str, rank: int, world: int) -> dict[str, Any]:
    """Return the gradient norms that the noise scale measures, of its part of the batch and of the
    whole, under `layout` and computed by one process.
    """
    context = RankContext(torch.device("cpu"), rank, world, parse_layout(layout))
    run = make_run(layout, micro_batch=1, batch_tokens=2 * SEQUENCES * N_CTX)
    held = small_batch_sequences(2 * SEQUENCES, 1, context, NOISE_RERUN_EVERY)
    assert held
    train_step, order, n_tokens = (
        build_train_step(run, context, SILENT),
        Tokens(run.model.vocab_size),
        run.train.batch_tokens,
    )
    train_step.forward_backward(
        micro_batches(order, 0, 2 * SEQUENCES, 1, context), n_tokens, NOISE_RERUN_EVERY
    )
    part, whole = (
        train_step.small_batch_norm.norm2.sqrt().item(),
        train_step.clip_gradients().item(),
    )
    by_hand = build_train_step(
        make_run("dp=1", micro_batch=1, batch_tokens=n_tokens),
        RankContext(torch.device("cpu")),
        SILENT,
    )
    share = 2 * SEQUENCES // context.replicas
    mine = [
        sequence
        for replica in range(context.replicas)
        for sequence in range(replica * share, replica * share + held // context.replicas)
    ]
    plain = []
    for sequences in (mine, range(2 * SEQUENCES)):
        batches = [
            batch
            for first in sequences
            for batch in micro_batches(order, first, 1, 1, by_hand.context)
        ]
        by_hand.forward_backward(batches, n_tokens, 1)
        plain.append(by_hand.clip_gradients().item())
        by_hand.optimizer.zero_grad()
    return {"layout": layout, "held": held, "sliced": [part, whole], "plain": plain}


def work(rank: int, folder: Path) -> None:
    """Run all cases of one process, and write their results to `folder`."""
    torch.set_num_threads(1)
    inductor.compile_threads = 1  # a process to compile one kernel would import torch anew
    results = []
    if rank == 0:
        model = GPT(make_run("dp=1", n_layer=5).model)
        model.init_weights(7)
        save_model(folder / "model", model, model.config)
    for world in (1, 2, 4):
        if rank >= world:
            continue
        if world > 1:
            dist.init_process_group(
                "gloo",
                store=FileStore(str(folder / f"store-{world}"), world),
                rank=rank,
                world_size=world,
            )
        for case in cases(world) if world > 1 else alone():
            changes = {name: value for name, value in case.items() if name != "steps"}
            if "compile" in case:
                torch._dynamo.reset()  # drops what earlier cases compiled
                backend = changes.pop("compile")
                torch.compile = partial(COMPILE, backend=backend)
                changes["compile"] = True
            results.append(
                {
                    **case,
                    "model": model_of(case),
                    **curve(make_run(**changes), rank, world, case.get("steps", STEPS)),
                }
            )
        if world == 2:
            dist.barrier()  # the model is there
            found = [
                taken(layout, rank, folder / "model")
                for layout in ("dp=2", "shard=2", "tp=2", "pp=2")
            ]
            (folder / f"taken-{rank}.json").write_text(json.dumps(found))
        found = [part_norm(layout, rank, world) for layout in SLICED.get(world, [])]
        (folder / f"parts-{world}-{rank}.json").write_text(json.dumps(found))
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))


def main(folder: Path) -> int:
    """Run all processes; as soon as one fails, end the others and return 1."""
    context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    while left:
        for sentinel in wait(list(left)):
            ended = left.pop(sentinel)
            ended.join()
            if ended.exitcode:
                for process in left.values():
                    process.kill()
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
