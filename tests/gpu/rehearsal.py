"""Work that a GPU would be given, as JSON: `python -m tests.gpu.rehearsal step '{"size": "gpt2"}'`.

The fake GPU must be there before torch is, so this is a program of its own. With the word `serve`
it answers requests of the tests, each in a fork: the libraries, which take longer to import than
many a rehearsal, are imported once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tests.gpu import fake_gpu

VOCABULARY = 50257
ATTENTION = re.compile(r"attention")


def step(
    *,
    size: str = "gpt2",
    n_layer: int = 2,
    micro_batch: int = 2,
    layout: str = "dp=1",
    attention: str = "dense",
    options: dict[str, Any] | None = None,
    architecture: int = 90,
    resources: str | None = None,
    has_compiler: bool = True,
) -> dict[str, Any]:
    """Warm up as the trainer does, then take a step and an evaluation.

    `options` are fields of the training configuration. `resources` is a pattern: the generated
    kernels whose names match are compiled to machine code. Without `has_compiler` no program is
    found on the machine.
    """
    fake_gpu.prepare(architecture, gpus=1)
    if not has_compiler:
        os.environ["PATH"] = os.environ["CC"] = ""
    import torch
    from torch._dynamo.utils import counters

    from gptcli.cost.layout import parse_layout
    from gptcli.distributed.context import RankContext
    from gptcli.events import Events
    from gptcli.model.config import ModelConfig, find_size
    from gptcli.trainer import parallelize
    from gptcli.trainer.config import Run, TrainConfig, from_values
    from gptcli.trainer.recipe import paper_recipe
    from gptcli.trainer.schedule import Rates

    place = parse_layout(layout)
    if place.processes > 1:
        join_fake_group(place.processes)
    _put_parameters_on_the_gpu(parallelize)
    model = ModelConfig.from_paper(
        find_size(size), vocab_size=VOCABULARY, attention=attention, n_layer=n_layer
    )
    values = {**paper_recipe(find_size(size)), "micro_batch": micro_batch, "layout": layout,
              "precision": "bf16", "compile": True, **(options or {})}  # fmt: skip
    run = Run(
        name="rehearsal", out=Path(), data=Path(), model=model, data_sha256="", eot_id=50256,
        train=from_values(TrainConfig, values), tokenizer_sha256="", must_compile=True,
    )  # fmt: skip
    context = RankContext(torch.device("cuda", 0), 0, place.processes, place)
    mesh = context.build_mesh()  # its coordinates are numbers, which fake tensors do not have
    setattr(RankContext, "build_mesh", lambda _: mesh)  # noqa: B010  it is a class of slots
    warnings: list[str] = []
    events = Events()
    events.warn = warnings.append  # type: ignore[method-assign,assignment]
    with fake_gpu.fake_tensors():
        train_step = parallelize.build_train_step(run, context, events)
        gathered = gathered_parameters(train_step.model) if place.shard > 1 else []
        compiled = len(fake_gpu.RECORD.kernels)
        graphs = counters["aot_autograd"]["total"]
        tokens = torch.zeros(micro_batch, model.n_ctx, dtype=torch.long, device="cuda")
        batches = [(tokens, tokens)]
        with fake_gpu.counting() as record:
            train_step.forward_backward(
                batches * 2, batch_tokens=2 * micro_batch * model.n_ctx, step=1
            )
            first = summary(record)
        stays = torch.zeros((), dtype=torch.bool, device="cuda")
        train_step.update_unless(stays, Rates(1e-3))  # creates the optimizer's state
        train_step.optimizer.zero_grad()
        with fake_gpu.counting() as record:
            train_step.forward_backward(batches, batch_tokens=micro_batch * model.n_ctx, step=2)
            train_step.clip_gradients()
            train_step.update_unless(stays, Rates(1e-3))
            whole = summary(record)
            products = list(record.products)
        with fake_gpu.counting() as record:
            train_step.eval_loss(batches)
            evaluation = summary(record)
    return {
        "warnings": warnings,
        "kernels": compiled,
        "graphs": graphs,
        "gathered": gathered,
        "graph_breaks": sum(counters["graph_break"].values()),
        "compiled_later": len(fake_gpu.RECORD.kernels) - compiled,
        "two_micro_batches": first,
        "step": whole,
        "evaluation": evaluation,
        "misaligned": sorted(
            {str(p) for p in products if not all(o.is_aligned for o in p.operands)}
        ),
        "resources": list(machine_code(resources)) if resources else [],
    }


def gathered_parameters(model: Any) -> list[str]:
    """Return the names of parameters that are not those of a shard."""
    from torch.distributed.tensor import DTensor

    return [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]


def summary(record: fake_gpu.Record) -> dict[str, Any]:
    """Sum launches and bytes by kind: products, attention, and all the rest."""
    total: dict[str, Counter[str]] = {"launches": Counter(), "bytes": Counter(), "flops": Counter()}
    for name, count in record.launches.items():
        kind = "other"
        if name in fake_gpu.PRODUCTS:
            kind = "products"
        elif ATTENTION.search(name):
            kind = "attention"
        elif name.startswith(("all_", "reduce_", "_all", "_reduce", "broadcast", "allreduce_")):
            kind = "collectives"
        total["launches"][kind] += count
        total["bytes"][kind] += record.moved[name]
        total["flops"][kind] += record.flops[name]
    return {
        **{name: dict(counter) for name, counter in total.items()},
        "names": {
            name: [count, record.moved[name]] for name, count in record.launches.most_common()
        },
    }


def machine_code(pattern: str) -> Iterator[dict[str, Any]]:
    """Compile the generated kernels whose names match to machine code, and yield what they take."""
    import torch._inductor.config as config
    from torch._inductor.codecache import PyCodeCache

    config.use_static_triton_launcher = False
    for kernel in {kernel.source: kernel for kernel in fake_gpu.RECORD.kernels}.values():
        if not re.search(pattern, kernel.name):
            continue
        tuner = getattr(PyCodeCache.load(kernel.source), kernel.name)
        tuner.precompile(warm_cache_only=True)
        for result in tuner.compile_results:
            yield {"name": kernel.name, **fake_gpu.used_resources(result.kernel)}


def join_fake_group(processes: int) -> None:
    """Join a process group in which the others do not exist."""
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.distributed.device_mesh import DeviceMesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    make = DeviceMesh.__init__

    def with_numbers(self: DeviceMesh, *args: Any, **options: Any) -> None:
        with unset_fake_temporarily():  # a mesh of a mesh computes with its ranks
            make(self, *args, **options)

    DeviceMesh.__init__ = with_numbers  # type: ignore[method-assign]


def _put_parameters_on_the_gpu(parallelize: Any) -> None:
    """Make the trainer create parameters on the fake GPU instead of on "meta".

    Fake tensors cannot move from one to the other in place.
    """
    import torch

    parallelize.without_values = lambda: torch.device("cuda", 0)
    parallelize.materialize_ = lambda *_: None
    parallelize.compiler_problem = lambda *_: None  # the answer of a reduction is a number


def ddp() -> dict[str, Any]:
    """Count the graphs of a block under DDP, whose buckets are smaller than its parameters.

    On the CPU: DDP reads the parameters that fake tensors do not have.
    """
    import torch
    from torch._dynamo.utils import counters

    from gptcli.cost.layout import parse_layout
    from gptcli.distributed.fsdp import apply_ddp
    from gptcli.model.config import ModelConfig, find_size
    from gptcli.model.transformer import GPT

    join_fake_group(2)
    model = GPT(ModelConfig.from_paper(find_size("gpt2"), vocab_size=64, n_layer=1, n_ctx=16))
    for block in model.h.children():
        block.forward = torch.compile(block.forward, dynamic=False, backend="aot_eager")
    tokens = torch.zeros(1, 16, dtype=torch.long)
    apply_ddp(model, parse_layout("dp=2"))(tokens, tokens).backward()
    return {"graphs": counters["aot_autograd"]["total"]}


def finetune() -> dict[str, Any]:
    """Take a step of fine-tuning GPT-2 124M on a task of two labels."""
    fake_gpu.prepare()
    import torch

    from gptcli.distributed.context import RankContext
    from gptcli.finetune import run
    from gptcli.finetune.model import GPTClassifier, make_optimizer
    from gptcli.finetune.task import Batch, FinetuneTask
    from gptcli.model.config import ModelConfig, find_size
    from gptcli.model.transformer import GPT

    task = FinetuneTask(
        kind="classification", train="", validation="", labels=["no", "yes"], fields={},
        lm_weight=0.5,
    )  # fmt: skip
    # numbers that fake tensors do not have: lengths, and the losses of a step
    vars(run)["_local_batch"] = lambda batch, _: (batch, 1.0)
    setattr(RankContext, "all_reduce_sum", lambda *_: SimpleNamespace(tolist=list))  # noqa: B010
    config = ModelConfig.from_paper(find_size("gpt2"), vocab_size=VOCABULARY, n_layer=2)
    with fake_gpu.fake_tensors():
        with torch.device("cuda"):
            model = GPTClassifier(GPT(config), task.kind, 2)
            ids, labels = torch.zeros(8, 1, 64).long(), torch.zeros(8).long()
            batch = Batch(ids, ids[..., 0], labels)
        optimizer = make_optimizer(model, 1e-4, 0.01)
        context = RankContext(torch.device("cuda", 0))
        with fake_gpu.counting() as record:
            run._update(model, batch, optimizer, task, 1e-4, context, False)
            return {
                "step": summary(record),
                "item_bytes": sorted({o.item_bytes for p in record.products for o in p.operands}),
            }


def decode(
    *, quantize: str = "none", rows: int = 1, compiled: bool = False, n_layer: int = 12
) -> dict[str, Any]:
    """Run the pass of one token a row that a GPU records, of GPT-2 124M in bf16."""
    fake_gpu.prepare()
    import torch
    from torch._dynamo.utils import counters

    from gptcli.kernels import decode_triton
    from gptcli.model.config import ModelConfig, find_size
    from gptcli.model.transformer import GPT
    from gptcli.sampling.engine import Engine
    from gptcli.sampling.load import prepare_for_inference

    resources: list[dict[str, Any]] = []
    start = decode_triton.start

    def counted(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
        built = start(name, grid, *arguments, **constants)
        resources.append({"name": name, **fake_gpu.used_resources(built)})
        operands = [value for value in arguments if isinstance(value, torch.Tensor)]
        fake_gpu.RECORD.launch(f"triton_{name}", fake_gpu.unique_bytes(operands))

    decode_triton.start = counted
    config = ModelConfig.from_paper(find_size("gpt2"), vocab_size=VOCABULARY, n_layer=n_layer)
    with fake_gpu.fake_tensors(), torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = GPT(config).eval()
        torch.set_default_dtype(torch.float32)
        model = prepare_for_inference(model, quantize)  # type: ignore[arg-type]
        engine = Engine(model, rows, compiled=compiled or None)
        assert engine._fixed is not None
        lengths = [300] * rows
        engine.cache.set_positions(lengths, 1, 512)
        engine._fixed.forward(engine._fixed.idx_B1)  # compiles
        with fake_gpu.counting() as record:
            engine._fixed.forward(engine._fixed.idx_B1)
            report = summary(record)
    weights = sum(
        tensor.numel() * tensor.element_size()
        for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    )
    return {
        "pass": report,
        "weights": weights,
        "cache_of_a_layer": 2 * rows * 512 * config.d_model * 2,
        "graph_breaks": sum(counters["graph_break"].values()),
        "resources": [dict(row) for row in {tuple(r.items()) for r in resources}],
    }


def training_kernels(*, architecture: int = 90, d_model: int = 768) -> dict[str, Any]:
    """Compile the Triton kernels of a training step in bf16 to machine code, and say what they
    take.
    """
    fake_gpu.prepare(architecture)
    import torch

    from gptcli.kernels import head_triton, training_triton
    from gptcli.model.loss import IGNORE

    fp32, bf16, N, C, D = torch.float32, torch.bfloat16, 65_536, d_model, 64
    block = 1 << (C - 1).bit_length()
    row = {"BLOCK_C": block, "num_warps": training_triton.row_warps(block)}
    tile = {"ROWS": training_triton.TILE_ROWS}
    columns = {**tile, "COLUMNS": training_triton.TILE_COLUMNS}
    strides = [C * 1024, D, C] * 3
    made: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {}
    kernels = training_triton.kernels()
    for branch in (bf16, None):
        made[f"norm, {branch}"] = (
            kernels["norm"],
            [fp32, branch, branch and fp32, fp32, fp32, fp32, bf16, fp32, N, C, 1e-5],
            {**row, "HAS_BRANCH": branch is not None},
        )
        made[f"norm_backward, {branch}"] = (
            kernels["norm_backward"], [bf16, fp32, fp32, fp32, fp32, fp32, bf16, fp32, N, C],
            {**row, "HAS_BRANCH": branch is not None, "HAS_SUM": True},
        )  # fmt: skip
    made["gelu_backward"] = (
        kernels["columns"], [bf16, bf16, bf16, fp32, N, 4 * C], {**columns, "GELU": True}
    )  # fmt: skip
    made["round_and_sum"] = (
        kernels["columns"], [fp32, None, bf16, fp32, N, C], {**columns, "GELU": False}
    )  # fmt: skip
    made["pack"] = (
        kernels["pack"], [bf16, bf16, bf16, bf16, fp32, N, 1024, C // D, D, *strides],
        {**tile, "BLOCK_D": D},
    )  # fmt: skip
    made["loss"] = (
        head_triton.kernel(), [bf16, torch.int64, fp32, fp32, VOCABULARY, 50_304],
        {"IGNORE": IGNORE, "BLOCK": head_triton.BLOCK, "num_warps": head_triton.WARPS},
    )  # fmt: skip
    resources = [
        {"name": name, **fake_gpu.used_resources(kernel.warmup(*words, grid=(1,), **constants))}
        for name, (kernel, words, constants) in made.items()
    ]
    return {"resources": resources}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step,
    "ddp": ddp,
    "finetune": finetune,
    "decode": decode,
    "training_kernels": training_kernels,
}


def serve() -> None:
    """Answer each line of stdin, [command, options, path], with a line: 0 if the report is at path.

    Otherwise the traceback is there.
    """
    fake_gpu.prepare()
    for line in sys.stdin:
        command, options, path = json.loads(line)
        if (child := os.fork()) == 0:
            _answer(command, options, Path(path))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # freeing the libraries takes seconds


def _answer(command: str, options: dict[str, Any], path: Path) -> NoReturn:
    """Write the report of a command, or a traceback, and end this fork."""
    os.dup2(2, 1)  # what a library prints is no answer
    failed = 1
    try:
        path.write_text(json.dumps(COMMANDS[command](**options)))
        failed = 0
    except BaseException:
        path.write_text(traceback.format_exc())
    finally:
        os._exit(failed)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        print(json.dumps(COMMANDS[sys.argv[1]](**json.loads(sys.argv[2]))))
