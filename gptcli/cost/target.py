"""Models that can be priced: a size of a paper, a custom shape, or another family's count.

A model of another family (BERT, RoBERTa, T5) has no GPT shape. Its parameters and FLOPs are those
of GPT-3's Table D.1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from gptcli.cost.cluster import MAX_GPUS
from gptcli.cost.estimate import Cluster, Estimate, price_paper, price_training
from gptcli.cost.flops import Shape, flops_per_token, layer_matrices
from gptcli.cost.hardware import USER, Assumption, Gpu
from gptcli.cost.options import HardwareOptions, check_limit
from gptcli.cost.planner import Plan
from gptcli.cost.scaling import critical_batch_of
from gptcli.cost.step_time import evidence
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size, size_hint, size_names
from gptcli.numbers import amount, counted, in_bytes
from gptcli.papers.models import GPT_1, MODELS, TABLE_D1, TRAINING, PaperCompute, PaperModel

DEFAULT_SIZE = "gpt3"
LLAMA_CONTEXT, LLAMA_VOCABULARY = 8192, 128_256  # Llama 3's
LLAMA_MULTIPLE = 256  # of the width of a feed-forward layer
FURTHER_GPUS = (16, 64)  # times the fewest: where the time of a run is told too
TOKENS_SOURCE = {
    "GPT-3": "GPT-3, Table 2.1",
    "GPT-2": "assumed: GPT-2 prints none; one pass over its 40 GB of text at 4 characters a token",
    "GPT-1": "assumed: GPT-1 prints none; 100 epochs of 985M words at 1.2 tokens a word",
}
# models known by their counts alone, GPT-1 among them unless its shape is one of the sizes
OTHER_FAMILIES = tuple(
    row
    for row in (GPT_1, *TABLE_D1)
    if not row.size and row.name not in {model.paper for model in MODELS}
)


class Target(NamedTuple):
    """Model to price, with the number of tokens it is usually trained on."""

    name: str
    shape: ModelConfig | PaperCompute | Shape
    """Shape of the model, or the published counts of a model of another family."""
    tokens: int
    """Usual number of training tokens."""
    source: str
    """Source of that number."""
    paper: PaperModel | None = None
    """Paper's size whose batch the recipe takes; None for a shape of no paper."""
    batch_tokens: int | None = None
    """Tokens per step that a run had, before its last remainder; None if it is not a run."""

    @property
    def model(self) -> ModelConfig:
        """Shape of the model. Raises UsageError for a model of another family."""
        if isinstance(self.shape, PaperCompute):
            raise UsageError(
                f"{self.name} is not a GPT: only its parameter count is known",
                hint="layouts, shapes and scaling laws need a GPT size",
            )
        if isinstance(self.shape, Shape):
            raise UsageError(
                "a Llama is priced by its FLOPs alone",
                field="shape",
                code="not_a_gpt",
                hint="plans, serving and scaling laws need a GPT size",
            )
        return self.shape


def find_target(size: str = DEFAULT_SIZE) -> Target:
    """Return a size by its name or alias; case and hyphens do not matter.

    Raises UsageError with the nearest names for an unknown size.
    """
    for name in size_names():
        if bare_name(name) == bare_name(size):
            return _gpt(find_size(name))
    for row in OTHER_FAMILIES:
        if bare_name(row.name) == bare_name(size):
            return _other(row)
    raise UsageError(
        f"unknown size {size!r}",
        field="size",
        code="unknown_size",
        hint=size_hint(size, target_names()),
    )


def all_targets() -> list[Target]:
    """Return every size of the papers: GPT-2's and GPT-3's, GPT-1, and Table D.1's families."""
    return [_gpt(model) for model in MODELS] + [_other(row) for row in OTHER_FAMILIES]


def target_names() -> list[str]:
    """Return the names and aliases that `find_target` takes."""
    return [*size_names(), *(row.name for row in OTHER_FAMILIES)]


def bare_name(name: str) -> str:
    """Return a name as it is compared: lower case, without hyphens."""
    return name.lower().replace("-", "")


def llama_shape(
    *,
    n_layer: int,
    n_head: int,
    d_model: int,
    n_kv_head: int | None = None,
    d_ff: int | None = None,
    n_ctx: int = LLAMA_CONTEXT,
    vocab_size: int = LLAMA_VOCABULARY,
) -> Shape:
    """Return a Llama: gated feed-forward layers, grouped heads, an output head of its own.

    Raises UsageError for heads that do not divide.
    """
    kv = n_head if n_kv_head is None else n_kv_head
    wide = -(-8 * d_model // (3 * LLAMA_MULTIPLE)) * LLAMA_MULTIPLE if d_ff is None else d_ff
    for name, part, whole in (("n_head", n_head, d_model), ("n_kv_head", kv, n_head)):
        if whole % part:
            raise UsageError(
                f"{part} does not divide {whole}",
                field=name,
                code="does_not_divide",
                hint="heads divide the width, and heads of keys and values the heads",
            )
    return Shape(
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        n_kv_head=kv,
        d_ff=wide,
        gated=True,
        tied=False,
        vocab_size=vocab_size,
        n_ctx=n_ctx,
    )


def gpt_alike(shape: Shape) -> ModelConfig:
    """Return the GPT of the same width, heads, context and vocabulary, with about as many
    parameters.
    """
    one = ModelConfig(
        n_layer=1,
        n_head=shape.n_head,
        d_model=shape.d_model,
        n_ctx=shape.n_ctx,
        vocab_size=shape.vocab_size,
        tied=False,
    )
    layers = round(shape.n_layer * layer_matrices(shape) / layer_matrices(one))
    return replace(one, n_layer=max(1, layers))


def batch_of(
    model: ModelConfig, paper: PaperModel | None, given: int | None, trained: int | None = None
) -> tuple[int, str]:
    """Return the tokens of a step, in whole sequences, and where the number is from: `given`, what
    a run `trained` with, the paper's, or that of the GPT-3 model with the nearest parameter count.
    """
    if given is not None:
        tokens, source = given, USER
    elif trained is not None:
        tokens, source = trained, "the run's, by its metrics.jsonl"
    elif paper is not None:
        tokens, source = paper.batch_tokens, f"{paper.paper}, {paper.name}"
    else:
        sizes = [row for row in MODELS if row.paper == "GPT-3"]
        near = min(sizes, key=lambda row: abs(math.log(row.parameters / model.parameters)))
        tokens, source = near.batch_tokens, f"GPT-3's nearest size, {near.name}"
    return max(1, round(tokens / model.n_ctx)) * model.n_ctx, source


def estimate_target(
    target: Target, tokens: int | None, hardware: HardwareOptions, *, published: bool = False
) -> Estimate:
    """Estimate the cost of training `target` on `tokens`, or on its usual number of tokens.

    With `published`, the speed is what was published for the GPU, if it was. Raises UsageError if
    the options contradict each other or the layout does not fit the model.
    """
    check_limit("tokens", tokens)
    n, source = (target.tokens, target.source) if tokens is None else (tokens, USER)
    if isinstance(target.shape, PaperCompute) and hardware.layout is None:
        row = target.shape
        # its speed is that of the nearest GPT
        near = min(
            (paper for paper in MODELS if paper.paper == "GPT-3"),
            key=lambda paper: abs(math.log(paper.parameters / row.parameters)),
        )
        flops = row.flops_per_parameter * row.parameters * n
        alike = ModelConfig.from_paper(near)
        batch, _ = batch_of(alike, near, hardware.batch_tokens)
        cluster, _ = hardware.cluster(alike, flops, batch // alike.n_ctx, published=published)
        if cluster.trainer is not None:
            speed = cluster.throughput
            source_of_speed = f"that of {near.name}, the GPT nearest in parameters: {speed.source}"
            cluster = replace(cluster, throughput=speed._replace(source=source_of_speed))
        return price_paper(row, n, cluster, tokens_source=source)
    if isinstance(target.shape, Shape):
        return estimate_shape(target.shape, n, source, hardware)
    model = target.model
    batch, batch_source = batch_of(model, target.paper, hardware.batch_tokens, target.batch_tokens)
    check_limit("batch_tokens", batch)
    flops = flops_per_token(model, "6N") * n
    cluster, plan = hardware.cluster(model, flops, batch // model.n_ctx, published=published)
    return price_training(
        target.name,
        model,
        n,
        cluster,
        tokens_source=source,
        plan=plan,
        batch_tokens=batch,
        batch_source=batch_source,
        notes=tuple(notes_on(model, n, batch, cluster, plan, gpus_given=hardware.gpus is not None)),
    )


def with_days(estimate: Estimate, hardware: HardwareOptions) -> Estimate:
    """Return an estimate with its days on the fewest GPUs that hold the model, and on 16 and 64 times
    as many, in powers of two; as it is if their number or the speed is given, or one GPU holds it.
    """
    model, plan, speed = estimate.model, estimate.plan, estimate.cluster.trainer
    given = (hardware.gpus, hardware.hours, hardware.layout)
    if model is None or plan is None or speed is None or given != (None, None, None):
        return estimate
    least = plan.layout.processes
    if least == 1 or estimate.batch_tokens is None:
        return estimate
    found = [(least, estimate.gpu_hours / least / 24)]
    for times in FURTHER_GPUS:
        gpus = 1 << (times * least - 1).bit_length()
        if gpus <= MAX_GPUS:
            more = replace(hardware, gpus=gpus)
            sequences = estimate.batch_tokens // model.n_ctx
            cluster, _ = more.cluster(model, estimate.flops, sequences)
            found.append((gpus, estimate.flops / cluster.flops / gpus / 86400))
    return replace(estimate, days_by_gpus=tuple(found))


def estimate_shape(
    shape: Shape, tokens: int, tokens_source: str, hardware: HardwareOptions
) -> Estimate:
    """Estimate the cost of training a model of today's shape by its own 6N FLOPs a token, at the
    FLOP/s of the GPT that is `gpt_alike`.
    """
    alike = gpt_alike(shape)
    batch, batch_source = batch_of(alike, None, hardware.batch_tokens)
    flops = flops_per_token(shape, "6N") * tokens
    cluster, plan = hardware.cluster(alike, flops, batch // alike.n_ctx)
    if cluster.trainer is not None:
        speed = cluster.throughput
        what = (
            f"that of a GPT of {counted(alike.n_layer, 'layer')}, as wide and as large: "
            f"{speed.source}"
        )
        cluster = replace(cluster, throughput=speed._replace(source=what))
    layers = (
        f"{counted(shape.n_layer, 'layer')}, {counted(shape.n_head, 'head')}, {shape.n_kv_head} "
        "of keys and values, "
        f"width {shape.d_model}, {shape.d_ff} inside"
    )
    basis = (
        Assumption("FLOPs", 6, "per parameter and token", f"attention left out; {layers}", ""),
        Assumption("tokens", tokens, "tokens", tokens_source, ""),
        Assumption("batch", batch, "tokens", batch_source, ""),
    )
    return Estimate(
        "llama", flops, cluster, None, shape.parameters, tokens, basis, plan, batch_tokens=batch
    )


def notes_on(
    model: ModelConfig,
    tokens: int,
    batch: int,
    cluster: Cluster,
    plan: Plan | None,
    *,
    gpus_given: bool,
) -> list[str]:
    """Return what a reader of the figures must know; `gpus_given` if their number was given."""
    found = []
    limit = critical_batch_of(model, tokens)
    if limit is not None and batch > limit:
        found.append(
            f"the batch of {counted(batch, 'token', amount)} is above the critical batch of "
            f"{amount(limit)}: "
            "a larger one saves little time"
        )
    if plan is not None and cluster.trainer is not None:
        busy = plan.layout.processes
        if not gpus_given and busy > cluster.count:
            found.append(f"at the speed of {counted(busy, 'GPU')}, the fewest that hold it")
        elif busy < cluster.count:
            found.append(
                f"{cluster.count - busy:,} of {counted(cluster.count, 'GPU')} are idle: the "
                "batch and the "
                f"model divide best over {busy:,}"
            )
    gpu = cluster.gpu
    if gpu is not None and plan is not None and plan.memory.total > gpu.memory_bytes:
        found.insert(
            0,
            f"this layout does not fit: a GPU needs {in_bytes(plan.memory.total)} of the "
            f"{in_bytes(gpu.memory_bytes)} of {gpu.name}; gpt train refuses it",
        )
    if gpu is not None and cluster.trainer is not None and (note := evidence_note(gpu)):
        found.append(note)
    if tokens < batch:
        found.append("the run is shorter than one step")
    return found


def evidence_note(gpu: Gpu) -> str | None:
    """Return whose speed is assumed for a GPU of which no published run was compared."""
    match evidence(gpu):
        case "family":
            return (
                f"no published run on {gpu.name} was compared: its share of the peak is that of "
                f"other {gpu.family.title()} GPUs"
            )
        case "none":
            return (
                f"no published run on {gpu.name} or its family was compared: its share of the "
                "peak is the mean of the families that were"
            )
    return None


def _gpt(model: PaperModel) -> Target:
    return Target(
        model.name,
        ModelConfig.from_paper(model),
        TRAINING[model.paper].tokens,
        TOKENS_SOURCE[model.paper],
        model,
    )


def _other(row: PaperCompute) -> Target:
    return Target(row.name, row, round(row.tokens), row.source)
